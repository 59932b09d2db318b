"""Optimisers that update parameters in place, with PyTorch's hyper-parameters, defaults and formulas."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import _checks
from ._checks import checked
from ._kernels import chunks, kernels, memory
from ._typing import Array, Bool, Real

if TYPE_CHECKING:
    from .layers import Layer

LayersOrParams: TypeAlias = "Layer | Array | Sequence[Layer] | Sequence[Array] | Mapping[str, Array]"
at_least_0 = partial(_checks.number, low=0)


def two_decays(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list, np.ndarray)) or getattr(value, "ndim", 1) != 1 or len(value) != 2:
        raise TypeError(f"{name}: expected two numbers, got {_checks.describe(value)}")
    first, second = (_checks.number(f"{name}[{i}]", decay, 0, np.nextafter(1, 0)) for i, decay in enumerate(value))
    return first, second


def items_of(given: Any) -> list[tuple[Any, Any]]:
    """What is to be updated, and the keys that it is known by."""
    if isinstance(given, dict):
        return list(given.items())
    return list(enumerate(given)) if isinstance(given, (list, tuple)) else [(0, given)]


class Optimiser:
    """What the optimisers share: the parameter arrays, their gradients, and the state arrays that an algorithm asks for.

    A step is made for all parameters or for none: one that Ctrl-C comes upon is finished. Hyper-parameters are attributes that may be
    changed between steps; state arrays that only then are needed begin with the next step.

    Parameters
    ----------
    layers_or_params : layer, list of layers, ndarray, or dict or list of ndarrays
        What to update. A layer brings its gradients along; for bare arrays, `step` is given the gradients.
    """

    # Nothing else can be assigned: what is not the name of a hyper-parameter would have no effect.
    __slots__ = ("_layers", "_keys", "_names", "_params", "_shapes", "_wanted", "_slots", "_steps", "_lr", "_weight_decay", "__weakref__")
    _needs: tuple[str, ...] = ()  # the state arrays that the algorithm always has
    _options: tuple[str, ...] = ()  # those that an option asks for
    _lr: float
    _weight_decay: float
    _passing: tuple[str, ...] = ()  # of these, those that are let go with it: what they hold makes sense only if no step is left out

    lr = checked("lr", at_least_0, "The learning rate.")
    weight_decay = checked("weight_decay", at_least_0, "What of each parameter is added to its gradient.")

    @property
    def steps(self) -> int:
        """How many steps have been made."""
        return self._steps

    def __init__(self, layers_or_params: LayersOrParams, lr: Real, weight_decay: Real) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self._steps = 0
        given = layers_or_params
        items = items_of(given)
        if not items:
            raise ValueError("layers_or_params: expected at least one layer or array, got none")
        self._layers = [item for _, item in items] if all(hasattr(item, "flat_params") for _, item in items) else None
        self._keys = [key for key, _ in items]
        for key in given if isinstance(given, dict) else ():
            if not isinstance(key, str):
                raise TypeError(f"layers_or_params: expected names as keys, which state_dict is to use, got {_checks.describe(key)}")
        names = [_checks.item("layers_or_params", key) for key in self._keys]
        self._names = [_checks.item("grads", key) for key in self._keys]
        self._params = [_checks.require_array(name, getattr(item, "flat_params", item)) for name, (_, item) in zip(names, items)]
        for name, p in zip(names, self._params):
            _checks.require_float(name, p)
            if not (p.flags.c_contiguous and p.flags.aligned and p.flags.writeable):
                raise ValueError(f"{name}: expected a contiguous, aligned and writeable array")
        _checks.require_disjoint(names, self._params)
        self._shapes = [p.shape for p in self._params]
        self._wanted = self._wants()
        self._slots: list[dict[str, Array]] = [{} for _ in self._params]
        self._slots = self._state_arrays(self._wanted)

    def zero_grad(self) -> None:
        """Set the gradients of all layers to 0, as `Recurrent.zero_grad` does for one.

        Raises
        ------
        TypeError
            If the optimiser has bare arrays, whose gradients are not its own.
        """
        if self._layers is None:
            raise TypeError("zero_grad: expected an optimiser of layers; this one has bare arrays, which are given their gradients by step")
        for layer in self._layers:
            layer.zero_grad()

    def step(self, grads: Array | Sequence[Array] | Mapping[str, Array] | None = None) -> None:
        """Update all parameters from their gradients.

        Parameters
        ----------
        grads : ndarray, dict or list of ndarrays
            Gradients of bare arrays, in the form that these were given in. Layers have their own: leave it out.

        Raises
        ------
        TypeError, ValueError
            If gradients are missing, do not fit the parameters, or share memory with them. No parameter is changed then.
        """
        for key, p, shape in zip(self._keys, self._params, self._shapes):
            if p.shape != shape or not p.flags.carray:
                raise ValueError(f"{_checks.item('layers_or_params', key)}: resized or made read-only since the optimiser was made")
        gradients, wanted = self._gradients(grads), self._wants()
        slots = self._slots if wanted == self._wanted else self._state_arrays(wanted)
        used: Collection[str] = self._slots[0] if self._steps else ()
        names = [*self._needs, *[name if name in wanted else None for name in self._options]]
        by_dtype: dict[np.dtype[Any], list[Array | None]] = {}
        for p, g, state in zip(self._params, gradients, slots):
            by_dtype.setdefault(p.dtype, []).extend((p, g, *[None if name is None else state.get(name) for name in names]))
        updates = [plan for dtype, arrays in by_dtype.items() for plan in self._plans(kernels[dtype], arrays, used)]
        chunks.carry_out(updates, self, _wanted=wanted, _slots=slots, _steps=self._steps + 1)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all state arrays and the step count, under stable names, for `load_state_dict`."""
        state = {f"{name}.{key}": array.copy() for key, slots in zip(self._keys, self._slots) for name, array in slots.items()}
        return state | {"steps": np.array(self._steps, np.int64)}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Take back what `state_dict` gave. KeyError, TypeError or ValueError, and no change, if anything does not fit.

        What an option such as momentum asks for need not be in the state, as before the first step with it; and it may be there although
        the option is off, as after the last step with it.
        """
        if not isinstance(state, dict):
            raise TypeError(f"state: expected a dict of arrays, got {_checks.describe(state)}")
        names = [*self._needs, *(name for name in self._options if any(f"{name}.{key}" in state for key in self._keys))]
        _checks.require_names("state", state, [*(f"{name}.{key}" for key in self._keys for name in names), "steps"])
        slots = [
            {name: self._fit(f"{name}.{key}", state, (p.size,), p.dtype) for name in names} for key, p in zip(self._keys, self._params)
        ]
        steps = _checks.size("state['steps']", int(self._fit("steps", state, (), np.dtype(np.int64))), 0, 2**62)
        chunks.carry_out([], self, _wanted=None, _slots=slots, _steps=steps)

    @staticmethod
    def _fit(name: str, state: dict[str, Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A copy of an array of the state, in this dtype, aligned if it is large."""
        where, array = _checks.item("state", name), state[name]
        array = _checks.require_array(where, array)
        if array.dtype.kind != dtype.kind:
            raise TypeError(f"{where}: expected dtype {dtype}, got {array.dtype}")
        copy = memory.empty(shape, dtype)
        copy[...] = _checks.require_shape(where, array, shape)
        return copy

    def _wants(self) -> tuple[str, ...]:
        """Those of the optional state arrays that the options of now ask for."""
        return ()

    def _plans(self, kernel: Any, arrays: list[Array | None], used: Collection[str]) -> list[chunks.Arrays]:
        """What one step does to these arrays: in turn a parameter, its gradient and its state; ``used`` are the state arrays that have
        been used before."""
        return [self._plan(kernel, arrays, used, self._lr)]

    def _plan(self, kernel: Any, arrays: list[Array | None], used: Collection[str], lr: float) -> chunks.Arrays:
        raise NotImplementedError

    def _state_arrays(self, wanted: tuple[str, ...]) -> list[dict[str, Array]]:
        """By parameter and name: those of now, and for what is wanted and not there, zeros. None is kept that no step has used.

        Large ones are aligned: with moments that are not, a step of Adam on 20,000 parameters takes twice as long (float64, x86-64-v4).
        """
        kept = [name for name in self._slots[0] if name not in self._passing] if self._steps else ()
        names = dict.fromkeys((*self._needs, *wanted, *kept))
        return [
            {name: slots[name] if name in slots else memory.zeros((p.size,), p.dtype) for name in names}
            for p, slots in zip(self._params, self._slots)
        ]

    def _gradients(self, grads: Any) -> list[Array]:
        if self._layers is not None:
            if grads is not None:
                raise TypeError("grads: expected None, since the layers have their own gradients")
            return self._fitting([layer.flat_grads for layer in self._layers])
        if isinstance(grads, dict):
            known = dict.fromkeys(self._keys)
            missing, unknown = [key for key in known if key not in grads], [key for key in grads if key not in known]
            if missing or unknown:
                raise ValueError(
                    f"grads: expected a gradient for every parameter; missing {_checks.quoted(missing)}, unknown {_checks.quoted(unknown)}"
                )
            grads = [grads[key] for key in self._keys]
        elif isinstance(grads, np.ndarray):
            grads = [grads]
        elif not isinstance(grads, (list, tuple)):
            raise TypeError(f"grads: expected the gradients of the parameter arrays, got {_checks.describe(grads)}")
        if len(grads) != len(self._params):
            raise ValueError(f"grads: expected {len(self._params)} arrays, got {len(grads)}")
        grads = self._fitting(grads)
        if not chunks.disjoint(self._params + grads):
            _checks.require_apart(self._names, grads, [_checks.item("layers_or_params", key) for key in self._keys], self._params)
        return grads

    def _fitting(self, grads: Sequence[Array]) -> list[Array]:
        return [_checks.array(name, g, p.shape, p.dtype) for name, g, p in zip(self._names, grads, self._params)]


