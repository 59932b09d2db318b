"""Layers: parameters and gradients in one flat array each, seen through named views."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, overload

import numpy as np

from . import _checks, stacks
from ._kernels import chunks, kernels, memory
from ._typing import Array, Bool, Bools, CellName, ClipStep, DType, F, FilePath, Generic, Int, Integers, Nonlinearity, Pair, Real, S, Seed
from .cells import CELLS, NONLINEARITIES
from .functional import begin_backward, begin_forward, check_leak, checked_input, parts_of
from .results import Gradients
from .side_by_side import Pass, alone
from .stacks import StackGradients, Tapes
from .streaming import Stream
from .tape import require_tape

if TYPE_CHECKING:
    from typing import Self

    from ._typing import Attribute, Fixed

ONE_AT_A_TIME = "a layer serves one thread at a time"


class Views(dict[str, Array]):
    """Arrays by name, views of one flat array: they can be written into, but not replaced. A copy is an ordinary dict."""

    def __init__(self, flat: Array, shapes: dict[str, tuple[int, ...]]) -> None:
        start = 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            super().__setitem__(name, flat[start:end].reshape(shape))
            start = end

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self or value is not self[name]:  # ``views[name] *= 2`` ends with an assignment of what is there
            raise TypeError(f"{name}: a view of the layer's flat array, to be written into ([{name!r}][...] = value), not replaced")

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the names and arrays of a layer's parameters are fixed")

    __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _set_once(name: str) -> Any:
    """An attribute that other objects rely on: never another object, though ``layer.flat_params *= 2`` assigns the same one once more."""

    def set_once(self: object, value: object) -> None:
        if self.__dict__.setdefault(f"_{name}", value) is not value:
            raise TypeError(f"{name}: the layer's own, to be written into, not replaced")

    return property(attrgetter(f"_{name}"), set_once)


def fixed(name: str) -> Any:
    """An attribute that a layer is made with and keeps: the arrays' sizes hang on it."""
    return property(attrgetter(f"_{name}"))


class OneThread:
    """Who keeps a forward pass's tape until the backward pass, which must be the same thread's.

    Tape and thread are one attribute, which is read once in each method: another thread may come between any two looks at it.
    """

    _kept: tuple[Any, int] | None = None

    def _keep(self, tape: object) -> None:
        """Keep what a backward pass in the same thread will need; None for nothing."""
        self._kept = None if tape is None else (tape, get_ident())

    def _last_tape(self) -> Any:
        kept = self._kept
        if kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward: no forward pass in training mode since the last backward pass")
        tape, thread = kept
        if thread != get_ident():
            raise RuntimeError(f"{type(self).__name__}.backward: the last forward pass was another thread's; {ONE_AT_A_TIME}")
        return tape

    def _use_up(self, tape: object, layer: Layer | None = None, gradients: Sequence[Array | None] = ()) -> None:
        """Let go of the tape and add the gradients to a layer's; unless a forward pass has come between, or the layer's cannot be written.

        Then nothing is added, and what is kept still is.
        """
        kept = self._kept
        if kept is None or kept[0] is not tape:
            raise RuntimeError(f"{type(self).__name__}.backward: there was another forward pass meanwhile; {ONE_AT_A_TIME}")
        self._kept = None
        if layer is None:
            return
        try:
            layer._add(*gradients)
        except (ValueError, MemoryError):  # not Exception: a signal's handler may raise when all is added
            if self._kept is None:
                self._kept = kept
            raise


