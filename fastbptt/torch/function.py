"""One layer, in one or both directions, as autograd sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from .. import segments
from .._checks import contiguous
from .._kernels import kernels, pool
from .._kernels.tensors import Numbers, empty, of_array, zeros
from .._typing import Array
from ..tape import Tape
from . import gate, passes
from .gate import tensors
from .layout import Packed, Rectangle

if TYPE_CHECKING:
    from .modules import Plan
    from .recording import Recording

Given: TypeAlias = "Sequence[torch.Tensor | None]"

with torch.inference_mode(False):
    NO_MEMORY = torch.empty(0, device="cpu")  # whatever mode or device is the default when this is imported
VF_NAMES = {"tanh": "rnn_tanh", "relu": "rnn_relu"}  # in torch._VF, of a vanilla RNN


@dataclass(slots=True)
class Call:
    """What a layer's forward and backward pass have in common."""

    plan: Plan
    layout: Rectangle | Packed
    dtype: np.dtype[Any]
    parts: passes.Parts  # of each direction's tape
    shapes: Sequence[tuple[int, ...]]  # of the weights
    state_shapes: Sequence[tuple[int, ...]]
    batch_sizes: torch.Tensor | None  # of a PackedSequence
    clip: tuple[int, float]
    fallbacks: Counter[str]
    recording: Recording | None
    layer: int


def forward(
    call: Call, x: torch.Tensor, states: Given, weights: Sequence[torch.Tensor], keep: bool
) -> tuple[list[torch.Tensor], list[Numbers]]:
    """The layer's output and last states; if there will be a backward pass, ``keep``, the memory of each direction's tape.

    Of one direction, the output is a view of the tape's h.
    """
    layout, states_of = call.layout, len(call.plan.widths)
    # A small tape can just as well be kept for the time of the call, and one of rows that differ in length is.
    if keep or call.batch_sizes is not None or call.parts.size * x.itemsize <= segments.GATES:
        memories, directions, out = run(call, x, states, weights)
        if out is None:
            out = layout.after(directions[0].h)
        ends = [[layout.ends(history) for history in tape[:states_of]] for tape in directions]
    else:
        memories, (out, ends) = [], without_tape(call, x, states, weights)
    last = ends[0] if len(ends) == 1 else [of_array(np.concatenate(both)) for both in zip(*ends)]
    if call.batch_sizes is not None:
        out = out.part(0, (len(x), out.shape[-1]))
    return [tensors.lend(out), *map(tensors.lend, last)], memories


def run(
    call: Call, x: torch.Tensor, states: Given, weights: Sequence[torch.Tensor]
) -> tuple[list[Numbers], list[passes.Direction], Numbers | None]:
    """Each direction's forward pass: the memory of its tape, and that cut into parts; and of two, the outputs of both."""
    plan, layout, parts, dtype, values = call.plan, call.layout, call.parts, call.dtype, rows_of(call, x, call.shapes[0][1])
    memories, directions = [], []
    both, halves = room_for_both(call)
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for (initial, mine), half, reverse in zip(each_direction(call, states, weights), halves, (False, True)):
            numbers = empty((parts.size,), dtype.itemsize)
            tape = parts.cut(numbers)
            along, given = (empty(values.shape, dtype.itemsize), values) if reverse else (values, None)
            passes.forward(plan, layout, along, initial, mine, tape, dtype, given, half, reverse)
            memories.append(numbers)
            directions.append(tape)
    finally:
        pool.cap_threads(0)
    return memories, directions, both


def without_tape(call: Call, x: torch.Tensor, states: Given, weights: Sequence[torch.Tensor]) -> tuple[Numbers, list[list[Numbers]]]:
    """The outputs of a rectangle, and each direction's last states, (1, B, W); memory beyond them does not grow with T."""
    plan, layout, dtype, values = call.plan, call.layout, call.dtype, rows_of(call, x, call.shapes[0][1])
    ends = []
    both, halves = room_for_both(call)
    out: Any = None
    try:
        pool.cap_threads(torch.get_num_threads())
        for (initial, mine), half, reverse in zip(each_direction(call, states, weights), halves, (False, True)):
            along = turned(call, values) if reverse else values
            shape, (w_ih, w_hh, b_ih, b_hh, w_hr) = (layout.T, layout.B, plan.widths[-1]), as_arrays(mine)
            arguments = plan.cell, np.asarray(along), w_ih, w_hh, b_ih, b_hh, None, plan.nonlinearity
            tape: Tape = Tape(*arguments, _shape=shape, _w_hr=w_hr)  # type: ignore[arg-type]
            out, last = segments.forward_without_tape(tape, as_arrays(initial), False)
            if half is not None:
                kernels[dtype].move_rows(layout.turned(out) if reverse else out, half)
            ends.append([of_array(each[None]) for each in last])
    finally:
        pool.cap_threads(0)
    return both or of_array(out), ends


