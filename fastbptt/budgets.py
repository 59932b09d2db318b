"""The memory budget of a layer's call: what must be kept between the directions of a stack, and what each of them may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpointing import least, too_small
from .ragged import Backwards, cut
from .segments import Segments
from .stacks import sides_of
from .tape import Tape

if TYPE_CHECKING:
    from ._typing import Array, Bools, Integers
    from .layers import Recurrent


def shares(layer: Recurrent, x: Array, lengths: Integers | None, resets: Bools | None, budget: int) -> list[int]:
    """Bytes for each direction: the least that it needs, and an equal part of what is left; ``x`` is time first.

    ValueError if the budget is less than the least of all, which the message tells.
    """
    directions, (T, B) = layer._directions, x.shape[:2]
    pieces = [cut(T, B, lengths, resets)]
    if sides_of(directions) == 2:
        pieces.append(cut(T, B, lengths, Backwards(T, B, lengths, resets).resets))
    of_kinds: dict[tuple[bool, bool], int] = {}  # directions of all layers but the first are alike
    for k, (above, reverse) in enumerate(directions):
        if (above > 0, reverse) not in of_kinds:
            of_kinds[above > 0, reverse] = least(_segments(layer, k, x, pieces[reverse]))
    each = [of_kinds[above > 0, reverse] for above, reverse in directions]
    left = budget - _between(layer, x, lengths) - sum(each)
    if left < 0:
        raise too_small(budget - left, budget)
    return [some + left // len(each) for some in each]


def _segments(layer: Recurrent, k: int, x: Array, pieces: Any) -> Segments:
    """Those of a direction's call, as far as its sizes go."""
    parameters, n = [*layer.params.values()], len(layer.params) // len(layer._directions)
    w_ih, w_hh, *others = parameters[k * n : (k + 1) * n]
    zero, T, B = layer.dtype.type(0), *x.shape[:2]
    inputs: Array = np.broadcast_to(zero, (T, B, w_ih.shape[1]))
    if x.ndim == 2 and not layer._directions[k].layer:
        inputs = np.broadcast_to(np.int64(0), (T, B))
    sizes, w_hr = (T, B, layer.hidden_size), others[-1] if layer._proj_size else None
    leak = getattr(layer, "leak", None)
    tape: Tape = Tape(layer._cell, inputs, w_ih, w_hh, None, None, leak, "tanh", _shape=sizes, _w_hr=w_hr, _pieces=pieces)
    out: Array = np.broadcast_to(zero, (T, B, w_hh.shape[1]))
    return Segments(tape, out if pieces is None else None, out)


def _between(layer: Recurrent, x: Array, lengths: Integers | None) -> int:
    """Bytes that all directions' calls do not count: what goes from one to the next, and stays for the way back, copies of arguments and the
    gradients of parameters until they are added.
    """
    directions, item, (T, B) = layer._directions, layer.dtype.itemsize, x.shape[:2]
    sides, L, rows = sides_of(directions), layer.num_layers, T * B
    both, W = sides == 2, layer._out_size
    outputs, vectors = rows * W * item, x.ndim == 3
    inputs = [rows * layer.input_size * item if vectors else 8 * rows] + [outputs] * (L - 1)  # of each layer
    kept = L * (outputs + B * W * item) - (0 if both else outputs)  # the last layer's are the call's, unless they are put side by side
    if both:
        kept += (L - 1) * outputs + sum(inputs)  # side by side, and turned
    if layer.batch_first and vectors:
        kept += inputs[0]
    forward = outputs // 2 if both else 0
    if layer.dropout and L > 1:
        kept += (L - 1) * (rows * W + (0 if both else outputs))  # what is left of them, and where
        forward += 4 * rows * W + (outputs if both else 0)  # what is drawn
    backward = 0
    for k, at_inputs in enumerate(inputs):
        to_inputs = at_inputs if k or vectors else 0
        here = (sides if k else sides - 1) * to_inputs + (to_inputs if both else 0)
        here += (outputs if k < L - 1 or layer.batch_first else 0) + (2 * outputs if both else 0)
        backward = max(backward, here)
    turned = 32 * rows if both and lengths is not None else 0
    return kept + max(forward, backward) + turned + layer.flat_grads.nbytes
