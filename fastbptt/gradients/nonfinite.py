"""Where inf or NaN first appeared, in causal order: in what went in, in a state, or in a gradient on the way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._typing import Array
from ..cells import CELLS
from ..stacks import Direction
from ..tape import Tape
from .state_gradients import state_gradients


def why_not_finite(tape: Tape, d_out: Array | None, d_state: tuple[Array | None, ...], *, as_is: bool) -> str | None:
    """As `first_nonfinite`, of a backward pass; of what went into it alone, where it has changed the gradient on its way (not ``as_is``)
    or the batch is ragged.
    """
    norms = np.zeros(tape.h.shape[:2])
    if tape._pieces is not None and d_out is not None:
        d_out = np.where(tape._pieces.there[..., None], d_out, 0)
    if as_is and not tape.ragged:
        with np.errstate(all="ignore"):
            norms = state_gradients(tape, d_out, d_state).log10_state_norm()
    return first_nonfinite(tape, d_out, d_state, norms) or _first_overflow(tape.h.dtype, norms)


def why_stack_is_not_finite(
    directions: Sequence[Direction],
    tapes: Sequence[Tape],
    d_outs: Sequence[Array | None],
    d_states: Sequence[tuple[Array | None, ...]],
    *,
    as_is: bool,
) -> str | None:
    """As `why_not_finite`, of several layers or directions: forward from the lowest layer up, then back from the highest down."""
    for direction, tape in zip(directions, tapes):
        if (reason := first_nonfinite(tape, None, (), np.zeros((1, 1)))) is not None:
            return _of_direction(direction, reason)
    for direction, *arguments in reversed([*zip(directions, tapes, d_outs, d_states)]):
        if (reason := why_not_finite(*arguments, as_is=as_is)) is not None:
            return _of_direction(direction, reason)
    return None


def _of_direction(direction, reason):
    return f"{direction}{' (steps are counted from the end)' if direction.reverse else ''}: {reason}"


def _first_overflow(dtype, log10_state_norm):
    """The norms are finite far beyond the range of the numbers that the backward pass works with."""
    beyond = np.argwhere(log10_state_norm > np.log10(float(np.finfo(dtype).max)))
    if not len(beyond):
        return None
    t, b = map(int, beyond[-1])
    return f"the gradient of the state before step {t}, of row {b}, is the first on the way back beyond {dtype}: 1e{log10_state_norm[t, b]:.0f}"


def first_nonfinite(tape, d_out, d_state, log10_state_norm):
    """In words, what was not finite first, in a `GradientFlow` with these arguments and norms; None if all is finite."""
    states = {name: getattr(tape, name) for name in reversed(CELLS[tape.cell].states)}  # c_t is computed before h_t
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"):
        if (at := _find(getattr(tape, name))) is not None:
            return f"{name}{at[0]} is {at[1]}"
    for name, state in states.items():
        if (at := _find(state[:1])) is not None:
            return f"the initial state {name}{at[0][1:]} is {at[1]}"
    in_x = _find(tape.x) if tape.x.ndim == 3 else None
    in_states = {name: at for name, state in states.items() if (at := _find(state)) is not None}
    first = min(in_states, key=lambda name: in_states[name][0][0], default=None)
    if in_x is not None and (first is None or in_x[0][0] < in_states[first][0][0]):
        return f"x{in_x[0]} is {in_x[1]}"
    if first is not None:
        at, value = in_states[first]
        return f"{first}{at} is {value}, the state after step {at[0] - 1}, though weights, inputs and earlier states are finite"
    for i, part in enumerate(d_state):
        if (at := _find(part)) is not None:
            return f"d_state{'' if len(d_state) == 1 else f'[{i}]'}{at[0]} is {at[1]}"
    in_gradient = np.flatnonzero((np.isnan(log10_state_norm) | np.isposinf(log10_state_norm)).any(axis=1))
    reached = in_gradient[-1] if in_gradient.size else -1
    from_d_out = _find(d_out, last=True)
    if from_d_out is not None and from_d_out[0][0] + 1 >= reached:
        return f"d_out{from_d_out[0]} is {from_d_out[1]}"
    if in_gradient.size:
        return f"the gradient of the state before step {reached} is the first on the way back that is not finite, though d_out is"
    return None


def _find(array, last=False):
    """Index and value of the first element that is not finite; with ``last``, of the last step that has one."""
    if array is None or np.isfinite(array).all():
        return None
    wrong = np.argwhere(~np.isfinite(array))
    if last:
        wrong = wrong[wrong[:, 0] == wrong[-1, 0]]
    at = [int(i) for i in wrong[0]]
    return at, array[tuple(at)]
