"""Starts: how the parameters of a recurrent net are drawn before it learns. How far gradients reach at first depends on them.

Each function draws a recurrent layer's parameters anew, in place, and those of its readout if there is one. `STARTS` has them by name.
"""

from typing import NamedTuple

import numpy as np

SMART_CONNECTIONS, SMART_RADIUS = 15, 0.95


def basic_tanh(rnn, readout=None, rng=None):
    """All weights from N(0, 0.1^2), biases 0: the basic start of Pascanu, Mikolov and Bengio (2013), for tanh.

    With 50 units the spectral radius is about 0.7.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> layer = fastbptt.RNN(6, 50)
    >>> fastbptt.init.basic_tanh(layer, rng=0)
    >>> float(layer.params["weight_hh_l0"].std().round(2)), layer.params["bias_hh_l0"].any()
    (0.1, np.False_)
    """
    _normal(0.1, rnn, readout, np.random.default_rng(rng))


def sigmoid(rnn, readout=None, rng=None):
    """All weights from N(0, 0.01^2), biases 0: the start of Pascanu et al. (2013) for the sigmoid, from which gradients vanish at once.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    _normal(0.01, rnn, readout, np.random.default_rng(rng))


def smart_tanh(rnn, readout=None, rng=None):
    """Weights from N(0, 0.01^2), but W_hh sparse and of spectral radius 0.95: the smart start of Pascanu et al. (2013), for tanh.

    Fifteen weights go out of each unit, as in the program; the paper has them come in. With fifteen units or fewer all are there.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = np.random.default_rng(rng)
    _normal(0.01, rnn, readout, rng)
    w_hh = rnn.params["weight_hh_l0"]
    for outgoing in w_hh.T:
        outgoing[rng.permutation(len(outgoing))[SMART_CONNECTIONS:]] = 0
    w_hh *= SMART_RADIUS / np.abs(np.linalg.eigvals(w_hh)).max()


def identity(rnn, readout=None, rng=None):
    """W_hh = 1, the other weights from N(0, 0.001^2), biases 0: the start of Le, Jaitly and Hinton (2015), for ReLU.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    _normal(0.001, rnn, readout, np.random.default_rng(rng))
    rnn.params["weight_hh_l0"][...] = np.eye(rnn.hidden_size)


def orthogonal(rnn, readout=None, rng=None):
    """W_hh orthogonal, of a gated cell each gate's (Saxe, McClelland and Ganguli 2014); the rest as a new layer has it.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    """
    rng, H = np.random.default_rng(rng), rnn.hidden_size
    for gate in rnn.params["weight_hh_l0"].reshape(-1, H, H):
        q, r = np.linalg.qr(rng.standard_normal((H, H)))
        gate[...] = q * np.where(np.diag(r) < 0, -1, 1)  # without the signs, Q would depend on how QR is done


def default(rnn, readout=None, rng=None):
    """What layers begin with, and PyTorch's: all from U(-1/sqrt(H), 1/sqrt(H)). Nothing is drawn anew."""


class Start(NamedTuple):
    draw: callable
    nonlinearity: str = "tanh"  # of an RNN, that the start is made for
    gated: bool = False  # whether it also suits a GRU or LSTM


STARTS = {
    "default": Start(default, gated=True),
    "basic-tanh": Start(basic_tanh),
    "smart-tanh": Start(smart_tanh),
    "sigmoid": Start(sigmoid, "sigmoid"),
    "identity": Start(identity, "relu"),
    "orthogonal": Start(orthogonal, gated=True),
}


def _normal(std, rnn, readout, rng):
    """All weights from N(0, std^2), all biases 0."""
    for layer in filter(None, (rnn, readout)):
        for name, p in layer.params.items():
            p[...] = rng.normal(0, std, p.shape) if "weight" in name else 0
