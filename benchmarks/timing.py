"""Timing on a shared, noisy machine: contestants take turns, samples are long enough to mean something, medians are reported."""

import math
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

PAUSE = 0.05  # seconds of silence before a sample: the threads of OpenBLAS and OpenMP go on spinning for a while after their work


def sample(call, repeats):
    """Seconds per call, over ``repeats`` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def enough_repeats(call, least):
    """How many calls take at least ``least`` seconds."""
    repeats = 1
    while (elapsed := repeats * sample(call, repeats)) < least:
        repeats = math.ceil(repeats * min(10, 1.2 * least / elapsed))
    return repeats


def alternate(calls, rounds, least=0.02, pause=PAUSE):
    """Time contestants in turn, there and back, A B C C B A ...: what one leaves behind, such as threads that spin, does not meet the same one
    each time.

    Parameters
    ----------
    calls : dict
        Callables without arguments, by name. Each runs at least twice before it is timed.
    rounds : int
        Samples of each.
    least : float
        Seconds that a sample lasts, at least.
    pause : float
        Seconds of sleep before each sample.

    Returns
    -------
    dict
        By name, a list of seconds per call, one for each round.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = enough_repeats(call, least)
    samples = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: -1 if i % 2 else 1]:
            time.sleep(pause)
            if repeats[name] > 1:
                calls[name]()  # wakes the threads that the pause has put to sleep
            samples[name].append(sample(calls[name], repeats[name]))
    return samples


def medians(samples):
    return {name: median(values) for name, values in samples.items()}


def median_ratio(numerators, denominators):
    """Of samples of the same rounds: a phase in which the machine is slow has slowed both."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def describe_machine(threads):
    """Processor, kernels, threads and versions, for the head of a report."""
    import fastbptt

    peers = (name for name in ("numpy", "torch", "jax", "onnxruntime") if find_spec(name))
    versions = {"fastbptt": fastbptt.__version__} | {name: version(name) for name in peers}
    isa = fastbptt.show_config(mode="dicts")["isa"]
    return {"processor": processor(), "isa": isa, "threads": threads, "python": platform.python_version(), "versions": versions}


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
