"""One layer, in one or both directions, as autograd sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import from_numpy

from .. import segments
from .._kernels import memory, pool
from .._kernels.borrowed import borrow, borrow_all
from .._typing import Array
from ..tape import Tape
from . import gate, passes
from .layout import Packed, Rectangle

if TYPE_CHECKING:
    from .._kernels.borrowed import Borrowed
    from .modules import Plan
    from .recording import Recording

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"

with torch.inference_mode(False):
    NO_MEMORY = torch.empty(0, device="cpu")  # whatever mode or device is the default when this is imported
NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
VF_NAMES = {"tanh": "rnn_tanh", "relu": "rnn_relu"}  # in torch._VF, of a vanilla RNN


@dataclass(slots=True)
class Call:
    """What a layer's forward and backward pass have in common."""

    plan: Plan
    layout: Rectangle | Packed
    batch_sizes: torch.Tensor | None  # of a PackedSequence
    clip: tuple[int, float]
    fallbacks: Counter[str]
    recording: Recording | None
    layer: int

    @property
    def parts(self) -> passes.Parts:
        plan, layout = self.plan, self.layout
        return passes.parts_of(plan.cell, layout.rows, layout.slots, plan.widths[0], plan.widths[-1])


def array(tensor: torch.Tensor) -> Array:
    """The tensor's numbers for NumPy, contiguous and aligned; copied only if they are not."""
    return np.asarray(borrow(tensor))


def forward(
    call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor], keep: bool
) -> tuple[list[torch.Tensor], list[Array]]:
    """The layer's output and last states; if there will be a backward pass, ``keep``, the memory of each direction's tape.

    Of one direction, the output is a view of the tape's h.
    """
    layout, states_of = call.layout, len(call.plan.widths)
    # A small tape can just as well be kept for the time of the call, and one of rows that differ in length is.
    if keep or call.batch_sizes is not None or call.parts.size * x.itemsize <= segments.GATES:
        memories, directions = run(call, x, states, weights)
        outs = [layout.after(tape.h) for tape in directions]
        ends = [[layout.ends(history) for history in tape[:states_of]] for tape in directions]
    else:
        memories, (outs, ends) = [], without_tape(call, x, states, weights)
    out, last = outs[0], ends[0]
    if len(outs) == 2:
        P = out.shape[-1]
        out = memory.empty((*layout.rows, 2 * P), out.dtype)
        out[..., :P], out[..., P:] = outs[0], layout.turned(outs[1])
        last = [np.concatenate(both) for both in zip(*ends)]
    if call.batch_sizes is not None:
        out = out.reshape(-1, out.shape[-1])
    return [from_numpy(out), *[from_numpy(each) for each in last]], memories