def room_for_both(call: Call) -> tuple[Numbers | None, Sequence[Array | None]]:
    """For the outputs of two directions, and each one's half of it; of one direction, None."""
    if call.plan.directions == 1:
        return None, (None,)
    both = empty((*call.layout.rows, 2 * call.plan.widths[0]), call.dtype.itemsize)
    return both, np.split(np.asarray(both), 2, axis=-1)


def each_direction(
    call: Call, states: Given, weights: Sequence[torch.Tensor]
) -> Iterator[tuple[list[Numbers | None], list[Numbers | None]]]:
    """What each direction's forward pass starts from: its initial states and its weights."""
    initial = tensors.borrow_all(states, call.state_shapes)
    for d in range(call.plan.directions):
        mine = tensors.borrow_some(weights, call.shapes, call.plan.orders[d])
        yield [None if state is None else state[d] for state in initial], mine


def rows_of(call: Call, tensor: torch.Tensor, width: int) -> Numbers:
    """As the kernels take what is (T, B, W), or (R, W) of a PackedSequence."""
    return tensors.borrow(tensor, (*call.layout.rows, width))


def turned(call: Call, values: Numbers) -> Numbers:
    """Each row from its end to its start."""
    return of_array(contiguous("input", call.layout.turned(np.asarray(values))))


def as_arrays(numbers: Sequence[Numbers | None]) -> list[Array | None]:
    return [None if each is None else np.asarray(each) for each in numbers]


class Layer(torch.autograd.Function):
    """`forward`, recorded. The classic form of a Function: with ``setup_context`` a call takes some 30 us longer."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        plan, needed = call.plan, ctx.needs_input_grad
        states_end = len(plan.widths)
        states, weights = rest[:states_end], rest[states_end:]
        results, memories = forward(call, x, states, weights, True)
        ctx.set_materialize_grads(False)
        ctx.call = call
        # Saved is what PyTorch's own path would save, so that a change in place is refused where it is there, and nowhere else.
        ctx.weights, ctx.versions = weights, [weight._version for weight in weights]
        need = needed[1], call.layout.T > 1 or True in needed[2 : 2 + states_end], True  # w_ih, w_hh and w_hr
        kept = [weights[i] if need[n % (2 + plan.projection)] else None for n, i in enumerate(plan.matrices)]
        ctx.save_for_backward(x, *states, *kept, *map(tensors.lend, memories))
        ctx.out_version = None
        if len(memories) == 1:
            # The output is the tape's h, yet may be changed in place. This tensor has no memory, but the output's count of changes.
            ctx.changes = results[0].detach()
            ctx.changes.data = NO_MEMORY
            ctx.out_version = ctx.changes._version
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *d_results: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call: Call = ctx.call
        x, *saved = tensors.resolved(ctx.saved_tensors)
        states_end, kept_end = len(call.plan.widths), len(call.plan.widths) + len(call.plan.matrices)
        states, kept, tapes = saved[:states_end], saved[states_end:kept_end], saved[kept_end:]
        reason = "create_graph" if torch.is_grad_enabled() else gate.mode()
        if reason is None:
            for d in d_results:
                if d is not None and not tensors.plain(d, call.dtype.itemsize):
                    reason = "a gradient that is no plain tensor"
        if reason is not None:
            call.fallbacks[reason] += 1
            return through_torch(ctx, x, states, d_results)
        if ctx.out_version is not None and ctx.changes._version != ctx.out_version:
            _, directions, _ = run(call, x, states, current(ctx))
        else:
            directions = [call.parts.cut(tensors.borrow(tape, (call.parts.size,))) for tape in tapes]
        matrices = tensors.borrow_all(kept, [call.shapes[i] for i in call.plan.matrices])
        return backward(ctx, x, matrices, directions, d_results)


#: `Layer.apply`, without its search for torch.func's transforms and what they have left: `gate` has found none.
apply = super(torch.autograd.Function, Layer).apply


def backward(
    ctx: Any, x: torch.Tensor, weights: Sequence[Numbers | None], directions: list[passes.Direction], d_results: Given
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of what `Layer.forward` took, None where they are not needed; ``weights`` are the matrices, None if not kept."""
    call: Call = ctx.call
    plan, layout, needed, values, dtype = call.plan, call.layout, ctx.needs_input_grad, rows_of(call, x, call.shapes[0][1]), call.dtype
    d_out, *d_last = d_results
    D = plan.directions
    d_along: Any = None if d_out is None else rows_of(call, d_out, D * plan.widths[0])
    d_states = [
        zeros(shape, dtype.itemsize) if d is None else tensors.borrow(d, shape).copy() for d, shape in zip(d_last, call.state_shapes)
    ]
    halves = None if D == 1 or d_along is None else np.split(np.asarray(d_along), 2, axis=-1)
    dx: Any = None
    d_weights: list[Numbers] = []
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for d, tape in enumerate(directions):
            along, d_state = turned(call, values) if d else values, [both[d] for both in d_states]
            if halves is not None:
                d_along = halves[d]
            if call.recording is not None:
                mine = tensors.borrow_some(current(ctx), call.shapes, plan.orders[d])
                seen = None if d_along is None else layout.turned(np.asarray(d_along)) if d else np.asarray(d_along)
                call.recording.add(call, d, np.asarray(along), as_arrays(mine), tape, seen, as_arrays(d_state))
            n = len(weights) // D
            arguments = along, weights[n * d : n * (d + 1)], tape, d_along, d_state, call.clip, needed[1], dtype
            dx, grads = passes.backward(plan, layout, *arguments, dx, d == 1)
            d_weights += grads
    finally:
        pool.cap_threads(0)
    if dx is not None and call.batch_sizes is not None:
        dx = dx.part(0, tuple(x.shape))
    return (None, *[tensors.lend(grad) if need else None for grad, need in zip((dx, *d_states, *d_weights), needed[1:])])


