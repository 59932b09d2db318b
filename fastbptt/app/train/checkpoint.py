"""Checkpoints: arrays and settings in one safetensors file, which cannot run code and cannot be half-written."""

import json
import operator
import os
import stat
from contextlib import contextmanager

import numpy as np

from ..._files import errors_name, write_atomically
from ..messages import one_line

HEADER_LIMIT = 1 << 20  # bytes
DTYPES = ("F64", "F32", "I64", "I32", "U32")
METADATA_KEY = "fastbptt"  # one entry only: the format's writer leaves the order of several to chance


def save_checkpoint(path, arrays, metadata, write=write_atomically):
    """Write a checkpoint, all of it or nothing.

    Parameters
    ----------
    path : str or path
    arrays : dict of ndarray
    metadata : dict
        Anything that JSON can hold. Equal arrays and metadata make equal files.
    write : callable
        What writes it, called as ``write(path, content)``.

    Raises
    ------
    OSError
        If it cannot be written. A file that was there before is then still there.
    """
    from safetensors.numpy import save

    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    write(path, save({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}, {METADATA_KEY: text}))


def load_checkpoint(path):
    """Read what `save_checkpoint` wrote.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    arrays : dict of ndarray
    metadata : dict

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no checkpoint, or a damaged one. Memory for more than the file holds is never asked for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = _read_checked(path)
    try:
        return load(content), json.loads(json.loads(_header(content))["__metadata__"][METADATA_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)}") from None


def below(prefix, arrays):
    """Those arrays whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


@contextmanager
def damage_named(path):
    """Whatever is found wrong with a checkpoint's content is the checkpoint's fault."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)} is missing") from None
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)}") from None


def _read_checked(path):
    """The file's bytes, once its header shows that they are what it promises: a video, or a file that was cut off, is not read to its end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: expected a checkpoint, got a directory or device")
    with errors_name(path), open(path, "rb") as file:
        beginning = file.read(9)
        length = int.from_bytes(beginning[:8], "little")
        if beginning[8:] != b"{" or not 0 < length <= HEADER_LIMIT:
            raise ValueError(f"{path}: not a checkpoint of fastbptt")
        header = b"{" + file.read(length - 1)
        promised = 8 + length + _check_header(path, header)
        size = os.fstat(file.fileno()).st_size
        if promised != size:
            raise ValueError(f"{path}: damaged checkpoint: its header promises {promised:,} bytes, and it has {size:,}")
        file.seek(0)
        return file.read(promised)


def _header(content):
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _check_header(path, text):
    """What the safetensors package lets pass: names given twice, element types that NumPy lacks, somebody else's file.

    Returns how many bytes of arrays are to follow.
    """
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        ours = METADATA_KEY in header.pop("__metadata__", {})
        dtypes = {name: entry["dtype"] for name, entry in header.items()}
        ends = [operator.index(entry["data_offsets"][1]) for entry in header.values()]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)}") from None
    if not ours:
        raise ValueError(f"{path}: not a checkpoint of fastbptt")
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: damaged checkpoint: {name} is of type {dtype}, none of {', '.join(DTYPES)}")
    return max(ends, default=0)


def _unique(pairs):
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return dict(pairs)
