"""Fleets' optimisers and clipping, net by net."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _checks, optim
from .._kernels import chunks, kernels
from .._typing import Array, Bool, Float64s, Real
from ..clipping import NONFINITE, _collect, _names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..results import Gradients

    Params = Array | Sequence[Array] | Mapping[str, Array]
    Grads = Array | Gradients | Mapping[Any, Array] | Sequence[Array]


def clip_grad_norm_(
    grads: Grads, max_norm: Real, norm_type: Real = 2.0, *, nonfinite: Literal["raise", "zero", "skip"] = "raise"
) -> Float64s:
    """`fastbptt.clip_grad_norm_` for each net of a fleet: its gradients are scaled down, in place, to a norm of at most ``max_norm``.

    Parameters
    ----------
    grads : ndarray, dict, list or tuple of ndarrays, or Gradients
        All with a leading axis K. Of a `Gradients`, the gradients of weights and biases are meant.
    max_norm, norm_type : float
        As for `fastbptt.clip_grad_norm_`.
    nonfinite : {"raise", "zero", "skip"}
        What to do with nets whose norm is inf or NaN: raise, and leave the gradients of all nets alone; set theirs to 0; or leave theirs
        alone. With the last two, all other nets are clipped as if they were by themselves.

    Returns
    -------
    ndarray (K,)
        The norms before clipping.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above; a gradient is read-only, not contiguous, or overlaps another. Nothing is written then.
    FloatingPointError
        If a norm is not finite and ``nonfinite="raise"``; the message names the nets.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> grads = [np.array([[3.0, 4.0], [0.3, 0.4]])]                     # K=2
    >>> fastbptt.fleet.clip_grad_norm_(grads, max_norm=1.0)
    array([5. , 0.5])
    >>> grads[0]
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    max_norm = _checks.number("max_norm", max_norm, 0)
    norm_type = _checks.number("norm_type", norm_type, 0, above=True)
    _checks.one_of("nonfinite", nonfinite, NONFINITE)
    keys, arrays = _collect(grads)
    names = _names(keys)
    arrays = [_checks.require_array(name, array) for name, array in zip(names, arrays)]
    if not arrays:
        raise ValueError("grads: expected at least one array, got none")
    K, dtype = _nets(names, arrays), arrays[0].dtype
    for name, array in zip(names, arrays):
        if _checks.require_float(name, array) != dtype:
            raise TypeError(f"{name}: expected dtype {dtype} like the first, got {array.dtype}")
        if array.size and not array.flags.carray:
            raise ValueError(f"{name}: expected a C-contiguous, aligned and writeable array")
    _checks.require_disjoint(names, arrays)
    arrays = [array for array in arrays if array.size]
    of_net = [[array[k : k + 1] for array in arrays] for k in range(K)]
    norms = np.array([kernels[dtype].total_norm(part, norm_type) for part in of_net], np.float64)
    finite = np.isfinite(norms)
    if nonfinite == "raise" and not finite.all():
        bad = np.flatnonzero(~finite)
        raise FloatingPointError(f"grads: the norm of net {bad[0]} is {norms[bad[0]]}; of {len(bad)} of {K} nets it is not finite")
    for k in np.flatnonzero(finite & (norms > max_norm)):
        kernels[dtype].clip_norm(of_net[k], max_norm, norm_type)
    if nonfinite == "zero":
        for k in np.flatnonzero(~finite):
            chunks.zero(of_net[k])
    return norms


def _nets(names: Sequence[str], arrays: Sequence[Array]) -> int:
    """The K that all arrays have."""
    for name, array in zip(names, arrays):
        if array.ndim == 0:
            raise ValueError(f"{name}: expected an array with a leading axis of nets, got shape ()")
        if len(array) != len(arrays[0]):
            raise ValueError(f"{name}: expected {len(arrays[0])} nets, as {names[0]} has, got {len(array)}")
    return len(arrays[0])


