"""What subnormal states cost: a linear net that decays into them, against the same net that does not.

python benchmarks/bench_subnormal.py
"""

import argparse

import numpy as np
from timing import alternate, medians

import fastbptt

B, H = 64, 64


def run(dtype, start):
    """Forward and backward of h_t = h_{t-1} / 2 from ``start``, and how many of its states are subnormal."""
    T = np.finfo(dtype).nmant - 1  # a subnormal number can be halved no oftener
    w = np.eye(H, dtype=dtype) / 2
    x, h0, d_out = np.zeros((T, B, H), dtype), np.full((B, H), start, dtype), np.zeros((T, B, H), dtype)
    d_state = np.full((B, H), start, dtype)

    def call():
        _, _, tape = fastbptt.rnn_forward(x, h0, w, w, nonlinearity="identity")
        return tape, fastbptt.rnn_backward(tape, d_out, d_state)

    tape, grads = call()
    states = np.abs(tape.h)
    reference = np.ldexp(np.full(T + 1, start, dtype), -np.arange(T + 1))
    assert (tape.h == reference[:, None, None]).all()
    assert (grads.state == reference[-1]).all()
    return call, float(((states > 0) & (states < np.finfo(dtype).tiny)).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for dtype in ("float64", "float32"):
        subnormal, share = run(dtype, np.finfo(dtype).tiny)
        normal, _ = run(dtype, 1.0)
        seconds = medians(alternate({"subnormal": subnormal, "normal": normal}, options.rounds))
        ratio = seconds["subnormal"] / seconds["normal"]
        print(f"{dtype}: {share:.0%} of the states subnormal; {ratio:.2f} times the time of none")


if __name__ == "__main__":
    main()
