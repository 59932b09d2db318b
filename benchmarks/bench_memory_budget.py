"""A tape within a memory budget: its peak on a long sequence, and bits and time beside the full tape on a short one.

The peak is measured in a fresh process, as in bench_memory.py: what resident memory grows by, forward and backward, less the results. Bits
and time are those of ``--compared`` steps with another budget, which must be much smaller than the full tape to be hard.
"""

import argparse
import multiprocessing

import numpy as np
from bench_memory import resident
from timing import alternate, medians

import fastbptt
from fastbptt.cells import CELLS

MB = 1e6


class Passes:
    """Forward and backward on random arrays, of a loss at all outputs, or at the last state alone."""

    def __init__(self, options, steps):
        rng = np.random.default_rng(0)
        cell, dtype, B, H = CELLS[options.cell], np.dtype(options.dtype), options.batch, options.hidden
        N = len(cell.gates) * H
        self.x = rng.standard_normal((steps, B, H), dtype)
        self.weights = [(array / H**0.5).astype(dtype) for array in rng.standard_normal((2, N, H))]
        self.weights += [array.astype(dtype) for array in rng.standard_normal((2, N))]
        self.d_out = None if options.last_only else rng.standard_normal((steps, B, H), dtype)
        self.d_state = cell.state([rng.standard_normal((B, H), dtype) for _ in cell.states])
        self.forward, self.backward = (getattr(fastbptt, f"{options.cell}_{name}") for name in ("forward", "backward"))
        self.last_only = options.last_only

    def run(self, budget=None):
        """All results, and the plan."""
        out, state, tape = self.forward(self.x, None, *self.weights, memory_budget=budget, last_only=self.last_only)
        grads = self.backward(tape, self.d_out, self.d_state)
        return [array for array in flat((out, state, *grads)) if array is not None], tape.plan


def flat(values):
    for value in values:
        yield from value if isinstance(value, tuple) else (value,)


def measure(options):
    """Bytes added at the peak, bytes of the results, and the plan."""
    fastbptt.set_num_threads(options.threads)
    Passes(options, 600).run()
    passes = Passes(options, options.steps)
    before = resident("VmRSS")
    results, plan = passes.run(options.budget)
    return resident("VmHWM") - before, sum(array.nbytes for array in results), plan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--steps", type=int, default=1_000_000, metavar="T")
    parser.add_argument("--batch", type=int, default=1, metavar="B")
    parser.add_argument("--hidden", type=int, default=64, metavar="H", help="units, and inputs")
    parser.add_argument("--budget", type=int, default=64_000_000, metavar="BYTES")
    parser.add_argument("--last-only", action="store_true")
    parser.add_argument("--compared", type=int, default=20_000, metavar="T")
    parser.add_argument("--compared-budget", type=int, default=10_000_000, metavar="BYTES")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.steps:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            added, results, plan = process.apply(measure, (options,))
        beyond = added - results
        print(f"{options.steps} steps, {options.budget / MB:.1f} MB: {plan}")
        print(f"  at the peak {beyond / MB:.1f} MB beyond arguments and results, {100 * beyond / options.budget:.1f} % of the budget")
    fastbptt.set_num_threads(options.threads)
    passes = Passes(options, options.compared)
    budget = options.compared_budget
    (full, _), (cut, plan) = passes.run(), passes.run(budget)
    same = all(a.tobytes() == b.tobytes() for a, b in zip(full, cut, strict=True))
    print(f"{options.compared} steps, {budget / MB:.1f} MB: {plan}\n  bits of all results {'the same' if same else 'DIFFER'}")
    times = medians(alternate({"full tape": passes.run, "budget": lambda: passes.run(budget)}, options.rounds, pause=0))
    shown = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items())
    print(f"  {shown}: {times['budget'] / times['full tape']:.2f} times, median of {options.rounds} rounds")


if __name__ == "__main__":
    main()
