"""What a fleet's forward pass leaves for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from .._typing import Array, CellName, D, Generic, Integers, Nonlinearity
from ..cells import CELLS
from ..tape import STATES

NOTHING: Any = None  # what an empty tape is made of, which every function refuses


@dataclass(slots=True, eq=False, repr=False)
class Tape(Generic[D]):
    """What a fleet's forward pass leaves for the backward pass, and for you to look at.

    It refers to the arrays of the call and does not copy them, tokens and lengths excepted: change the inputs or the weights only after the
    backward pass. States and gates are kept as the kernels lay them out; ``h``, ``c``, ``gates`` and ``m`` may be made anew whenever they are
    asked for. Behind a row's end they are 0.

    Attributes
    ----------
    h : ndarray (K, T+1, B, H), read-only
        The states; slot 0 is the initial one. With a projection, (K, T+1, B, P).
    c : ndarray (K, T+1, B, H), read-only, or None
        The cell states of LSTMs.
    gates : ndarray (K, T, B, G*H), read-only, or None
        The activated gates: r z n of a GRU, i f g o of an LSTM, and of a leaky RNN f(a_t). A plain RNN's are its states.
    m : ndarray (K, T, B, H), read-only, or None
        Of GRUs, W_hn h_{t-1} + b_hn.
    cell : {"rnn", "gru", "lstm"}
    x, w_ih, w_hh, b_ih, b_hh, leak, w_hr, lengths : ndarray or None
        The arguments of the call.
    nonlinearity : str
    shape : (int, int, int, int)
        K, T, B, H.
    """

    _cell: CellName = NOTHING
    _x: Array = NOTHING
    _w_ih: Array[D] = NOTHING
    _w_hh: Array[D] = NOTHING
    _b_ih: Array[D] | None = NOTHING
    _b_hh: Array[D] | None = NOTHING
    _w_hr: Array[D] | None = NOTHING
    _leak: Array[D] | None = NOTHING
    _nonlinearity: Nonlinearity = NOTHING
    _lengths: Integers | None = NOTHING
    _shape: tuple[int, int, int, int] = NOTHING
    _nets: int = NOTHING  # side by side in what follows: (tasks, ..., width * nets)
    _last_only: bool = False
    _initial: tuple[Array[D] | None, ...] = ()  # where there are lengths: the initial states
    _h: Array[D] = NOTHING
    _c: Array[D] | None = None
    _gates: Array[D] | None = None
    _m: Array[D] | None = None

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
        def lengths(self) -> Integers | None: ...
        @property
        def shape(self) -> tuple[int, int, int, int]: ...
        @property
        def h(self) -> Array[D]: ...
        @property
        def c(self) -> Array[D] | None: ...
        @property
        def gates(self) -> Array[D] | None: ...
        @property
        def m(self) -> Array[D] | None: ...

    def __len__(self) -> int:
        """The number of steps."""
        return (self._shape or (0, 0))[1]

    def __repr__(self) -> str:
        if self._shape is None:
            return "<fleet tape of no forward pass>"
        K, T, B, H = self._shape
        return f"<{self._cell} fleet tape: {K} nets, {T} steps, {B} rows, {H} units, {self._w_hh.dtype}>"

    def _kept_shapes(self) -> dict[str, tuple[int, ...]]:
        """What states and gates must look like."""
        (K, T, B, H), nets, N, P = self._shape, self._nets, *self._w_hh.shape[1:]
        tasks = -(-K // nets)
        return {
            "_h": (tasks, T + 1, B, P * nets),
            "_c": (tasks, T + 1, B, H * nets),
            "_gates": (tasks, T, B, N * nets),
            "_m": (tasks, T, B, H * nets),
        }

    def _seen(self, name: str, kept: Array) -> Array:
        """States or gates as their caller's arrays are laid out."""
        if self._nets > 1:
            K, _, B, _ = self._shape
            tasks, steps, _, width = kept.shape
            apart = kept.reshape(tasks, steps, B, width // self._nets, self._nets)
            kept = np.moveaxis(apart, -1, 1).reshape(tasks * self._nets, steps, B, -1)[:K]
        if self._lengths is not None:
            kept = self._unsorted(name, kept)
        kept.setflags(write=False)
        return kept

    def _unsorted(self, name: str, kept: Array) -> Array:
        """Each net's rows were sorted by length; those of a net by itself are packed if one ends early."""
        K, T, B, _ = self._shape
        slots = int(name in STATES)  # before the first step
        lengths = np.broadcast_to(self._lengths, (K, B))  # type: ignore[arg-type]
        seen = np.zeros(kept.shape, kept.dtype)
        for k in range(K):
            order = np.argsort(-lengths[k], kind="stable")
            sorted_lengths = lengths[k][order]
            if self._nets > 1 or (lengths[k] == T).all():
                seen[k][:, order] = kept[k]
            else:
                flat, at = kept[k].reshape(B * kept.shape[1], -1), 0
                for t in range(-slots, T):
                    rows = order[sorted_lengths > max(t, 0)]
                    seen[k, slots + t, rows] = flat[at : at + len(rows)]
                    at += len(rows)
            seen[k][(np.arange(-slots, T) >= lengths[k][:, None]).T] = 0
        if slots:
            initial = self._initial[STATES.index(name)]
            seen[:, 0] = 0 if initial is None else initial
        return seen


def _kept(name: str) -> property:
    def get(tape: Tape) -> Array | None:
        array = getattr(tape, f"_{name}")
        return None if array is None else tape._seen(name, array)

    return property(get)


for _name in ("h", "c", "gates", "m"):
    setattr(Tape, _name, _kept(_name))
for _name in ("cell", "x", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "w_hr", "nonlinearity", "lengths", "shape"):
    setattr(Tape, _name, property(attrgetter(f"_{_name}"), doc=""))  # the docstring of the class says what they are


def require_tape(tape: object, cell: str) -> Tape[Any]:
    """The tape, if its arrays are still what the forward pass saw."""
    if not isinstance(tape, Tape) or tape._cell is None:
        raise TypeError(f"tape: expected the tape of fleet.{cell}_forward, got {_checks.describe(tape)}")
    if tape._cell != cell:
        raise ValueError(f"tape: expected the tape of fleet.{cell}_forward, got that of fleet.{tape._cell}_forward")
    K, T, B, H = tape._shape
    N, P = len(CELLS[cell].gates) * H, H if tape._w_hr is None else tape._w_hr.shape[-2:][0]
    tokens = tape._x.dtype.kind == "i"
    rows = (K, T, B)[1 if tape._x.ndim == (2 if tokens else 3) else 0 :]
    fits = tape._w_hh.shape == (K, N, P) and tape._w_ih.ndim == 3 and tape._w_ih.shape[:2] == (K, N)
    fits = fits and tape._x.shape == (rows if tokens else (*rows, tape._w_ih.shape[2]))
    fits = fits and (tape._w_hr is None or tape._w_hr.shape == (K, P, H)) and (tape._leak is None or tape._leak.shape == (K, H))
    if not fits or any(
        getattr(tape, name) is not None and getattr(tape, name).shape != shape for name, shape in tape._kept_shapes().items()
    ):
        raise RuntimeError("tape: an array of the forward pass was reshaped or resized before the backward pass")
    return tape
