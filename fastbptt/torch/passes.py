"""One direction of one layer, on arrays that are known to fit together: allocate, and call the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._kernels import kernels, memory
from .._typing import Array
from ..cells import CELLS, NONLINEARITIES
from .layout import Packed, Rectangle


class Weights(NamedTuple):
    """One direction's: None are biases and a projection that it has not."""

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_hr: Any = None


def by_name(weights: Sequence[Any], bias: bool) -> Weights:
    """Of one direction, from PyTorch's order: two matrices, perhaps two biases, perhaps a projection."""
    return Weights(*weights) if bias else Weights(*weights[:2], None, None, *weights[2:])


class Direction(NamedTuple):
    """The histories that a forward pass leaves: h, and where the cell has them c, the gates and m (`Tape` says what they are)."""

    h: Any
    c: Any
    gates: Any
    m: Any


def forward(
    cell: str, nonlinearity: str, layout: Rectangle | Packed, x: Array, initial: Sequence[Array | None], weights: Weights
) -> Direction:
    """``initial`` has states (B, H), h (B, P) if there is a projection."""
    row, dtype, (w_ih, w_hh, b_ih, b_hh, w_hr) = CELLS[cell], x.dtype, weights
    N, P = w_hh.shape
    H = P if w_hr is None else w_hr.shape[1]
    histories = [memory.empty((*layout.slots, width), dtype) for _, width in zip(row.states, (P, H))]
    for history, state in zip(histories, initial):
        history.reshape(-1, history.shape[-1])[: layout.B] = 0 if state is None else state
    gates = memory.empty((*layout.rows, N), dtype) if row.tape_gates else None
    m = memory.empty((*layout.rows, H), dtype) if row.reset_after else None
    h, c = histories[0], histories[1] if len(histories) == 2 else None
    number, activation = row.number, NONLINEARITIES[nonlinearity].number
    kernels[dtype].forward(number, activation, x, None, w_ih, w_hh, b_ih, b_hh, None, h, c, gates, m, layout.first, None, w_hr)
    return Direction(h, c, gates, m)


def backward(
    cell: str,
    nonlinearity: str,
    layout: Rectangle | Packed,
    x: Array,
    weights: Weights,
    bias: bool,
    tape: Direction,
    d_out: Array | None,
    d_state: Sequence[Array],
    clip: tuple[int, float],
    need_dx: bool,
) -> tuple[Array | None, list[Array]]:
    """dx and the gradients of the weights, in PyTorch's order; those of the initial states take the place of ``d_state``.

    ``w_ih`` may be None if dx is not needed, ``w_hh`` if neither is the gradient of the initial states, and there is one step. The biases
    are not read.
    """
    row, dtype, P, (w_ih, w_hh, _, _, w_hr) = CELLS[cell], x.dtype, tape.h.shape[-1], weights
    N = len(row.gates) * (P if w_hr is None else w_hr.shape[1])
    dx = memory.empty(x.shape, dtype) if need_dx else None
    dw_ih, dw_hh = memory.zeros((N, x.shape[-1]), dtype), memory.zeros((N, P), dtype)
    db_ih = np.zeros(N, dtype)
    db_hh = np.zeros(N, dtype) if row.reset_after else None
    dw_hr = None if w_hr is None else memory.zeros(w_hr.shape, dtype)
    w_ih = np.zeros(dw_ih.shape, dtype) if w_ih is None else w_ih
    w_hh = np.zeros(dw_hh.shape, dtype) if w_hh is None else w_hh
    dh, dc = d_state if len(d_state) == 2 else (*d_state, None)
    number, activation, sums = row.number, NONLINEARITIES[nonlinearity].number, (dw_ih, dw_hh, db_ih, db_hh)
    kernels[dtype].backward(
        number, activation, x, None, w_ih, w_hh, None, *tape, d_out, dh, dc, dx, *sums, layout.first, *clip, None, w_hr, dw_hr
    )
    grads = [dw_ih, dw_hh, *([db_ih, db_ih.copy() if db_hh is None else db_hh] if bias else []), *([] if dw_hr is None else [dw_hr])]
    return dx, grads
