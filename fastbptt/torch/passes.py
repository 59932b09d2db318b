"""One direction of one layer, on arrays that are known to fit together: allocate, and call the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._kernels import kernels
from .._kernels.tensors import Numbers, empty, zeros
from .._typing import Array
from ..cells import CELLS
from .layout import Packed, Rectangle

if TYPE_CHECKING:
    from .modules import Plan

ALIGNED = 16  # numbers, and so whole cache lines


class Direction(NamedTuple):
    """The histories that a forward pass leaves: h, and where the cell has them c, the gates and m (`Tape` says what they are)."""

    h: Any
    c: Any
    gates: Any
    m: Any


class Parts(NamedTuple):
    """How one array is cut into the histories: for PyTorch that is one tensor to keep, which takes a quarter of the time of four."""

    size: int
    parts: tuple[tuple[int, tuple[int, ...]] | None, ...]  # the number at which each of h, c, gates and m begins, and its shape

    def cut(self, numbers: Numbers) -> Direction:
        return tuple.__new__(Direction, numbers.parts(self.parts))  # without two calls of Python, as Direction(...) takes


@lru_cache(maxsize=256)
def parts_of(cell: str, rows: tuple[int, int], slots: tuple[int, int], P: int, H: int) -> Parts:
    row = CELLS[cell]
    shapes = (
        (*slots, P),
        (*slots, H) if len(row.states) == 2 else None,
        (*rows, len(row.gates) * H) if row.tape_gates else None,
        (*rows, H) if row.reset_after else None,
    )
    parts: list[tuple[int, tuple[int, ...]] | None] = []
    start = 0
    for shape in shapes:
        if shape is None:
            parts.append(None)
        else:
            parts.append((start, shape))
            start = -(-(start + prod(shape)) // ALIGNED) * ALIGNED
    return Parts(start, tuple(parts))


def forward(
    plan: Plan,
    layout: Rectangle | Packed,
    x: Numbers,
    initial: Sequence[Numbers | None],
    weights: Sequence[Numbers | None],
    tape: Direction,
    dtype: np.dtype[Any],
    given: Numbers | None = None,
    out: Array | None = None,
    reverse: bool = False,
) -> None:
    """Fills ``tape``. ``initial`` has states (B, H), h (B, P) if there is a projection; ``weights`` are w_ih, w_hh, b_ih, b_hh and w_hr.

    In ``reverse``, x is first filled from ``given``. ``out`` also gets the outputs, if it is given; there may be gaps between its rows.
    """
    for history, state in zip(tape, initial):
        history.begin(layout.B * history.shape[-1], state)
    *weights_and_biases, w_hr = weights
    place, turned = layout.way(reverse)
    arrays = x, None, *weights_and_biases, None, *tape, layout.first, None, w_hr
    kernels[dtype].forward(*plan.numbers, *arrays, False, place, given, out, turned).run()


def backward(
    plan: Plan,
    layout: Rectangle | Packed,
    x: Numbers,
    weights: Sequence[Numbers | None],
    tape: Direction,
    d_out: Numbers | Array | None,
    d_state: Sequence[Numbers],
    clip: tuple[int, float],
    need_dx: bool,
    dtype: np.dtype[Any],
    onto: Numbers | None = None,
    reverse: bool = False,
) -> tuple[Numbers | None, list[Numbers]]:
    """dx, which is added to ``onto`` if that is given, and the gradients of the weights, in PyTorch's order; those of the initial states take
    the place of ``d_state``. In ``reverse``, x and the tape are in the order of reading, d_out and dx are not.

    ``weights`` are w_ih, w_hh and, if there is a projection, w_hr. The first may be None if dx is not needed, the second if neither is the
    gradient of the initial states, and there is one step.
    """
    (w_ih, w_hh, *w_hrs), cell, size, P = weights, CELLS[plan.cell], x.itemsize, tape.h.shape[-1]
    w_hr = w_hrs[0] if w_hrs else None
    N = len(cell.gates) * (P if w_hr is None else w_hr.shape[1])
    dx = onto or (empty(x.shape, size) if need_dx else None)
    dw_ih, dw_hh, db_ih = empty((N, x.shape[-1]), size), empty((N, P), size), empty((N,), size)
    db_hh = empty((N,), size) if cell.reset_after else None
    dw_hr = None if w_hr is None else empty(w_hr.shape, size)
    w_ih, w_hh = w_ih or zeros(dw_ih.shape, size), w_hh or zeros(dw_hh.shape, size)
    dh, dc = d_state if len(d_state) == 2 else (*d_state, None)
    arrays = x, None, w_ih, w_hh, None, *tape, d_out, dh, dc, dx, dw_ih, dw_hh, db_ih, db_hh
    kernels[dtype].backward(
        *plan.numbers, *arrays, layout.first, *clip, None, w_hr, dw_hr, None, *layout.way(reverse), onto is not None
    ).run()
    d_biases = [db_ih, db_ih.copy() if db_hh is None else db_hh] if plan.bias else []
    return dx, [dw_ih, dw_hh, *d_biases, *([] if dw_hr is None else [dw_hr])]
