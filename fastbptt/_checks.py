"""Checks of arguments: an error names the argument, what was expected and what came."""

from bisect import bisect_right
from itertools import pairwise

import numpy as np

from ._kernels import kernels

DTYPES = tuple(dtype.name for dtype in kernels)
LARGEST = 1e6  # for any size or rate that a command's user could mean
_NAMES = " or ".join(DTYPES)


def describe(value):
    """What came, in few words."""
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} of shape {value.shape}, dtype {value.dtype}"
    return type(value).__name__ if value is None or not np.isscalar(value) else repr(value)


def require_array(name, value):
    """``value``, a NumPy array without a mask, else TypeError. Of a subclass, whose attributes may say anything, the array that it is."""
    if type(value) is np.ndarray:
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {describe(value)}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain NumPy array, got a masked one; fill it first, e.g. {name}.filled(0)")
    return np.asarray(value)


def require_float(name, value):
    """The dtype of ``value``, a float array in native byte order that the kernels were built for."""
    dtype = require_array(name, value).dtype
    if dtype not in kernels:
        raise TypeError(f"{name}: expected dtype {_NAMES} in native byte order, got {dtype}")
    return dtype


def require_shape(name, value, shape):
    value = require_array(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return value


def array(name, value, shape, dtype):
    """``value`` as a C-contiguous, aligned array of just this shape and dtype; copied only if it is laid out otherwise."""
    if type(value) is not np.ndarray:
        value = require_array(name, value)
    if value.dtype is not dtype and value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype} like the other arrays of this call, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    flags = value.flags
    return value if flags.c_contiguous and flags.aligned else np.array(value, order="C")


def contiguous(value):
    flags = value.flags
    return value if flags.c_contiguous and flags.aligned else np.array(value, order="C")


def require_disjoint(what, names, arrays):
    """ValueError unless the contiguous arrays that are to be written each have memory of their own."""
    if len(arrays) < 2:
        return
    for (_, end, i), (start, _, j) in pairwise(spans(arrays)):
        if start < end:
            raise ValueError(f"{what}[{names[j]!r}]: overlaps {what}[{names[i]!r}]; each array must have memory of its own")


def require_apart(what, names, arrays, from_what, from_names, others):
    """ValueError if one of the contiguous arrays overlaps one of the ``others``, which are disjoint."""
    others = spans(others)
    ends = [end for _, end, _ in others]
    for start, end, i in spans(arrays):
        at = bisect_right(ends, start)
        if at < len(others) and others[at][0] < end:
            raise ValueError(f"{what}[{names[i]!r}]: overlaps {from_what}[{from_names[others[at][2]]!r}], which is to be written")


def spans(arrays):
    """Where the contiguous arrays begin and end, and which each is, in the order of their addresses; the empty ones left out."""
    return sorted((start := array.ctypes.data, start + array.nbytes, i) for i, array in enumerate(arrays) if array.size)


def integers(name, value, shape, limit, what, counts=None):
    """A copy of ``value`` as contiguous int64, every element in [0, limit): kernels take these as addresses.

    Where ``counts`` is given and False, the element may be anything, and becomes 0.
    """
    value = require_array(name, value)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    value = np.array(value, order="C")
    if counts is not None:
        value[~counts] = 0
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= limit:
            raise IndexError(f"{name}: expected {what} from 0 to {limit - 1}, got {low if low < 0 else high}")
    return value.astype(np.int64, copy=False)


def frozen(value):
    """A contiguous copy of ``value`` in memory that can never be written to."""
    return np.ndarray(value.shape, value.dtype, value.tobytes())


def one_of(name, value, allowed):
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {describe(value)}")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def number(name, value, low, high=np.inf, *, above=False):
    """``value`` as a float from ``low`` (or above it) to ``high``; NaN is never in range."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if not (low < value if above else low <= value) or not value <= high:
        bound = f"{'above' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high < np.inf else "")
        raise ValueError(f"{name}: expected a number {bound}, got {value}")
    return float(value)


def size(name, value, low=1):
    """``value`` as an int of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    if value < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {value}")
    return int(value)
