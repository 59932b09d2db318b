"""Many small nets at once: ``fastbptt.fleet`` beside jax.vmap of a jitted scan, and a loop over the nets.

    python benchmarks/bench_fleet.py

Forward and backward, float32. Every contestant is given the same numbers, and the gradients must agree. JAX is the better of ``unroll`` 1
and 4. Without JAX its columns are left out.
"""

import argparse
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from peers import THREADS, disagreement, jax_cells
from timing import alternate, medians, processor

import fastbptt
from fastbptt import cells, fleet


class Case(NamedTuple):
    """K nets."""

    cell: str
    K: int
    T: int
    B: int
    I: int
    H: int

    @property
    def name(self):
        return f"{self.K} {self.cell.upper()}s, H={self.H}, I={self.I}, T={self.T}, B={self.B}"


CASES = [
    Case("gru", 165, 150, 32, 3, 2),
    Case("lstm", 1000, 50, 8, 16, 16),
    Case("lstm", 165, 150, 32, 3, 2),
    Case("rnn", 165, 150, 32, 3, 2),
    Case("gru", 256, 100, 8, 8, 8),
    Case("gru", 64, 100, 8, 32, 32),
]


def arrays_of(case, seed=0):
    """x, d_out, state, and the weights."""
    rng, (_, K, T, B, I, H) = np.random.default_rng(seed), case
    row = cells.CELLS[case.cell]
    N = len(row.gates) * H

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal((K, *shape))).astype(np.float32)

    weights = normal(N, I, scale=I**-0.5), normal(N, H, scale=0.9 * H**-0.5), normal(N, scale=0.3), normal(N, scale=0.3)
    return normal(T, B, I), normal(T, B, H), row.state([normal(B, H) for _ in row.states]), weights


def ours(case, x, d_out, state, weights):
    forward, backward = getattr(fleet, f"{case.cell}_forward"), getattr(fleet, f"{case.cell}_backward")

    def run():
        out, _, tape = forward(x, state, *weights)
        return [out, *backward(tape, d_out)]

    return run


def one_by_one(case, x, d_out, state, weights):
    forward, backward = getattr(fastbptt, f"{case.cell}_forward"), getattr(fastbptt, f"{case.cell}_backward")
    pair = isinstance(state, tuple)

    def run():
        results = []
        for k in range(case.K):
            out, _, tape = forward(x[k], tuple(part[k] for part in state) if pair else state[k], *[weight[k] for weight in weights])
            results.append((out, *backward(tape, d_out[k])))
        return results

    return run


def jaxs(case, x, d_out, state, weights, unroll):
    import jax

    jnp, cell, after = jax.numpy, jax_cells(jax)["tanh" if case.cell == "rnn" else case.cell], cells.CELLS[case.cell].reset_after
    state = state if isinstance(state, tuple) else (state,)

    def layer(x, state, w_ih, w_hh, b_ih, b_hh):
        p, b = (x @ w_ih.T + b_ih, b_hh) if after else (x @ w_ih.T + (b_ih + b_hh), 0)

        def step(state, p_t):
            state = cell(p_t, state[0] @ w_hh.T + b, *state)
            return state, state[0]

        return jax.lax.scan(step, state, p, unroll=unroll)[1]

    def one_net(d_out, *inputs):
        out, pull_back = jax.vjp(layer, *inputs)
        return out, pull_back(d_out)

    all_nets = jax.jit(jax.vmap(one_net))
    given = jax.tree.map(jnp.asarray, (d_out, x, state, *weights))
    return lambda: jax.tree.leaves(jax.block_until_ready(all_nets(*given)))


def flat(results):
    return [part for result in results if result is not None for part in (result if isinstance(result, tuple) else (result,))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="which of the cases, by number")
    options = parser.parse_args()
    print(f"{processor()}, {THREADS} threads, float32, forward + backward, medians of {options.rounds} rounds")
    print("| nets | fastbptt.fleet, ms | one by one | jax.vmap |\n| :-- | --: | --: | --: |")
    for case in [CASES[i] for i in options.cases]:
        arrays = arrays_of(case)
        calls = {"fleet": ours(case, *arrays), "one by one": one_by_one(case, *arrays)}
        if find_spec("jax"):
            calls |= {f"jax {unroll}": jaxs(case, *arrays, unroll) for unroll in (1, 4)}
            assert disagreement(flat(calls["fleet"]()), calls["jax 1"]()) < 1e-3
        times = medians(alternate(calls, options.rounds, least=0.01, pause=0.01))
        jax = min((time for name, time in times.items() if name.startswith("jax")), default=None)
        ratios = [f"{time / times['fleet']:.2f}x" for time in (times["one by one"], *([jax] if jax else []))]
        print(f"| {case.name} | {1e3 * times['fleet']:.1f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
