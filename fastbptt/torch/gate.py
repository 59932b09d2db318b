"""Which calls are ours. For any other there is a reason, in a few words, which `fallbacks` counts; it takes PyTorch's own path."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .._kernels.tensors import Tensors

DTYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"fastbptt.torch needs PyTorch 2.13 or later, got {torch.__version__}")
tensors = Tensors(torch.Tensor.__dlpack_c_exchange_api__, (torch.Tensor, torch.nn.Parameter))


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
