"""One noisy neighbour: calls while another process keeps each core busy, against calls on a quiet machine.

Every call is timed by itself; contestants take turns, a short while each.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import peers
from grid import LAYERS, Case

TURN = 0.25  # seconds


@contextmanager
def neighbours(cores):
    """A busy process on each of the cores."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        for process, core in zip(processes, cores, strict=True):
            os.sched_setaffinity(process.pid, {core})
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def call_seconds(calls, seconds):
    """The time of every call that fits into ``seconds`` of each contestant."""
    samples = {name: [] for name in calls}
    for _ in range(max(1, round(seconds / TURN))):
        for name, call in calls.items():
            end = time.perf_counter() + TURN
            call()
            start = time.perf_counter()
            while start < end or not samples[name]:
                call()
                stop = time.perf_counter()
                samples[name].append(stop - start)
                start = stop
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=LAYERS, default="tanh")
    parser.add_argument("--dtype", choices=peers.TOLERANCE, default="float64")
    parser.add_argument("--batch", type=int, default=16, metavar="B")
    parser.add_argument("--hidden", type=int, default=128, metavar="H")
    parser.add_argument("--contestants", nargs="+", choices=peers.CONTESTANTS, default=["fastbptt", "torch", "jax"])
    parser.add_argument("--seconds", type=float, default=5, help="for each contestant, quiet and noisy (default: 5)")
    options = parser.parse_args()
    case = Case(options.cell, options.dtype, 100, options.batch, options.hidden, options.hidden)
    built = {name: peers.build(name, case) for name in options.contestants}
    calls = {name: contestant.forward_backward for name, contestant in built.items() if contestant is not None}
    for call in calls.values():
        call()
    quiet = call_seconds(calls, options.seconds)
    with neighbours(sorted(os.sched_getaffinity(0))):
        noisy = call_seconds(calls, options.seconds)

    print(f"{case}, forward + backward, {peers.THREADS} threads; milliseconds")
    print(f"{'':10}{'quiet':^29}    {'one busy process on each core':^29}")
    print(f"{'':10}" + f"{'calls':>7}{'median':>10}{'p99/median':>12}    " * 2 + f"{'slower':>9}")
    for name in calls:
        row, middles = f"{name:10}", []
        for samples in (quiet[name], noisy[name]):
            middle, p99 = np.percentile(samples, [50, 99])
            middles.append(middle)
            row += f"{len(samples):7}{middle * 1e3:10.3f}{p99 / middle:12.2f}    "
        print(row + f"{middles[1] / middles[0]:8.2f}x")


if __name__ == "__main__":
    main()
