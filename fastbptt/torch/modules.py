"""The recurrent modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from copyreg import _reconstructor  # type: ignore[attr-defined]
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from ..cells import CELLS, NONLINEARITIES
from ..functional import check_clip_step
from . import function, gate, passes
from .layout import Packed, Rectangle, of_batch_sizes

if TYPE_CHECKING:
    from typing import Self

MODES = {"RNN_TANH": ("rnn", "tanh"), "RNN_RELU": ("rnn", "relu"), "GRU": ("gru", "tanh"), "LSTM": ("lstm", "tanh")}
MISFIT = "an argument that does not fit"  # PyTorch has an error to raise, or an answer of its own
NO_STATE = "a state that is no plain tensor of the input's dtype"


class Plan(NamedTuple):
    """What a module's sizes say of its weights."""

    cell: str
    nonlinearity: str
    numbers: tuple[int, int]  # what the kernels call both
    bias: bool
    projection: bool
    directions: int
    per_direction: int  # weights: 2, with biases 2 more, with a projection 1 more
    orders: tuple[tuple[int | None, ...], ...]  # of each direction, which of a layer's weights are w_ih, w_hh, b_ih, b_hh and w_hr, if any
    widths: tuple[int, ...]  # of the states: of h, or of h and c
    matrices: tuple[int, ...]  # of these, w_ih, w_hh and w_hr of all directions
    shapes: tuple[tuple[int, ...], ...]  # of all weights


@lru_cache(maxsize=256)
def plan_of(mode: str, I: int, H: int, P: int, layers: int, bias: bool, bidirectional: bool) -> Plan | None:
    """``P`` is `proj_size`, 0 without a projection."""
    if mode not in MODES or not 0 <= P < H or (P and mode != "LSTM"):
        return None
    cell, nonlinearity = MODES[mode]
    N, directions = len(CELLS[cell].gates) * H, 2 if bidirectional else 1
    widths = (P or H, H)[: len(CELLS[cell].states)]
    shapes: list[tuple[int, ...]] = []
    for layer in range(layers):
        width = I if layer == 0 else directions * widths[0]
        shapes += [(N, width), (N, widths[0]), *[(N,), (N,)] * bias, *[(P, H)] * bool(P)] * directions
    count = 2 + 2 * bias + bool(P)
    order = 0, 1, 2 if bias else None, 3 if bias else None, count - 1 if P else None
    orders = tuple(tuple(None if i is None else d * count + i for i in order) for d in range(directions))
    numbers = CELLS[cell].number, NONLINEARITIES[nonlinearity].number
    matrices = tuple(i for w_ih, w_hh, _, _, w_hr in orders for i in (w_ih, w_hh, w_hr) if i is not None)
    return Plan(cell, nonlinearity, numbers, bias, bool(P), directions, count, orders, widths, matrices, tuple(shapes))


class Recurrent(torch.nn.RNNBase):
    """What `RNN`, `GRU` and `LSTM` have in common; stands before PyTorch's class."""

    yields = True  # whether calls take PyTorch's own path where that was measured to be faster

    @property
    def fallbacks(self) -> Counter[str]:
        """How often, and why, calls of this module took PyTorch's own path."""
        own = self.__dict__
        return own["_fallbacks"] if "_fallbacks" in own else own.setdefault("_fallbacks", Counter())

    @property
    def clip_step(self) -> tuple[str, float] | None:
        """("value", c) or ("norm", c), to clip the state's gradient before it goes through each step, as `fastbptt.gru_backward` does."""
        return self.__dict__.get("_clip_step")

    @clip_step.setter
    def clip_step(self, clip: tuple[str, float] | None) -> None:
        check_clip_step(clip)
        self.__dict__["_clip_step"] = clip

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's."""
        done = gate.mode() or run(self, input, hx)
        if type(done) is not str:
            return done
        if self.clip_step is not None and torch.is_grad_enabled():
            raise RuntimeError(f"clip_step: this call takes PyTorch's own path, which cannot clip: {done}")
        self.fallbacks[done] += 1
        return super().forward(input, hx)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as PyTorch's own, which loads where fastbptt is not installed."""
        state: Any = self.__getstate__()
        return _reconstructor, (native_class(type(self)), object, None), without_ours(state, OPTIONS)

    def __copy__(self) -> Self:
        replica = type(self).__new__(type(self))
        replica.__dict__.update(without_ours(self.__dict__))
        return replica

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        replica = type(self).__new__(type(self))
        memo[id(self)] = replica
        flat = "_flat_weights", "_flat_weight_refs"  # of a parametrized module, they are the results of operations, which are not copied
        replica.__dict__.update(copy.deepcopy({key: value for key, value in without_ours(self.__dict__).items() if key not in flat}, memo))
        replica._init_flat_weights()
        return replica

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """For torch.jit.script: PyTorch's own module, with the same parameters."""
        kind = native_class(type(self))
        twin = kind.__new__(kind)
        twin.__dict__.update(without_ours(self.__dict__, OPTIONS))
        return twin


OURS = "_fallbacks", "_recording"  # of one module alone, which its copies have not
OPTIONS = "_clip_step", "yields"  # which PyTorch's own module could not heed


def without_ours(attributes: dict[str, Any], also: tuple[str, ...] = ()) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in OURS and key not in also}


