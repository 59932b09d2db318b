"""All Lyapunov exponents of a random tanh net, fastbptt against the same in PyTorch with the Jacobians of torch.func.

PyTorch takes the Jacobian of every step by jacfwd or jacrev, of which the faster counts, and torch.linalg.qr at every step. Before they
are timed, the exponents of a short run must add up to the same; after a long one chaos has taken the states apart.

    python benchmarks/bench_lyapunov.py
"""

import argparse
from functools import partial

import numpy as np
import torch
from peers import THREADS
from timing import alternate, medians

import fastbptt

CHECKED_STEPS = 20
TOLERANCE = 1e-9


def run_fastbptt(J, h0, T):
    N = len(J)
    x, w_ih = np.zeros((T, 1, 1)), np.zeros((N, 1))
    _, _, tape = fastbptt.rnn_forward(x, h0[None], w_ih, J)
    return fastbptt.lyapunov_spectrum(tape).exponents[0]


def run_torch(transform, J, h0, T):
    J, h = torch.from_numpy(J), torch.from_numpy(h0)

    def step(h):
        return torch.tanh(J @ h)

    jacobian = transform(step)
    frame = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal(J.shape)))[0]
    total = torch.zeros(len(J), dtype=torch.float64)
    for _ in range(T):
        frame, r = torch.linalg.qr(jacobian(h) @ frame)
        h = step(h)
        total += r.diagonal().abs().log()
    return (total / T).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=200, metavar="N")
    parser.add_argument("--steps", type=int, default=1000, metavar="T")
    parser.add_argument("--gain", type=float, default=3.0, help="standard deviation of the weights times sqrt(N) (default: 3)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    N, T = options.hidden, options.steps
    fastbptt.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    J, h0 = options.gain / np.sqrt(N) * rng.standard_normal((N, N)), rng.standard_normal(N)
    contestants = {
        "fastbptt": run_fastbptt,
        "torch, jacfwd": partial(run_torch, torch.func.jacfwd),
        "torch, jacrev": partial(run_torch, torch.func.jacrev),
    }
    sums = {name: run(J, h0, CHECKED_STEPS).sum() for name, run in contestants.items()}
    for name, value in sums.items():
        if abs(value - sums["fastbptt"]) > TOLERANCE * abs(value):
            raise SystemExit(f"the exponents of {name} add up to {value:.9g}, those of fastbptt to {sums['fastbptt']:.9g}")
    seconds = medians(alternate({name: partial(run, J, h0, T) for name, run in contestants.items()}, options.rounds))
    print(f"N={N}, T={T}, g={options.gain:g}, float64, {THREADS} threads; medians of {options.rounds}")
    for name, s in seconds.items():
        print(f"{name:14} {s:7.2f} s, {s / seconds['fastbptt']:5.2f} times fastbptt's")


if __name__ == "__main__":
    main()
