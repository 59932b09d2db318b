"""Forks, and shutdowns, while threads are in kernels: what a process can do to calls that are under way.

Each fork comes at a random moment while another Python thread is in a random kernel on two threads; the child then makes calls of its own,
on as many threads, whose bits must be those of the parent. Each shutdown comes while daemon threads are in kernels, and must end with
status 0. A child that is not done in time counts as hung.

    python benchmarks/stress_process.py --forks 200 --shutdowns 20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np

import fastbptt
from fastbptt.layers import LAYERS

CALLS = {
    f"{name}, {dtype}": lambda layer=layer, dtype=dtype: layer(20, 65, rng=0, dtype=dtype)
    for name, layer in LAYERS.items()
    for dtype in ("float64", "float32")
} | {"linear": lambda: fastbptt.Linear(20, 400, rng=0)}

SHUTDOWN = """
import sys, threading, time, numpy as np, fastbptt
from fastbptt.layers import LAYERS
fastbptt.set_num_threads(2)
make, seconds = LAYERS[sys.argv[1]], float(sys.argv[2])
x, inside = np.ones((300, 256, 8), "f"), threading.Barrier(3)

def deep(n, layer):
    if n:
        return list(map(deep, [n - 1], [layer]))
    out, _ = layer(x)
    layer.backward(out)
    fastbptt.clip_grad_norm_(layer, 1.0)

def work():
    layer = make(8, 256, dtype="f", rng=0)
    inside.wait()
    while True:
        deep(60, layer)

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
inside.wait()
sys.slow = Slow()
time.sleep(seconds)
"""


def results(layer, x):
    """The bytes of all that a forward and a backward pass compute."""
    layer.zero_grad()
    out = layer(x)
    out = out[0] if isinstance(out, tuple) else out
    dx = layer.backward(np.ones_like(out))
    dx = dx[0] if isinstance(dx, tuple) else dx
    return out.tobytes(), dx.tobytes(), layer.flat_grads.tobytes()


def forks(count, rng, limit):
    """How many children were right, wrong or hung."""
    fastbptt.set_num_threads(2)
    layers = {name: make() for name, make in CALLS.items()}
    x = {name: np.ones((60, 30, 20), layer.dtype) for name, layer in layers.items()}
    expected = {name: results(layer, x[name]) for name, layer in layers.items()}
    stop = threading.Event()

    def work():
        mine, name = {name: make() for name, make in CALLS.items()}, next(iter(CALLS))
        while not stop.is_set():
            results(mine[name], x[name])
            name = random.choice(list(CALLS))

    thread = threading.Thread(target=work)
    thread.start()
    tally = dict.fromkeys(("right", "wrong", "hung"), 0)
    for _ in range(count):
        time.sleep(rng.random() * 0.02)
        names = rng.sample(list(CALLS), 2)
        child = os.fork()
        if child == 0:
            os._exit(0 if all(results(layers[name], x[name]) == expected[name] for name in names) else 1)
        tally[outcome(child, limit)] += 1
    stop.set()
    thread.join()
    return tally


def outcome(child, limit):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "right" if status == 0 else "wrong"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def shutdowns(count, rng):
    """How often each exit status came."""
    tally = {}
    for _ in range(count):
        arguments = rng.choice(list(LAYERS)), str(rng.random())
        status = subprocess.run([sys.executable, "-c", SHUTDOWN, *arguments]).returncode
        tally[status] = tally.get(status, 0) + 1
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=200)
    parser.add_argument("--shutdowns", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a child counts as hung (default: 60)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    forked = forks(options.forks, rng, options.limit)
    print("forks:", ", ".join(f"{number} {kind}" for kind, number in forked.items()), flush=True)
    ended = shutdowns(options.shutdowns, rng)
    print("shutdowns:", ", ".join(f"{number} with status {status}" for status, number in sorted(ended.items())))
    return 0 if forked["right"] == options.forks and set(ended) <= {0} else 1


if __name__ == "__main__":
    sys.exit(main())
