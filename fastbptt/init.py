"""Starts: how a recurrent net is initialised. How far gradients reach at first depends on it.

Each function draws a recurrent layer's parameters anew, in place, and those of its readout if there is one. `STARTS` has them by name, and
for each the kind of its recurrent matrix.
All is checked and drawn before anything is written: with a TypeError or ValueError, no parameter has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from . import _checks
from ._kernels import chunks
from ._typing import Array, Float64s, Nonlinearity, Seed
from .layers import RNN, Layer, Linear, Recurrent, wrong_layer

SMART_CONNECTIONS, SMART_RADIUS = 15, 0.95
Drawn: TypeAlias = "list[tuple[Array, Array]]"  # parameters, each with its new values


def basic_tanh(rnn: RNN, readout: Linear | None = None, rng: Seed = None) -> None:
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


def sigmoid(rnn: RNN, readout: Linear | None = None, rng: Seed = None) -> None:
    """All weights from N(0, 0.01^2), biases 0: the start of Pascanu et al. (2013) for the sigmoid, from which gradients vanish at once.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(RNN, rnn, readout, rng)
    _write(_normal(0.01, rnn, readout, rng))


def smart_tanh(rnn: RNN, readout: Linear | None = None, rng: Seed = None) -> None:
    """Weights from N(0, 0.01^2), but W_hh sparse and of spectral radius 0.95: the smart start of Pascanu et al. (2013), for tanh.

    Each unit has fifteen outgoing weights, as in the authors' program (the paper says incoming); with fifteen units or fewer, all of them.

    Parameters
    ----------
    rnn : RNN
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(RNN, rnn, readout, rng)
    drawn = _normal(0.01, rnn, readout, rng)
    w_hh = next(values for p, values in drawn if p is rnn.params["weight_hh_l0"])
    _thin_out(w_hh, rng)
    radius = np.abs(np.linalg.eigvals(w_hh)).max() if np.isfinite(w_hh).all() else np.nan
    if not 0 < radius < np.inf:
        raise ValueError(f"rng: what it drew has a spectral radius of {radius}, which cannot be scaled to {SMART_RADIUS}")
    w_hh *= SMART_RADIUS / radius
    _write(drawn)


def identity(rnn: RNN, readout: Linear | None = None, rng: Seed = None) -> None:
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


def orthogonal(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None) -> None:
    """W_hh orthogonal, gate by gate (Saxe, McClelland and Ganguli 2014); the other parameters are left alone.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(Recurrent, rnn, readout, rng)
    _write(_each_gate(_orthogonal, rnn, rng))


def gaussian(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None) -> None:
    """W_hh from N(0, 1/H), of spectral radius about 1, gate by gate; the other parameters are left alone.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(Recurrent, rnn, readout, rng)
    _write(_each_gate(lambda H, rng: _gaussian(H, rng) / np.sqrt(H), rnn, rng))


def default(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None) -> None:
    """PyTorch's start, which new layers have: all from U(-1/sqrt(H), 1/sqrt(H)). Nothing is drawn anew.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    _checked(Recurrent, rnn, readout, rng)


def _gaussian(H: int, rng: np.random.Generator) -> Float64s:
    return rng.standard_normal((H, H))


def _orthogonal(H: int, rng: np.random.Generator) -> Float64s:
    q, r = np.linalg.qr(_gaussian(H, rng))
    return q * np.where(np.diag(r) < 0, -1, 1)  # without the signs, Q would depend on how QR is done


class Start(NamedTuple):
    draw: Callable[..., None]
    matrix: Callable[[int, np.random.Generator], Float64s]  # (H, H), of the kind of its W_hh, in whatever scale
    radius: float | None = None  # the spectral radius of such a matrix, where it is always the same
    nonlinearity: Nonlinearity = "tanh"  # of an RNN, that the start is made for
    gated: bool = False  # whether it also suits a GRU or LSTM


STARTS = {
    "default": Start(default, lambda H, rng: rng.uniform(-1, 1, (H, H)), gated=True),
    "basic-tanh": Start(basic_tanh, _gaussian),
    "smart-tanh": Start(smart_tanh, lambda H, rng: _thin_out(_gaussian(H, rng), rng)),
    "sigmoid": Start(sigmoid, _gaussian, nonlinearity="sigmoid"),
    "identity": Start(identity, lambda H, rng: np.eye(H), radius=1.0, nonlinearity="relu"),
    "orthogonal": Start(orthogonal, _orthogonal, radius=1.0, gated=True),
    "gaussian": Start(gaussian, _gaussian, gated=True),
}


def _checked(kind: type[Recurrent], rnn: object, readout: object, rng: Seed) -> np.random.Generator:
    """The generator that ``rng`` stands for, if the start suits the layers."""
    if not isinstance(rnn, kind):
        raise wrong_layer("rnn", kind, rnn)
    if readout is not None and not isinstance(readout, Linear):
        raise TypeError(f"readout: expected a Linear or None, got {_checks.describe(readout)}")
    return _checks.generator("rng", rng)


def _normal(std: float, rnn: Recurrent, readout: Linear | None, rng: np.random.Generator) -> Drawn:
    """The layers' parameters, each with its new values: all weights from N(0, std^2), all biases 0."""
    layers: list[Layer] = [rnn] if readout is None else [rnn, readout]
    return [
        (p, rng.normal(0, std, p.shape).astype(p.dtype, copy=False) if "weight" in name else np.zeros_like(p))
        for layer in layers
        for name, p in layer.params.items()
    ]


def _each_gate(matrix: Callable[[int, np.random.Generator], Float64s], rnn: Recurrent, rng: np.random.Generator) -> Drawn:
    """W_hh with its new values, for each gate a matrix of its own."""
    w_hh, H = rnn.params["weight_hh_l0"], rnn.hidden_size
    return [(w_hh, np.concatenate([matrix(H, rng) for _ in range(len(w_hh) // H)]))]


def _thin_out(w_hh: Array, rng: np.random.Generator) -> Array:
    """Leave each unit `SMART_CONNECTIONS` of the weights that go out of it, in place."""
    for outgoing in w_hh.T:
        outgoing[rng.permutation(len(outgoing))[SMART_CONNECTIONS:]] = 0
    return w_hh


def _write(drawn: Drawn) -> None:
    """Copy new values into parameters, all of them or, if Ctrl-C comes first, none."""
    chunks.copy([array for p, values in drawn for array in (p, np.asarray(values, p.dtype, order="C"))])
