"""Backpropagation through time on the CPU, as fast as the processor allows."""

from . import reference, tasks
from ._config import show_config
from ._kernels.pool import get_num_threads, set_num_threads
from ._version import __version__
from .clipping import clip_grad_norm_, clip_grad_value_, total_norm
from .flow import GradientFlow, gradient_flow
from .functional import (
    Gradients,
    Tape,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)
from .layers import GRU, LSTM, RNN, Linear
from .losses import mean_squared_error, perplexity, softmax_cross_entropy
from .optim import SGD, Adam, RMSprop
from .regularisation import omega
from .truncation import TruncatedBPTT

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "GradientFlow",
    "Gradients",
    "Linear",
    "RMSprop",
    "Tape",
    "TruncatedBPTT",
    "__version__",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_num_threads",
    "gradient_flow",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "mean_squared_error",
    "omega",
    "perplexity",
    "reference",
    "rnn_backward",
    "rnn_forward",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "tasks",
    "total_norm",
]