class SGD(Optimiser):
    """Gradient descent, with momentum if wanted: ``p -= lr * g``.

    Parameters
    ----------
    layers_or_params : layer, list of layers, ndarray, or dict or list of ndarrays
    lr : float
    momentum, dampening, weight_decay : float
    nesterov : bool

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w = np.ones(3)
    >>> fastbptt.SGD(w, lr=0.5).step(np.ones(3))
    >>> w
    array([0.5, 0.5, 0.5])
    """

    __slots__ = ("_momentum", "_dampening", "_nesterov")
    _options = ("momentum_buffer",)
    _momentum: float
    _dampening: float
    _nesterov: bool

    momentum = checked("momentum", at_least_0, "How much of the last step is made once more.")
    dampening = checked(
        "dampening", at_least_0, "What is taken off each gradient but the first, relative to it, before it is added to the momentum."
    )
    nesterov = checked("nesterov", _checks.flag, "Whether the momentum is looked ahead along.")

    def __init__(
        self,
        layers_or_params: LayersOrParams,
        lr: Real = 1e-3,
        momentum: Real = 0.0,
        dampening: Real = 0.0,
        weight_decay: Real = 0.0,
        nesterov: Bool = False,
    ) -> None:
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self._wants()
        super().__init__(layers_or_params, lr, weight_decay)

    def _wants(self) -> tuple[str, ...]:
        if self.nesterov and (self.momentum == 0 or self.dampening):
            raise ValueError("nesterov: expected momentum above 0 and no dampening to go with it")
        return ("momentum_buffer",) if self.momentum else ()

    def _plan(self, kernel: Any, arrays: list[Array | None], used: Collection[str], lr: float) -> chunks.Arrays:
        first = "momentum_buffer" not in used
        return kernel.sgd(arrays, lr, self._momentum, self._dampening, self._weight_decay, self._nesterov, first)