class Layer(OneThread):
    """What all layers share: parameters, gradients, saving and loading.

    A layer can be copied (`copy.deepcopy`) and pickled: the copy has parameters and gradients of its own, and nothing to go back through yet.
    A layer serves one thread at a time, which runs both the forward and the backward pass: for threads that share weights there are the
    functions, `rnn_forward` and so on.

    Attributes
    ----------
    params, grads : dict of ndarray
        By PyTorch's names; views into `flat_params` and `flat_grads`. They can be written into, not replaced.
    flat_params, flat_grads : ndarray (n,)
        All parameters, and all gradients, in one piece each: what clipping and optimisers work on.
    training : bool
        Whether a forward pass keeps what the backward pass needs; see `train` and `eval`.
    dtype : dtype
        It is fixed, as are the layer's sizes.
    """

    _first_nonfinite: str | None = None  # what a backward pass has found since the last `zero_grad`, in words

    params: Attribute[dict[str, Array]] = _set_once("params")
    grads: Attribute[dict[str, Array]] = _set_once("grads")
    flat_params: Attribute[Array] = _set_once("flat_params")
    flat_grads: Attribute[Array] = _set_once("flat_grads")
    dtype: Fixed[np.dtype[Any]] = fixed("dtype")
    training = _checks.checked("training", _checks.flag, "Whether a forward pass keeps what the backward pass needs.")

    forward: Callable[..., Any]

    def __init__(self, sizes: str, shapes: dict[str, tuple[int, ...]], bound: float, dtype: DType, rng: Seed) -> None:
        self._dtype = _checks.dtype("dtype", dtype)
        rng = _checks.generator("rng", rng)
        self._shapes = shapes
        count = sum(map(math.prod, shapes.values()))
        with _checks.Room(sizes, count):
            self.flat_params = rng.uniform(-bound, bound, count).astype(self.dtype, copy=False)
            self.flat_grads = np.zeros_like(self.flat_params)
        self.training = True
        self._begin()

    def _begin(self) -> None:
        self.params, self.grads = Views(self.flat_params, self._shapes), Views(self.flat_grads, self._shapes)
        self._as_made = [(p.shape, p.strides, p.dtype) for p in self.params.values()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_params", "_grads", "_as_made", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    if not TYPE_CHECKING:  # for a type checker, calling a layer has the signature of its forward

        def __call__(self, *args, **kwargs):
            return self.forward(*args, **kwargs)

    def _parameters(self) -> list[Array]:
        """All of them, in their order, as the kernels read them; TypeError or ValueError if one has been given another shape or dtype."""
        parameters = [*self.params.values()]
        if [(p.shape, p.strides, p.dtype) for p in parameters] == self._as_made:
            return parameters
        return [_checks.array(_checks.item("params", name), p, self._shapes[name], self.dtype) for name, p in self.params.items()]

    def zero_grad(self) -> None:
        """Set all gradients to 0."""
        chunks.zero([self.flat_grads])
        self._first_nonfinite = None

    def train(self, mode: Bool = True) -> Self:
        """Keep what the backward pass needs, from the next forward pass on. Returns the layer."""
        self.training = _checks.flag("mode", mode)
        return self

    def eval(self) -> Self:
        """Keep nothing for a backward pass. Returns the layer."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters, by name."""
        return {name: p.copy() for name, p in self.params.items()}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy parameters in, by name.

        Parameters
        ----------
        state : dict of float ndarray
            Exactly the names and shapes of `params`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If names, dtypes or shapes differ. No parameter is changed then.
        """
        if not isinstance(state, dict):
            raise TypeError(f"state: expected a dict of arrays, got {_checks.describe(state)}")
        _checks.require_names("state", state, self.params)
        values: list[Array] = []
        for name, shape in self._shapes.items():
            value = _checks.require_shape(f"state[{name!r}]", state[name], shape)
            if value.dtype.kind != "f":
                raise TypeError(f"state[{name!r}]: expected a float dtype, got {value.dtype}")
            values.append(np.array(value, self.dtype, order="C"))
        self._write(chunks.copy, "params", values)

    def save(self, path: FilePath) -> None:
        """Write the parameters to a safetensors file, by name; whole or not at all.

        Parameters
        ----------
        path : str or path
            A file that is there is replaced.

        Raises
        ------
        OSError, ValueError
            If it cannot be written. What was there before then still is.

        Examples
        --------
        >>> import fastbptt, os, tempfile
        >>> layer = fastbptt.GRU(4, 7, 2, rng=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     layer.save(os.path.join(folder, "gru.safetensors"))
        ...     fastbptt.GRU(4, 7, 2).load(os.path.join(folder, "gru.safetensors"))
        """
        from ._safetensors import save  # JSON and files are slow to import

        file = _checks.path("path", path)
        if file.is_dir():
            raise ValueError(f"path: expected a file, got the directory {file}")
        save(file, dict(self.params))

    def load(self, path: FilePath) -> None:
        """Read what `save` wrote, or any safetensors file that has exactly these names: as of a PyTorch module's ``state_dict``.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no safetensors file, or a damaged one.
        KeyError, TypeError, ValueError
            If names, dtypes or shapes differ, as `load_state_dict`. Nothing is loaded then.
        """
        from ._safetensors import load

        self.load_state_dict(load(_checks.path("path", path))[0])

    def _add(self, *gradients: Array | None) -> None:
        """Add to `grads`. None stands for a bias that there is not."""
        self._write(kernels[self.dtype].add_all, "grads", gradients)

    def _write(self, kernel: Callable[[list[Any]], object], name: str, values: Sequence[Array | None]) -> None:
        """Have a kernel write to all of `params` or `grads`; or to none, if Ctrl-C comes first or one of them cannot be written."""
        views = getattr(self, name)
        try:
            kernel([*chain.from_iterable(zip(views.values(), values))])
        except (BufferError, ValueError):
            for key, view in views.items():
                if not view.flags.carray:
                    came = f"{_checks.describe(view)}, strides {view.strides}{'' if view.flags.writeable else ', read-only'}"
                    raise ValueError(f"{_checks.item(name, key)}: expected a writeable array as the layer made it, got {came}") from None
            raise


class Recurrent(Layer, Generic[S]):
    """What the recurrent layers share; see `RNN`, `GRU` and `LSTM`."""

    _cell: ClassVar[CellName]
    _proj_size: int = 0  # the numbers of an LSTM's h that is projected
    input_size: Fixed[int] = fixed("input_size")
    hidden_size: Fixed[int] = fixed("hidden_size")
    num_layers: Fixed[int] = fixed("num_layers")
    bias: Fixed[bool] = fixed("bias")
    bidirectional: Fixed[bool] = fixed("bidirectional")
    rng: Fixed[np.random.Generator | None] = fixed("rng")
    batch_first = _checks.checked("batch_first", _checks.flag, "Whether inputs and outputs are (B, T, ...).")
    dropout = _checks.checked("dropout", _checks.share, "How likely each number between two layers is left out, in training mode.")

    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        *,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Real = 0.0,
        bidirectional: Bool = False,
        dtype: DType = np.float64,
        rng: Seed = None,
    ) -> None:
        self._input_size = I = _checks.axis("input_size", input_size)
        self._hidden_size = H = _checks.axis("hidden_size", hidden_size)
        self._num_layers = _checks.size("num_layers", num_layers, 1, stacks.MOST_LAYERS)
        self._bias, self.batch_first = _checks.flag("bias", bias), batch_first
        self._bidirectional, self.dropout = _checks.flag("bidirectional", bidirectional), dropout
        self._directions = stacks.directions_of(self._num_layers, self._bidirectional)
        self._is_stack = len(self._directions) > 1
        if self.dropout and self._num_layers == 1:
            message = f"dropout: it is between layers, so that {self.dropout:g} has no effect with num_layers=1"
            warnings.warn(message, UserWarning, stacklevel=2 if type(self).__init__ is Recurrent.__init__ else 3)
        N = len(CELLS[self._cell].gates) * H
        P = self._proj_size or H
        self._widths = dict.fromkeys(CELLS[self._cell].states, H) | {"h": P}  # of each part of a state, and first of the outputs
        self._out_size = P * (2 if self._bidirectional else 1)
        shapes: dict[str, tuple[int, ...]] = {}
        for direction in self._directions:
            suffix = direction.suffix
            shapes |= {f"weight_ih_{suffix}": (N, self._out_size if direction.layer else I), f"weight_hh_{suffix}": (N, P)}
            if self._bias:
                shapes |= {f"bias_ih_{suffix}": (N,), f"bias_hh_{suffix}": (N,)}
            if self._proj_size:
                shapes |= {f"weight_hr_{suffix}": (P, H)}
        rng = _checks.generator("rng", rng)
        sizes = "input_size, hidden_size" + (", num_layers" if self._num_layers > 1 else "")
        super().__init__(sizes, shapes, 1 / math.sqrt(H), dtype, rng)
        self._rng = None
        if self._num_layers > 1:
            self._rng = np.random.default_rng(rng.integers(0, 1 << 63, 4))

    @overload
    def forward(
        self,
        x: Array[F],
        state: S | None = None,
        *,
        lengths: Integers | None = None,
        resets: Bools | None = None,
        memory_budget: Int | None = None,
    ) -> tuple[Array[F], S]: ...
    @overload
    def forward(
        self,
        x: Integers,
        state: S | None = None,
        *,
        lengths: Integers | None = None,
        resets: Bools | None = None,
        memory_budget: Int | None = None,
    ) -> tuple[Array, S]: ...
    def forward(
        self,
        x: Array,
        state: Any = None,
        *,
        lengths: Integers | None = None,
        resets: Bools | None = None,
        memory_budget: Int | None = None,
    ) -> tuple[Array, Any]:
        """Run the layer.

        Parameters
        ----------
        x : ndarray (T, B, I), or integer ndarray (T, B)
            The inputs, or tokens; batch first if the layer is, and then copied, time first.
        state : ndarray (K, B, H) or None
            The initial states of all K directions, layer by layer; ``None`` means zeros. An LSTM's is a pair (h, c) of such arrays. Where
            K is 1, (B, H) will do.
        lengths : integer ndarray (B,) or None
            Where each row ends; see `rnn_forward`. A reverse direction begins there.
        resets : bool ndarray (T, B) or None
            Where a row's state is set to zero before the step; batch first if the layer is. What lies between two resets is a sequence of
            its own: a reverse direction begins each at its own last step, from zero, and the row's last one from the given state.
        memory_budget : int or None
            Bytes that the call and `backward` may take beyond arguments, results and `grads`: tapes then keep checkpoints, as of
            `rnn_forward`, and the bits are the same. It covers all layers. What goes from one to the next is kept whole; of what is left,
            each direction is given the least that it needs, and an equal part of the rest. In evaluation mode it has no effect, since
            nothing is kept.

        Returns
        -------
        out : ndarray (T, B, D*H)
            The last layer's, of both directions side by side if there are two; 0 behind a row's end. In training mode it may be a view of
            the tape, and read-only then; in evaluation mode it is yours.
        state : ndarray (K, B, H), or a pair of them
            Each direction's last state: of a forward one, the initial state of the sequence's next piece.

        Raises
        ------
        TypeError, ValueError, IndexError
            As `rnn_forward`. The least possible memory budget, which the message tells, is that of all layers.
        """
        x = _checks.require_array("x", x)
        axes, I = "B, T" if self.batch_first else "T, B", self.input_size
        if x.ndim != (2 if x.dtype.kind in "iu" else 3):
            raise ValueError(f"x: expected shape ({axes}, {I}), or integer tokens ({axes}), got {x.shape}")
        if self.batch_first:
            x = _checks.require_shape("x", x, (*x.shape[:2], I)[: x.ndim]).swapaxes(0, 1)
            if resets is not None:
                resets = _checks.require_shape("resets", resets, x.shape[1::-1]).swapaxes(0, 1)
        state = self._without_layer_axis("state", state, x.shape[1])
        training = self.training
        budgets: list[int] | list[None] = [None] * len(self._directions)
        if memory_budget is not None:
            memory_budget = _checks.size("memory_budget", memory_budget)
            if training:
                from .budgets import shares

                budgets = shares(self, x, lengths, resets, memory_budget)
        if self._is_stack:
            return self._forward_through_stack(x, state, lengths, resets, training, budgets)
        kept = budgets[0], training, False
        out, last, tape = alone(*self._forward_pass(x, state, self._parameters(), lengths, resets, kept))
        self._keep(tape)
        return self._between_layouts(out), self._with_layer_axis(last)

    if TYPE_CHECKING:
        __call__ = forward

    def backward(
        self, d_out: Array[F] | None, d_state: S | None = None, *, need_dx: Bool = True, clip_step: ClipStep | None = None
    ) -> tuple[Array[F] | None, S]:
        """Add the parameters' gradients to `grads`, and return the others.

        Input and parameters are not copied by the forward pass: change them only after the backward pass, or it will go wrong unnoticed.

        Parameters
        ----------
        d_out : ndarray (T, B, D*H) or None
            The gradient of the loss with respect to ``out``; copied, time first, if the layer is batch first.
        d_state : ndarray (K, B, H), or a pair of them, or None
            ... and to the last states.
        need_dx : bool
            Whether the input's gradient is wanted.
        clip_step : ("value", c), ("norm", c) or None
            Clips the gradient of the state before it goes through each step, as for `rnn_backward`.

        Returns
        -------
        dx : ndarray (T, B, I) or None
            None for tokens, and if not wanted.
        d_state : ndarray (K, B, H), or a pair of them
            The gradient of the initial states.

        Raises
        ------
        RuntimeError
            If there was no forward pass since the last backward pass, or it was another thread's.
        TypeError, ValueError
            If an argument is not what is said above, or one of `grads` cannot be written. Nothing is added then, and ``backward`` can be
            called again.
        """
        tape = self._last_tape()
        if self._is_stack:
            dx, d_initial, gradients = self._through(tape, d_out, d_state, need_dx=need_dx, clip_step=clip_step)
            self._use_up(tape, self, gradients)
            self._look_for_nonfinite(tape, d_out, d_state, d_initial, clip_step)
            return self._between_layouts(dx), d_initial
        grads = self.gradients_through(tape, d_out, d_state, need_dx=need_dx, clip_step=clip_step)
        self._use_up(tape, self, [g for g in grads[2:] if g is not None])
        self._look_for_nonfinite(tape, d_out, d_state, grads.state, clip_step)
        return self._between_layouts(grads.x), self._with_layer_axis(grads.state)

    def stream(self, batch_size: Int = 1, state: S | None = None) -> Stream[S]:
        """The layer at work step by step, on inputs that come one by one; see `Stream`.

        Parameters
        ----------
        batch_size : int
            B, the number of sequences.
        state : ndarray (num_layers, B, H), or a pair of them, or None
            The states to begin with; ``None`` means zeros.

        Returns
        -------
        Stream

        Raises
        ------
        ValueError
            If the layer is bidirectional: a reverse direction begins with the last step.
        """
        return Stream(self, batch_size, state)

    def take_tape(self) -> Any:
        """The tape of the last forward pass, which `backward` will then do without; for `gradients_through`.

        Of more than one direction it is a tuple of tapes, layer by layer. A reverse direction's tape is that of rows read backwards.
        """
        tape = self._last_tape()
        self._use_up(tape)
        return tape

    def gradients_through(
        self,
        tape: Any,
        d_out: Array | None,
        d_state: Any = None,
        *,
        need_dx: Bool = True,
        clip_step: ClipStep | None = None,
        carry: Array | None = None,
    ) -> Any:
        """What `backward` would add and return, as `Gradients`, time first, of a tape of this layer's that was kept aside.

        ``carry`` (T, B), time first, is as for `rnn_backward`. Of more than one direction, ``tape`` is what `take_tape` returned, and the
        result has ``x``, ``state``, the `Gradients` of each of the ``directions``, without their ``x``, and ``d_outs``, the gradients at
        their outputs, each in the order of time of its tape: `gradient_flow` takes one tape and its d_out.
        """
        if self._is_stack:
            d_outs: list[Array | None] = []
            dx, state, directions = self._through_stack(tape, d_out, d_state, need_dx, d_outs, clip_step=clip_step, carry=carry)
            return StackGradients(dx, state, tuple(directions), tuple(d_outs))
        T, B, _ = getattr(tape, "_shape", None) or require_tape(tape, self._cell)[0]
        if self.batch_first and d_out is not None:
            d_out = _checks.require_shape("d_out", d_out, (B, T, self._out_size)).swapaxes(0, 1)
        d_state, need_dx = self._without_layer_axis("d_state", d_state, B), _checks.flag("need_dx", need_dx)
        return alone(*self._backward_pass(tape, d_out, d_state, need_dx, clip_step, carry))

    def _through(self, tape: Any, d_out: Array | None, d_state: Any, *, need_dx: Bool, **options: Any) -> tuple[Any, Any, list[Array]]:
        """The gradients of the input, of the initial states, and of all parameters, in their order."""
        if not self._is_stack:
            grads = self.gradients_through(tape, d_out, d_state, need_dx=need_dx, **options)
            return grads.x, grads.state, [g for g in grads[2:] if g is not None]
        dx, state, directions = self._through_stack(tape, d_out, d_state, need_dx, None, **options)
        return dx, state, [g for grads in directions for g in grads[2:] if g is not None]

    def _forward_pass(self, x: Array, state: Any, weights: Sequence[Any], lengths: Any, resets: Any, kept: Any, **way: Any) -> Pass:
        """Of one direction of one layer; its weights are in the order of `params`, and with its state they are known to fit. ``way`` is
        ``backwards`` and ``into``.
        """
        w_ih, w_hh, *rest = weights
        b_ih, b_hh, *rest = rest if self._bias else (None, None, *rest)
        x, pieces = checked_input(x, w_ih.shape[-1], self.dtype, lengths, resets)
        arrays = w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None
        return begin_forward(self._cell, x, pieces, self._parts(state), arrays, kept, **way, **self._options())

    def _parts(self, state: Any) -> list[Array | None]:
        """Of a direction's state."""
        return [*state] if isinstance(state, tuple) else [state] * len(self._widths)  # of an LSTM, None, if it is no pair

    def _options(self) -> dict[str, Any]:
        """Others that the cell's forward pass has."""
        return {}

    def _backward_pass(
        self, tape: Any, d_out: Array | None, d_state: Any, need_dx: Any, clip_step: Any = None, carry: Any = None, **way: Any
    ) -> Pass:
        """Of one direction of one layer, to whose tape the gradients of its state are known to fit; ``way`` is ``backwards`` and ``onto``."""
        require_tape(tape, self._cell, states=False)
        return begin_backward(self._cell, tape, d_out, self._parts(d_state), need_dx, clip_step, carry, **way)

    def _forward_through_stack(
        self, x: Array, state: Any, lengths: Any, resets: Any, training: bool, budgets: Sequence[int | None]
    ) -> tuple[Array, Any]:
        out, lasts, tapes, kept = stacks.forward(
            self._directions,
            self._forward_pass,
            x,
            self._of_each_direction(state),
            self._parameters(),
            self._drop if self._drops() else None,
            lengths,
            resets,
            training,
            budgets,
        )
        self._keep(Tapes(tapes, kept, stacks.scale_of(self.dropout)) if training else None)
        return self._between_layouts(out), self._of_all_directions(lasts)

    def _through_stack(
        self, tapes: Any, d_out: Any, d_state: Any, need_dx: Any, d_outs: list[Array | None] | None, **options: Any
    ) -> tuple[Array | None, Any, list[Gradients]]:
        if not isinstance(tapes, Tapes) or len(tapes) != len(self._directions):
            raise TypeError(f"tape: expected the {len(self._directions)} tapes that take_tape returned, got {_checks.describe(tapes)}")
        T, B, _ = tapes.shape
        if any(getattr(tape, "shape", None) != tapes.shape for tape in tapes):
            raise ValueError("tape: expected the tapes of one forward pass, got some of other sizes")
        if d_out is not None:
            axes = (B, T) if self.batch_first else (T, B)
            d_out = self._between_layouts(_checks.require_shape("d_out", d_out, (*axes, self._out_size)))
        d_states, need_dx = self._of_each_direction(self._without_layer_axis("d_state", d_state, B)), _checks.flag("need_dx", need_dx)
        dx, directions = stacks.backward(self._directions, self._backward_pass, tapes, d_out, d_states, need_dx, d_outs, **options)
        return dx, self._of_all_directions([grads.state for grads in directions]), directions

    def _drops(self) -> bool:
        """Whether anything is dropped between layers."""
        return self._rng is not None and self.training and self.dropout > 0

    def _drop(self, x: Array) -> tuple[Array, Bools]:
        """One layer's outputs as the next one reads them, and which are left."""
        assert self._rng is not None
        return stacks.dropped(x, self.dropout, self._rng)

    def _look_for_nonfinite(self, tape: Any, d_out: Array | None, d_state: Any, d_initial: Any, clip_step: ClipStep | None) -> None:
        """Where the gradient of the initial state is not finite, remember which step was the first: `clip_grad_norm_` will say so."""
        parts = [part for part in (d_initial if isinstance(d_initial, tuple) else (d_initial,)) if part.size]
        if not parts or math.isfinite(kernels[self.dtype].total_norm(parts, math.inf)):
            return
        if (tape[0] if self._is_stack else tape).plan is not None:
            return  # the states that would tell have not been kept
        from .gradients.nonfinite import why_not_finite, why_stack_is_not_finite  # it is needed only when all has gone wrong

        n = len(CELLS[self._cell].states)
        d_states = self._of_each_direction(self._without_layer_axis("d_state", d_state, tape.shape[1]))
        d_states = [part if isinstance(part, tuple) else (part,) + (None,) * (n - 1) for part in d_states]
        if not self._is_stack:
            self._first_nonfinite = why_not_finite(tape, self._between_layouts(d_out), d_states[0], as_is=clip_step is None)
            return
        d_outs = self.gradients_through(tape, d_out, d_state, need_dx=False, clip_step=clip_step).d_outs
        self._first_nonfinite = why_stack_is_not_finite(self._directions, tape, d_outs, d_states, as_is=clip_step is None)

    def _between_layouts(self, array: Any) -> Any:
        """From time first to the layer's own layout, or back."""
        return array.swapaxes(0, 1) if self.batch_first and array is not None else array

    def _with_layer_axis(self, state: Any) -> Any:
        """A state (B, H) as PyTorch has it, (1, B, H)."""
        return tuple(part[None] for part in state) if isinstance(state, tuple) else state[None]

    def _without_layer_axis(self, name: str, state: Any, B: int | None) -> Any:
        """The reverse, of one layer and direction; (B, H) is welcome too. Of more it stays (K, B, H). Any number of rows is if ``B`` is None."""
        if state is None:
            return None
        cell = CELLS[self._cell]
        parts = parts_of(cell, name, state).items()
        return cell.state([self._part_without_layer_axis(each, part, B, W) for (each, part), W in zip(parts, self._widths.values())])

    def _part_without_layer_axis(self, name: str, part: Any, B: Any, W: int) -> Array | None:
        if part is None:
            return None
        part = _checks.require_array(name, part)
        if B is None and part.ndim > 1:
            B = part.shape[-2]
        K = len(self._directions)
        if K > 1:
            return _checks.array(name, part, (K, B, W), self.dtype)
        if part.ndim == 2:
            return _checks.array(name, part, (B, W), self.dtype)
        return _checks.array(name, part, (1, B, W), self.dtype)[0]

    def _of_each_direction(self, state: Any) -> list[Any]:
        """A state as `_without_layer_axis` returns it, direction by direction."""
        K = len(self._directions)
        if state is None or K == 1:
            return [state] * K
        if not isinstance(state, tuple):
            return [*state]
        return [tuple(None if part is None else part[k] for part in state) for k in range(K)]

    def _of_all_directions(self, states: Sequence[Any]) -> Any:
        """The reverse: (K, B, H), or a pair."""
        return tuple(map(np.array, zip(*states))) if isinstance(states[0], tuple) else np.array(states)


class RNN(Recurrent[Array]):
    """A vanilla RNN, h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), of one layer or several, with `torch.nn.RNN`'s names and shapes.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H. An input of tokens has I different ones.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}
    leak : float, ndarray (H,) or None
        In (0, 1]: h_t = (1 - leak) h_{t-1} + leak f(...), in all layers. It is not trained. Like the nonlinearity, it may be changed between passes.
    num_layers : int
        Layers one above the other, each of which reads the outputs of the one below.
    bias : bool
    batch_first : bool
        Whether inputs and outputs are (B, T, ...) instead of (T, B, ...). It does not concern the state. The kernels read time first, so
        that each call copies ``x``, or ``d_out``, where it is laid out batch first; ``out`` and ``dx`` are views.
    dropout : float
        How likely each number is left out on its way from one layer to the next, in training mode; the others are then larger, so that the
        mean stays. At least 0 and below 1. It may be changed between passes. With one layer it has no effect: a UserWarning.
    bidirectional : bool
        Whether each layer also reads its input backwards, with parameters of its own. The outputs of both are side by side.
    dtype : dtype
        float64 or float32.
    rng : None, int or numpy.random.Generator
        Draws the parameters, from U(-1/sqrt(H), 1/sqrt(H)); or whatever else `numpy.random.default_rng` takes.

    Attributes
    ----------
    params : dict
        ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H), ``bias_ih_l0`` and ``bias_hh_l0`` (H,); then, if there are such, those with
        ``_l0_reverse``, ``_l1``, ``_l1_reverse`` and so on. From the second layer on, W_ih is (H, D*H) for D directions.
    grads : dict
        Their gradients, under the same names; `backward` adds to them.
    rng : numpy.random.Generator or None
        Of several layers, their own, made of what was given: draws what dropout leaves out. Copies draw the same.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.RNN(4, 7, rng=0)
    >>> out, state = layer(np.ones((5, 3, 4)))                                          # T=5, B=3
    >>> dx, d_state = layer.backward(np.ones_like(out))
    >>> out.shape, state.shape, dx.shape, layer.grads["weight_hh_l0"].shape
    ((5, 3, 7), (1, 3, 7), (5, 3, 4), (7, 7))
    """

    nonlinearity: Attribute[Nonlinearity] = _checks.checked(
        "nonlinearity", partial(_checks.one_of, allowed=NONLINEARITIES), "The function f."
    )

    @property
    def leak(self) -> Array | None:
        """The leak of each unit, (H,), or None."""
        return self._leak

    @leak.setter
    def leak(self, leak: Real | Array | None) -> None:
        self._leak = check_leak(leak, self.hidden_size, self.dtype)

    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        *,
        nonlinearity: Nonlinearity = "tanh",
        leak: Real | Array | None = None,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Real = 0.0,
        bidirectional: Bool = False,
        dtype: DType = np.float64,
        rng: Seed = None,
    ) -> None:
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
        )
        self.leak = leak

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity, "leak": self.leak}

    _cell = "rnn"