def run(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> tuple[list[Array], list[passes.Direction]]:
    """Each direction's forward pass: the memory of its tape, and that as `Call.parts` cuts it."""
    plan, parts, dtype = call.plan, call.parts, NUMPY_DTYPES[x.dtype]
    memories, directions = [], []
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for along, initial, mine in each_direction(call, x, states, borrow_all(weights)):
            numbers = memory.empty((parts.size,), dtype)
            tape = parts.cut(numbers, dtype)
            passes.forward(plan.cell, plan.nonlinearity, call.layout, along, initial, mine, tape)
            memories.append(numbers)
            directions.append(tape)
    finally:
        pool.cap_threads(0)
    return memories, directions


def without_tape(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> tuple[list[Array], list[list[Array]]]:
    """Each direction's states after the steps of a rectangle, and the last ones, (1, B, W); memory beyond them does not grow with T."""
    plan, layout = call.plan, call.layout
    outs: list[Any] = []
    ends = []
    try:
        pool.cap_threads(torch.get_num_threads())
        for along, initial, (w_ih, w_hh, b_ih, b_hh, w_hr) in each_direction(call, x, states, [array(weight) for weight in weights]):
            shape = layout.T, layout.B, plan.widths[-1]
            arguments = plan.cell, np.asarray(along), w_ih, w_hh, b_ih, b_hh, None, plan.nonlinearity
            tape: Tape = Tape(*arguments, _shape=shape, _w_hr=w_hr)  # type: ignore[arg-type]
            out, last = segments.forward_without_tape(tape, initial, False)
            outs.append(out)
            ends.append([each[None] for each in last])
    finally:
        pool.cap_threads(0)
    return outs, ends


def each_direction(
    call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[Any]
) -> Iterator[tuple[Borrowed | Array, list[Array | None], passes.Weights]]:
    """What each direction's forward pass starts from: its input, its initial states and its weights."""
    values = rows_of(call, x)
    initial = [None if state is None else array(state) for state in states]
    for d in range(call.plan.directions):
        along = np.ascontiguousarray(call.layout.turned(np.asarray(values))) if d else values
        yield along, [None if state is None else state[d] for state in initial], call.plan.of_direction(weights, d)


def rows_of(call: Call, tensor: torch.Tensor) -> Borrowed:
    """As the kernels take what is (T, B, W), or (R, W) of a PackedSequence."""
    return borrow(tensor, None if call.batch_sizes is None else (*call.layout.rows, tensor.shape[-1]))


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
        need_w_ih, need_w_hh = needed[1], call.layout.T > 1 or True in needed[2 : 2 + states_end]
        kept: list[Any] = []
        for first in range(0, len(weights), plan.per_direction):
            kept.append(weights[first] if need_w_ih else None)
            kept.append(weights[first + 1] if need_w_hh else None)
            kept.append(weights[first + plan.per_direction - 1] if plan.projection else None)
        ctx.save_for_backward(x, *states, *kept, *[from_numpy(numbers) for numbers in memories])
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
        x, *saved = ctx.saved_tensors
        states_end = len(call.plan.widths)
        kept_end = states_end + 3 * call.plan.directions
        states = saved[:states_end]
        reason = "create_graph" if torch.is_grad_enabled() else gate.mode()
        if reason is None:
            for d in d_results:
                if d is not None and not gate.plain(d, x.dtype):
                    reason = "a gradient that is no plain tensor"
        if reason is not None:
            call.fallbacks[reason] += 1
            return through_torch(ctx, x, states, d_results)
        if ctx.out_version is not None and ctx.changes._version != ctx.out_version:
            _, directions = run(call, x, states, current(ctx))
        else:
            parts, dtype = call.parts, NUMPY_DTYPES[x.dtype]
            directions = [parts.cut(borrow(tape), dtype) for tape in saved[kept_end:]]
        return backward(ctx, x, borrow_all(saved[states_end:kept_end]), directions, d_results)


#: `Layer.apply`, without its search for torch.func's transforms and what they have left: `gate` has found none.
apply = super(torch.autograd.Function, Layer).apply


def backward(
    ctx: Any, x: torch.Tensor, weights: Sequence[Borrowed | None], directions: list[passes.Direction], d_results: Tensors
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of what `Layer.forward` took, None where they are not needed; ``weights`` are w_ih, w_hh and w_hr of each direction, None
    if not kept.
    """
    call: Call = ctx.call
    plan, layout, needed, values, dtype = call.plan, call.layout, ctx.needs_input_grad, rows_of(call, x), NUMPY_DTYPES[x.dtype]
    d_out, *d_last = d_results
    P, both = plan.widths[0], plan.directions == 2
    along: Any = values
    d_along: Any = None if d_out is None else rows_of(call, d_out)
    d_states: list[Array] = []
    for d_end, width in zip(d_last, plan.widths):
        shape = plan.directions, layout.B, width
        d_states.append(np.zeros(shape, dtype) if d_end is None else array(d_end).copy())
    dx: Any = None
    d_weights = []
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for d, tape in enumerate(directions):
            if d:
                along = np.ascontiguousarray(layout.turned(np.asarray(values)))
            if both and d_out is not None:
                part = np.asarray(rows_of(call, d_out))[..., d * P : (d + 1) * P]
                d_along = np.ascontiguousarray(layout.turned(part) if d else part)
            d_state = [d_both[d] for d_both in d_states]
            if call.recording is not None:
                mine = plan.of_direction([array(weight) for weight in current(ctx)], d)
                seen = None if d_along is None else np.asarray(d_along)
                call.recording.add(call, d, np.asarray(along), mine, tape, seen, d_state)
            w_ih, w_hh, w_hr = weights[3 * d : 3 * d + 3]
            d_in, grads = passes.backward(
                plan.cell, plan.nonlinearity, layout, along, w_ih, w_hh, w_hr, plan.bias, tape, d_along, d_state, call.clip, needed[1]
            )
            d_weights += grads
            if d and d_in is not None:
                dx += layout.turned(d_in)
            elif d_in is not None:
                dx = d_in
    finally:
        pool.cap_threads(0)
    if dx is not None and call.batch_sizes is not None:
        dx = dx.reshape(x.shape)
    grads = [dx, *d_states, *d_weights]
    return (None, *[from_numpy(grad) if need else None for grad, need in zip(grads, needed[1:])])


def current(ctx: Any) -> list[torch.Tensor]:
    """The weights, if they are still what the forward pass saw."""
    if any(weight._version != version for weight, version in zip(ctx.weights, ctx.versions)):
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a weight of a recurrent "
            "layer, which this backward pass has to run forward once more"
        )
    return list(ctx.weights)


def through_torch(ctx: Any, x: torch.Tensor, states: Tensors, d_results: Tensors) -> tuple[torch.Tensor | None, ...]:
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


def native(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
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
