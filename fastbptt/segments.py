"""The steps of a layer, a segment of time at a time, in room for one segment: what need not be kept is not."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks
from ._kernels import kernels, memory, pool
from ._typing import Array
from .cells import CELLS
from .tape import STATES, kernel_numbers, state_widths

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tape import Tape

    # By the tape's names, a row for each row of each step; in h and c, the states before the first step come first.
    Room = dict[str, Array]
    Initial = list[Array | None]

#: Bytes of gates that are not kept: in the caches, and enough work for threads to share.
GATES = 1 << 22
#: For one thread, which has less to lose at the ends of a segment, a quarter of that.
QUARTER = 4


class Segments:
    """The steps of a call, which is known by its tape.

    Parameters
    ----------
    tape : Tape
        Of which the arguments of the call are looked at, no state.
    h : ndarray (T+1, B, P) or None
        All states of a rectangle, if they are kept: ``out`` is a view of them.
    out : ndarray (T, B, P) or None
        The outputs, if they are kept.
    """

    def __init__(self, tape: Tape, h: Array | None, out: Array | None) -> None:
        self.tape, self.h, self.out = tape, h, out
        self.cell, self.dtype, self.tokens = CELLS[tape._cell], tape._w_hh.dtype, tape._x.ndim == 2
        T, self.B, self.H = tape._shape
        self.states = dict(zip(self.cell.states, state_widths(tape)))  # and numbers in a row of each
        self.pieces = tape._pieces
        if self.pieces is None:
            self.first, self.steps, self.count = None, T, self.B
        else:
            self.first, self.steps, self.count = self.pieces.first, len(self.pieces.first) - 1, self.pieces.count

    def rows(self, start: Any, stop: Any) -> Any:
        """The rows of all steps from ``start`` to ``stop``; numbers, or arrays of them."""
        return (stop - start) * self.B if self.first is None else self.first[stop] - self.first[start]

    def entering(self, start: Any) -> Any:
        """The rows that have a state before step ``start``."""
        if self.first is None:
            return self.B + 0 * start
        return np.where(start == 0, self.count, self.first[start] - self.first[np.maximum(start - 1, 0)])

    def widths(self) -> dict[str, int]:
        """What there must be room for, and numbers in a row of it."""
        N, cell = len(self.tape._w_hh), self.cell
        widths = dict(self.states)
        if self.h is not None:
            del widths["h"]
        if cell.tape_gates or self.tape._leak is not None:
            widths["gates"] = N
        if cell.reset_after:
            widths["m"] = self.H
        return widths

    def room(self, rows: int, entering: int) -> Room:
        """For segments of so many rows at most, with so many before them."""
        with _checks.Room("x, w_hh", (rows + entering) * sum(self.widths().values())):
            return {
                name: memory.empty((int(rows + (entering if name in STATES else 0)), width), self.dtype)
                for name, width in self.widths().items()
            }

    def arrays(self, room: Room, start: int, stop: int) -> tuple[Array | None, ...]:
        """h, c, gates and m of these steps, as the kernels take them."""
        slots: tuple[int, int] = (stop - start + 1, self.B)
        rows: tuple[int, int] = (stop - start, self.B)
        if self.pieces is not None:
            rows = (self.rows(start, stop), 1)
            slots = (rows[0] + int(self.entering(start)), 1)
        arrays = [room.get(name) for name in ("h", "c", "gates", "m")]
        h, *others = (
            None if array is None else array[: shape[0] * shape[1]].reshape(*shape, -1)
            for array, shape in zip(arrays, (slots, slots, rows, rows))
        )
        return (h if self.h is None else self.h[start : stop + 1], *others)

    def of_steps(self, array: Array, start: int, stop: int) -> Array:
        """These steps of an array that its caller has: a view, or packed."""
        return array[start:stop] if self.pieces is None else self.pieces.pack_steps(array, start, stop)

    def inputs(self, start: int, stop: int) -> tuple[Array | None, Array | None]:
        x = self.of_steps(self.tape._x, start, stop)
        return (None, x) if self.tokens else (x, None)

    def _first(self, start: int, stop: int) -> Array | None:
        return None if self.first is None else self.first[start : stop + 1] - self.first[start]

    def pack(self) -> Any:
        """The weights, for any number of segments."""
        tape = self.tape
        weights = tape._w_ih, tape._w_hh, tape._b_ih, tape._b_hh
        return kernels[self.dtype].pack(*weights, self.H, self.cell.reset_after, self.tokens, tape._w_hr)

    def forward(self, room: Room, start: int, stop: int, weights: Any, again: bool = False) -> None:
        """From the states that stand before the first step; ``again`` with all of h."""
        tape, arrays = self.tape, self.arrays(room, start, stop)
        biases = tape._w_ih, tape._w_hh, tape._b_ih, tape._b_hh, tape._leak
        inputs, first = self.inputs(start, stop), self._first(start, stop)
        kernels[self.dtype].forward(*kernel_numbers(tape), *inputs, *biases, *arrays, first, weights, tape._w_hr, again).run()

    def again(self, room: Room, start: int, stop: int, weights: Any) -> None:
        """The same once more, to the same bits; where all outputs are kept, as one product."""
        if self.out is None:
            self.forward(room, start, stop, weights)
            return
        if self.pieces is not None:
            before = int(self.entering(start))
            if start == 0:
                self.pieces.begin(room["h"][:before, None], self.tape._initial[0])
            else:
                room["h"][:before] = self.pieces.pack_steps(self.out, start - 1, start)[:, 0]
            room["h"][before : before + self.rows(start, stop)] = self.pieces.pack_steps(self.out, start, stop)[:, 0]
        if room.keys() - {"h"}:
            self.forward(room, start, stop, weights, again=True)

    def begin(self, room: Room, initial: Initial) -> None:
        """Put the initial states before step 0."""
        for name, part in zip(self.cell.states, initial):
            if name not in room:
                assert self.h is not None
                self.h[0] = 0 if part is None else part
            elif self.pieces is not None:
                self.pieces.begin(room[name][: self.count, None], part)
            else:
                room[name][: self.B] = 0 if part is None else part

    def carry(self, room: Room, start: int, stop: int) -> None:
        """Put the states after these steps before the next."""
        end, count = int(self.entering(start) + self.rows(start, stop)), int(self.entering(stop))
        for name in room.keys() & STATES:
            room[name][:count] = room[name][end - count : end]

    def save(self, room: Room, start: int) -> Room:
        """The states that stand before step ``start``; not h, where all outputs are kept."""
        count = int(self.entering(start))
        return {name: room[name][:count].copy() for name in room.keys() & self.saved()}

    def saved(self) -> set[str]:
        return set(self.cell.states) - ({"h"} if self.out is not None else set())

    @staticmethod
    def load(room: Room, states: Room) -> None:
        for name, array in states.items():
            room[name][: len(array)] = array

    def cut(self, rows: int) -> list[int]:
        """Where segments of at most so many rows begin, or of one step; and where the last ends."""
        if self.first is None:
            return [*range(0, self.steps, max(1, rows // self.B)), self.steps]
        bounds = [0]
        while bounds[-1] < self.steps:
            fit = int(np.searchsorted(self.first, self.first[bounds[-1]] + rows, "right")) - 1
            bounds.append(max(bounds[-1] + 1, fit))
        return bounds

    def finite(self, room: Room, start: int, stop: int) -> bool:
        """Whether all states of these steps that the room has are finite, and m."""
        before, rows = int(self.entering(start)), int(self.rows(start, stop))
        ends = {"h": before + rows, "c": before + rows, "m": rows}
        with np.errstate(all="ignore"):  # a sum is not finite where an element is not
            return all(np.isfinite(room[name][:end].sum()) for name, end in ends.items() if name in room)

    def run(
        self,
        room: Room,
        bounds: list[int],
        initial: Initial,
        before: Callable[[int], None] | None = None,
        after: Callable[[int], None] | None = None,
    ) -> list[Array]:
        """The whole forward pass; returns the last states. ``before(k)`` and ``after(k)`` are called around each segment."""
        self.begin(room, initial)
        weights = self.pack()
        last = [
            np.zeros((self.B, width), self.dtype) if part is None else part.copy() for part, width in zip(initial, self.states.values())
        ]
        for k, (start, stop) in enumerate(pairwise(bounds)):
            if k:
                self.carry(room, bounds[k - 1], start)
            if before is not None:
                before(k)
            self.forward(room, start, stop, weights)
            if after is not None:
                after(k)
            states = self.arrays(room, start, stop)
            if self.pieces is not None:
                self.pieces.end_steps(states, last, start, stop)
                if self.out is not None:
                    h = states[0]
                    assert h is not None
                    self.pieces.put_steps(h[int(self.entering(start)) :], self.out, start, stop)
        if self.pieces is None and len(bounds) > 1:
            last = [states[i][-1].copy() for i in range(len(last))]  # type: ignore[index]
        return last


def outputs(tape: Tape, last_only: bool) -> tuple[Array | None, Array | None]:
    """Room for h and out, as `Segments` takes them."""
    (T, B, _), P = tape._shape, tape._w_hh.shape[1]
    if last_only:
        return None, None
    with _checks.Room("x, w_hh", (T + 1) * B * P):
        if tape._pieces is not None:
            return None, memory.zeros((T, B, P), tape._w_hh.dtype)
        h = memory.empty((T + 1, B, P), tape._w_hh.dtype)
    return h, h[1:]


def fits(tape: Tape) -> bool:
    """Whether gates are so few that they can just as well be kept for the time of a call."""
    T, B, _ = tape._shape
    rows = T * B if tape._pieces is None else int(tape._pieces.first[-1])
    return rows * len(tape._w_hh) * tape._w_hh.itemsize <= GATES


def forward_without_tape(tape: Tape, initial: Initial, last_only: bool) -> tuple[Array | None, list[Array]]:
    """The outputs, unless they are not wanted, and the last states; memory beyond them does not grow with the number of steps."""
    segments = Segments(tape, *outputs(tape, last_only))
    size = GATES if pool.threads_here() > 1 else GATES // QUARTER
    bounds = segments.cut(size // (len(tape._w_hh) * tape._w_hh.itemsize))
    starts = np.array(bounds)
    room = segments.room(int(segments.rows(starts[:-1], starts[1:]).max()), int(segments.entering(starts[:-1]).max()))
    return segments.out, segments.run(room, bounds, initial)
