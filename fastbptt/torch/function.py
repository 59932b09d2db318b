"""One layer, in one or both directions, as autograd sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from .._kernels import borrowed, memory, pool
from .._typing import Array
from . import gate, passes
from .layout import Packed, Rectangle

if TYPE_CHECKING:
    from .._kernels.borrowed import Borrowed
    from .recording import Recording

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"

with torch.inference_mode(False):
    NO_MEMORY = torch.empty(0, device="cpu")  # whatever mode or device is the default when this is imported
NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
VF_NAMES = {"tanh": "rnn_tanh", "relu": "rnn_relu"}  # in torch._VF, of a vanilla RNN


@dataclass(slots=True)
class Call:
    """What a layer's forward and backward pass have in common."""

    cell: str
    nonlinearity: str
    widths: tuple[int, ...]  # of the states: of h, or of h and c
    directions: int
    per_direction: int  # weights: 2, with biases 2 more, with a projection 1 more
    bias: bool
    layout: Rectangle | Packed
    batch_sizes: torch.Tensor | None  # of a PackedSequence
    clip: tuple[int, float]
    fallbacks: Counter[str]
    recording: Recording | None
    layer: int

    @property
    def states(self) -> int:
        return len(self.widths)

    @property
    def parts(self) -> passes.Parts:
        return passes.parts_of(self.cell, self.layout.rows, self.layout.slots, self.widths[0], self.widths[-1])


def borrow(tensor: torch.Tensor, shape: Sequence[int] | None = None) -> Borrowed:
    """The tensor's numbers, contiguous and aligned, as the kernels take an array; copied only if they are not."""
    if not tensor.is_contiguous() or tensor.data_ptr() % tensor.itemsize:
        tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return borrowed.Borrowed(tensor, tensor.data_ptr(), tensor.shape if shape is None else shape, tensor.itemsize)


def array(tensor: torch.Tensor) -> Array:
    """`borrow`, for NumPy."""
    return np.asarray(borrow(tensor))


def forward(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[Array]]:
    """The layer's output and last states, and the memory of each direction's tape. Of one direction, the output is a view of the tape's h."""
    memories = run(call, x, states, weights)
    directions, layout = [call.parts.cut(numbers) for numbers in memories], call.layout
    outs = [layout.after(tape.h) for tape in directions]
    if call.directions == 1:
        out = outs[0]
        last = [np.array(layout.ends(history)).reshape(1, layout.B, -1) for history in directions[0][: call.states]]
    else:
        P = outs[0].shape[-1]
        out = memory.empty((*layout.rows, 2 * P), outs[0].dtype)
        out[..., :P], out[..., P:] = outs[0], layout.turned(outs[1])
        last = [np.stack([layout.ends(history) for history in both]) for both in zip(*(d[: call.states] for d in directions))]
    if call.batch_sizes is not None:
        out = out.reshape(-1, out.shape[-1])
    return [torch.from_numpy(each) for each in (out, *last)], memories


