"""Fleets: many independent nets of one shape in one call, with their optimisers and their clipping.

Every array has a leading axis K, one entry for each net; names, arguments and the order of results are those of the functions for one net.
Nothing is mixed between nets: each has the same bits in any fleet, and what is not finite in one stays there.
"""

from .passes import gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward, rnn_forward
from .tape import Tape
from .training import Adam, RMSprop, clip_grad_norm_

__all__ = [
    "Adam",
    "RMSprop",
    "Tape",
    "clip_grad_norm_",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
]
