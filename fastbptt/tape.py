"""The tape between a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks
from ._typing import Array, Bools, CellName, D, Generic, Int, Integers, Nonlinearity
from .cells import CELLS, NONLINEARITIES
from .ragged import Pieces

if TYPE_CHECKING:
    from .checkpointing import Checkpoints, Plan

STATES = ("h", "c")

NOTHING: Any = None  # what an empty tape is made of, which every function refuses


@dataclass(slots=True, eq=False, repr=False)
class Tape(Generic[D]):
    """What a forward pass leaves for the backward pass, and for you to look at.

    The tape refers to the arrays of its call and does not copy them, tokens excepted: change the input or the weights only after the
    backward pass. Of a ragged batch it has copies of the steps that there are; ``h``, ``c``, ``gates``, ``m`` and ``x`` are then made
    anew whenever they are asked for, 0 behind each row's end.

    Attributes
    ----------
    h : ndarray (T+1, B, H), read-only
        The states; slot 0 is the initial one. ``out`` is a view of ``h[1:]``.
    c : ndarray (T+1, B, H), read-only, or None
        The cell states of an LSTM. If it has a projection, ``h`` is (T+1, B, P).
    gates : ndarray (T, B, G*H), read-only, or None
        The activated gates: r z n of a GRU, i f g o of an LSTM, and of a leaky RNN f(a_t). A plain RNN's are its states.
    m : ndarray (T, B, H), read-only, or None
        Of a GRU, W_hn h_{t-1} + b_hn: what the reset gate is multiplied with.
    cell : {"rnn", "gru", "lstm"}
    x, w_ih, w_hh, b_ih, b_hh, leak, w_hr : ndarray or None
        The arguments of the call; ``x`` may be tokens (T, B), then a copy that is read-only.
    nonlinearity : str
    shape : (int, int, int)
        T, B, H.
    lengths, resets : ndarray (B,), ndarray (T, B), or None
        Of a ragged batch: where rows end, and where their states were set to zero. Both are None if no row ends early or is reset.
    plan : Plan or None
        Of a call with a memory budget: segments, checkpoints, recomputed steps and bytes. There are no ``h``, ``c``, ``gates`` and ``m`` then.
    """

    _cell: CellName = NOTHING
    _x: Array = NOTHING
    _w_ih: Array[D] = NOTHING
    _w_hh: Array[D] = NOTHING
    _b_ih: Array[D] | None = NOTHING
    _b_hh: Array[D] | None = NOTHING
    _leak: Array[D] | None = NOTHING
    _nonlinearity: Nonlinearity = NOTHING
    _h: Array[D] = NOTHING
    _c: Array[D] | None = NOTHING
    _gates: Array[D] | None = NOTHING
    _m: Array[D] | None = NOTHING
    _shape: tuple[int, int, int] = NOTHING
    _w_hr: Array[D] | None = None
    _pieces: Pieces | None = None  # of a ragged batch: the arrays above are packed
    _initial: list[Array[D] | None] = NOTHING  # and its initial states
    _checkpoints: Checkpoints | None = None  # of a call with a memory budget, in place of the states
    _last_only: bool = False

    if TYPE_CHECKING:  # they are made below, in one go

        @property
        def cell(self) -> CellName: ...
        @property
        def x(self) -> Array: ...
        @property
        def w_ih(self) -> Array[D]: ...
        @property
        def w_hh(self) -> Array[D]: ...
        @property
        def b_ih(self) -> Array[D] | None: ...
        @property
        def b_hh(self) -> Array[D] | None: ...
        @property
        def leak(self) -> Array[D] | None: ...
        @property
        def w_hr(self) -> Array[D] | None: ...
        @property
        def nonlinearity(self) -> Nonlinearity: ...
        @property
        def h(self) -> Array[D]: ...
        @property
        def c(self) -> Array[D] | None: ...
        @property
        def gates(self) -> Array[D] | None: ...
        @property
        def m(self) -> Array[D] | None: ...
        @property
        def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int:
        """The number of steps."""
        return self._sizes()[0]

    @property
    def ragged(self) -> bool:
        """Whether rows end early, or were reset."""
        return self._pieces is not None

    @property
    def plan(self) -> Plan | None:
        return None if self._checkpoints is None else self._checkpoints.plan

    @property
    def lengths(self) -> Integers | None:
        return None if self._pieces is None else self._pieces.lengths

    @property
    def resets(self) -> Bools | None:
        return None if self._pieces is None else self._pieces.resets

    def last(self, steps: Int) -> Tape[D]:
        """The tape of the last ``steps`` steps alone, as views unless it is ragged; the tape itself if it has no more."""
        (T, B, H), steps = self._sizes(), _checks.size("steps", steps, 0)
        if steps >= T:
            return self
        self._require_states()
        if self.ragged:
            return self._part_of_ragged(T - steps, T, slice(None))
        return self._part((steps, B, H), lambda history: history[T - steps :])

    def row(self, b: Int) -> Tape[D]:
        """The tape of row ``b`` of the batch alone: of the steps that it has, and if it was never reset, not ragged."""
        (T, B, H), b = self._sizes(), _checks.size("b", b, 0)
        if b >= B:
            raise IndexError(f"b: expected a row{f' from 0 to {B - 1}' if B else ', of which there is none'}, got {_checks.quoted(b)}")
        self._require_states()
        if self._pieces is not None:
            return self._part_of_ragged(0, int(self._pieces.lengths[b]), slice(b, b + 1))
        return self._part((T, 1, H), lambda history: _checks.frozen(history[:, b : b + 1]))

    def _require_states(self) -> None:
        if self._checkpoints is not None:
            raise ValueError("tape: expected one with all states, got one with a memory budget, which keeps checkpoints alone")

    def _part(self, shape: tuple[int, int, int], of_history: Callable[[Array], Array]) -> Tape[D]:
        histories = {name: getattr(self, name) for name in ("_x", "_h", "_c", "_gates", "_m")}
        changed: dict[str, Any] = {name: None if h is None else of_history(h) for name, h in histories.items()}
        return replace(self, _shape=shape, **changed)

    def _part_of_ragged(self, start: int, stop: int, rows: slice) -> Tape[D]:
        """Steps ``start`` to ``stop`` of some rows, copied."""
        whole = self._pieces
        assert whole is not None
        pieces = whole.part(start, stop, rows)
        cut, initial = {name: getattr(self, name) for name in ("x", "h", "c", "gates", "m")}, []
        for name, array in cut.items():
            if array is not None:
                array = array[start : stop + (name in STATES), rows]
                if name in STATES:
                    initial.append(array[0])
                if pieces is not None:
                    array = pieces.pack_history(array) if name in STATES else pieces.pack(array)
                cut[name] = _checks.frozen(array)
        shape = stop - start, len(whole.lengths[rows]), self._shape[2]
        arrays = {f"_{name}": array for name, array in cut.items()}
        return replace(self, _shape=shape, _pieces=pieces, _initial=initial, **arrays)

    def _sizes(self) -> tuple[int, int, int]:
        """T, B and H; 0 of a tape that no forward pass made."""
        return self._shape or (0, 0, 0)

    def __repr__(self) -> str:
        if self._shape is None:
            return "<tape of no forward pass>"
        T, B, H = self._shape
        projected = "" if self._w_hr is None else f" projected to {len(self._w_hr)}"
        return f"<{self._cell} tape: {T} steps, {B} rows, {H} units{projected}, {self._w_hh.dtype}>"


def _seen(name: str) -> property:
    """An array of the tape as its caller's are laid out. It cannot be assigned: the kernels are given what the forward pass put there."""

    def get(tape: Tape) -> Array | None:
        array, pieces = getattr(tape, f"_{name}"), tape._pieces
        if tape._checkpoints is not None:
            if name == "x":
                return array
            raise AttributeError(f"{name}: a tape with a memory budget keeps checkpoints alone, and no states; its plan says which")
        if array is None or pieces is None:
            return array
        seen = pieces.unpack_history(array, tape._initial[STATES.index(name)]) if name in STATES else pieces.unpack(array)
        seen.setflags(write=False)
        return seen

    return property(get)