def run(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> list[Array]:
    """Each direction's forward pass: what `Call.parts` cuts."""
    values = rows_of(call, x)
    initial = [None if state is None else array(state) for state in states]
    arrays = [borrow(weight) for weight in weights]
    parts, dtype, memories = call.parts, NUMPY_DTYPES[x.dtype], []
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for d in range(call.directions):
            along = np.ascontiguousarray(call.layout.turned(np.asarray(values))) if d else values
            own = [None if state is None else state[d] for state in initial]
            mine = passes.by_name(arrays[d * call.per_direction : (d + 1) * call.per_direction], call.bias)
            memories.append(memory.empty((parts.size,), dtype))
            passes.forward(call.cell, call.nonlinearity, call.layout, along, own, mine, parts.cut(memories[d]))
    finally:
        pool.cap_threads(0)
    return memories


def rows_of(call: Call, tensor: torch.Tensor) -> Borrowed:
    """As the kernels take what is (T, B, W), or (R, W) of a PackedSequence."""
    return borrow(tensor, None if call.batch_sizes is None else (*call.layout.rows, tensor.shape[-1]))


class Layer(torch.autograd.Function):
    """`forward`, recorded. The classic form of a Function: with ``setup_context`` a call takes some 30 us longer."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        states, weights = rest[: call.states], rest[call.states :]
        results, memories = forward(call, x, states, weights)
        ctx.set_materialize_grads(False)
        ctx.call = call
        # Saved is what PyTorch's own path would save, so that a change in place is refused where it is there, and nowhere else.
        ctx.weights, ctx.versions = weights, [weight._version for weight in weights]
        needs_dx, needs_d_state = ctx.needs_input_grad[1], any(ctx.needs_input_grad[2 : 2 + call.states])
        needed = passes.Weights(needs_dx, needs_d_state or call.layout.T > 1, False, False, True)
        kept = []
        for d in range(call.directions):
            mine = passes.by_name(weights[d * call.per_direction : (d + 1) * call.per_direction], call.bias)
            kept += [weight if need else None for weight, need in zip(mine, needed)]
        ctx.save_for_backward(x, *states, *kept, *map(torch.from_numpy, memories))
        ctx.out_version = None
        if call.directions == 1:
            # The output is the tape's h, yet may be changed in place. This tensor has no memory, but the output's count of changes.
            ctx.changes = results[0].detach()
            ctx.changes.data = NO_MEMORY
            ctx.out_version = ctx.changes._version
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *d_results: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call: Call = ctx.call
        x, *saved = ctx.saved_tensors
        states, saved = saved[: call.states], saved[call.states :]
        weights, saved = saved[: 5 * call.directions], saved[5 * call.directions :]
        reason = "create_graph" if torch.is_grad_enabled() else gate.mode()
        if reason is None and not all(d is None or gate.plain(d, x.dtype) for d in d_results):
            reason = "a gradient that is no plain tensor"
        if reason is not None:
            call.fallbacks[reason] += 1
            return through_torch(ctx, x, states, d_results)
        if ctx.out_version is not None and ctx.changes._version != ctx.out_version:
            memories = run(call, x, states, current(ctx))
        else:
            memories = [array(tape) for tape in saved]
        return backward(ctx, x, weights, [call.parts.cut(numbers) for numbers in memories], d_results)


def backward(
    ctx: Any, x: torch.Tensor, weights: Tensors, directions: list[passes.Direction], d_results: Tensors
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of what `Layer.forward` took, None where they are not needed; ``weights`` are five of each direction, None if not kept."""
    call: Call = ctx.call
    needed = ctx.needs_input_grad
    layout, values, P, dtype = call.layout, rows_of(call, x), call.widths[0], NUMPY_DTYPES[x.dtype]
    d_out, *d_last = d_results
    d_rows = None if d_out is None else rows_of(call, d_out)
    d_ends = [None if d is None else array(d) for d in d_last]
    dx: Any = None
    d_states, d_weights = [], []
    try:
        pool.cap_threads(torch.get_num_threads())  # in here, lest Ctrl-C comes between
        for d, tape in enumerate(directions):
            kept = passes.Weights(*(None if weight is None else borrow(weight) for weight in weights[5 * d : 5 * d + 5]))
            along: Any = values
            d_along: Any = d_rows
            if call.directions == 2 and d_rows is not None:
                d_along = np.asarray(d_rows)[..., d * P : (d + 1) * P]
            if d:
                along = np.ascontiguousarray(layout.turned(np.asarray(values)))
                d_along = None if d_along is None else layout.turned(d_along)
            if call.directions == 2 and d_along is not None:
                d_along = np.ascontiguousarray(d_along)
            d_state = [
                np.zeros((layout.B, width), dtype) if end is None else np.array(end[d], order="C")
                for end, width in zip(d_ends, call.widths)
            ]
            if call.recording is not None:
                mine = [array(weight) for weight in current(ctx)[d * call.per_direction : (d + 1) * call.per_direction]]
                seen = None if d_along is None else np.asarray(d_along)
                call.recording.add(call, d, np.asarray(along), passes.by_name(mine, call.bias), tape, seen, d_state)
            d_in, grads = passes.backward(
                call.cell,
                call.nonlinearity,
                layout,
                along,
                kept,
                call.bias,
                tape,
                d_along,
                d_state,
                call.clip,
                needed[1],
            )
            d_weights += grads
            d_states.append(d_state)
            if d and d_in is not None:
                dx += layout.turned(d_in)
            elif d_in is not None:
                dx = d_in
    finally:
        pool.cap_threads(0)
    if dx is not None and call.batch_sizes is not None:
        dx = dx.reshape(x.shape)
    of_states: list[Any] = [None] * call.states
    if any(needed[2 : 2 + call.states]):
        of_states = [np.stack(both) if len(both) == 2 else both[0].reshape(1, layout.B, -1) for both in zip(*d_states)]
    grads = [dx, *of_states, *d_weights]
    return (None, *(torch.from_numpy(grad) if grad is not None and need else None for grad, need in zip(grads, needed[1:])))


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
        results = native(call, names[0], names[1 : 1 + call.states], names[1 + call.states :])
        pairs = [(result, d) for result, d in zip(results, d_results) if d is not None]
        wanted = [name for name, need in zip(names, needed) if need]
        outputs, d_outputs = zip(*pairs)
        grads = iter(torch.autograd.grad(outputs, wanted, d_outputs, create_graph=create_graph, allow_unused=True))
    return (None, *(next(grads) if need else None for need in needed))


def native(call: Call, x: torch.Tensor, states: Tensors, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The layer's output and last states by PyTorch's own path."""
    widths = weights[1].shape[1], len(weights[0]) // 4  # the second of c
    states = [x.new_zeros(call.directions, call.layout.B, width) if state is None else state for state, width in zip(states, widths)]
    hx = states[0] if call.states == 1 else tuple(states)
    function = getattr(torch._VF, VF_NAMES[call.nonlinearity] if call.cell == "rnn" else call.cell)
    both = call.directions == 2
    if call.batch_sizes is None:
        return function(x, hx, weights, call.bias, 1, 0.0, False, both, False)
    return function(x, call.batch_sizes, hx, weights, call.bias, 1, 0.0, False, both)
