"""Ragged batches: rows that end early, and rows whose state is set to zero on their way.

A reset cuts a row in two: what follows is a sequence of its own, which starts from zero. So a batch consists of pieces, each with a row, a
first step and a length. The kernels work on them packed (`_kernels/time.pxi`): the longest first, and step by step, without gaps. They
pack x themselves, and write outputs and dx to where they belong. The work is that of the steps that are there, and what stands behind a
row's end is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _checks
from ._kernels import kernels, memory, pieces
from ._typing import Array, Bools, Integers


def cut(T: int, B: int, lengths: Integers | None, resets: Bools | None) -> Pieces | None:
    """The pieces of T steps of B rows, or None if they are a rectangle: no row ends early, and none is reset."""
    with _checks.Room("x", T * B):
        if lengths is not None:
            lengths = checked_lengths(lengths, T, (B,))
        if resets is not None:
            resets = checked_resets(resets, T, B)
        if (lengths is None or (lengths == T).all()) and (resets is None or not resets.any()):
            return None
        return Pieces(T, np.full(B, T) if lengths is None else lengths, resets)


def checked_lengths(lengths: Any, T: int, *shapes: tuple[int, ...]) -> Integers:
    """A copy of how many steps rows have, of at most T, in an array of one of these shapes."""
    lengths = _checks.require_array("lengths", lengths)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got dtype {lengths.dtype}")
    if lengths.shape not in shapes:
        raise ValueError(f"lengths: expected shape {' or '.join(map(str, shapes))}, got {lengths.shape}")
    for wrong in lengths[(lengths < 0) | (lengths > T)]:
        raise ValueError(f"lengths: expected numbers of steps from 0 to {T}, got {wrong}")
    return lengths.astype(np.int64)


def checked_resets(resets: Any, T: int, B: int) -> Bools:
    """A copy of where rows begin anew."""
    resets = _checks.require_array("resets", resets)
    if resets.dtype != bool:
        raise TypeError(f"resets: expected dtype bool, got {resets.dtype}")
    return _checks.require_shape("resets", resets, (T, B)).copy()


class Pieces:
    """The pieces of a batch, and the way between the caller's arrays and the kernels' packed ones.

    Attributes
    ----------
    T, B : int
        Steps and rows of the batch.
    lengths, resets : ndarray (B,), ndarray (T, B) or None
        They can never be written to: the other arrays are made of them.
    count : int
        How many pieces there are.
    first : intp ndarray (S+1,)
        Where each of the S steps of the longest piece begins among the packed rows, R in all.
    place : int64 ndarray (R,)
        Which row of an array (T * B, W) each packed row is.
    """

    def __init__(self, T: int, lengths: Integers, resets: Bools | None) -> None:
        self.T, self.B = T, len(lengths)
        self.lengths, self.resets = _checks.frozen(lengths), None if resets is None else _checks.frozen(resets)
        # `pieces.lay_out` says what they are
        self.count, self._idle, arrays = pieces.lay_out(T, lengths, None if resets is None else resets.view(np.uint8))
        self.first, self.place, self._packed, self._source, self._target, self._started, self._ended, self._ends = arrays

    @property
    def there(self) -> Bools:
        """Which steps of which rows there are, (T, B)."""
        return np.arange(self.T)[:, None] < self.lengths

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def pack(self, array: Array) -> Array:
        """The rows that are there of an array (T, B) or (T, B, W): (R, 1) or (R, 1, W)."""
        return _gather(np.ascontiguousarray(array).reshape(self.T * self.B, *array.shape[2:]), self.place)[:, None]

    def pack_steps(self, array: Array, start: int, stop: int) -> Array:
        """The same for the kernels' steps ``start`` to ``stop`` alone.

        In memory of NumPy's, which is free again when it is let go: segments of time have so many sizes that `memory` would keep them all.
        """
        rows = np.ascontiguousarray(array).reshape(self.T * self.B, *array.shape[2:])
        return rows[self.place[self.first[start] : self.first[stop]], None]

    def put_steps(self, packed: Array, array: Array, start: int, stop: int) -> None:
        """The reverse, into an array (T, B, W) that is contiguous."""
        array.reshape(self.T * self.B, -1)[self.place[self.first[start] : self.first[stop]]] = packed[:, 0]

    def unpack(self, packed: Array) -> Array:
        """The reverse, 0 behind each row's end."""
        return _gather(packed[:, 0], self._packed).reshape(self.T, self.B, *packed.shape[2:])

    def room(self, width: int, dtype: np.dtype[Any]) -> Array:
        """An array (T, B, W) into which the kernels can put packed rows by `place`: 0 behind each row's end, and else not filled."""
        return _room(self.T, self.B, width, dtype, self._packed)

    def begin(self, history: Array, state: Array | None) -> None:
        """Fill slot 0 of a history (count + R, 1, W) with the states that pieces start from; ``state`` is (B, W), or None for zeros."""
        if state is None:
            history[: self.count] = 0
        else:
            _gather(state, self._source, history[: self.count, 0])

    def end(self, history: Array, state: Array | None) -> Array:
        """The state (B, W) in which each row ends, from a history (count + R, 1, W); that of rows without a step is ``state``."""
        return self._of_rows(history, self._ends, state)

    def end_steps(self, histories: Sequence[Array | None], states: Sequence[Array], start: int, stop: int) -> None:
        """Where a row ends in the kernels' steps ``start`` to ``stop``, put its last state into ``states``; of these steps the histories."""
        row, rows = self._ends - self.count - self.first[start], self.first[stop] - self.first[start]
        here = (row >= 0) & (row < rows)  # which a row without steps is not
        for history, state in zip(histories, states):
            assert history is not None
            state[here] = history[len(history) - rows :][row[here], 0]

    def end_carried(self, carried: Array, state: Array | None) -> Array:
        """The same from what a pass has carried along each piece, (count, 1, W)."""
        return self._of_rows(carried, self._ended, state)

    def _of_rows(self, last: Array, index: Integers, state: Array | None) -> Array:
        return self._without_steps(_gather(last[:, 0], index), state)

    def _without_steps(self, of_rows: Array, state: Array | None) -> Array:
        """``of_rows``, but of a row without a step what ``state`` has."""
        if state is not None and self._idle:
            none = self.lengths == 0
            of_rows[none] = state[none]
        return of_rows

    def unpack_history(self, history: Array, state: Array | None) -> Array:
        """The states of each row, (T+1, B, W), slot 0 those before the first step; 0 behind a row's end."""
        out = memory.empty((self.T + 1, self.B, history.shape[2]), history.dtype)
        out[0] = 0 if state is None else state
        out[1:] = self.unpack(history[self.count :])
        return out

    def pack_history(self, array: Array) -> Array:
        """The reverse."""
        history = memory.empty((self.count + self.first[-1], 1, array.shape[2]), array.dtype)
        self.begin(history, array[0])
        history[self.count :] = self.pack(array[1:])
        return history

    def end_gradient(self, d_state: Array) -> Array:
        """(count, W): the gradient of the state in which each piece ends, from that of the rows' last states."""
        return _gather(d_state, self._target)

    def begin_gradient(self, d_begin: Array, d_state: Array) -> Array:
        """(B, W): the gradient of the rows' initial states, from that of the pieces'. Rows without a step keep ``d_state``."""
        return self._without_steps(_gather(d_begin, self._started), d_state)

    def part(self, start: int, stop: int, rows: slice) -> Pieces | None:
        """The pieces of steps ``start`` to ``stop`` of some rows; None if they are a rectangle."""
        lengths = np.clip(self.lengths[rows] - start, 0, stop - start)
        resets = None if self.resets is None else self.resets[start:stop, rows]
        return cut(stop - start, len(lengths), lengths, resets)


