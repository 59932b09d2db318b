"""What gradient_flow costs: its norms against the backward pass of the same tape.

python benchmarks/bench_flow.py
"""

import argparse
from functools import partial

import peers
from grid import Case
from timing import alternate, medians

import fastbptt

CASES = [("tanh", 1, 32), ("tanh", 16, 32), ("tanh", 16, 128), ("tanh", 64, 128), ("gru", 16, 128), ("lstm", 16, 128)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, metavar="T")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    fastbptt.set_num_threads(peers.THREADS)
    print(f"float64, T={options.steps}, {peers.THREADS} threads, medians of {options.rounds}; milliseconds")
    for cell, B, H in CASES:
        case = Case(cell, "float64", options.steps, B, H, H)
        arrays = case.arrays()
        state = case.traits.state(arrays.state)
        _, _, tape = getattr(fastbptt, f"{case.family}_forward")(arrays.x, state, *arrays.weights)
        backward = getattr(fastbptt, f"{case.family}_backward")
        calls = {"backward": partial(backward, tape, arrays.d_out), "flow": partial(fastbptt.gradient_flow, tape, arrays.d_out)}
        seconds = medians(alternate(calls, options.rounds))
        ratio = seconds["flow"] / seconds["backward"]
        print(f"{case!s:34} backward {seconds['backward'] * 1e3:8.3f}   gradient_flow {seconds['flow'] * 1e3:8.3f}   {ratio:.2f}x")


if __name__ == "__main__":
    main()
