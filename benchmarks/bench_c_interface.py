"""The C interface, called in a loop from C, one thread: single steps, and whole passes beside the Python functions.

    python benchmarks/bench_c_interface.py

The package of tests/consumer is compiled first. A Python call's overhead is what the smallest one takes beyond the same call from C. Both
have arrays for results that begin with a cache line. On a busy machine the least times say more than the medians.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import alternate, processor

import fastbptt
from fastbptt._kernels import memory

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from consumers import fields_of, give_workspace, import_from, install, rooms_for_results
from problems import random_problem

STEPS = [("lstm", 8, np.float32), ("lstm", 64, np.float32), ("lstm", 64, np.float64), ("gru", 8, np.float32), ("gru", 64, np.float32)]
PASSES = [(100, 16, 32), (100, 1, 128), (100, 16, 128), (20, 64, 64)]  # T, B, H


def step_of(calls, cell, H, dtype):
    """A call that steps on from its own state, and what it refers to."""
    fields = fields_of(random_problem(cell, 1, 1, H, H, dtype=dtype))
    states = {f"{name}{end}": np.zeros((1, H), dtype) for name in "hc" for end in ("0", "_n")}
    call = calls.Call(**fields | states)
    packed = np.empty(call.packed_bytes(), np.uint8)
    assert call.set(packed=packed, packed_size=packed.size).run("pack") == 0
    give_workspace(call, ("step",), calls.CALLS)
    return call.set(h0=states["h_n"], c0=states["c_n"])


def pass_of(calls, T, B, H):
    """Forward and backward from C, and from Python."""
    problem = random_problem("lstm", T, B, H, H, dtype=np.float32)
    fields = fields_of(problem)
    rooms = {name: memory.empty(room.shape, room.dtype) for name, room in rooms_for_results(fields).items() if name != "out"}
    call = calls.Call(**fields, **rooms)
    give_workspace(call, ("forward", "backward"), calls.CALLS)

    def from_c():
        call.run("forward")
        call.run("backward")

    def from_python():
        _, _, tape = problem.forward(fastbptt)
        problem.backward(fastbptt, tape)

    return {"C": from_c, "Python": from_python}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    fastbptt.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calls = import_from(install(Path(folder)), "calls")
    print(f"{processor()}, one thread\n\n| a step, B = 1, I = H | least, ns | median, ns |\n| :-- | --: | --: |")
    for cell, H, dtype in STEPS:
        call = step_of(calls, cell, H, dtype)
        times = sorted(call.seconds("step", 200_000 // H) for _ in range(10 * options.rounds))
        print(f"| {cell.upper()} H = {H}, {np.dtype(dtype)} | {1e9 * times[0]:.0f} | {1e9 * times[len(times) // 2]:.0f} |", flush=True)
    smallest = alternate(pass_of(calls, 1, 1, 8), options.rounds, pause=0)
    overhead = min(smallest["Python"]) - min(smallest["C"])
    print(f"\na Python call's overhead, forward + backward: {1e6 * overhead:.1f} us\n")
    print("| LSTM, float32, forward + backward | C, least, us | Python, least, us | C / (Python - overhead) | median of it |")
    print("| :-- | --: | --: | --: | --: |")
    for T, B, H in PASSES:
        samples = alternate(pass_of(calls, T, B, H), options.rounds, pause=0)
        ratios = [c / (python - overhead) for c, python in zip(samples["C"], samples["Python"])]
        c, python = min(samples["C"]), min(samples["Python"])
        times = f"{1e6 * c:.0f} | {1e6 * python:.0f} | {c / (python - overhead):.3f} | {np.median(ratios):.3f}"
        print(f"| T = {T}, B = {B}, H = {H} | {times} |", flush=True)


if __name__ == "__main__":
    main()
