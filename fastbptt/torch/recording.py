"""Looking at the gradients of a recurrent module on their way back through time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from .._typing import Array
from ..gradients.flow import GradientFlow, gradient_flow
from ..ragged import cut
from ..tape import Tape
from .layout import Packed
from .passes import Direction

if TYPE_CHECKING:
    from .function import Call
    from .modules import Recurrent


class Recording:
    """The last backward pass of each layer and direction of a module, while `record` was on."""

    def __init__(self, module: Recurrent) -> None:
        self._module = module
        self._passes: dict[tuple[int, bool], tuple[Tape, Array | None, Any]] = {}

    def gradient_flow(self, layer: int = 0, *, reverse: bool = False, row: int | None = None) -> GradientFlow:
        """What became of the gradient in one layer: `fastbptt.gradient_flow` of it.

        Parameters
        ----------
        layer : int
            From 0.
        reverse : bool
            Of a bidirectional module, the direction that starts at the end. Its time runs backwards.
        row : int or None
            One row of the batch alone, which must be said if rows differ in length; of a PackedSequence in its own order, the longest first.

        Returns
        -------
        GradientFlow

        Raises
        ------
        RuntimeError
            If no backward pass of ours went through that layer.
        ValueError
            If rows differ in length and ``row`` is None.
        TypeError, IndexError
            If there is no such row.
        """
        try:
            tape, d_out, d_state = self._passes[layer, reverse]
        except KeyError:
            way = ", reverse" if reverse else ""
            why = f"; PyTorch's own path was taken, by reason: {dict(self._module.fallbacks)}" if self._module.fallbacks else ""
            raise RuntimeError(f"layer {layer}{way}: no backward pass has been recorded{why}") from None
        if row is not None:
            B = tape.shape[1]
            if not 0 <= _checks.size("row", row, 0) < B:
                raise IndexError(f"row: expected a row from 0 to {B - 1}, got {_checks.quoted(row)}")
            tape, d_state = tape.row(row), [d[row : row + 1] for d in d_state]
            d_out = None if d_out is None else d_out[: len(tape), row : row + 1]
        elif tape.ragged:
            raise ValueError(f"row: expected one of the {tape.shape[1]} rows, since they differ in length, got None")
        return gradient_flow(tape, d_out, d_state[0] if len(d_state) == 1 else tuple(d_state))

    def add(
        self, call: Call, direction: int, x: Array, weights: Sequence[Array | None], tape: Direction, d_out: Any, d_state: Sequence[Any]
    ) -> None:
        """Keep copies of what one backward pass started from."""
        layout, (h, c, gates, m) = call.layout, [None if part is None else np.array(part) for part in tape]
        pieces, initial = None, []
        if isinstance(layout, Packed):  # rows are sorted, and so the pieces stand as they do in `tape`
            pieces = cut(layout.T, layout.B, layout.lengths, None)
            initial = [history[: layout.B, 0].copy() for history in (h, c) if history is not None]
        if d_out is not None:
            d_out = d_out.copy() if pieces is None else pieces.unpack(d_out)
        kept: dict[str, Any] = {"cell": call.plan.cell, "nonlinearity": call.plan.nonlinearity, "leak": None}
        kept |= {
            "shape": (layout.T, layout.B, call.plan.widths[-1]),
            "x": x.copy(),
            "h": h,
            "c": c,
            "gates": gates,
            "m": m,
            "pieces": pieces,
            "initial": initial,
        }
        copies = [None if weight is None else weight.copy() for weight in weights]
        kept |= dict(zip(("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"), copies, strict=True))
        whole: Tape = Tape(**{f"_{name}": value for name, value in kept.items()})
        self._passes[call.layer, direction == 1] = whole, d_out, [d.copy() for d in d_state]


@contextmanager
def record(module: Recurrent) -> Iterator[Recording]:
    """Record the backward passes of one of our modules, with copies of all that `Recording.gradient_flow` needs of the last one.

    Parameters
    ----------
    module : RNN, GRU or LSTM of this package

    Raises
    ------
    TypeError
        If ``module`` is no such module: `accelerate` makes it one.

    Examples
    --------
    >>> import torch, fastbptt.torch
    >>> module = fastbptt.torch.GRU(3, 8)
    >>> with fastbptt.torch.record(module) as recording:
    ...     out, h_n = module(torch.randn(20, 4, 3))
    ...     out[-1].sum().backward()
    >>> recording.gradient_flow().log10_state_norm.shape
    (21, 4)
    """
    from .modules import Recurrent

    if not isinstance(module, Recurrent):
        raise TypeError(f"module: expected a recurrent module of fastbptt.torch, got {type(module).__name__}; accelerate() makes it one")
    outer, recording = module.__dict__.get("_recording"), Recording(module)
    module.__dict__["_recording"] = recording
    try:
        yield recording
    finally:
        if outer is None:
            module.__dict__.pop("_recording", None)
        else:
            module.__dict__["_recording"] = outer
