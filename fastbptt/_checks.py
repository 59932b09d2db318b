"""Checks of arguments: an error names the argument, what was expected and what came."""

from __future__ import annotations

import operator
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ._kernels import kernels, memory
from ._typing import Array

if TYPE_CHECKING:
    from pathlib import Path

    from ._typing import Attribute, V

DTYPES = tuple(dtype.name for dtype in kernels)
LARGEST = 1e6  # size or rate that a command takes
SHOWN = 80  # characters of a value in a message
_NAMES = " or ".join(DTYPES)


def checked(name: str, check: Callable[[str, Any], V], doc: str) -> Attribute[V]:
    """A property that can be set to whatever ``check(name, value)`` lets through."""

    def put(self: object, value: Any) -> None:
        setattr(self, f"_{name}", check(name, value))

    return property(operator.attrgetter(f"_{name}"), put, doc=doc)  # type: ignore[return-value]


def describe(value: object) -> str:
    """What came instead, for a message."""
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
        return f"{type(value).__name__} of shape {array.shape}, dtype {array.dtype}"
    return type(value).__name__ if value is None or not np.isscalar(value) else quoted(value)


def quoted(value: object) -> str:
    """The value's ``repr``, in one line of bounded length; or its type, if it has none: as an int of more than 4300 digits."""
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def item(name: str, key: object) -> str:
    """The name of one element of an argument."""
    return f"{name}[{quoted(key)}]"


def require_array(name: str, value: Any) -> Array:
    """``value``, a NumPy array without a mask, else TypeError. Subclasses become plain arrays: their attributes may say anything."""
    if type(value) is np.ndarray:
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {describe(value)}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain NumPy array, got a masked one; fill it first, e.g. {name}.filled(0)")
    return np.asarray(value)


def require_float(name: str, value: Any) -> np.dtype[Any]:
    """The dtype of ``value``, a float array in native byte order that the kernels were built for."""
    dtype = require_array(name, value).dtype
    if dtype not in kernels:
        raise TypeError(f"{name}: expected dtype {_NAMES} in native byte order, got {dtype}")
    return dtype