def current(ctx: Any) -> list[torch.Tensor]:
    """The weights, if they are still what the forward pass saw."""
    if any(weight._version != version for weight, version in zip(ctx.weights, ctx.versions)):
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a weight of a recurrent "
            "layer, which this backward pass has to run forward once more"
        )
    return list(ctx.weights)


def through_torch(ctx: Any, x: torch.Tensor, states: Given, d_results: Given) -> tuple[torch.Tensor | None, ...]:
    """The same gradients as PyTorch computes them, which can be differentiated once more."""
    call: Call = ctx.call
    if call.clip[0]:
        raise RuntimeError("clip_step: what it clips is no gradient any more, and has no derivative; set it to None for a second one")
    needed = ctx.needs_input_grad[1:]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each input by another name: x may be what a state was made of, and the derivative wanted is the partial one.
        given = [x, *states, *current(ctx)]
        names = [
            None if tensor is None else tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_(need)
            for tensor, need in zip(given, needed)
        ]
        results = native(call, names[0], names[1 : 1 + len(states)], names[1 + len(states) :])
        pairs = [(result, d) for result, d in zip(results, d_results) if d is not None]
        wanted = [name for name, need in zip(names, needed) if need]
        outputs, d_outputs = zip(*pairs)
        grads = iter(torch.autograd.grad(outputs, wanted, d_outputs, create_graph=create_graph, allow_unused=True))
    return (None, *(next(grads) if need else None for need in needed))


def native(call: Call, x: torch.Tensor, states: Given, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The layer's output and last states by PyTorch's own path."""
    widths = weights[1].shape[1], len(weights[0]) // 4  # the second of c
    plan = call.plan
    states = [x.new_zeros(plan.directions, call.layout.B, width) if state is None else state for state, width in zip(states, widths)]
    hx = states[0] if len(states) == 1 else tuple(states)
    function = getattr(torch._VF, VF_NAMES[plan.nonlinearity] if plan.cell == "rnn" else plan.cell)
    both = plan.directions == 2
    if call.batch_sizes is None:
        return function(x, hx, weights, plan.bias, 1, 0.0, False, both, False)
    return function(x, call.batch_sizes, hx, weights, plan.bias, 1, 0.0, False, both)
