"""Which calls are ours. For any other there is a reason, in a few words, which `fallbacks` counts; it takes PyTorch's own path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

DTYPES = torch.float32, torch.float64
PLAIN = torch.Tensor, torch.nn.Parameter


class Faster(NamedTuple):
    """Calls without gradients of a cell that PyTorch's own path was measured to be faster for: its bounds, both included."""

    cell: str
    dtype: torch.dtype
    rows: int  # steps of all rows, at least
    B: int  # at least
    H: tuple[int, int]


#: Forward passes alone, of one thread. With a backward pass, none.
FASTER = (
    # oneDNN's. An AMD EPYC: 0.91 to 0.98 of our time up to 256 units, but 1.04 with 128 rows of 256; beyond, 0.98 to 1.04. An Intel Sapphire
    # Rapids, when ours kept a tape: 0.77 to 0.96 up to 512.
    Faster("lstm", torch.float32, 1600, 16, (32, 512)),
)


def torch_is_faster(cell: str, dtype: torch.dtype, T: int, B: int, H: int) -> bool:
    """Whether `FASTER` has a call of this size."""
    return any(cell == row.cell and dtype is row.dtype and row.rows <= T * B and row.B <= B and row.H[0] <= H <= row.H[1] for row in FASTER)


def mode() -> str | None:
    """Why no kernel may run in this thread now: somebody looks at the operations one by one, or changes what they do."""
    if torch._C._get_tracing_state() is not None:
        return "tracing"  # the kernels would leave a constant in the trace, or nothing
    if torch.compiler.is_compiling():
        return "torch.compile"
    if peek_interpreter_stack() is not None:
        return "torch.func"  # vmap, grad, jvp and the like
    if forward_ad._current_level >= 0:
        return "forward mode"
    if torch._C._is_any_autocast_enabled():
        return "autocast"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode"
    # set_default_device is one, too, but means nothing here
    if torch._C._len_torch_function_stack() and not all(type(m) is DeviceContext for m in _get_current_function_mode_stack()):
        return "a function mode"
    return None


def plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether it is numbers of this dtype in this machine's memory, and nothing else."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not is_legacy_batchedtensor(tensor)
        and not is_functorch_wrapped_tensor(tensor)  # which has outlived its transform
    )
