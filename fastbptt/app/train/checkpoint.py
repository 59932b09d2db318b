"""Checkpoints: arrays and settings in one safetensors file, which cannot run code and cannot be half-written."""

import json
from contextlib import contextmanager

import numpy as np

from ..._files import write_atomically
from ..._safetensors import load, save
from ..messages import one_line

METADATA_KEY = "fastbptt"


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
    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    save(path, {name: np.asarray(array) for name, array in arrays.items()}, {METADATA_KEY: text}, write)


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
    arrays, metadata = load(path, "checkpoint of fastbptt", METADATA_KEY)
    try:
        return arrays, json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
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
