"""What a second thread costs, and from where on it pays: the reason for the thresholds in fastbptt/_kernels.

Rows shared (WORK_PER_TASK in pool.pyx): forward passes of growing length, which hand the rows of their batch to the threads once each;
back to back, when a helper still spins, and after a rest, when it sleeps. The time on two threads beyond half the time on one is the cost
of dispatch; the work that one thread does in twice that time is the least worth dividing, and it is to be about 2 * WORK_PER_TASK.

Units shared (STEP_GAIN in sharing.pxi): single rows through layers of growing width, whose threads meet at every step, as if that cost
nothing; and what it costs, as the pool has measured it. The least width with a speed-up above 1 is the threshold: there a step on one thread
takes 2 * STEP_GAIN times as long as it costs to meet.

Elements shared (ROOT_WORK in optimisers.pxi): RMSprop's steps on growing arrays, of as many multiply-adds an element as its square root and
division are worth.

One thread and two take turns; medians.
"""

import argparse
import time
from statistics import median

import numpy as np
from grid import Case

import fastbptt
from fastbptt._kernels import pool

ROWS, WIDTH = 16, 32
STEPS = (4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
SIZES = (10_000, 20_000, 50_000, 100_000, 200_000, 1_000_000)
WORK_PER_TASK = 1e5  # as in pool.pyx: calls below twice this stay on one thread, and say nothing about dispatch
REST = 2e-3  # seconds, longer than a helper spins
CALLS = 20  # timed together when back to back


def call_seconds(call, rested):
    """Seconds of one call."""
    calls = 1 if rested else CALLS
    if rested:
        time.sleep(REST)
    else:
        call()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def one_and_two(call, rested, rounds):
    """Median seconds of a call on one thread and on two."""
    samples = {1: [], 2: []}
    for _ in range(rounds):
        for threads, seconds in samples.items():
            fastbptt.set_num_threads(threads)
            seconds.append(call_seconds(call, rested))
    return median(samples[1]), median(samples[2])


def forward(T, B, H):
    x, (h0,), weights, _ = Case("tanh", "float64", T, B, H, H).arrays()
    return lambda: fastbptt.rnn_forward(x, h0, *weights)


def rows_shared(rested, rounds):
    print(f"{'multiply-adds':>14}{'1 thread, us':>14}{'2 threads, us':>15}{'speed-up':>10}{'dispatch, us':>14}{'worth dividing from':>21}")
    for T in STEPS:
        work = T * ROWS * WIDTH * 2 * WIDTH
        one, two = one_and_two(forward(T, ROWS, WIDTH), rested, rounds)
        dispatch = two - one / 2
        cost = f"{dispatch * 1e6:14.1f}{2 * dispatch * work / one:21,.0f}" if work >= 2 * WORK_PER_TASK else f"{'-':>14}{'-':>21}"
        print(f"{work:14,}{one * 1e6:14.1f}{two * 1e6:15.1f}{one / two:10.2f}{cost}", flush=True)


def units_shared(rounds):
    print(f"{'H':>5}{'multiply-adds a step':>22}{'1 thread, us':>14}{'2 threads, us':>15}{'speed-up':>10}{'to meet costs, ns':>21}")
    for H in WIDTHS:
        pool.assume_step_cost(1)
        one, two = one_and_two(forward(100, 1, H), False, rounds)
        pool.assume_step_cost(0)
        cost = pool.measured_step_cost(2)
        print(f"{H:5}{H * H:22,}{one * 1e6:14.1f}{two * 1e6:15.1f}{one / two:10.2f}{cost:21.0f}", flush=True)


def elements_shared(dtype, rounds):
    print(f"{'parameters':>10}{'1 thread, us':>14}{'2 threads, us':>15}{'speed-up':>10}")
    for size in SIZES:
        gradient = np.ones(size, dtype)
        optimiser = fastbptt.RMSprop(np.ones(size, dtype))
        one, two = one_and_two(lambda step=optimiser.step, gradient=gradient: step(gradient), False, rounds)
        print(f"{size:10,}{one * 1e6:14.1f}{two * 1e6:15.1f}{one / two:10.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    size = f"tanh forward, float64, B={ROWS}, I=H={WIDTH}"
    print(f"Rows shared, back to back; {size}")
    rows_shared(False, rounds)
    print(f"\nRows shared, after a rest of {REST * 1e3:g} ms; {size}")
    rows_shared(True, rounds)
    print("\nUnits shared; tanh forward, float64, T=100, B=1, I=H")
    units_shared(rounds)
    for dtype in ("float64", "float32"):
        print(f"\nElements shared, back to back; steps of RMSprop, {dtype}")
        elements_shared(dtype, rounds)


if __name__ == "__main__":
    main()
