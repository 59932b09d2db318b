"""What counts as equal: one row for each element type, one bound for everything that is a sum of products."""

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    eps: float  # a rounding error of the type, relative
    oracle: type  # the wider type in which the reference runs, so that its own rounding does not count
    torch: float  # largest difference from PyTorch, relative to the largest element
    torch_relative: float  # ... and, added to that, relative to the element itself


TOLERANCES = {
    np.dtype(np.float64): Tolerance(eps=2.0**-52, oracle=np.longdouble, torch=1e-12, torch_relative=0.0),
    np.dtype(np.float32): Tolerance(eps=2.0**-23, oracle=np.float64, torch=1e-5, torch_relative=1.3e-6),
}
DTYPES = list(TOLERANCES)


def bound(dtype, K, T):
    """The largest difference allowed, relative to the largest element, for sums over K products and T steps."""
    return 8 * np.ceil(np.log2(max(2, K * T))) * TOLERANCES[np.dtype(dtype)].eps


def assert_close(name, got, expected, limit, scale=None, relative=0.0):
    """``got`` has the shape of ``expected``, and differs by at most ``limit`` times ``scale``: the largest element, unless given.

    On top of that, each element may differ by ``relative`` of itself.
    """
    if expected is None or got is None:
        assert got is expected, f"{name}: got {got!r}, expected {expected!r}"
        return
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    if not expected.size:
        return
    scale = np.abs(expected).max() if scale is None else scale
    error = (np.abs(got - expected) - relative * np.abs(expected)).max()
    assert error <= limit * scale, f"{name}: off by {error:.3g}, allowed {limit:.3g} of {scale:.3g}"


def assert_same_bits(name, got, expected):
    """Equal to the last bit, signs of zeros and NaNs included."""
    if expected is None or got is None:
        assert got is expected, f"{name}: got {got!r}, expected {expected!r}"
        return
    assert got.dtype == expected.dtype and got.shape == expected.shape, name
    differ = np.ascontiguousarray(got).view(np.uint8) != np.ascontiguousarray(expected).view(np.uint8)
    assert not differ.any(), f"{name}: {np.count_nonzero(got != expected)} of {got.size} elements differ"
