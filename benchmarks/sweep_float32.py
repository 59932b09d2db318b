"""The error of the float32 exp, tanh and sigmoid over all 2^32 inputs, in units in the last place, for this processor's kernels.

The oracle is NumPy in float64, whose own error is 2^-29 of a float32 unit. Subnormal results count in units of the smallest one.

    python benchmarks/sweep_float32.py
"""

import argparse
import time

import numpy as np

from fastbptt._kernels import kernels, level

CHUNK = 1 << 22
ORACLES = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def largest_error(name, first, last):
    """The largest error over the bit patterns first..last, in ULP, and the input that has it."""
    x = np.arange(first, last, dtype=np.uint32).view(np.float32)
    y = np.empty_like(x)
    kernels[np.dtype(np.float32)].vector_function(name, x, y)
    with np.errstate(all="ignore"):
        right = ORACLES[name](x.astype(np.float64))
        nearest = right.astype(np.float32)
        unit = np.spacing(np.abs(np.where(np.isfinite(nearest), nearest, np.finfo(np.float32).max))).astype(np.float64)
        error = np.abs(y - right) / unit
    agree = (y == nearest) | (np.isnan(y) & np.isnan(nearest))
    error[agree & ~np.isfinite(error)] = 0
    error[np.isnan(error)] = np.inf
    worst = int(error.argmax())
    return float(error[worst]), x[worst]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="sweep one chunk of 2^22 inputs in so many (default: 1, all)")
    options = parser.parse_args()
    print(f"kernels for {level}")
    for name in ORACLES:
        start = time.perf_counter()
        chunks = range(0, 1 << 32, CHUNK * options.every)
        error, x = max((largest_error(name, first, min(first + CHUNK, (1 << 32))) for first in chunks), key=lambda pair: pair[0])
        print(f"{name:8} {error:.3f} ULP at {x!r}; {len(chunks) * CHUNK:,} inputs in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
