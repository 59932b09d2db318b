"""`fastbptt.jax` beside our own functions and `lax.scan`.

    python benchmarks/bench_jax.py

First what a call costs inside a compiled program: a loop of many small calls, each from the state that the one before has left, beside the
same loop of our function in Python. Then forward + backward passes, compiled, beside the better `lax.scan` (unroll 1 and 4): how many times
as long scan takes, and what part of our own functions' time ours takes. All take turns; on a busy machine the least times say most.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import peers
from grid import Case
from timing import alternate, median, processor

import fastbptt
import fastbptt.jax

jax.config.update("jax_enable_x64", True)
LOOPS = 500
SMALL = [("rnn", 1, 1, 4, 4), ("gru", 1, 1, 4, 4), ("lstm", 1, 1, 4, 4), ("lstm", 10, 4, 8, 16)]  # T, B, I, H
PASSES = [(cell, dtype, B, H) for cell in ("gru", "lstm") for dtype in ("float64", "float32") for B, H in ((1, 32), (16, 128))]


def arrays(cell, T, B, I, H, dtype):
    rng = np.random.default_rng(0)
    N = {"rnn": 1, "gru": 3, "lstm": 4}[cell] * H
    h0 = np.zeros((B, H), dtype)
    shapes = ((N, I), (N, H), (N,), (N,))
    weights = [(rng.standard_normal(shape) / H**0.5).astype(dtype) for shape in shapes]
    return rng.standard_normal((T, B, I)).astype(dtype), (h0, h0) if cell == "lstm" else h0, weights


def many_small_calls(cell, *sizes):
    x, state, weights = arrays(cell, *sizes, np.float32)
    run, ours = getattr(fastbptt.jax, cell), getattr(fastbptt, f"{cell}_forward")

    def program(body):
        loop = jax.jit(lambda state: jax.lax.fori_loop(0, LOOPS, lambda _, state: body(state), state))
        return lambda: jax.block_until_ready(loop(state))

    def in_python():
        now = state
        for _ in range(LOOPS):
            _, now, _ = ours(x, now, *weights, tape=False)

    return {
        "JAX": program(lambda state: run(x, state, *weights)[1]),
        "nothing": program(lambda state: jax.tree.map(lambda array: array * 0.5, state)),
        "functions": in_python,
    }


def passes(cell, dtype, B, H):
    case = Case(cell, dtype, 100, B, H, H)
    x, state, weights = arrays(cell, 100, B, H, H, dtype)
    d_out = jnp.ones((100, B, H), dtype)

    @jax.jit
    def both(x, weights):
        out, back = jax.vjp(lambda x, weights: getattr(fastbptt.jax, cell)(x, state, *weights)[0], x, weights)
        return out, back(d_out)

    def functions():
        _, _, tape = getattr(fastbptt, f"{cell}_forward")(x, state, *weights)
        getattr(fastbptt, f"{cell}_backward")(tape, np.asarray(d_out))

    calls = {"JAX": lambda: jax.block_until_ready(both(x, weights)), "functions": functions}
    return calls | {"scan": peers.build_jax(case, case.arrays()).forward_backward}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{processor()}, {fastbptt.get_num_threads()} threads\n")
    print("| a call in a loop of a compiled program, float32 | in JAX, us | our function, us | difference, us |\n| :-- | --: | --: | --: |")
    for cell, *sizes in SMALL:
        least = {
            name: 1e6 * min(times) / LOOPS for name, times in alternate(many_small_calls(cell, *sizes), options.rounds, pause=0).items()
        }
        inside, ours = least["JAX"] - least["nothing"], least["functions"]
        print(
            f"| {cell.upper()}, T, B, I, H = {', '.join(map(str, sizes))} | {inside:.1f} | {ours:.1f} | {inside - ours:+.1f} |", flush=True
        )
    print(
        "\n| forward + backward, T = 100, I = H | ours, ms | as part of our functions' | scan, times as long |\n| :-- | --: | --: | --: |"
    )
    for cell, dtype, B, H in PASSES:
        times = {name: median(each) for name, each in alternate(passes(cell, dtype, B, H), options.rounds).items()}
        part, scan = times["JAX"] / times["functions"], times["scan"] / times["JAX"]
        print(f"| {cell.upper()}, {dtype}, B = {B}, H = {H} | {1e3 * times['JAX']:.2f} | {part:.2f} | {scan:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
