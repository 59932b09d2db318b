"""Batches whose rows end early or begin anew: ``python benchmarks/bench_ragged.py``, and by pytest-benchmark, ``python -m pytest benchmarks/``.

The command has the contestants take turns, forward + backward, and prints how many times as long as the first each other one takes:
padded, the whole rectangle; trivial, all lengths given, and none of them shorter; uniform, lengths drawn from 1 to T; resets, at 3 % of all
(step, row) pairs. Where PyTorch is installed, it takes part with a PackedSequence of the same lengths, and with a loop that ends the
module's call wherever a row of the batch begins anew. ``compare.py --lengths uniform`` and ``--resets 0.03`` are any cell's at any size.
"""

import argparse
from dataclasses import replace

import peers
import pytest
from grid import CELLS, Case
from timing import alternate, medians, processor

SIZES = [("float32", 128, 128, 256), ("float64", 100, 16, 64), ("float32", 100, 32, 128), ("float32", 128, 16, 256)]
CASES = [Case(cell, dtype, T, B, H, H) for dtype, T, B, H in SIZES for cell in CELLS]
BATCHES = {"padded": {}, "trivial": {"lengths": "full"}, "uniform": {"lengths": "uniform"}, "resets": {"resets": 0.03}}
AGAINST_TORCH = "uniform", "resets"


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ragged(benchmark, case, batch):
    case = replace(case, **BATCHES[batch])
    benchmark.group = str(case)
    got = benchmark(peers.build("fastbptt", case).forward_backward)
    assert peers.disagreement(got, peers.agreed(case)) <= peers.TOLERANCE[case.dtype]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=peers.THREADS)
    options = parser.parse_args()
    peers.THREADS = options.threads
    print(f"{processor()}, {options.threads} threads, medians of {options.rounds} rounds")
    for case in CASES:
        built = {batch: peers.build("fastbptt", replace(case, **fields)) for batch, fields in BATCHES.items()}
        built |= {f"torch, {batch}": peers.build("torch", replace(case, **BATCHES[batch])) for batch in AGAINST_TORCH}
        calls = {name: contestant.forward_backward for name, contestant in built.items() if contestant is not None}
        times = medians(alternate(calls, options.rounds, pause=0))
        shown = {"padded / uniform": times["padded"] / times["uniform"]}
        shown |= {f"{batch} / padded": times[batch] / times["padded"] for batch in ("trivial", "resets")}
        shown |= {
            f"torch / ours, {batch}": times[f"torch, {batch}"] / times[batch] for batch in AGAINST_TORCH if f"torch, {batch}" in times
        }
        print(
            f"{case!s:32} {1e3 * times['padded']:8.2f} ms   " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in shown.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