class GRU(Recurrent[Array]):
    """A GRU of one layer or several, with `torch.nn.GRU`'s names, shapes and gate order; see `gru_forward` for the equations.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    bias, batch_first : bool
    dropout : float
    bidirectional : bool
    dtype : dtype
    rng : None, int or numpy.random.Generator
        As for `RNN`.

    Attributes
    ----------
    params : dict
        ``weight_ih_l0`` (3*H, I), ``weight_hh_l0`` (3*H, H), ``bias_ih_l0`` and ``bias_hh_l0`` (3*H,): r, z, n; and so on, as of `RNN`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.GRU(4, 7, rng=0)
    >>> out, state = layer(np.ones((5, 3, 4)))
    >>> dx, d_state = layer.backward(np.ones_like(out))
    >>> state.shape, layer.grads["weight_hh_l0"].shape
    ((1, 3, 7), (21, 7))
    >>> stack = fastbptt.GRU(4, 7, 2, dropout=0.5, bidirectional=True, rng=0)
    >>> out, state = stack(np.ones((5, 3, 4)))
    >>> out.shape, state.shape, [*stack.params][-1]
    ((5, 3, 14), (4, 3, 7), 'bias_hh_l1_reverse')
    """

    _cell = "gru"


class LSTM(Recurrent[Pair]):
    """An LSTM of one layer or several, with `torch.nn.LSTM`'s names, shapes and gate order; see `lstm_forward` for the equations.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    proj_size : int
        P, below H: the layer shows, and passes on, h_t = W_hr (o tanh c_t) of P numbers (Sak, Senior and Beaufays 2014). 0: no projection,
        P = H.
    bias, batch_first : bool
    dropout : float
    bidirectional : bool
    dtype : dtype
    rng : None, int or numpy.random.Generator
        As for `RNN`.

    Attributes
    ----------
    params : dict
        ``weight_ih_l0`` (4*H, I), ``weight_hh_l0`` (4*H, P), ``bias_ih_l0`` and ``bias_hh_l0`` (4*H,): i, f, g, o; with a projection
        ``weight_hr_l0`` (P, H); and so on, as of `RNN`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.LSTM(4, 7, rng=0)
    >>> out, (h, c) = layer(np.ones((5, 3, 4)))
    >>> dx, (dh, dc) = layer.backward(np.ones_like(out))
    >>> c.shape, layer.grads["weight_hh_l0"].shape
    ((1, 3, 7), (28, 7))
    """

    proj_size: Fixed[int] = fixed("proj_size")

    def __init__(
        self,
        input_size: Int,
        hidden_size: Int,
        num_layers: Int = 1,
        *,
        proj_size: Int = 0,
        bias: Bool = True,
        batch_first: Bool = False,
        dropout: Real = 0.0,
        bidirectional: Bool = False,
        dtype: DType = np.float64,
        rng: Seed = None,
    ) -> None:
        H, P = _checks.axis("hidden_size", hidden_size), _checks.size("proj_size", proj_size, 0)
        if P >= H:
            raise ValueError(f"proj_size: expected a number below hidden_size={H}, or 0 for no projection, got {_checks.quoted(P)}")
        self._proj_size = P
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
        )

    _cell = "lstm"