def require_shape(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    value = require_array(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return value


def array(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """``value`` as a C-contiguous, aligned array of exactly this shape and dtype; copied only if its layout is another."""
    if type(value) is not np.ndarray:
        value = require_array(name, value)
    if value.dtype is not dtype and value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype} like the other arrays of this call, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    flags = value.flags
    return value if flags.c_contiguous and flags.aligned else contiguous(name, value)


def rows(name: str, value: Any, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Array:
    """``value`` as an array of exactly this shape and dtype, whose rows are in one piece each, and all as far apart as two of them; copied
    only if its layout is another.
    """
    value = require_array(name, value)
    flags = value.flags
    if value.dtype != dtype or value.shape != shape or flags.c_contiguous or not flags.aligned:
        return array(name, value, shape, dtype)
    (T, B, W), (outer, inner, each) = shape, value.strides
    apart = (W < 2 or each == value.itemsize) and (T < 2 or B < 2 or outer == B * inner)
    return value if apart and (outer if B < 2 else inner) % value.itemsize == 0 else contiguous(name, value)


def contiguous(name: str, value: Array) -> Array:
    """``value`` without gaps and aligned; copied only if it is not, and, where that is rows of numbers (T, B, W), by all threads."""
    flags = value.flags
    if flags.c_contiguous and flags.aligned:
        return value
    with Room(name, value.size):
        if (
            value.ndim != 3
            or value.dtype not in kernels
            or not flags.aligned
            or (value.shape[2] > 1 and value.strides[2] != value.itemsize)
        ):
            return np.array(value, order="C")
        copy = memory.empty(value.shape, value.dtype)
    kernels[value.dtype].move_rows(value, copy)
    return copy


def require_disjoint(names: Sequence[str], arrays: Sequence[Array]) -> None:
    """ValueError unless the contiguous arrays that are to be written each have memory of their own."""
    if len(arrays) < 2:
        return
    for (_, end, i), (start, _, j) in pairwise(spans(arrays)):
        if start < end:
            raise ValueError(f"{names[j]}: overlaps {names[i]}; each array must have memory of its own")


def require_apart(names: Sequence[str], arrays: Sequence[Array], from_names: Sequence[str], others: Sequence[Array]) -> None:
    """ValueError if one of the contiguous arrays overlaps one of the ``others``, which are disjoint."""
    written = spans(others)
    ends = [end for _, end, _ in written]
    for start, end, i in spans(arrays):
        at = bisect_right(ends, start)
        if at < len(written) and written[at][0] < end:
            raise ValueError(f"{names[i]}: overlaps {from_names[written[at][2]]}, which is to be written")


def spans(arrays: Sequence[Array]) -> list[tuple[int, int, int]]:
    """Where the contiguous arrays begin and end, and which each is, in the order of their addresses; the empty ones left out."""
    return sorted((start := array.ctypes.data, start + array.nbytes, i) for i, array in enumerate(arrays) if array.size)


def integers(name: str, value: Any, shape: tuple[int, ...], limit: int, what: str, counts: Array | None = None) -> Array:
    """A copy of ``value`` as contiguous int64, every element in [0, limit): kernels take these as addresses.

    Where ``counts`` is given and False, the element may be anything, and becomes 0.
    """
    value = require_array(name, value)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    with Room(name, value.size):
        value = np.array(value, order="C")
    if counts is not None:
        value[~counts] = 0
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= limit:
            raise IndexError(f"{name}: expected {what} from 0 to {limit - 1}, got {low if low < 0 else high}")
    return value.astype(np.int64, copy=False)


def frozen(value: Array) -> Array:
    """A contiguous copy of ``value`` in memory that can never be written to."""
    return np.ndarray(value.shape, value.dtype, value.tobytes())


def one_of(name: str, value: Any, allowed: Collection[str]) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {describe(value)}")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {quoted(value)}")
    return value


def scalar(value: Any) -> Any:
    """The element of an array without axes; anything else as it came."""
    return value[()] if type(value) is np.ndarray and value.ndim == 0 else value


def real(name: str, value: Any) -> float:
    """``value`` as a float, which may be inf or NaN."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    try:
        return float(operator.index(value) if isinstance(value, (int, np.integer)) else value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that float64 has room for, got {quoted(value)}") from None


def number(name: str, value: Any, low: float, high: float = np.inf, *, above: bool = False) -> float:
    """``value`` as a float from ``low`` (or above it) to ``high``; NaN is never in range."""
    got = real(name, value)
    if not (low < got if above else low <= got) or not got <= high:
        bound = f"{'above' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high < np.inf else "")
        came = operator.index(value) if isinstance(value, (int, np.integer)) else got
        raise ValueError(f"{name}: expected a number {bound}, got {quoted(came)}")
    return got


def share(name: str, value: Any) -> float:
    """``value`` as a float of at least 0 and below 1."""
    got = real(name, value)
    if not 0 <= got < 1:
        raise ValueError(f"{name}: expected a number of at least 0 and below 1, got {quoted(got)}")
    return got


def size(name: str, value: Any, low: int = 1, high: float = np.inf) -> int:
    """``value`` as an int from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    got = operator.index(value)
    if got < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {quoted(got)}")
    if got > high:
        raise ValueError(f"{name}: expected an integer of at most {high}, got {quoted(got)}")
    return got


def axis(name: str, value: Any) -> int:
    """``value`` as the length of an array's axis."""
    return size(name, value, 1, sys.maxsize)


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool; the integers 0 and 1 are accepted too, but nothing else that is merely truthy or falsy."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and operator.index(value) in (0, 1)):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {describe(value)}")


def dtype(name: str, value: Any) -> np.dtype[Any]:
    """``value`` as one of the dtypes that the kernels were built for."""
    try:
        got = np.dtype(value)
    except Exception:  # NumPy asks the value for its dtype, which may raise anything
        got = None
    if got not in kernels:
        raise TypeError(f"{name}: expected {_NAMES}, got {describe(value) if got is None else got}")
    return got


def generator(name: str, value: Any) -> np.random.Generator:
    """`numpy.random.default_rng` of ``value``, which is checked first: a matrix crashes NumPy."""
    value = scalar(value)
    if isinstance(value, np.random.RandomState):
        return np.random.Generator(value._bit_generator)  # default_rng does so since NumPy 2.2
    if value is None or isinstance(value, (np.random.Generator, np.random.BitGenerator, np.random.SeedSequence)):
        return np.random.default_rng(value)
    if isinstance(value, (int, np.integer)):
        return np.random.default_rng(size(name, value, 0))
    if isinstance(value, np.ndarray):
        value = require_array(name, value)
        if value.dtype.kind not in "iu" or value.ndim != 1:
            raise TypeError(f"{name}: expected a one-dimensional array of integers, got {describe(value)}")
    elif not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected None, an integer, a sequence of integers or a numpy.random.Generator, got {describe(value)}")
    return np.random.default_rng([size(item(name, i), part, 0) for i, part in enumerate(value)])


def path(name: str, value: Any) -> Path:
    """``value`` as a Path, of a name that a file can have."""
    from pathlib import Path  # slow to import

    try:
        got = os.fspath(value)
    except TypeError:
        got = None
    if not isinstance(got, str):
        raise TypeError(f"{name}: expected a str or a path, got {describe(value)}")
    if "\0" in got or not _encodable(got):
        raise ValueError(f"{name}: expected a name that a file can have, got {quoted(got)}")
    return Path(got)


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def require_names(name: str, given: Collection[str], expected: Iterable[str]) -> None:
    """KeyError unless the dict ``given`` has just the ``expected`` keys."""
    known = dict.fromkeys(expected)
    missing, unexpected = [key for key in known if key not in given], [key for key in given if key not in known]
    if missing or unexpected:
        raise KeyError(f"{name}: missing {quoted(missing)}, unexpected {quoted(unexpected)}")


class Room:
    """A context for allocating ``count`` numbers, whose MemoryError names the arguments that ask for them."""

    def __init__(self, names: str, count: int) -> None:
        self.names, self.count = names, count

    def __enter__(self) -> None:
        if self.count > sys.maxsize // 8:  # NumPy's error for such sizes is another
            raise self._refusal()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, MemoryError):
            raise self._refusal() from None

    def _refusal(self) -> MemoryError:
        return MemoryError(f"{self.names}: no memory for {quoted(self.count)} numbers")
