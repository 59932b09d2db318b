"""Starts: how the parameters of a recurrent net are drawn before it learns. How far gradients reach at first depends on them.

Each function draws a recurrent layer's parameters anew, in place, and those of its readout if there is one. `STARTS` has them by name.
All is checked and drawn before anything is written: TypeError or ValueError, and no parameter is changed, if an argument is not what is said.
"""

from typing import NamedTuple

import numpy as np

from . import _checks
from ._kernels import chunks
from .layers import RNN, Linear, Recurrent

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
    rng = _checked(RNN, rnn, readout, rng)
    _write(_normal(0.1, rnn, readout, rng))


def sigmoid(rnn, readout=None, rng=None):
    """All weights from N(0, 0.01^2), biases 0: the start of Pascanu et al. (2013) for the sigmoid, from which gradients vanish at once.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(RNN, rnn, readout, rng)
    _write(_normal(0.01, rnn, readout, rng))


def smart_tanh(rnn, readout=None, rng=None):
    """Weights from N(0, 0.01^2), but W_hh sparse and of spectral radius 0.95: the smart start of Pascanu et al. (2013), for tanh.

    Fifteen weights go out of each unit, as in the program; the paper has them come in. With fifteen units or fewer all are there.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(RNN, rnn, readout, rng)
    drawn = _normal(0.01, rnn, readout, rng)
    w_hh = next(values for p, values in drawn if p is rnn.params["weight_hh_l0"])
    for outgoing in w_hh.T:
        outgoing[rng.permutation(len(outgoing))[SMART_CONNECTIONS:]] = 0
    radius = np.abs(np.linalg.eigvals(w_hh)).max() if np.isfinite(w_hh).all() else np.nan
    if not 0 < radius < np.inf:
        raise ValueError(f"rng: what it drew has a spectral radius of {radius}, which cannot be scaled to {SMART_RADIUS}")
    w_hh *= SMART_RADIUS / radius
    _write(drawn)


def identity(rnn, readout=None, rng=None):
    """W_hh = 1, the other weights from N(0, 0.001^2), biases 0: the start of Le, Jaitly and Hinton (2015), for ReLU.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(RNN, rnn, readout, rng)
    w_hh = rnn.params["weight_hh_l0"]
    _write([(p, np.eye(len(p)) if p is w_hh else values) for p, values in _normal(0.001, rnn, readout, rng)])


def orthogonal(rnn, readout=None, rng=None):
    """W_hh orthogonal, of a gated cell each gate's (Saxe, McClelland and Ganguli 2014); the rest as a new layer has it.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    """
    rng, H = _checked(Recurrent, rnn, readout, rng), rnn.hidden_size
    w_hh = rnn.params["weight_hh_l0"]
    gates = []
    for _ in range(len(w_hh) // H):
        q, r = np.linalg.qr(rng.standard_normal((H, H)))
        gates.append(q * np.where(np.diag(r) < 0, -1, 1))  # without the signs, Q would depend on how QR is done
    _write([(w_hh, np.concatenate(gates))])


def default(rnn, readout=None, rng=None):
    """What layers begin with, and PyTorch's: all from U(-1/sqrt(H), 1/sqrt(H)). Nothing is drawn anew.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    _checked(Recurrent, rnn, readout, rng)


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


def _checked(kind, rnn, readout, rng):
    """The generator that ``rng`` stands for, if the start suits the layers."""
    if not isinstance(rnn, kind):
        raise TypeError(f"rnn: expected an {'RNN' if kind is RNN else 'RNN, GRU or LSTM'}, got {_checks.describe(rnn)}")
    if readout is not None and not isinstance(readout, Linear):
        raise TypeError(f"readout: expected a Linear or None, got {_checks.describe(readout)}")
    return _checks.generator("rng", rng)


def _normal(std, rnn, readout, rng):
    """The layers' parameters, each with its new values: all weights from N(0, std^2), all biases 0."""
    layers = [rnn] if readout is None else [rnn, readout]
    return [
        (p, rng.normal(0, std, p.shape).astype(p.dtype, copy=False) if "weight" in name else np.zeros_like(p))
        for layer in layers
        for name, p in layer.params.items()
    ]


def _write(drawn):
    """Copy new values into parameters, all of them or, if Ctrl-C comes first, none."""
    chunks.copy([array for p, values in drawn for array in (p, np.asarray(values, p.dtype, order="C"))])
