"""PyTorch's recurrent layers on our kernels: `RNN`, `GRU` and `LSTM` are subclasses of ``torch.nn``'s, and take their place.

Whatever the kernels do not cover goes to PyTorch's own path, and so gives PyTorch's own result or error; ``module.fallbacks`` counts how
often, and why.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('fastbptt.torch needs PyTorch, which is not installed: pip install "fastbptt[torch]"') from error

from .conversion import Changed, accelerate, patch, restore
from .modules import GRU, LSTM, RNN
from .recording import Recording, record

__all__ = ["GRU", "LSTM", "RNN", "Changed", "Recording", "accelerate", "patch", "record", "restore"]
