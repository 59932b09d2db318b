"""The tape between a forward and a backward pass."""

from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from . import _checks
from .cells import CELLS, NONLINEARITIES
from .ragged import Pieces

STATES = ("h", "c")


@dataclass(slots=True, eq=False, repr=False)
class Tape:
    """What a forward pass leaves for the backward pass, and for you to look at.

    The tape refers to the arrays of its call and does not copy them, tokens excepted: change the input or the weights only after the
    backward pass. Of a ragged batch it has copies of the steps that there are; ``h``, ``c``, ``gates``, ``m`` and ``x`` are then made
    anew whenever they are asked for, 0 behind each row's end.

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
    lengths, resets : ndarray (B,), ndarray (T, B), or None
        Of a ragged batch: where rows end, and where their states were set to zero. Both are None if no row ends early or is reset.
    """

    _cell: str | None = None
    _x: np.ndarray | None = None
    _w_ih: np.ndarray | None = None
    _w_hh: np.ndarray | None = None
    _b_ih: np.ndarray | None = None
    _b_hh: np.ndarray | None = None
    _leak: np.ndarray | None = None
    _nonlinearity: str | None = None
    _h: np.ndarray | None = None
    _c: np.ndarray | None = None
    _gates: np.ndarray | None = None
    _m: np.ndarray | None = None
    _shape: tuple[int, int, int] | None = None
    _pieces: Pieces | None = None  # of a ragged batch: the arrays above are packed
    _initial: list | None = None  # and its initial states

    def __len__(self):
        """The number of steps."""
        return self._sizes()[0]

    @property
    def ragged(self):
        """Whether rows end early, or were reset."""
        return self._pieces is not None

    @property
    def lengths(self):
        return self._pieces.lengths if self.ragged else None

    @property
    def resets(self):
        return self._pieces.resets if self.ragged else None

    def last(self, steps):
        """The tape of the last ``steps`` steps alone, as views unless it is ragged; the tape itself if it has no more."""
        (T, B, H), steps = self._sizes(), _checks.size("steps", steps, 0)
        if steps >= T:
            return self
        if self.ragged:
            return self._part_of_ragged(T - steps, T, slice(None))
        return self._part((steps, B, H), lambda history: history[T - steps :])

    def row(self, b):
        """The tape of row ``b`` of the batch alone: of the steps that it has, and if it was never reset, not ragged."""
        (T, B, H), b = self._sizes(), _checks.size("b", b, 0)
        if b >= B:
            raise IndexError(f"b: expected a row{f' from 0 to {B - 1}' if B else ', of which there is none'}, got {_checks.quoted(b)}")
        if self.ragged:
            return self._part_of_ragged(0, int(self.lengths[b]), slice(b, b + 1))
        return self._part((T, 1, H), lambda history: _checks.frozen(history[:, b : b + 1]))

    def _part(self, shape, of_history):
        histories = {name: getattr(self, name) for name in ("_x", "_h", "_c", "_gates", "_m")}
        return replace(self, _shape=shape, **{name: None if h is None else of_history(h) for name, h in histories.items()})

    def _part_of_ragged(self, start, stop, rows):
        """Steps ``start`` to ``stop`` of some rows, copied."""
        pieces = self._pieces.part(start, stop, rows)
        cut = {name: getattr(self, name) for name in ("x", "h", "c", "gates", "m")}
        for name, array in cut.items():
            if array is not None:
                array = array[start : stop + (name in STATES), rows]
                if pieces is not None:
                    array = pieces.pack_history(array) if name in STATES else pieces.pack(array)
                elif self._pieces.reverse:  # of one row: in the order in which it was read
                    array = np.concatenate([array[:1], array[:0:-1]]) if name in STATES else array[::-1]
                cut[name] = _checks.frozen(array)
        initial = None if pieces is None else [h[start, rows] for h in (self.h, self.c) if h is not None]
        shape = stop - start, len(self.lengths[rows]), self._shape[2]
        arrays = {f"_{name}": array for name, array in cut.items()}
        return replace(self, _shape=shape, _pieces=pieces, _initial=initial, **arrays)

    def _sizes(self):
        """T, B and H; 0 of a tape that no forward pass made."""
        return self._shape or (0, 0, 0)

    def __repr__(self):
        if self._shape is None:
            return "<tape of no forward pass>"
        T, B, H = self._shape
        return f"<{self._cell} tape: {T} steps, {B} rows, {H} units, {self._w_hh.dtype}>"


def _seen(name):
    """An array of the tape as its caller's are laid out. It cannot be assigned: the kernels are given what the forward pass put there."""

    def get(tape):
        array = getattr(tape, f"_{name}")
        if array is None or not tape.ragged:
            return array
        seen = tape._pieces.unpack_history(array, tape._initial[STATES.index(name)]) if name in STATES else tape._pieces.unpack(array)
        seen.setflags(write=False)
        return seen

    return property(get)


for _name in ("x", "h", "c", "gates", "m"):
    setattr(Tape, _name, _seen(_name))
for _name in ("cell", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "nonlinearity", "shape"):
    setattr(Tape, _name, property(attrgetter(f"_{_name}")))


def kernel_arguments(tape):
    """What the kernels of both backward passes take of it, in their order: (cell, activation) and (w_ih, w_hh, leak, h, c, a, m)."""
    numbers = CELLS[tape._cell].number, NONLINEARITIES[tape._nonlinearity].number
    return numbers, (tape._w_ih, tape._w_hh, tape._leak, tape._h, tape._c, tape._gates, tape._m)


def require_tape(tape, cell):
    """The tape's sizes (T, B, H) and dtype, if its arrays are still what the forward pass saw."""
    made_by = getattr(tape, "_cell", None) if isinstance(tape, Tape) else None
    if made_by is None:
        raise TypeError(f"tape: expected the tape of {cell}_forward, got {_checks.describe(tape)}")
    if made_by != cell:
        raise ValueError(f"tape: expected the tape of {cell}_forward, got that of {made_by}_forward")
    T, B, H = tape._shape
    N, I = len(CELLS[cell].gates) * H, (tape._w_ih.shape or (0,))[-1]
    pieces, tokens = tape._pieces, tape._x.dtype.kind == "i"
    rows, slots = ((T, B), (T + 1, B)) if pieces is None else ((pieces.first[-1], 1), (pieces.count + pieces.first[-1], 1))
    if (
        tape._x.shape != (rows if tokens else (*rows, I))
        or tape._w_ih.shape != (N, I)
        or tape._w_hh.shape != (N, H)
        or tape._h.shape != (*slots, H)
        or (tape._c is not None and tape._c.shape != (*slots, H))
        or (tape._gates is not None and tape._gates.shape != (*rows, N))
        or (tape._m is not None and tape._m.shape != (*rows, H))
        or (tape._leak is not None and tape._leak.shape != (H,))
    ):
        raise RuntimeError("tape: an array of the forward pass was reshaped or resized before the backward pass")
    if tokens and tape._x.flags.writeable:  # it is a copy's
        _checks.integers("tape.x", tape._x, rows, I, "tokens")
    return tape._shape, tape._h.dtype
