"""Backpropagation through time on the CPU, as fast as the processor allows."""

from typing import TYPE_CHECKING

from . import init, reference, tasks
from ._config import get_num_threads, set_num_threads, show_config
from ._version import __version__
from .clipping import clip_grad_norm_, clip_grad_value_, total_norm
from .forward_mode import gru_jvp, lstm_jvp, rnn_jvp
from .functional import gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward, rnn_forward
from .gradients.flow import GradientFlow, gradient_flow
from .gradients.jacobians import VanishingCondition, jacobian_product_norms, log_singular_values, vanishing_condition
from .gradients.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from .gradients.regularisation import gradient_flossing, omega
from .layers import GRU, LSTM, RNN, Linear
from .losses import mean_squared_error, perplexity, softmax_cross_entropy
from .optim import SGD, Adam, RMSprop
from .results import Gradients
from .streaming import Stream
from .tape import Tape
from .truncation import ARTBP, TruncatedBPTT

if TYPE_CHECKING:
    from . import fleet, pictures

__all__ = [
    "ARTBP",
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "GradientFlow",
    "Gradients",
    "Linear",
    "LyapunovSpectrum",
    "RMSprop",
    "Stream",
    "Tape",
    "TruncatedBPTT",
    "VanishingCondition",
    "__version__",
    "clip_grad_norm_",
    "clip_grad_value_",
    "fleet",
    "get_num_threads",
    "gradient_flossing",
    "gradient_flow",
    "gru_backward",
    "gru_forward",
    "gru_jvp",
    "init",
    "jacobian_product_norms",
    "log_singular_values",
    "lstm_backward",
    "lstm_forward",
    "lstm_jvp",
    "lyapunov_spectrum",
    "mean_squared_error",
    "omega",
    "perplexity",
    "pictures",
    "reference",
    "rnn_backward",
    "rnn_forward",
    "rnn_jvp",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "tasks",
    "total_norm",
    "vanishing_condition",
]


def __getattr__(name: str) -> object:
    """Pictures and fleets are loaded by whoever wants one, not with everything else."""
    if name in ("fleet", "pictures"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
