"""`fastbptt.jax` beside our own functions and `lax.scan`.

    python benchmarks/bench_jax.py
    python benchmarks/bench_jax.py --grid    # passes at all points of the grid

First what a call costs inside a compiled program: a loop of many small calls, each from the state that the one before has left, beside the
same loop of our function in Python. Then forward + backward passes, compiled, beside the better `lax.scan` (unroll 1 and 4): how many times
as long scan takes, and what part of our own functions' time ours takes. All take turns, and ratios are medians of those of each round.

XLA finds memory for results and tapes at each call, by malloc. That of glibc gives what is freed back to the system, which clears it and
gives it again, page by page; how much it keeps depends on what the process has freed before. So it is told to keep all, by
MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_, unless these are set, or with ``--default-malloc``.
"""

import argparse
import os
import sys

import jax
import jax.numpy as jnp
import peers
from grid import Case, grid
from timing import alternate, geometric_mean, median, median_ratio, processor

import fastbptt
import fastbptt.jax

jax.config.update("jax_enable_x64", True)
LOOPS = 500
SMALL = [Case(cell, "float32", 1, 1, 4, 4) for cell in ("tanh", "gru", "lstm")] + [Case("lstm", "float32", 10, 4, 8, 16)]
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 40)}
FEW = [Case(cell, dtype, 100, B, H, H) for cell in ("gru", "lstm") for dtype in ("float64", "float32") for B, H in ((1, 32), (16, 128))]


def many_small_calls(case):
    x, parts, weights, _ = case.arrays()
    state = case.traits.state(parts)
    run, ours = getattr(fastbptt.jax, case.family), getattr(fastbptt, f"{case.family}_forward")

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


def passes(case):
    run, ours = getattr(fastbptt.jax, case.family), peers.build("fastbptt", case)
    x, state, weights, d_out = (jax.tree.map(jnp.asarray, part) for part in case.arrays())

    def layer(x, state, weights):
        return run(x, case.traits.state(state), *weights)[0]

    @jax.jit
    def both(d_out, *inputs):
        out, back = jax.vjp(layer, *inputs)
        return out, back(d_out)

    return {
        "JAX": lambda: jax.block_until_ready(both(d_out, x, state, weights)),
        "functions": ours.forward_backward,
        "scan": peers.build("jax", case).forward_backward,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--grid", action="store_true", help="as many passes as the README's table has")
    parser.add_argument("--default-malloc", action="store_true", help="let malloc give memory back as it likes")
    options = parser.parse_args()
    if not (options.default_malloc or os.environ.keys() & KEEP.keys()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)  # glibc looks only when a process begins
    print(f"{processor()}, {fastbptt.get_num_threads()} threads\n")
    print("| a call in a loop of a compiled program | in JAX, us | our function, us | difference, us |\n| :-- | --: | --: | --: |")
    for case in SMALL:
        least = {name: 1e6 * min(times) / LOOPS for name, times in alternate(many_small_calls(case), options.rounds, pause=0).items()}
        inside, ours = least["JAX"] - least["nothing"], least["functions"]
        print(f"| {case} | {inside:.1f} | {ours:.1f} | {inside - ours:+.1f} |", flush=True)
    print(
        "\n| forward + backward, T = 100, I = H | ours, ms | as part of our functions' | scan, times as long |\n| :-- | --: | --: | --: |"
    )
    parts, ratios = [], []
    for case in grid() if options.grid else FEW:
        samples = alternate(passes(case), options.rounds)
        parts.append(median_ratio(samples["JAX"], samples["functions"]))
        ratios.append(median_ratio(samples["scan"], samples["JAX"]))
        print(f"| {case} | {1e3 * median(samples['JAX']):.3g} | {parts[-1]:.2f} | {ratios[-1]:.2f}x |", flush=True)
    print(f"| geometric mean | | {geometric_mean(parts):.3f} | {geometric_mean(ratios):.2f}x |")


if __name__ == "__main__":
    main()