for _name in ("x", "h", "c", "gates", "m"):
    setattr(Tape, _name, _seen(_name))
for _name in ("cell", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "w_hr", "nonlinearity", "shape"):
    setattr(Tape, _name, property(attrgetter(f"_{_name}"), doc=""))  # the docstring of the class says what they are


def kernel_numbers(tape: Tape) -> tuple[int, int]:
    """What the kernels call its cell and activation."""
    return CELLS[tape._cell].number, NONLINEARITIES[tape._nonlinearity].number


def kernel_arguments(tape: Tape) -> tuple[tuple[int, int], tuple[Array | None, ...]]:
    """What the kernels of both backward passes take of it, in their order: (cell, activation) and (w_ih, w_hh, leak, h, c, a, m)."""
    return kernel_numbers(tape), (tape._w_ih, tape._w_hh, tape._leak, tape._h, tape._c, tape._gates, tape._m)


def state_widths(tape: Tape) -> tuple[int, ...]:
    """How many numbers each part of the state has: (H,), or of an LSTM (H, H), or (P, H) if it has a projection."""
    return (tape._w_hh.shape[1], tape._shape[2])[: len(CELLS[tape._cell].states)]


def require_tape(tape: object, cell: str, states: bool = True) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """The tape's sizes (T, B, H) and dtype, if its arrays are still what the forward pass saw, and if it has ``states``, where wanted."""
    if not isinstance(tape, Tape) or tape._cell is None:
        raise TypeError(f"tape: expected the tape of {cell}_forward, got {_checks.describe(tape)}")
    if tape._cell != cell:
        raise ValueError(f"tape: expected the tape of {cell}_forward, got that of {tape._cell}_forward")
    if states:
        tape._require_states()
    T, B, H = tape._shape
    N, I = len(CELLS[cell].gates) * H, (tape._w_ih.shape or (0,))[-1]
    w_hr = tape._w_hr
    P = H if w_hr is None else (w_hr.shape or (0,))[0]
    pieces, tokens = tape._pieces, tape._x.dtype.kind == "i"
    rows, slots = ((T, B), (T + 1, B)) if pieces is None else ((pieces.first[-1], 1), (pieces.count + pieces.first[-1], 1))
    if tape._checkpoints is not None:
        rows = T, B
    if (
        tape._x.shape != (rows if tokens else (*rows, I))
        or tape._w_ih.shape != (N, I)
        or tape._w_hh.shape != (N, P)
        or (tape._h is not None and tape._h.shape != (*slots, P))
        or (tape._c is not None and tape._c.shape != (*slots, H))
        or (tape._gates is not None and tape._gates.shape != (*rows, N))
        or (tape._m is not None and tape._m.shape != (*rows, H))
        or (tape._leak is not None and tape._leak.shape != (H,))
        or (w_hr is not None and w_hr.shape != (P, H))
    ):
        raise RuntimeError("tape: an array of the forward pass was reshaped or resized before the backward pass")
    if tokens and tape._x.flags.writeable:  # it is a copy's
        _checks.integers("tape.x", tape._x, rows, I, "tokens")
    return tape._shape, tape._w_hh.dtype