class _OfFleet(optim.Optimiser):
    """An optimiser that can have a learning rate for each net."""

    if not TYPE_CHECKING:
        __slots__ = ()  # the classes below have them: of two bases, one alone may
    _fleet: int
    _lrs: Float64s | None

    @property  # type: ignore[override]
    def lr(self) -> float | Float64s:
        """The learning rate: one, or an array (K,) of them, which is read-only."""
        return self._lr if self._lrs is None else self._lrs

    @lr.setter
    def lr(self, value: Real | Array) -> None:
        value = _checks.scalar(value)
        if not isinstance(value, np.ndarray):
            self._lr, self._lrs = optim.at_least_0("lr", value), None
            return
        value = _checks.require_array("lr", value)
        if value.shape != (self._fleet,):
            raise ValueError(f"lr: expected a number or shape ({self._fleet},), one for each net, got {value.shape}")
        if value.dtype.kind not in "fiu":
            raise TypeError(f"lr: expected numbers, got dtype {value.dtype}")
        rates = np.array([optim.at_least_0(_checks.item("lr", k), rate) for k, rate in enumerate(value)], np.float64)
        rates.setflags(write=False)
        self._lrs = rates

    def _take(self, params: Any) -> None:
        """How many nets there are."""
        if hasattr(params, "flat_params"):
            raise TypeError(f"params: expected arrays with a leading axis of nets, got {_checks.describe(params)}")
        items = optim.items_of(params)
        names = ["params"] if isinstance(params, np.ndarray) else [_checks.item("params", key) for key, _ in items]
        arrays = [_checks.require_array(name, array) for name, (_, array) in zip(names, items)]
        self._fleet, self._lrs = _nets(names, arrays) if arrays else 0, None

    def _plans(self, kernel: Any, arrays: list[Array | None], used: Collection[str]) -> list[chunks.Arrays]:
        if self._lrs is None:
            return super()._plans(kernel, arrays, used)
        by_net = [None if array is None else array.reshape(self._fleet, -1) for array in arrays]
        return [
            self._plan(kernel, [None if array is None else array[k] for array in by_net], used, float(lr)) for k, lr in enumerate(self._lrs)
        ]


class Adam(_OfFleet, optim.Adam):
    """`fastbptt.Adam` for the nets of a fleet, each with a learning rate of its own if wanted.

    Parameters
    ----------
    params : ndarray, or dict or list of ndarrays
        All with a leading axis K.
    lr : float or ndarray (K,)
    betas, eps, weight_decay, amsgrad
        As for `fastbptt.Adam`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above; the message names it.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w = np.ones((2, 3))                                              # K=2
    >>> fastbptt.fleet.Adam(w, lr=np.array([0.1, 0.0])).step(np.full((2, 3), 7.0))
    >>> w.round(6)
    array([[0.9, 0.9, 0.9],
           [1. , 1. , 1. ]])
    """

    __slots__ = ("_fleet", "_lrs")

    def __init__(
        self,
        params: Params,
        lr: Real | Array = 1e-3,
        betas: tuple[Real, Real] = (0.9, 0.999),
        eps: Real = 1e-8,
        weight_decay: Real = 0.0,
        amsgrad: Bool = False,
    ) -> None:
        self._take(params)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)  # type: ignore[arg-type]


class RMSprop(_OfFleet, optim.RMSprop):
    """`fastbptt.RMSprop` for the nets of a fleet, each with a learning rate of its own if wanted.

    Parameters
    ----------
    params : ndarray, or dict or list of ndarrays
        All with a leading axis K.
    lr : float or ndarray (K,)
    alpha, eps, weight_decay, momentum, centered
        As for `fastbptt.RMSprop`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above; the message names it.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w = np.ones((2, 1))                                              # K=2
    >>> fastbptt.fleet.RMSprop(w, lr=np.array([0.1, 0.0]), alpha=0.75).step(np.ones((2, 1)))
    >>> w.round(6)
    array([[0.8],
           [1. ]])
    """

    __slots__ = ("_fleet", "_lrs")

    def __init__(
        self,
        params: Params,
        lr: Real | Array = 1e-2,
        alpha: Real = 0.99,
        eps: Real = 1e-8,
        weight_decay: Real = 0.0,
        momentum: Real = 0.0,
        centered: Bool = False,
    ) -> None:
        self._take(params)
        super().__init__(params, lr, alpha, eps, weight_decay, momentum, centered)  # type: ignore[arg-type]
