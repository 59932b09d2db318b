"""One step at a time: weights are packed once, and the state stays between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks
from ._kernels import kernels
from ._typing import Array, Bools, Int, Integers, S
from .cells import CELLS, NONLINEARITIES

if TYPE_CHECKING:
    from ._typing import Generic
    from .layers import Recurrent
else:
    from typing import Generic


class Stream(Generic[S]):
    """A layer at work on sequences whose inputs come one by one: to act, to sample, to follow a signal. Made by a layer's ``stream``.

    The outputs have the bits of those of one call for the whole sequence. Nothing is kept for a backward pass, and nothing is dropped. A
    stream serves one thread at a time.

    Attributes
    ----------
    batch_size : int
        B, the number of sequences.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.GRU(4, 7, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((5, 1, 4))
    >>> stream = layer.stream()
    >>> steps = [stream.step(x_t) for x_t in x]
    >>> np.array_equal(steps, layer(x)[0]), stream.state.shape
    (True, (1, 1, 7))
    """

    def __init__(self, layer: Recurrent[S], batch_size: Int = 1, state: Any = None) -> None:
        from .layers import Recurrent, wrong_layer  # which know streams

        if not isinstance(layer, Recurrent):
            raise wrong_layer("layer", Recurrent, layer)
        if layer.bidirectional:
            raise ValueError("layer: expected one direction, got a bidirectional layer, whose reverse direction begins with the last step")
        self._layer, self.batch_size = layer, _checks.axis("batch_size", batch_size)
        B, widths = self.batch_size, [*layer._widths.values()]
        self._shape, self._dtype = (B, widths[0]), layer.dtype
        with _checks.Room("batch_size", B * max(map(max, layer._shapes.values()))):
            self._parts = [[np.zeros((2, B, width), layer.dtype) for width in widths] for _ in range(layer.num_layers)]
            self._kernel = self._bound()
        self._step = self._kernel.step
        self.state = state

    def _bound(self) -> Any:
        """The kernels' stream, of all layers: each with its parameters, states and what a step leaves."""
        layer, B, dtype = self._layer, self.batch_size, self._dtype
        cell, leak = CELLS[layer._cell], getattr(layer, "leak", None)
        activation = NONLINEARITIES[getattr(layer, "nonlinearity", "tanh")].number
        layer._parameters()  # an error, if one has been given another shape or dtype
        above: tuple[Any, ...] = ()
        for k in reversed(range(layer.num_layers)):
            weights = [layer.params.get(f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]
            N, I = layer._shapes[f"weight_ih_l{k}"]
            gates = np.empty((1, B, N), dtype) if cell.tape_gates or leak is not None else None
            m = np.empty((1, B, layer.hidden_size), dtype) if cell.reset_after else None
            h, c = (*self._parts[k], None)[:2]
            x, tokens = np.zeros((1, B, I), dtype), np.zeros((1, B), np.int64)
            stream = kernels[dtype].Stream(cell.number, activation, x, tokens, *weights, leak, h, c, gates, m, above)
            above = (stream, *above)
        return stream

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has states of its own; a deep one, a layer of its own, too."""
        return Stream, (self._layer, self.batch_size, self.state)

    def step(self, x_t: Array | Integers) -> Array:
        """Take one step.

        Parameters
        ----------
        x_t : ndarray (B, I), or integer ndarray (B,)
            The inputs of this step, or tokens.

        Returns
        -------
        out : ndarray (B, H)
            The last layer's output, a new array.

        Raises
        ------
        TypeError, ValueError, IndexError
            If ``x_t`` is not what is said above. No step is made then, nor if Ctrl-C comes first.
        """
        out = np.empty(self._shape, self._dtype)
        if type(x_t) is not np.ndarray or not self._step(x_t, out):
            self._step(self._checked(x_t), out)
        return out

    def _checked(self, x_t: Any) -> Array:
        """In the layout that the kernels read; or the error that says what was expected."""
        x_t = _checks.require_array("x_t", x_t)
        B, I = self.batch_size, self._layer.input_size
        if x_t.dtype.kind in "iu" and x_t.ndim == 1:
            return _checks.integers("x_t", x_t, (B,), I, "tokens").copy()
        if x_t.ndim != 2:
            raise ValueError(f"x_t: expected shape ({B}, {I}), or integer tokens ({B},), got {x_t.shape}")
        return _checks.array("x_t", x_t, (B, I), self._dtype)

    @property
    def state(self) -> S:
        """The states of all layers, (num_layers, B, H), or an LSTM's pair of them: a copy. It can be set, to ``None`` for zeros too."""
        states = self._kernel.undisturbed(lambda: [np.stack([slots[0] for slots in part]) for part in zip(*self._parts)])
        return CELLS[self._layer._cell].state(states)

    @state.setter
    def state(self, state: Any) -> None:
        layer = self._layer
        given = layer._of_each_direction(layer._without_layer_axis("state", state, self.batch_size))

        def put() -> None:
            for parts, values in zip(self._parts, given):
                for part, value in zip(parts, values if isinstance(values, tuple) else [values] * len(parts)):
                    part[0] = 0 if value is None else value

        self._kernel.undisturbed(put)

    def reset(self, rows: Bools | Integers | Sequence[Int] | Int | None = None) -> None:
        """Set states to zero.

        Parameters
        ----------
        rows : bool ndarray (B,), integers or None
            Which sequences begin anew; ``None`` means all.
        """
        index = slice(None) if rows is None else self._numbers(rows)

        def put() -> None:
            for parts in self._parts:
                for part in parts:
                    part[0, index] = 0

        self._kernel.undisturbed(put)

    def _numbers(self, rows: Any) -> Any:
        """The rows, as an index."""
        B = self.batch_size
        if not isinstance(rows, np.ndarray):
            each = enumerate(rows) if isinstance(rows, (list, tuple)) else [(None, rows)]
            return [_checks.size("rows" if i is None else _checks.item("rows", i), row, 0, B - 1) for i, row in each]
        rows = _checks.require_array("rows", rows)
        if rows.dtype == bool:
            return _checks.require_shape("rows", rows, (B,))
        return _checks.integers("rows", rows, rows.shape, B, "numbers of rows")

    def refresh(self) -> None:
        """Read the layer's parameters anew, which have changed, and an RNN's leak and nonlinearity.

        Parameters are read by the first step that needs them, and again by the first of another kind, vectors or tokens.
        """
        self._kernel = self._kernel.undisturbed(self._bound)
        self._step = self._kernel.step
