"""Stacks: layers one above the other, each of one direction or two.

A direction of a layer has parameters, states and a tape of its own, and runs like a layer alone. What is between them is here: whose outputs
are whose inputs, what dropout lets through, and the way of a reverse direction, which reads each row from its own last step to its first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _checks
from ._kernels import memory, pool
from ._typing import Array, Bools, Integers
from .ragged import Backwards
from .side_by_side import both

if TYPE_CHECKING:
    from .results import Gradients
    from .tape import Tape

MOST_LAYERS = 1 << 16
# When two directions run side by side. With more rows, or threads, each does better to have them all; the work, in multiply-adds, is between
# what a thread is woken for and what Ctrl-C may wait for.
FEW_ROWS, MANY_THREADS, LEAST_WORK, MOST_WORK = 8, 4, 8e6, 1e9


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


Run = Callable[..., tuple[Array, Any, Any]]


def forward(
    directions: Sequence[Direction],
    run: Run,
    x: Array,
    states: Sequence[Any],
    parameters: Sequence[Array],
    drop: Callable[[Array], tuple[Array, Bools | None]],
    lengths: Integers | None,
    resets: Bools | None,
    keep: bool,
    budgets: Sequence[int | None],
) -> tuple[Array, list[Any], list[Any], list[Bools | None]]:
    """Run all directions of a stack.

    Parameters
    ----------
    directions : sequence of Direction
    run : callable
        A direction's forward pass, called as ``run(x, state, *weights, lengths=, resets=, tape=, memory_budget=)``.
    x : ndarray
        Time first.
    states : sequence
        Each direction's initial state.
    parameters : sequence of ndarray
        All directions', in their order.
    drop : callable
        What becomes of one layer's outputs on their way to the next, and what was let through.
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
    backwards = Backwards(T, B, lengths, resets) if sides == 2 else None

    def of_direction(k: int, x: Array) -> tuple[Array, Any, Any]:
        weights, kept = parameters[k * n : (k + 1) * n], {"tape": keep, "memory_budget": budgets[k]}
        if backwards is None or not directions[k].reverse:
            return run(x, states[k], *weights, lengths=lengths, resets=resets, **kept)
        out, last, tape = run(backwards(x), states[k], *weights, lengths=lengths, resets=backwards.resets, **kept)
        return backwards(out), last, tape

    lasts: list[Any] = []
    tapes: list[Any] = []
    kept: list[Bools | None] = []
    for first in range(0, len(directions), sides):
        if first:
            x, left = drop(x)
            kept.append(left)
        done = each([partial(of_direction, k, x) for k in range(first, first + sides)], B, T * B * parameters[first * n + 1].size)
        x = together([out for out, _, _ in done])
        lasts += [last for _, last, _ in done]
        if keep:
            tapes += [tape for _, _, tape in done]
    return x, lasts, tapes, kept


def backward(
    directions: Sequence[Direction],
    run_back: Callable[..., Gradients],
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
    run_back : callable
        A direction's backward pass.
    tapes : Tapes
    d_out : ndarray or None
        At the outputs of the last layer, time first.
    d_states : sequence
        The gradient of each direction's last state.
    need_dx : bool
    d_outs : list or None
        Is filled with the gradients at each direction's outputs, if it is given.
    **options
        Others of `run_back`.

    Returns
    -------
    dx, each direction's gradients but for its input's
    """
    found: list[Any] = [None] * len(directions)
    at_outputs: list[Array | None] = [None] * len(directions)
    sides = sides_of(directions)
    (T, B, _), backwards = tapes.shape, tapes.backwards() if sides == 2 else None

    def of_direction(k: int, d_out: Array | None) -> Gradients:
        if d_out is not None and backwards is not None:
            W = d_out.shape[2] // 2
            d_out = backwards(d_out[..., W:]) if directions[k].reverse else d_out[..., :W]
        at_outputs[k] = d_out
        return run_back(tapes[k], d_out, d_states[k], need_dx=need_dx or k >= sides, **options)

    for first in reversed(range(0, len(directions), sides)):
        group = range(first, first + sides)
        done = each([partial(of_direction, k, d_out) for k in group], B, T * B * tapes[first].w_hh.size)
        d_out = done[0].x
        if sides == 2 and backwards is not None and d_out is not None:
            np.add(d_out, backwards(done[1].x), out=d_out)
        for k, grads in zip(group, done):
            found[k] = grads._replace(x=None)
            if d_outs is None:
                at_outputs[k] = None
        left = tapes.kept[first // sides - 1] if first else None
        if left is not None and d_out is not None:
            d_out *= left
            d_out *= tapes.scale
    if d_outs is not None:
        d_outs[:] = at_outputs
    return d_out, found


def each(calls: Sequence[Callable[[], Any]], B: int, work: float) -> Sequence[Any]:
    """The results of a layer's directions, of so many rows and multiply-adds; side by side if neither is worth sharing among threads."""
    if len(calls) == 2 and B < FEW_ROWS and LEAST_WORK <= work <= MOST_WORK and 1 < pool.get_num_threads() < MANY_THREADS:
        return both(*calls)
    return [call() for call in calls]


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


def together(outs: Sequence[Array]) -> Array:
    """The outputs of a layer's directions as one array."""
    if len(outs) == 1:
        return outs[0]
    W = outs[0].shape[2]
    with _checks.Room("x", 2 * outs[0].size):
        both = memory.empty((*outs[0].shape[:2], 2 * W), outs[0].dtype)
    for side, out in enumerate(outs):
        both[..., side * W : (side + 1) * W] = out
    return both