def current_weights(module: Recurrent) -> list[torch.Tensor]:
    """As PyTorch keeps them up to date; where nothing has changed, that is seen here in a tenth of its time."""
    own, parameters = module.__dict__, module._parameters
    for name, weight in zip(module._flat_weights_names, module._flat_weights):
        if parameters.get(name) is not weight or name in own:
            module._update_flat_weights()
            break
    return module._flat_weights


def run(module: Recurrent, input: Any, hx: Any) -> Any:
    """The module's results from our kernels, or in a few words why they are not for this call."""
    packed = isinstance(input, PackedSequence)
    x, weights = input.data if packed else input, current_weights(module)
    I, layers = module.input_size, module.num_layers
    plan = plan_of(module.mode, I, module.hidden_size, module.proj_size, layers, module.bias, module.bidirectional)
    dtype = getattr(x, "dtype", None)
    if dtype not in gate.DTYPES or not gate.tensors.plain(x, x.itemsize):
        return "an input that is no plain float tensor on the CPU"
    if plan is None or len(weights) != len(plan.shapes):
        return MISFIT
    if not gate.tensors.all_plain(weights, x.itemsize, plan.shapes):
        return "weights that are no plain tensors of the input's dtype"
    count = len(plan.widths)
    states = () if hx is None else (hx,) if count == 1 else hx if isinstance(hx, (tuple, list)) and len(hx) == 2 else None
    if states is None:
        return NO_STATE
    for state in states:
        if not gate.tensors.plain(state, x.itemsize):
            return NO_STATE
    recorded = torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in (x, *states, *weights)]
    dims, size = x.dim(), x.shape
    if (dims != 2 and (packed or dims != 3)) or size[-1] != I:
        return MISFIT
    if not x.numel():
        return "an input without rows or steps"
    sizes = None
    if packed:
        sizes = input.batch_sizes
        if type(sizes) is not torch.Tensor or sizes.dtype is not torch.int64 or sizes.dim() != 1 or not sizes.is_cpu:
            return MISFIT
        layout = of_batch_sizes(sizes.numpy(), len(x))
        if layout is None:
            return MISFIT
        if states:
            permuted = module.permute_hidden(hx, input.sorted_indices)
            states = (permuted,) if count == 1 else permuted
    else:
        T, B = (size[0], 1) if dims == 2 else (size[0], size[1])
        if dims == 2:
            x = x.unsqueeze(1)
        elif module.batch_first:
            x, T, B = x.transpose(0, 1), B, T
        layout = Rectangle(T, B)
    rows = (layers * plan.directions, layout.B) if dims == 3 or packed else (layers * plan.directions,)
    for state, width in zip(states, plan.widths):
        if state.shape != (*rows, width):
            return MISFIT
    if dims == 2 and not packed:
        states = [state.unsqueeze(1) for state in states]
    could_yield = not recorded and not packed and module.yields and not plan.projection
    if could_yield and gate.torch_is_faster(plan.cell, dtype, *layout.rows, module.hidden_size):
        return "PyTorch is faster"
    out, last = through_layers(module, plan, layout, x, states, weights, sizes, recorded)
    if packed:
        out = PackedSequence(out, sizes, input.sorted_indices, input.unsorted_indices)
        return out, module.permute_hidden(last[0] if count == 1 else last, input.unsorted_indices)
    if dims == 2:
        out, last = out.squeeze(1), tuple(each.squeeze(1) for each in last)
    elif module.batch_first:
        out = out.transpose(0, 1)
    return out, last[0] if count == 1 else last


def through_layers(
    module: Recurrent,
    plan: Plan,
    layout: Rectangle | Packed,
    x: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    sizes: torch.Tensor | None,
    recorded: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The last layer's output, and the last states of all layers; whether autograd has ``recorded`` them, and so they have a gradient."""
    layers, D, K = module.num_layers, plan.directions, plan.directions * plan.per_direction
    own, fallbacks = module.__dict__, module.fallbacks
    clip, recording = check_clip_step(own.get("_clip_step")), own.get("_recording")
    none, state_shapes = (None,) * len(plan.widths), [(D, layout.B, width) for width in plan.widths]
    parts, dtype = passes.parts_of(plan.cell, layout.rows, layout.slots, plan.widths[0], plan.widths[-1]), gate.DTYPES[x.dtype]
    every = []
    for layer in range(layers):
        initial, mine, shapes = states or none, weights, plan.shapes
        if layers > 1:
            initial = [state[layer * D : (layer + 1) * D] for state in states] or none
            mine, shapes = weights[layer * K : (layer + 1) * K], shapes[layer * K : (layer + 1) * K]
        call = function.Call(plan, layout, dtype, parts, shapes, state_shapes, sizes, clip, fallbacks, recording, layer)
        if recorded:
            x, *last = function.apply(call, x, *initial, *mine)
        else:
            (x, *last), _ = function.forward(call, x, initial, mine, False)
        every.append(last)
        if layer < layers - 1 and module.training and module.dropout:
            x = torch.dropout(x, module.dropout, True)
    return x, tuple(every[0] if layers == 1 else [torch.cat(ends) for ends in zip(*every)])


def native_class(ours: type) -> Any:
    """PyTorch's class, or the user's, that stands behind one of ours."""
    return next(kind for kind in ours.__mro__ if not issubclass(kind, Recurrent))


class RNN(Recurrent, torch.nn.RNN):
    """`torch.nn.RNN` on our kernels."""


class GRU(Recurrent, torch.nn.GRU):
    """`torch.nn.GRU` on our kernels."""


class LSTM(Recurrent, torch.nn.LSTM):
    """`torch.nn.LSTM` on our kernels."""
