"""Forward mode beside the forward pass: ``python benchmarks/bench_forward_mode.py``, and by pytest-benchmark, ``python -m pytest benchmarks/``.

The command has the two take turns and prints how many forward passes a pass of all tangents costs. Its products alone are two: x and its
tangent both meet weights, and so do h and its.
"""

import argparse

import numpy as np
import peers
import pytest
from grid import Case
from timing import alternate, medians

import fastbptt
import fastbptt.reference

CELLS = ("tanh", "gru", "lstm")
CASES = [Case(cell, dtype, 100, B, H, H) for B, H in ((16, 64), (64, 256)) for dtype in ("float64", "float32") for cell in CELLS]


def passes(case, module=fastbptt):
    """The forward pass, and the tangents of its results from tangents of all arguments, as calls without arguments."""
    arrays, dots = case.arrays(), case.arrays(seed=1)
    options = {} if case.traits.gated else {"nonlinearity": case.cell}
    run, jvp = (getattr(module, f"{case.family}_{name}") for name in ("forward", "jvp"))
    state, names = case.traits.state(arrays.state), ("w_ih", "w_hh", "b_ih", "b_hh")
    _, _, tape = run(arrays.x, state, *arrays.weights, **options)
    given = dict(zip(names, dots.weights)) | {"x": dots.x, "state": case.traits.state(dots.state)}
    return lambda: run(arrays.x, state, *arrays.weights, **options), lambda: jvp(tape, **given)


@pytest.mark.parametrize("module", [fastbptt.reference, fastbptt], ids=["reference", "fastbptt"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_mode(benchmark, case, module):
    benchmark.group = f"{case}, forward mode"
    fastbptt.set_num_threads(peers.THREADS)
    out_dot, _ = benchmark(passes(case, module)[1])
    expected, _ = passes(case, fastbptt.reference)[1]()
    assert peers.disagreement([out_dot], [expected]) <= peers.TOLERANCE[case.dtype]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    fastbptt.set_num_threads(options.threads)
    print(f"{options.threads} threads, medians of {options.rounds} rounds; load {np.round(load(), 1)}")
    for case in CASES:
        forward, jvp = passes(case)
        times = medians(alternate({"forward": forward, "jvp": jvp}, options.rounds, pause=0))
        ratio = times["jvp"] / times["forward"]
        print(f"{case!s:32} forward {1e3 * times['forward']:8.3f} ms   forward mode {1e3 * times['jvp']:8.3f} ms   {ratio:.2f}", flush=True)


def load():
    with open("/proc/loadavg") as file:
        return float(file.read().split()[0])


if __name__ == "__main__":
    main()
