"""Clipping by the global norm: many small tensors against PyTorch, one large one against the two NumPy lines.

A gradient below the limit is left alone, so a call that is repeated would soon time nothing: each call here sets the limit a hair below
the norm that the call before has left, and every call really scales.
"""

import argparse

import numpy as np
import torch
from peers import THREADS
from timing import alternate, medians

import fastbptt

HAIR = 1 - 1e-5
TENSORS, LENGTH = 12, 1024
LARGE = 10**7


def shrinking(clip, norm):
    """A call of ``clip(limit)`` with a limit that is lower each time."""
    limit = norm

    def call():
        nonlocal limit
        limit *= HAIR
        clip(limit)

    return call


def small(rng):
    """12 tensors of 1024."""
    grads = [rng.standard_normal(LENGTH) for _ in range(TENSORS)]
    parameters = [torch.zeros(LENGTH, dtype=torch.float64, requires_grad=True) for _ in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.tensor(grad)
    norm = np.sqrt(sum(g @ g for g in grads))
    return {
        "torch": shrinking(lambda limit: torch.nn.utils.clip_grad_norm_(parameters, limit), norm),
        "fastbptt": shrinking(lambda limit: fastbptt.clip_grad_norm_(grads, limit), norm),
    }


def large(rng):
    """10^7 doubles; NumPy reads the array twice and writes it once, which is what clipping has to do."""
    grad = rng.standard_normal(LARGE)
    theirs = grad.copy()

    def two_lines():
        np.dot(theirs, theirs)
        np.multiply(theirs, HAIR, out=theirs)

    return {"NumPy": two_lines, "fastbptt": shrinking(lambda limit: fastbptt.clip_grad_norm_(grad, limit), np.sqrt(grad @ grad))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    fastbptt.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    for title, contestants in ((f"{TENSORS} tensors of {LENGTH}", small(rng)), (f"{LARGE:,} doubles", large(rng))):
        seconds = medians(alternate(contestants, rounds))
        other = next(iter(seconds))
        print(
            f"{title:20} fastbptt {seconds['fastbptt'] * 1e6:10.2f} us   {other:6} {seconds[other] * 1e6:10.2f} us   "
            f"fastbptt / {other} {seconds['fastbptt'] / seconds[other]:.3f}"
        )


if __name__ == "__main__":
    main()
