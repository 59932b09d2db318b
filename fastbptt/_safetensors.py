"""Arrays in safetensors files, a format that cannot run code: eight bytes with the length of a header in JSON, the header, the arrays.

Written in one piece or not at all, and read only where header, size and arrays agree.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from typing import Any

import numpy as np

from ._checks import quoted
from ._files import errors_name, write_atomically
from ._typing import Array, FilePath

HEADER_LIMIT = 100_000_000  # bytes: the format's own
DTYPES = {
    name: np.dtype(f"<{code}") for name, code in {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U32": "u4"}.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(
    path: FilePath,
    arrays: dict[str, Array],
    metadata: dict[str, str] | None = None,
    write: Callable[[FilePath, bytes], object] = write_atomically,
) -> None:
    """Write a file, all of it or nothing.

    Parameters
    ----------
    path : str or path
    arrays : dict of ndarray
        Equal arrays and metadata make equal files, whatever their order.
    metadata : dict of str or None
        Texts by name.
    write : callable
        What writes it, called as ``write(path, content)``.

    Raises
    ------
    OSError
        If it cannot be written. A file that was there before is then still there.
    ValueError
        If there are more arrays than such a file may have.
    """
    header: dict[str, Any] = {} if not metadata else {"__metadata__": metadata}
    pieces, end = [], 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):  # so that each array is aligned
        array = arrays[name]
        piece = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {"dtype": NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape), "data_offsets": [end, end + len(piece)]}
        pieces.append(piece)
        end += len(piece)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise ValueError(f"{path}: {len(arrays):,} arrays have a header of {len(text):,} bytes, more than a safetensors file may have")
    write(path, b"".join([len(text).to_bytes(8, "little"), text, *pieces]))


def load(path: FilePath, kind: str = "safetensors file", required: str | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a file.

    Parameters
    ----------
    path : str or path
    kind : str
        What it is, for the errors.
    required : str or None
        A name in the metadata without which it is of another kind.

    Returns
    -------
    arrays : dict of ndarray
    metadata : dict of str

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or a damaged one. Memory for more than the file holds is never asked for.
    """
    noun = kind.split(" of ")[0]
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: expected a {noun}, got a directory or device")
    with errors_name(path), open(path, "rb") as file:
        beginning = file.read(9)
        length = int.from_bytes(beginning[:8], "little")
        if beginning[8:] != b"{" or not 0 < length <= HEADER_LIMIT:
            raise ValueError(f"{path}: not a {kind}")
        try:
            header = json.loads(b"{" + file.read(length - 1), object_pairs_hook=_unique)
            metadata = _texts(header.pop("__metadata__", {}))
            if required is not None and required not in metadata:
                raise LookupError
            entries, end = _entries(header)
        except LookupError:
            raise ValueError(f"{path}: not a {kind}") from None
        except (AttributeError, TypeError, ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path}: damaged {noun}: {' '.join(str(error).split())}") from None
        promised, size = 8 + length + end, os.fstat(file.fileno()).st_size
        if promised != size:  # a video, or a file that was cut off, is not read to its end
            raise ValueError(f"{path}: damaged {noun}: its header promises {promised:,} bytes, and it has {size:,}")
        body = bytearray(file.read(end))
    if len(body) != end:
        raise ValueError(f"{path}: damaged {noun}: it was cut off while it was read")
    return {name: _array(body, *entry) for name, entry in entries.items()}, metadata


def _array(body, dtype, shape, begin):
    array = np.frombuffer(body, np.uint8, math.prod(shape) * dtype.itemsize, begin)
    array = array.view(dtype) if begin % dtype.itemsize == 0 else array.copy().view(dtype)
    return array.reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _texts(metadata):
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts by name")
    return metadata


def _entries(header):
    """Of each array the dtype, the shape and where it begins; and where the last one ends. They lie one behind the other."""
    entries, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        dtype, shape, (begin, stop) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{quoted(name)} is of type {quoted(dtype)}, none of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > 32 or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
            raise ValueError(f"{quoted(name)} has the shape {quoted(shape)}")
        if math.prod(filter(None, shape)) >= 1 << 59:  # NumPy refuses it even where another size is 0
            raise ValueError(f"{quoted(name)} has the shape {quoted(shape)}")
        if begin != end or stop - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(
                f"{quoted(name)}, {dtype} of shape {shape}, does not fill the bytes from {begin} to {stop} behind the first {end}"
            )
        entries[name], end = (DTYPES[dtype], tuple(shape), begin), stop
    return entries, end


def _offsets(name, entry):
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int and at >= 0 for at in offsets):
        raise ValueError(f"{quoted(name)} has no place in the file")
    return offsets


def _unique(pairs):
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{quoted(next(name for name in names if names.count(name) > 1))} is given twice")
    return dict(pairs)
