"""Gradient clipping in place, by the norm of all gradients together or element by element."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from . import _checks
from ._kernels import chunks, kernels
from ._typing import Array, Integers, Real
from .results import Gradients

NONFINITE = ("raise", "zero", "skip")

if TYPE_CHECKING:

    class HasGradients(Protocol):
        """A layer."""

        @property
        def flat_grads(self) -> Array: ...


Grads: TypeAlias = "Array | HasGradients | Gradients | Mapping[Any, Array] | Sequence[Array | HasGradients]"


def clip_grad_norm_(grads: Grads, max_norm: Real, norm_type: Real = 2.0, *, nonfinite: Literal["raise", "zero", "skip"] = "raise") -> float:
    """Scale gradients down, in place, so that their norm taken together is at most ``max_norm``.

    Below the limit nothing is touched, bit for bit. Above it, every gradient is multiplied by ``max_norm / norm``, which keeps the
    direction of the step (Pascanu, Mikolov and Bengio 2013, Algorithm 1). The norm of finite gradients is finite, however large they are.

    Parameters
    ----------
    grads : ndarray, dict, list or tuple of ndarrays, Gradients, layer, or a list of layers
        Of a `Gradients`, the gradients of the weights and biases are meant, not those of the input and the state.
    max_norm : float
        At least 0; 0 makes all gradients 0, and ``inf`` only measures.
    norm_type : float
        The p of the p-norm, above 0; ``inf`` for the largest magnitude.
    nonfinite : {"raise", "zero", "skip"}
        What to do if the norm is inf or NaN: raise and leave the gradients alone; set all of them to 0; or leave them alone and let the
        caller see it from the returned norm.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above; a gradient is read-only, not contiguous, or overlaps another. Nothing is written then.
    FloatingPointError
        If the norm is not finite and ``nonfinite="raise"``; the message names the first culprit, of a layer by the parameter's name. Of a
        recurrent layer it also says at which step a state or its gradient first was not finite, if that is why; of a `Gradients`, from
        which step back the input's gradient is not.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> grads = [np.array([3.0, 0.0]), np.array([4.0])]
    >>> fastbptt.clip_grad_norm_(grads, max_norm=1.0)
    5.0
    >>> grads[0]
    array([0.6, 0. ])
    """
    max_norm = _checks.number("max_norm", max_norm, 0)
    norm_type = _checks.number("norm_type", norm_type, 0, above=True)
    _checks.one_of("nonfinite", nonfinite, NONFINITE)
    keys, arrays = _collect(grads)
    if not arrays:
        return 0.0
    norm = _call("clip_norm", keys, arrays, max_norm, norm_type)
    if not math.isfinite(norm):
        if nonfinite == "raise":
            raise FloatingPointError(f"grads: the norm is {norm}; {_first_nonfinite(grads)}")
        if nonfinite == "zero":
            chunks.zero([array for array in arrays if np.asarray(array).size])  # an empty one may be read-only
    return norm


def clip_grad_value_(grads: Grads, clip_value: Real) -> None:
    """Limit every element of the gradients, in place, to [-clip_value, clip_value] (Mikolov 2012). NaN stays NaN.

    Parameters
    ----------
    grads : as for `clip_grad_norm_`
    clip_value : float
        At least 0; ``inf`` changes nothing.

    Raises
    ------
    TypeError, ValueError
        As `clip_grad_norm_`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> g = np.array([0.5, -7.0])
    >>> fastbptt.clip_grad_value_(g, 1.0)
    >>> g
    array([ 0.5, -1. ])
    """
    clip_value = _checks.number("clip_value", clip_value, 0)
    keys, arrays = _collect(grads)
    if arrays:
        _call("clip_value", keys, arrays, clip_value)


def total_norm(grads: Grads, norm_type: Real = 2.0) -> float:
    """The norm of all gradients taken together as one vector; finite if they are.

    Parameters
    ----------
    grads, norm_type : as for `clip_grad_norm_`

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> fastbptt.total_norm({"a": np.array([6.0, 0.0]), "b": np.array([8.0])})
    10.0
    """
    norm_type = _checks.number("norm_type", norm_type, 0, above=True)
    keys, arrays = _collect(grads)
    return _call("total_norm", keys, arrays, norm_type) if arrays else 0.0


def _collect(grads: Any) -> tuple[Sequence[Any] | None, list[Array]]:
    """The arrays meant by ``grads``, and the keys that they are known by; no keys for a single one, which is ``grads`` itself."""
    if isinstance(grads, np.ndarray):
        return None, [grads]
    if isinstance(grads, Gradients):
        named: dict[str, Array | None] = {name: getattr(grads, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")}
        grads = {name: array for name, array in named.items() if array is not None}
    if isinstance(grads, dict):
        return tuple(grads), list(grads.values())
    if hasattr(grads, "flat_grads"):
        return None, [grads.flat_grads]
    if not isinstance(grads, (list, tuple)):
        raise TypeError(f"grads: expected arrays, Gradients or layers, got {_checks.describe(grads)}")
    arrays: list[Any] = [getattr(item, "flat_grads", item) for item in grads]
    return range(len(grads)), arrays


def _names(keys: Sequence[Any] | None) -> list[str]:
    return ["grads"] if keys is None else [_checks.item("grads", key) for key in keys]


def _call(kernel: str, keys: Sequence[Any] | None, arrays: list[Array], *args: float) -> Any:
    """A kernel's result for these arrays. Only if it refuses them are they checked one by one, to say what is wrong.

    It also refuses some valid arrays that are empty: these are then left out.
    """
    dtype: Any = arrays[0].dtype if type(arrays[0]) is np.ndarray else None
    if dtype in kernels and all(type(array) is np.ndarray and array.dtype is dtype for array in arrays):
        try:
            return getattr(kernels[dtype], kernel)(arrays, *args)
        except (BufferError, ValueError):
            pass
    writable, names = kernel != "total_norm", _names(keys)
    arrays = [_checks.require_array(name, array) for name, array in zip(names, arrays)]
    dtype = arrays[0].dtype
    for name, array in zip(names, arrays):
        if _checks.require_float(name, array) != dtype:
            raise TypeError(f"{name}: expected dtype {dtype} like the first, got {array.dtype}")
        flags = array.flags
        if array.size and (not (flags.forc and flags.aligned) or (writable and not flags.writeable)):
            raise ValueError(f"{name}: expected a contiguous, aligned{' and writeable' if writable else ''} array")
    if writable:
        _checks.require_disjoint(names, arrays)
    return getattr(kernels[dtype], kernel)([array for array in arrays if array.size], *args)


def _first_nonfinite(grads: Any) -> str:
    """In words: the first element that is not finite, and the first step, if it can be told."""
    for name, array, step in _named(grads):
        if not np.isfinite(array).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            return f"the first culprit is {name} at {at}: {array[at]}" + (f"; {step}" if step else "")
    return "all elements are finite"


def _named(grads: Any) -> Iterator[tuple[str, Array, str | None]]:
    """Of each array, in order: its name, itself, and what is known of the first step that was not finite."""
    if isinstance(grads, np.ndarray):
        yield "grads", grads, None
    elif hasattr(grads, "flat_grads"):
        yield from _of_layer("grads", grads)
    elif isinstance(grads, (list, tuple)) and not isinstance(grads, Gradients):
        for i, part in enumerate(grads):
            name = _checks.item("grads", i)
            yield from _of_layer(name, part) if hasattr(part, "flat_grads") else [(name, part, None)]
    else:
        keys, arrays = _collect(grads)
        step = _first_step_back(grads.x) if isinstance(grads, Gradients) else None
        for name, array in zip(_names(keys), arrays):
            yield name, array, step


def _of_layer(name: str, layer: Any) -> Iterator[tuple[str, Array, str | None]]:
    for parameter, array in layer.grads.items():
        yield _checks.item(name, parameter), array, getattr(layer, "_first_nonfinite", None)


def _first_step_back(dx: Array | None) -> str | None:
    bad: Sequence[int] | Integers = [] if dx is None else np.flatnonzero(~np.isfinite(dx).all(axis=(1, 2)))
    return f"on the way back, the gradient of the input is not finite from step {bad[-1]} on" if len(bad) else None
