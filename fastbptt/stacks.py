"""Stacks: layers one above the other, each of one direction or two.

A direction of a layer has parameters, states and a tape of its own, and runs like a layer alone. What is between them is here: whose outputs
are whose inputs, what dropout lets through, and the way of a reverse direction, which reads each row from its own last step to its first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _checks
from ._kernels import kernels, memory, pool
from ._typing import Array, Bools, Integers
from .ragged import Backwards, checked_lengths, checked_resets
from .side_by_side import Pass, alone, both, one_behind

if TYPE_CHECKING:
    from .results import Gradients
    from .tape import Tape

MOST_LAYERS = 1 << 16
# When two directions, or layers, run side by side. With more rows, or threads, each does better to have them all, and so with recurrent
# weights of more bytes, of which a thread's cache then holds its part; the work, in multiply-adds, is what a thread is woken for.
FEW_ROWS, MANY_THREADS, MANY_WEIGHTS, LEAST_WORK = 8, 4, 1 << 20, 4e5


class Direction(NamedTuple):
    """One direction of one layer."""

    layer: int
    reverse: bool

    @property
    def suffix(self) -> str:
        """What its parameters' names end with."""
        return f"l{self.layer}{'_reverse' if self.reverse else ''}"

    def __str__(self) -> str:
        return f"layer {self.layer}{', reverse' if self.reverse else ''}"


def directions_of(num_layers: int, bidirectional: bool) -> tuple[Direction, ...]:
    """All of a stack's, in the order of its parameters and states."""
    return tuple(Direction(layer, reverse) for layer in range(num_layers) for reverse in ((False, True) if bidirectional else (False,)))


class Tapes(tuple["Tape", ...]):
    """The tapes of a stack, one for each direction of each layer, layer by layer.

    A reverse direction's tape is that of rows which are read backwards: its step 0 is a row's last.

    Attributes
    ----------
    kept : tuple of (bool ndarray (T, B, W) or None)
        What dropout let through of each layer's outputs on their way up, but for the last's; None where all was.
    scale : float
        What it was multiplied by.
    """

    kept: tuple[Bools | None, ...]
    scale: float

    def __new__(cls, tapes: Sequence[Tape], kept: Sequence[Bools | None], scale: float) -> Tapes:
        self = super().__new__(cls, tapes)
        self.kept, self.scale = tuple(kept), scale
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.kept, self.scale

    @property
    def shape(self) -> tuple[int, int, int]:
        """T, B, H."""
        return self[0].shape

    def backwards(self) -> Backwards:
        """How the reverse directions have read."""
        T, B, _ = self.shape
        return Backwards(T, B, self[0].lengths, None)

    def last(self, steps: int) -> Tapes:
        """The tapes of the last ``steps`` steps alone; the same ones if they have no more. Of forward directions only."""
        T = self.shape[0]
        if steps >= T:
            return self
        kept = [None if part is None else part[T - steps :] for part in self.kept]
        return Tapes([tape.last(steps) for tape in self], kept, self.scale)


class StackGradients(NamedTuple):
    """What a backward pass through a stack returns.

    Attributes
    ----------
    x : ndarray (T, B, I) or None
    state : ndarray (K, B, H), or of an LSTM two of them
        The gradient of the initial states; K is the number of directions of all layers.
    directions : tuple of Gradients
        Those of each direction's parameters and state.
    d_outs : tuple of (ndarray (T, B, H) or None)
        The gradients at each direction's outputs, in the order of time of its tape: `gradient_flow` takes both.
    """

    x: Array | None
    state: Any
    directions: tuple[Gradients, ...]
    d_outs: tuple[Array | None, ...]


