"""Optimisers that update parameters in place, with PyTorch's hyper-parameters, defaults and formulas."""

from functools import partial
from operator import call

import numpy as np

from . import _checks
from ._kernels import kernels
from ._signals import in_one_go


class Optimiser:
    """What the optimisers share: the parameter arrays, their gradients, and a state array for each that an algorithm asks for.

    A step is made for all parameters or for none: one that Ctrl-C comes upon is finished.

    Parameters
    ----------
    layers_or_params : layer, list of layers, ndarray, or dict or list of ndarrays
        What to update. A layer brings its gradients along; for bare arrays, `step` is given the gradients.
    """

    def __init__(self, layers_or_params, lr, weight_decay, slots):
        self.lr = lr
        self.weight_decay = _checks.number("weight_decay", weight_decay, 0)
        self.steps = 0
        given = layers_or_params
        if isinstance(given, dict):
            items = list(given.items())
        elif isinstance(given, (list, tuple)):
            items = list(enumerate(given))
        else:
            items = [(0, given)]
        if not items:
            raise ValueError("layers_or_params: expected at least one layer or array, got none")
        self._layers = [item for _, item in items] if all(hasattr(item, "flat_params") for _, item in items) else None
        self._keys = [key for key, _ in items]
        self._params = [_checks.require_array(f"layers_or_params[{key!r}]", getattr(item, "flat_params", item)) for key, item in items]
        for key, p in zip(self._keys, self._params):
            _checks.require_float(f"layers_or_params[{key!r}]", p)
            if not (p.flags.c_contiguous and p.flags.aligned and p.flags.writeable):
                raise ValueError(f"layers_or_params[{key!r}]: expected a contiguous, aligned and writeable array")
        _checks.require_disjoint("layers_or_params", self._keys, self._params)
        self._shapes = [p.shape for p in self._params]
        self._slots = [{name: np.zeros(p.size, p.dtype) for name in slots} for p in self._params]

    @property
    def lr(self):
        """The learning rate; it may be changed between steps."""
        return self._lr

    @lr.setter
    def lr(self, value):
        self._lr = _checks.number("lr", value, 0)

    def zero_grad(self):
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

    def step(self, grads=None):
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
                raise ValueError(f"layers_or_params[{key!r}]: resized or made read-only since the optimiser was made")
        gradients, steps = self._gradients(grads), self.steps + 1
        updates = [
            self._update(kernels[p.dtype], p.reshape(-1), g.reshape(-1), slots, steps)
            for p, g, slots in zip(self._params, gradients, self._slots)
        ]
        in_one_go(call, [*updates, partial(setattr, self, "steps", steps)])

    def state_dict(self):
        """Copies of all state arrays and the step count, under stable names, for `load_state_dict`."""
        state = {f"{name}.{key}": array.copy() for key, slots in zip(self._keys, self._slots) for name, array in slots.items()}
        return state | {"steps": np.array(self.steps, np.int64)}

    def load_state_dict(self, state):
        """Take back what `state_dict` gave. KeyError, TypeError or ValueError, and no change, if anything does not fit."""
        expected = self.state_dict()
        if not isinstance(state, dict):
            raise TypeError(f"state: expected a dict of arrays, got {_checks.describe(state)}")
        if set(state) != set(expected):
            raise KeyError(f"state: expected the names {sorted(expected)}, got {sorted(state)}")
        for name, array in state.items():
            array = _checks.require_array(f"state[{name!r}]", array)
            if array.dtype.kind != expected[name].dtype.kind:
                raise TypeError(f"state[{name!r}]: expected dtype {expected[name].dtype}, got {array.dtype}")
            if array.shape != expected[name].shape:
                raise ValueError(f"state[{name!r}]: expected shape {expected[name].shape}, got {array.shape}")
        self.steps = _checks.size("state['steps']", int(state["steps"]), 0)
        for key, slots in zip(self._keys, self._slots):
            for name, array in slots.items():
                array[...] = state[f"{name}.{key}"]

    def _gradients(self, grads):
        if self._layers is not None:
            if grads is not None:
                raise TypeError("grads: expected None, since the layers have their own gradients")
            return self._fitting([layer.flat_grads for layer in self._layers])
        if isinstance(grads, dict):
            missing, unknown = [key for key in self._keys if key not in grads], [key for key in grads if key not in self._keys]
            if missing or unknown:
                raise ValueError(f"grads: expected a gradient for every parameter; missing {missing}, unknown {unknown}")
            grads = [grads[key] for key in self._keys]
        elif isinstance(grads, np.ndarray):
            grads = [grads]
        elif not isinstance(grads, (list, tuple)):
            raise TypeError(f"grads: expected the gradients of the parameter arrays, got {_checks.describe(grads)}")
        if len(grads) != len(self._params):
            raise ValueError(f"grads: expected {len(self._params)} arrays, got {len(grads)}")
        grads = self._fitting(grads)
        if not kernels[grads[0].dtype].disjoint(self._params + grads):
            _checks.require_apart("grads", self._keys, grads, "layers_or_params", self._keys, self._params)
        return grads

    def _fitting(self, grads):
        return [_checks.array(f"grads[{key!r}]", g, p.shape, p.dtype) for key, g, p in zip(self._keys, grads, self._params)]


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

    def __init__(self, layers_or_params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        self.momentum = _checks.number("momentum", momentum, 0)
        self.dampening = _checks.number("dampening", dampening, 0)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov: expected momentum above 0 and no dampening to go with it")
        self.nesterov = bool(nesterov)
        super().__init__(layers_or_params, lr, weight_decay, ["momentum_buffer"] if momentum else [])

    def _update(self, kernel, p, g, slots, steps):
        return partial(
            kernel.sgd,
            p,
            g,
            slots.get("momentum_buffer"),
            self.lr,
            self.momentum,
            self.dampening,
            self.weight_decay,
            self.nesterov,
            steps == 1,
        )


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

    def __init__(self, layers_or_params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
        self.alpha = _checks.number("alpha", alpha, 0, 1)
        self.eps = _checks.number("eps", eps, 0)
        self.momentum = _checks.number("momentum", momentum, 0)
        slots = ["square_avg"] + ["grad_avg"] * bool(centered) + ["momentum_buffer"] * (momentum > 0)
        super().__init__(layers_or_params, lr, weight_decay, slots)

    def _update(self, kernel, p, g, slots, steps):
        return partial(
            kernel.rmsprop,
            p,
            g,
            slots["square_avg"],
            slots.get("grad_avg"),
            slots.get("momentum_buffer"),
            self.lr,
            self.alpha,
            self.eps,
            self.weight_decay,
            self.momentum,
        )


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

    def __init__(self, layers_or_params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas: expected two numbers, got {betas!r}") from None
        self.betas = tuple(_checks.number(f"betas[{i}]", beta, 0, np.nextafter(1, 0)) for i, beta in enumerate((beta1, beta2)))
        self.eps = _checks.number("eps", eps, 0)
        slots = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(amsgrad)
        super().__init__(layers_or_params, lr, weight_decay, slots)

    def _update(self, kernel, p, g, slots, steps):
        return partial(
            kernel.adam,
            p,
            g,
            slots["exp_avg"],
            slots["exp_avg_sq"],
            slots.get("max_exp_avg_sq"),
            steps,
            self.lr,
            *self.betas,
            self.eps,
            self.weight_decay,
        )
