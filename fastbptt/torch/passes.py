"""One direction of one layer, on arrays that are known to fit together: allocate, and call the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._kernels import kernels, memory
from .._typing import Array
from ..cells import CELLS, NONLINEARITIES
from .layout import Packed, Rectangle


class Direction(NamedTuple):
    """The histories that a forward pass leaves: h, and where the cell has them c, the gates and m (`Tape` says what they are)."""

    h: Any
    c: Any
    gates: Any
    m: Any


def forward(
    cell: str, nonlinearity: str, layout: Rectangle | Packed, x: Array, initial: Sequence[Array | None], weights: Sequence[Array]
) -> Direction:
    """``initial`` has states (B, H), ``weights`` w_ih, w_hh and, unless there are none, two biases."""
    row, dtype = CELLS[cell], x.dtype
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] or (None, None)
    N, H = w_hh.shape
    histories = [memory.empty((*layout.slots, H), dtype) for _ in row.states]
    for history, state in zip(histories, initial):
        history.reshape(-1, H)[: layout.B] = 0 if state is None else state
    gates = memory.empty((*layout.rows, N), dtype) if row.tape_gates else None
    m = memory.empty((*layout.rows, H), dtype) if row.reset_after else None
    h, c = histories[0], histories[1] if len(histories) == 2 else None
    number, activation = row.number, NONLINEARITIES[nonlinearity].number
    kernels[dtype].forward(number, activation, x, None, w_ih, w_hh, b_ih, b_hh, None, h, c, gates, m, layout.first)
    return Direction(h, c, gates, m)


def backward(
    cell: str,
    nonlinearity: str,
    layout: Rectangle | Packed,
    x: Array,
    w_ih: Array | None,
    w_hh: Array | None,
    bias: bool,
    tape: Direction,
    d_out: Array | None,
    d_state: Sequence[Array],
    clip: tuple[int, float],
    need_dx: bool,
) -> tuple[Array | None, list[Array]]:
    """dx and the gradients of the weights; those of the initial states take the place of ``d_state``, (B, H) each.

    ``w_ih`` may be None if dx is not needed, ``w_hh`` if neither is the gradient of the initial states, and there is one step.
    """
    row, dtype, H = CELLS[cell], x.dtype, tape.h.shape[-1]
    N = len(row.gates) * H
    dx = memory.empty(x.shape, dtype) if need_dx else None
    dw_ih, dw_hh = memory.zeros((N, x.shape[-1]), dtype), memory.zeros((N, H), dtype)
    db_ih = np.zeros(N, dtype)
    db_hh = np.zeros(N, dtype) if row.reset_after else None
    w_ih = np.zeros(dw_ih.shape, dtype) if w_ih is None else w_ih
    w_hh = np.zeros(dw_hh.shape, dtype) if w_hh is None else w_hh
    dh, dc = d_state if len(d_state) == 2 else (*d_state, None)
    number, activation = row.number, NONLINEARITIES[nonlinearity].number
    kernels[dtype].backward(
        number, activation, x, None, w_ih, w_hh, None, *tape, d_out, dh, dc, dx, dw_ih, dw_hh, db_ih, db_hh, layout.first, *clip
    )
    if not bias:
        return dx, [dw_ih, dw_hh]
    return dx, [dw_ih, dw_hh, db_ih, db_ih.copy() if db_hh is None else db_hh]