class RMSprop(Optimiser):
    """Steps divided by the running root mean square of each gradient (Tieleman and Hinton 2012): ``p -= lr * g / (sqrt(v) + eps)``.

    Parameters
    ----------
    layers_or_params : layer, list of layers, ndarray, or dict or list of ndarrays
    lr : float
    alpha : float
        The decay of the running mean v.
    eps, weight_decay, momentum : float
    centered : bool
        Whether v is the variance instead.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w = np.ones(1)
    >>> fastbptt.RMSprop(w, lr=0.1, alpha=0.75).step(np.ones(1))                        # v = 0.25
    >>> w.round(6)
    array([0.8])
    """

    __slots__ = ("_alpha", "_eps", "_momentum", "_centered")
    _needs = ("square_avg",)
    _options = ("grad_avg", "momentum_buffer")
    _passing = ("grad_avg",)
    _alpha: float
    _eps: float
    _momentum: float

    alpha = checked("alpha", partial(at_least_0, high=1), "The decay of the running means.")
    eps = checked("eps", at_least_0, "What is added to the root.")
    momentum = checked("momentum", at_least_0, "How much of the last step is made once more.")
    centered = checked("centered", _checks.flag, "Whether steps are divided by the root of the variance.")

    def __init__(
        self,
        layers_or_params: LayersOrParams,
        lr: Real = 1e-2,
        alpha: Real = 0.99,
        eps: Real = 1e-8,
        weight_decay: Real = 0.0,
        momentum: Real = 0.0,
        centered: Bool = False,
    ) -> None:
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered
        super().__init__(layers_or_params, lr, weight_decay)

    def _wants(self) -> tuple[str, ...]:
        return ("grad_avg",) * self.centered + ("momentum_buffer",) * (self.momentum > 0)

    def _plan(self, kernel: Any, arrays: list[Array | None], used: Collection[str], lr: float) -> chunks.Arrays:
        return kernel.rmsprop(arrays, lr, self._alpha, self._eps, self._weight_decay, self._momentum)