LAYERS: dict[str, type[Recurrent]] = {layer._cell: layer for layer in (RNN, GRU, LSTM)}


def wrong_layer(name: str, kind: type[Recurrent], value: object) -> TypeError:
    """The error for what is not of this kind: one of `LAYERS`, or `Recurrent` for any of them."""
    kinds = [layer.__name__ for layer in LAYERS.values() if issubclass(layer, kind)]
    return TypeError(f"{name}: expected {'an ' if len(kinds) == 1 else 'one of '}{', '.join(kinds)}, got {_checks.describe(value)}")


class Linear(Layer):
    """A linear layer, y = x W^T + b: the readout that turns states into predictions. Names and start are `torch.nn.Linear`'s.

    Parameters
    ----------
    in_features, out_features : int
        I and N.
    bias : bool
    dtype : dtype
    rng : None, int or numpy.random.Generator
        Draws the parameters, from U(-1/sqrt(I), 1/sqrt(I)).

    Attributes
    ----------
    params : dict
        ``weight`` (N, I) and ``bias`` (N,).

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> readout = fastbptt.Linear(7, 2, rng=0)
    >>> y = readout(np.ones((5, 3, 7)))
    >>> y.shape, readout.backward(np.ones_like(y)).shape
    ((5, 3, 2), (5, 3, 7))
    """

    in_features: Fixed[int] = fixed("in_features")
    out_features: Fixed[int] = fixed("out_features")

    def __init__(self, in_features: Int, out_features: Int, *, bias: Bool = True, dtype: DType = np.float64, rng: Seed = None) -> None:
        self._in_features = I = _checks.axis("in_features", in_features)
        self._out_features = N = _checks.axis("out_features", out_features)
        shapes: dict[str, tuple[int, ...]] = {"weight": (N, I)} | ({"bias": (N,)} if _checks.flag("bias", bias) else {})
        super().__init__("in_features, out_features", shapes, 1 / math.sqrt(I), dtype, rng)

    def forward(self, x: Array[F]) -> Array[F]:
        """y = x W^T + b, for x (..., I); y is (..., N)."""
        x = _checks.require_array("x", x)
        x = _checks.array("x", x, (*x.shape[:-1], self.in_features), self.dtype)
        try:
            y = memory.empty((*x.shape[:-1], self.out_features), self.dtype)
        except (MemoryError, ValueError):
            raise MemoryError(f"x, out_features: no memory for outputs of shape {(*x.shape[:-1], self.out_features)}") from None
        if x.size:
            kernels[self.dtype].linear_forward(self._rows(x), self._parameter("weight"), self._parameter("bias"), self._rows(y))
        self._keep(x if self.training else None)
        return y

    if TYPE_CHECKING:
        __call__ = forward

    def backward(self, d_out: Array[F], *, need_dx: Bool = True) -> Array[F] | None:
        """Add the parameters' gradients to `grads`; return that of the input, unless it is not wanted.

        Input and parameters are not copied by the forward pass: change them only after the backward pass, or it will go wrong unnoticed.
        """
        x: Array = self._last_tape()
        need_dx = _checks.flag("need_dx", need_dx)
        if x.shape[-1:] != (self.in_features,):
            raise RuntimeError(f"x: resized since the forward pass; expected {self.in_features} features, got shape {x.shape}")
        d_out = _checks.array("d_out", d_out, (*x.shape[:-1], self.out_features), self.dtype)
        dx = memory.empty(x.shape, self.dtype) if need_dx else None
        weight = self._parameter("weight")
        room = memory.empty if x.size else memory.zeros
        d_weight, d_bias = room(weight.shape, self.dtype), room((self.out_features,), self.dtype)
        if x.size:
            kernels[self.dtype].linear_backward(self._rows(x), weight, self._rows(d_out), self._rows(dx), d_weight, d_bias)
        self._use_up(x, self, (d_weight, d_bias))
        return dx

    def _parameter(self, name: str) -> Any:
        """None for a bias that there is not."""
        return _checks.array(name, self.params[name], self._shapes[name], self.dtype) if name in self._shapes else None

    @staticmethod
    def _rows(array: Any) -> Any:
        return array if array is None or array.ndim == 2 else array.reshape(-1, array.shape[-1])
