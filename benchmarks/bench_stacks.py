"""Stacked and bidirectional layers beside PyTorch's, by pytest-benchmark: ``python -m pytest benchmarks/bench_stacks.py``.

Forward and backward of the whole stack, with fresh gradients at each call, as a training loop has them. A group for every case; the result
of what was timed is then held against PyTorch's. ``python benchmarks/bench_stacks.py`` times them in turns and prints the ratios; with
``--cores``, of all threads to one, for single rows and without PyTorch. Words after that must all be in a case's name.
``compare.py --layers 2 --bidirectional`` is any cell at any size.
"""

import sys
from functools import partial

import peers
import pytest
from grid import DTYPES, Case
from timing import alternate, medians

import fastbptt

T, I = 100, 32
STACKS = {"layers": 2}, {"bidirectional": True}, {"layers": 2, "bidirectional": True}
SIZES = ((1, 128), (16, 64), (32, 128))
CASES = [
    Case(cell, dtype, T, B, I, H, **stack) for cell in ("tanh", "gru", "lstm") for dtype in DTYPES for stack in STACKS for B, H in SIZES
]


@pytest.mark.parametrize("contestant", ["fastbptt", "torch"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_backward(benchmark, case, contestant):
    benchmark.group = f"{case}, forward + backward"
    built = {name: peers.build(name, case) for name in ("fastbptt", "torch")}
    if built["torch"] is None:
        pytest.skip("torch is not installed")
    result = benchmark(built.pop(contestant).forward_backward)
    (other,) = built.values()
    assert peers.disagreement(result, other.forward_backward()) <= peers.TOLERANCE[case.dtype]


def on_all_cores(case):
    """How many times as fast all threads are as one."""
    call = peers.build("fastbptt", case).forward_backward

    def with_threads(n):
        fastbptt.set_num_threads(n)
        call()

    one, every = medians(alternate({n: partial(with_threads, n) for n in (1, peers.THREADS)}, rounds=9)).values()
    print(f"{case}: {peers.THREADS} threads are {one / every:.2f} times as fast as one ({1e3 * every:.2f} ms)", flush=True)


def against_torch(case):
    ours, theirs = (peers.build(name, case).forward_backward for name in ("fastbptt", "torch"))
    assert peers.disagreement(ours(), theirs()) <= peers.TOLERANCE[case.dtype]
    own, other = medians(alternate({"ours": ours, "theirs": theirs}, rounds=5)).values()
    print(f"{case}: {other / own:.2f} times as fast as PyTorch ({1e3 * own:.2f} ms)", flush=True)


def main():
    cores, words = sys.argv[1:2] == ["--cores"], sys.argv[1:]
    for case in CASES:
        if all(word in str(case).split() for word in words[cores:]) and (case.B == 1 or not cores):
            (on_all_cores if cores else against_torch)(case)


if __name__ == "__main__":
    main()
