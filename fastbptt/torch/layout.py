"""Where the rows of a batch stand: a rectangle, time first, or a PackedSequence's rows without gaps, as the kernels take them, too."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .._kernels.tensors import Numbers, of_array
from .._typing import Array, Integers


class Rectangle:
    """T steps of B rows. Arrays are (T, B, W), histories of states (T+1, B, W)."""

    __slots__ = "B", "T", "rows", "slots"

    first = None

    def __init__(self, T: int, B: int) -> None:
        self.T, self.B = T, B
        self.rows, self.slots = (T, B), (T + 1, B)

    def after(self, history: Numbers) -> Numbers:
        """The states after each step, as a view."""
        W = history.shape[-1]
        return history.part(self.B * W, (self.T, self.B, W))

    def ends(self, history: Numbers) -> Numbers:
        """The rows' last states (1, B, W), in memory of their own."""
        W = history.shape[-1]
        return history.part(self.T * self.B * W, (1, self.B, W)).copy()

    def turned(self, array: Array) -> Array:
        """Each row from its end to its start; twice is as it was."""
        return array[::-1]

    def way(self, reverse: bool) -> tuple[Integers | None, bool]:
        """What the kernels call ``place`` and ``turned``, of a direction."""
        return None, reverse


class Packed:
    """R steps, of B rows sorted by length. Arrays are (R, 1, W), histories of states (B+R, 1, W); ``first`` is that of `ragged.Pieces`."""

    def __init__(self, sizes: Integers) -> None:
        self.T, self.B = len(sizes), int(sizes[0])
        self.first = np.zeros(self.T + 1, np.intp)
        np.cumsum(sizes, out=self.first[1:])
        self.lengths = np.searchsorted(-sizes, -np.arange(self.B))  # of the first row, the steps with more than 0 rows, ...
        R = int(self.first[-1])
        self.rows, self.slots = (R, 1), (self.B + R, 1)

    def after(self, history: Numbers) -> Numbers:
        W = history.shape[-1]
        return history.part(self.B * W, (*self.rows, W))

    @cached_property
    def _ends(self) -> Integers:
        rows = np.arange(self.B)
        return self.B + self.first[self.lengths - 1] + rows

    def ends(self, history: Numbers) -> Numbers:
        return of_array(np.asarray(history)[self._ends].reshape(1, self.B, -1))

    @cached_property
    def _turn(self) -> Integers:
        sizes = np.diff(self.first)
        step = np.repeat(np.arange(self.T), sizes)
        row = np.arange(len(step)) - self.first[step]
        return self.first[self.lengths[row] - 1 - step] + row

    def turned(self, array: Array) -> Array:
        return array[self._turn]

    def way(self, reverse: bool) -> tuple[Integers | None, bool]:
        return self._turn if reverse else None, False


def of_batch_sizes(sizes: Integers, rows: int) -> Rectangle | Packed | None:
    """The layout of a PackedSequence that has so many rows of data; None if the numbers cannot be those of one.

    Rows that are left over are PyTorch's business: its reverse direction counts from them.
    """
    sizes = sizes.copy()  # another thread may write to PyTorch's
    if not 0 < len(sizes) <= rows or not 0 < sizes[0] <= rows or sizes[-1] < 1 or (sizes[1:] > sizes[:-1]).any() or sizes.sum() != rows:
        return None
    return Rectangle(len(sizes), int(sizes[0])) if sizes[0] == sizes[-1] else Packed(sizes)
