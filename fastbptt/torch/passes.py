"""One direction of one layer, on arrays that are known to fit together: allocate, and call the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._kernels import kernels, memory
from .._typing import Array
from ..cells import CELLS, NONLINEARITIES
from .layout import Packed, Rectangle

if TYPE_CHECKING:
    from .._kernels.borrowed import Borrowed

ALIGNED = 16  # numbers, and so whole cache lines


class Weights(NamedTuple):
    """One direction's, in the kernels' order: None are biases and a projection that it has not."""

    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    w_hr: Any

    @classmethod
    def by_name(cls, weights: Sequence[Any], bias: bool) -> Weights:
        """From PyTorch's order: two matrices, perhaps two biases, perhaps a projection."""
        w_ih, w_hh, *rest = weights
        b_ih, b_hh, *rest = rest if bias else (None, None, *rest)
        return cls(w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None)


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

    def cut(self, numbers: Any, dtype: np.dtype[Any]) -> Direction:
        size = dtype.itemsize
        return Direction(*[None if part is None else np.ndarray(part[1], dtype, numbers, part[0] * size) for part in self.parts])


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
    cell: str,
    nonlinearity: str,
    layout: Rectangle | Packed,
    x: Borrowed | Array,
    initial: Sequence[Array | None],
    weights: Weights,
    tape: Direction,
) -> None:
    """Fills ``tape``. ``initial`` has states (B, H), h (B, P) if there is a projection."""
    for history, state in zip(tape, initial):
        layout.begin(history, 0 if state is None else state)
    number, activation, (*weights_and_biases, w_hr) = CELLS[cell].number, NONLINEARITIES[nonlinearity].number, weights
    kernels[tape.h.dtype].forward(number, activation, x, None, *weights_and_biases, None, *tape, layout.first, None, w_hr).run()


def backward(
    cell: str,
    nonlinearity: str,
    layout: Rectangle | Packed,
    x: Borrowed | Array,
    w_ih: Borrowed | None,
    w_hh: Borrowed | None,
    w_hr: Borrowed | None,
    bias: bool,
    tape: Direction,
    d_out: Borrowed | Array | None,
    d_state: Sequence[Array],
    clip: tuple[int, float],
    need_dx: bool,
) -> tuple[Array | None, list[Array]]:
    """dx and the gradients of the weights, in PyTorch's order; those of the initial states take the place of ``d_state``.

    ``w_ih`` may be None if dx is not needed, ``w_hh`` if neither is the gradient of the initial states, and there is one step.
    """
    row, dtype, P = CELLS[cell], tape.h.dtype, tape.h.shape[-1]
    N = len(row.gates) * (P if w_hr is None else w_hr.shape[1])
    dx = memory.empty(x.shape, dtype) if need_dx else None
    dw_ih, dw_hh = memory.empty((N, x.shape[-1]), dtype), memory.empty((N, P), dtype)
    db_ih = np.empty(N, dtype)
    db_hh = np.empty(N, dtype) if row.reset_after else None
    dw_hr = None if w_hr is None else memory.empty(w_hr.shape, dtype)
    given = [np.zeros(dw.shape, dtype) if weight is None else weight for weight, dw in ((w_ih, dw_ih), (w_hh, dw_hh))]
    dh, dc = d_state if len(d_state) == 2 else (*d_state, None)
    number, activation, sums = row.number, NONLINEARITIES[nonlinearity].number, (dw_ih, dw_hh, db_ih, db_hh)
    kernels[dtype].backward(
        number, activation, x, None, *given, None, *tape, d_out, dh, dc, dx, *sums, layout.first, *clip, None, w_hr, dw_hr
    ).run()
    grads = [dw_ih, dw_hh, *([db_ih, db_ih.copy() if db_hh is None else db_hh] if bias else []), *([] if dw_hr is None else [dw_hr])]
    return dx, grads
