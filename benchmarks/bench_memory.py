"""Memory of a long sequence, forward and backward: the peak beyond inputs and results, in arrays of T*B*H elements.

Each contestant runs in a fresh process. A small call comes first, so that code and threads are there; then the inputs are made; what
resident memory grows by at its peak, less the results that are handed back, is the working space. Read from Linux's /proc: a peak from
getrusage would start with that of the parent process.
"""

import argparse
import multiprocessing
import re
from dataclasses import replace

import numpy as np
import peers
from grid import LAYERS, Case


def resident(field):
    """Bytes resident: "VmRSS" now, "VmHWM" at the peak."""
    with open("/proc/self/status") as status:
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read())[1]) * 1024


def measure(name, case):
    """Bytes added at the peak and bytes of the results, or None where there is no such contestant."""
    contestant = peers.build(name, replace(case, T=2))
    if contestant is None:
        return None
    contestant.forward_backward()
    contestant = peers.build(name, case)
    before = resident("VmRSS")
    result = contestant.forward_backward()
    added = resident("VmHWM") - before
    return added, sum(np.asarray(a).nbytes for a in result)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=["tanh", "gru", "lstm"])
    parser.add_argument("--dtypes", nargs="+", choices=peers.TOLERANCE, default=["float64"])
    parser.add_argument("--contestants", nargs="+", choices=peers.CONTESTANTS, default=["fastbptt", "torch"])
    parser.add_argument("--steps", type=int, default=20000, metavar="T")
    parser.add_argument("--batch", type=int, default=8, metavar="B")
    parser.add_argument("--hidden", type=int, default=64, metavar="H")
    options = parser.parse_args()
    print(f"{'':46} {'at the peak':>14} {'beyond results':>15}   times T*B*H elements")
    fresh = multiprocessing.get_context("spawn")
    for dtype in options.dtypes:
        for cell in options.cells:
            case = Case(cell, dtype, options.steps, options.batch, options.hidden, options.hidden)
            unit = case.T * case.B * case.H * np.dtype(dtype).itemsize
            for name in options.contestants:
                with fresh.Pool(1) as process:
                    measured = process.apply(measure, (name, case))
                if measured is not None:
                    added, results = measured
                    print(f"{case!s:36} {name:9} {added / unit:14.2f} {(added - results) / unit:15.2f}", flush=True)


if __name__ == "__main__":
    main()
