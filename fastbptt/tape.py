"""The tape between a forward and a backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks
from ._typing import Array, CellName, D, Generic, Int, Nonlinearity
from .cells import CELLS, NONLINEARITIES

NOTHING: Any = None  # what an empty tape is made of, which every function refuses


@dataclass(slots=True, eq=False, repr=False)
class Tape(Generic[D]):
    """What a forward pass leaves for the backward pass, and for you to look at.

    The tape refers to the arrays of its call and does not copy them, tokens excepted: change the input or the weights only after the
    backward pass.

    Attributes
    ----------
    h : ndarray (T+1, B, H), read-only
        The states; slot 0 is the initial one. ``out`` is a view of ``h[1:]``.
    c : ndarray (T+1, B, H), read-only, or None
        The cell states of an LSTM.
    gates : ndarray (T, B, G*H), read-only, or None
        The activated gates: r z n of a GRU, i f g o of an LSTM, and of a leaky RNN f(a_t). A plain RNN's are its states.
    m : ndarray (T, B, H), read-only, or None
        Of a GRU, W_hn h_{t-1} + b_hn: what the reset gate is multiplied with.
    cell : {"rnn", "gru", "lstm"}
    x, w_ih, w_hh, b_ih, b_hh, leak : ndarray or None
        The arguments of the call; ``x`` may be tokens (T, B), then a copy that is read-only.
    nonlinearity : str
    shape : (int, int, int)
        T, B, H.
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
        return self._shape[0]

    def last(self, steps: Int) -> Tape[D]:
        """The tape of the last ``steps`` steps alone, as views; the tape itself if it has no more."""
        (T, B, H), steps = self._shape, _checks.size("steps", steps, 0)
        return self if steps >= T else self._part((steps, B, H), lambda history: history[T - steps :])

    def row(self, b: Int) -> Tape[D]:
        """The tape of row ``b`` of the batch alone."""
        (T, B, H), b = self._shape, _checks.size("b", b, 0)
        if b >= B:
            raise IndexError(f"b: expected a row from 0 to {B - 1}, got {_checks.quoted(b)}")
        return self._part((T, 1, H), lambda history: _checks.frozen(history[:, b : b + 1]))

    def _part(self, shape: tuple[int, int, int], of_history: Callable[[Array], Array]) -> Tape[D]:
        histories = {name: getattr(self, name) for name in ("_x", "_h", "_c", "_gates", "_m")}
        changed: dict[str, Any] = {name: None if h is None else of_history(h) for name, h in histories.items()}
        return replace(self, _shape=shape, **changed)

    def __repr__(self) -> str:
        T, B, H = self._shape
        return f"<{self._cell} tape: {T} steps, {B} rows, {H} units, {self._w_hh.dtype}>"


for _name in Tape.__slots__:  # none of them can be assigned: the kernels are given what the forward pass put there
    setattr(Tape, _name[1:], property(attrgetter(_name)))


def kernel_arguments(tape: Tape) -> tuple[tuple[int, int], tuple[Array | None, ...]]:
    """What the kernels of both backward passes take of it, in their order: (cell, activation) and (w_ih, w_hh, leak, h, c, a, m)."""
    numbers = CELLS[tape._cell].number, NONLINEARITIES[tape._nonlinearity].number
    return numbers, (tape._w_ih, tape._w_hh, tape._leak, tape._h, tape._c, tape._gates, tape._m)


def require_tape(tape: object, cell: str) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """The tape's sizes (T, B, H) and dtype, if its arrays are still what the forward pass saw."""
    if not isinstance(tape, Tape) or tape._cell is None:
        raise TypeError(f"tape: expected the tape of {cell}_forward, got {_checks.describe(tape)}")
    if tape._cell != cell:
        raise ValueError(f"tape: expected the tape of {cell}_forward, got that of {tape._cell}_forward")
    T, B, H = tape._shape
    N, I = len(CELLS[cell].gates) * H, (tape._w_ih.shape or (0,))[-1]
    states, tokens = (T + 1, B, H), tape._x.dtype.kind == "i"
    if (
        tape._x.shape != ((T, B) if tokens else (T, B, I))
        or tape._w_ih.shape != (N, I)
        or tape._w_hh.shape != (N, H)
        or tape._h.shape != states
        or (tape._c is not None and tape._c.shape != states)
        or (tape._gates is not None and tape._gates.shape != (T, B, N))
        or (tape._m is not None and tape._m.shape != (T, B, H))
        or (tape._leak is not None and tape._leak.shape != (H,))
    ):
        raise RuntimeError("tape: an array of the forward pass was reshaped or resized before the backward pass")
    if tokens and tape._x.flags.writeable:  # it is a copy's
        _checks.integers("tape.x", tape._x, (T, B), I, "tokens")
    return tape._shape, tape._h.dtype