def forward(
    directions: Sequence[Direction],
    begin: Callable[..., Pass],
    x: Array,
    states: Sequence[Any],
    parameters: Sequence[Array],
    drop: Callable[[Array], tuple[Array, Bools]] | None,
    lengths: Integers | None,
    resets: Bools | None,
    keep: bool,
    budgets: Sequence[int | None],
) -> tuple[Array, list[Any], list[Any], list[Bools | None]]:
    """Run all directions of a stack.

    Parameters
    ----------
    directions : sequence of Direction
    begin : callable
        A direction's forward pass, called as ``begin(x, state, weights, lengths, resets, kept)``, and of two directions with ``backwards``
        and ``into``; `functional.begin_forward` says what it is.
    x : ndarray
        Time first.
    states : sequence
        Each direction's initial state.
    parameters : sequence of ndarray
        All directions', in their order.
    drop : callable or None
        What becomes of one layer's outputs on their way to the next, and what was let through; None if they stay as they are.
    lengths, resets
        As for `rnn_forward`.
    keep : bool
        Whether a backward pass will follow.
    budgets : sequence of (int or None)
        Each direction's memory budget.

    Returns
    -------
    out, last states, tapes (none unless ``keep``), what dropout let through
    """
    n, sides = len(parameters) // len(directions), sides_of(directions)
    T, B = x.shape[:2]
    if lengths is not None:  # a copy, lest one direction read what another thread has written meanwhile
        lengths = checked_lengths(lengths, T, (B,))
    if resets is not None:
        resets = checked_resets(resets, T, B)
    backwards = Backwards(T, B, lengths, resets) if sides == 2 else None
    two = pays_side_by_side(T, B, parameters[1])

    def of_direction(into: Array | None, k: int, x: Array, _: Any = None) -> Pass:
        given = x, states[k], parameters[k * n : (k + 1) * n], lengths
        if into is None:
            return begin(*given, resets, (budgets[k], keep, False))
        W, reverse = into.shape[2] // 2, directions[k].reverse
        own, way = (backwards.resets, backwards) if reverse and backwards is not None else (resets, None)
        return begin(*given, own, (budgets[k], keep, False), backwards=way, into=into[..., W:] if reverse else into[..., :W])

    lasts: list[Any] = []
    tapes: list[Any] = []
    kept: list[Bools | None] = []
    for group in groups(len(directions), sides, two and drop is None):
        if group[0] and drop is not None:
            x, left = drop(x)
            kept.append(left)
        into = None if backwards is None else room_for_both(backwards, parameters[group[0] * n + 1])
        done = run(group, sides, two, partial(of_direction, into), x)
        x = done[-1][0] if into is None else into
        lasts += [last for _, last, _ in done]
        if keep:
            tapes += [tape for _, _, tape in done]
    return x, lasts, tapes, kept or [None] * (len(directions) // sides - 1)


def backward(
    directions: Sequence[Direction],
    begin: Callable[..., Pass],
    tapes: Tapes,
    d_out: Array | None,
    d_states: Sequence[Any],
    need_dx: bool,
    d_outs: list[Array | None] | None = None,
    **options: Any,
) -> tuple[Array | None, list[Gradients]]:
    """Go back through all directions of a stack.

    Parameters
    ----------
    directions : sequence of Direction
    begin : callable
        A direction's backward pass, called as ``begin(tape, d_out, d_state, need_dx, ...)``, and of two directions with ``backwards`` and
        ``onto``; `functional.begin_backward` says what it is.
    tapes : Tapes
    d_out : ndarray or None
        At the outputs of the last layer, time first.
    d_states : sequence
        The gradient of each direction's last state.
    need_dx : bool
    d_outs : list or None
        Is filled with the gradients at each direction's outputs, if it is given.
    **options
        Others of `begin`.

    Returns
    -------
    dx, each direction's gradients but for its input's
    """
    found: list[Any] = [None] * len(directions)
    at_outputs: list[Array | None] = [None] * len(directions)
    sides = sides_of(directions)
    (T, B, _), backwards = tapes.shape, tapes.backwards() if sides == 2 else None
    two = pays_side_by_side(T, B, tapes[0].w_hh)

    def of_direction(k: int, d_out: Array | None, ahead: Gradients | None = None) -> Pass:
        reverse, way = directions[k].reverse, options
        if backwards is not None:
            if d_out is not None:
                W = d_out.shape[2] // 2
                d_out = d_out[..., W:] if reverse else d_out[..., :W]
            way = options | {"backwards": backwards if reverse else None, "onto": None if ahead is None else ahead.x}
        if d_outs is not None:
            at_outputs[k] = d_out if d_out is None or backwards is None or not reverse else backwards(d_out)
        return begin(tapes[k], d_out, d_states[k], need_dx or k >= sides, **way)

    for group in reversed(groups(len(directions), sides, two and not any(part is not None for part in tapes.kept))):
        order = group if sides == 2 else group[::-1]
        done = run(order, sides, two, of_direction, d_out)
        d_out = done[-1].x if sides == 1 else done[0].x
        if sides == 2 and d_out is not None and done[1].x is not d_out:
            kernels[d_out.dtype].move_rows(done[1].x, d_out, True)
        for k, grads in zip(order, done):
            found[k] = type(grads)(None, *grads[1:])
        left = tapes.kept[group[0] // sides - 1] if group[0] else None
        if left is not None and d_out is not None:
            d_out *= left
            d_out *= tapes.scale
    if d_outs is not None:
        d_outs[:] = at_outputs
    return d_out, found


def pays_side_by_side(T: int, B: int, w_hh: Array) -> bool:
    """Whether two directions or layers of these sizes are better taken side by side than by all threads in turn."""
    few = B < FEW_ROWS and w_hh.nbytes <= MANY_WEIGHTS
    return few and T * B * w_hh.size >= LEAST_WORK and 1 < pool.threads_here() < MANY_THREADS


@lru_cache(maxsize=64)
def groups(directions: int, sides: int, layers_too: bool) -> tuple[range, ...]:
    """Which directions are taken together: a layer's, or, where each layer has one, those of two layers if they may be side by side."""
    each = 2 if layers_too else sides
    return tuple(range(first, min(directions, first + each)) for first in range(0, directions, each))


def run(group: Sequence[int], sides: int, two: bool, of_direction: Callable[..., Pass], given: Any) -> Sequence[Any]:
    """What the passes of a group return. The second of two directions is given what the first has returned, unless they are side by side."""
    if len(group) == 1:
        return [alone(*of_direction(group[0], given))]
    first = of_direction(group[0], given)
    if sides == 1:
        return one_behind(first, partial(of_direction, group[1]))
    if two:
        return both(first, partial(of_direction, group[1], given))
    ahead = alone(*first)
    return [ahead, alone(*of_direction(group[1], given, ahead))]


def sides_of(directions: Sequence[Direction]) -> int:
    """How many directions each layer has."""
    return 2 if directions[-1].reverse else 1


def dropped(x: Array, probability: float, rng: np.random.Generator) -> tuple[Array, Bools]:
    """Each number 0 with this probability, the others as much larger as keeps the mean; and which are left."""
    kept = rng.random(x.shape, np.float32) >= probability
    with _checks.Room("x", x.size):
        out = memory.empty(x.shape, x.dtype)
    np.multiply(x, kept, out=out)
    out *= scale_of(probability)
    return out, kept


def scale_of(probability: float) -> float:
    return 1 / (1 - probability)


def room_for_both(backwards: Backwards, w_hh: Array) -> Array:
    """For the outputs of a layer's directions, side by side."""
    W = w_hh.shape[1]
    with _checks.Room("x", backwards.T * backwards.B * 2 * W):
        return backwards.room(2 * W, w_hh.dtype)