class Adam(Optimiser):
    """Adam (Kingma and Ba 2015, Algorithm 1), with AMSGrad if wanted (Reddi et al. 2018).

    Parameters
    ----------
    layers_or_params : layer, list of layers, ndarray, or dict or list of ndarrays
    lr : float
    betas : (float, float)
        The decays of the running means of the gradient and of its square.
    eps, weight_decay : float
    amsgrad : bool

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w = np.ones(1)
    >>> fastbptt.Adam(w, lr=0.1).step(np.array([123.0]))                                # the first step is lr, whatever the gradient
    >>> w.round(6)
    array([0.9])
    """

    __slots__ = ("_betas", "_eps", "_amsgrad")
    _needs = ("exp_avg", "exp_avg_sq")
    _options = ("max_exp_avg_sq",)
    _betas: tuple[float, float]
    _eps: float

    betas = checked("betas", two_decays, "The decays of the running means of the gradient and of its square.")
    eps = checked("eps", at_least_0, "What is added to the root.")
    amsgrad = checked("amsgrad", _checks.flag, "Whether steps are divided by the largest root so far.")

    def __init__(
        self,
        layers_or_params: LayersOrParams,
        lr: Real = 1e-3,
        betas: tuple[Real, Real] = (0.9, 0.999),
        eps: Real = 1e-8,
        weight_decay: Real = 0.0,
        amsgrad: Bool = False,
    ) -> None:
        self.betas, self.eps, self.amsgrad = betas, eps, amsgrad
        super().__init__(layers_or_params, lr, weight_decay)

    def _wants(self) -> tuple[str, ...]:
        return ("max_exp_avg_sq",) * self.amsgrad

    def _plan(self, kernel: Any, arrays: list[Array | None], used: Collection[str], lr: float) -> chunks.Arrays:
        return kernel.adam(arrays, self._steps + 1, lr, *self._betas, self._eps, self._weight_decay)