class Backwards:
    """Each row of a batch from its own last step to its first, as a reverse direction reads it. Twice is once forward.

    Parameters
    ----------
    T, B : int
    lengths, resets : ndarray (B,), ndarray (T, B), or None

    Attributes
    ----------
    resets : bool ndarray (T, B) or None
        Those of the rows so turned. The pieces are the same: what was a piece's last step is now its first.
    """

    def __init__(self, T: int, B: int, lengths: Integers | None, resets: Bools | None) -> None:
        self.T, self.B, self._index = T, B, None
        if lengths is not None:
            step = checked_lengths(lengths, T, (B,)) - 1 - np.arange(T)[:, None]
            self._index = np.where(step < 0, -1, step * B + np.arange(B)).ravel()
        self.resets = None
        if resets is not None:
            resets = checked_resets(resets, T, B)
            before_next = np.zeros_like(resets)
            before_next[:-1] = resets[1:]
            self.resets = np.ascontiguousarray(self(before_next))
            self.resets[:1] = False

    def places(self, pieces: Pieces) -> Integers:
        """Which row of an array (T * B, W) each packed row of the rows so turned is. RuntimeError if they are not of these lengths."""
        if self._index is not None:
            places = self._index[pieces.place]
            if places.min(initial=0) < 0:
                raise RuntimeError("tape: its lengths are not those of the forward pass")
            return places
        step, row = np.divmod(pieces.place, self.B)
        return (self.T - 1 - step) * self.B + row

    def room(self, width: int, dtype: np.dtype[Any]) -> Array:
        """An array (T, B, W): 0 behind each row's end, and else not filled."""
        return _room(self.T, self.B, width, dtype, self._index)

    def copy(self, array: Array) -> Array:
        """An array turned, in one piece; of tokens, a copy that can never be written to."""
        return _checks.frozen(self(array)) if array.ndim == 2 else _checks.contiguous("x", self(array))

    def __call__(self, array: Array) -> Array:
        """An array (T, B) or (T, B, W), turned; 0 behind each row's end. A view if all rows have all steps."""
        if self._index is None:
            return array[::-1]
        flat = _checks.contiguous("array", array).reshape(len(self._index), *array.shape[2:])
        return _gather(flat, self._index).reshape(array.shape)


def _room(T: int, B: int, width: int, dtype: np.dtype[Any], index: Integers | None) -> Array:
    """An array (T, B, W): 0 where the index, if there is one, is -1, and else not filled."""
    array = memory.empty((T, B, width), dtype)
    if index is not None and array.size:
        kernels[dtype].clear_missing(index, array.reshape(T * B, width))
    return array


def _gather(array: Array, index: Integers, out: Array | None = None) -> Array:
    """``array[index]``, 0 where the index is -1."""
    if array.ndim == 1:
        gathered = array[index] if len(array) else np.zeros(len(index), array.dtype)
        gathered[index < 0] = 0
        return gathered
    if out is None:
        out = memory.empty((len(index), array.shape[1]), array.dtype)
    if out.size:
        kernels[array.dtype].gather(array, index, out)
    return out
