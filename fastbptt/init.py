"""Starts: how a recurrent net is initialised. How far gradients reach at first depends on it.

Each function draws a recurrent layer's parameters anew, in place, and those of its readout if there is one; of a layer of several parts, such
as the directions of a stack, each part by itself. What a start does not speak of it leaves alone. `STARTS` has them by name, for the commands
too, and for each the kind of its recurrent matrix.
All is checked and drawn before anything is written: with a TypeError or ValueError, no parameter has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from . import _checks
from ._kernels import chunks
from ._typing import Array, Float64s, Nonlinearity, Real, Seed
from .cells import CELLS
from .layers import RNN, Layer, Linear, Recurrent, wrong_layer

SMART_CONNECTIONS, SMART_RADIUS = 15, 0.95
Drawn: TypeAlias = "list[tuple[Array, Array]]"  # parameters, each with its new values
Matrix: TypeAlias = "Callable[[int, np.random.Generator], Float64s]"


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
    >>> float(layer.params["weight_hh_l0"].std().round(2)), bool(layer.params["bias_hh_l0"].any())
    (0.1, False)
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
    recurrent = [id(p) for p in _recurrent(rnn)]
    for p, w_hh in drawn:
        if id(p) in recurrent:
            _scale_to(SMART_RADIUS, _thin_out(w_hh, rng))
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
    recurrent = [id(p) for p in _recurrent(rnn)]
    _write([(p, np.eye(len(p)) if id(p) in recurrent else values) for p, values in _normal(0.001, rnn, readout, rng)])


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


def gaussian(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None, *, gain: Real = 1.0) -> None:
    """W_hh from N(0, gain^2/H), of spectral radius about ``gain``, gate by gate; the other parameters are left alone.

    In large tanh nets without input, chaos begins at a gain of 1 (Sompolinsky, Crisanti and Sommers 1988).

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    gain : float
        At least 0.
    """
    rng, gain = _checked(Recurrent, rnn, readout, rng), _checks.number("gain", gain, 0, _checks.LARGEST)
    _write(_each_gate(lambda H, rng: gain * _gaussian(H, rng) / np.sqrt(H), rnn, rng))


def sparse(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None, *, radius: Real = 0.95) -> None:
    """W_hh sparse, gate by gate: each unit has fifteen outgoing weights, from N(0, 1), scaled to a spectral radius (Jaeger 2001).

    The other parameters are left alone.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    radius : float
        At least 0: the largest magnitude of the eigenvalues.
    """
    rng, radius = _checked(Recurrent, rnn, readout, rng), _checks.number("radius", radius, 0, _checks.LARGEST)
    _write(_each_gate(lambda H, rng: _scale_to(radius, _sparse(H, rng)), rnn, rng))


def xavier(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None) -> None:
    """All weights from U(-b, b), b = sqrt(6 / (n_in + n_out)), biases 0 (Glorot and Bengio 2010); each gate is a matrix of its own.

    Parameters
    ----------
    rnn : RNN, GRU or LSTM
    readout : Linear or None
    rng : None, int or numpy.random.Generator
    """
    rng = _checked(Recurrent, rnn, readout, rng)
    drawn: Drawn = []
    for layer in [rnn] if readout is None else [rnn, readout]:
        for name, p in layer.params.items():
            if "weight" not in name:
                drawn.append((p, np.zeros_like(p)))
                continue
            outputs = len(p) if layer is readout or "_hr_" in name else rnn.hidden_size
            bound = np.sqrt(6 / (outputs + p.shape[1]))
            drawn.append((p, rng.uniform(-bound, bound, p.shape)))
    _write(drawn)


def forget_bias(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None, *, bias: Real = 1.0) -> None:
    """The gate that keeps the state begins open, by its bias (Gers, Schmidhuber and Cummins 2000; Jozefowicz et al. 2015).

    That is the forget gate of an LSTM, and the update gate of a GRU as PyTorch has it. Of its two biases, b_ih is ``bias`` and b_hh is 0. The
    other parameters are left alone.

    Parameters
    ----------
    rnn : GRU or LSTM
        With biases.
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
        Nothing is drawn.
    bias : float

    Examples
    --------
    >>> import fastbptt
    >>> layer = fastbptt.LSTM(2, 3, rng=0)
    >>> fastbptt.init.forget_bias(layer, bias=2.0)
    >>> layer.params["bias_ih_l0"][3:6], layer.params["bias_hh_l0"][3:6]
    (array([2., 2., 2.]), array([0., 0., 0.]))
    """
    _checked(Recurrent, rnn, readout, rng)
    bias = _checks.number("bias", bias, -_checks.LARGEST, _checks.LARGEST)
    _write(_gate_biases(rnn, lambda H: np.full(H, bias), also_input=False))


def chrono(rnn: Recurrent, readout: Linear | None = None, rng: Seed = None, *, longest: Real = 100) -> None:
    """Each unit forgets over a time of its own, up to ``longest`` steps: b_f = ln U(1, longest - 1), b_i = -b_f (Tallec and Ollivier 2018).

    A gate that is open by sigmoid(b) keeps the state for about 1 + e^b steps. Of a GRU, the update gate has b_f. Of the two biases of a gate,
    b_ih is set to it and b_hh to 0. The other parameters are left alone.

    Parameters
    ----------
    rnn : GRU or LSTM
        With biases.
    readout : Linear or None
        It is left alone.
    rng : None, int or numpy.random.Generator
    longest : float
        T_max, the longest dependency expected, in steps: at least 2.
    """
    rng, longest = _checked(Recurrent, rnn, readout, rng), _checks.number("longest", longest, 2, _checks.LARGEST)
    _write(_gate_biases(rnn, lambda H: np.log(rng.uniform(1, longest - 1, H)), also_input=True))


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


def _uniform(H: int, rng: np.random.Generator) -> Float64s:
    return rng.uniform(-1, 1, (H, H))


def _sparse(H: int, rng: np.random.Generator) -> Float64s:
    return _thin_out(_gaussian(H, rng), rng)


class Start(NamedTuple):
    draw: Callable[..., None]
    matrix: Matrix | None  # called as matrix(H, rng): a matrix (H, H) of the kind of its W_hh, in whatever scale; None: it is about biases
    radius: float | None = None  # the spectral radius of such a matrix, where it is always the same
    nonlinearity: Nonlinearity = "tanh"  # of an RNN, that the start is made for
    gated: bool = False  # whether it suits a GRU or LSTM
    plain: bool = True  # whether it suits an RNN
    own_radius: Callable[[int], float] = lambda H: 1.0  # the spectral radius that it gives to a net of H units, about
    weights: float | None = None  # the standard deviation of the input weights that it draws; None: it leaves them alone


STARTS = {
    "default": Start(default, _uniform, gated=True, own_radius=lambda H: 3**-0.5),
    "basic-tanh": Start(basic_tanh, _gaussian, own_radius=lambda H: 0.1 * H**0.5, weights=0.1),
    "smart-tanh": Start(smart_tanh, _sparse, own_radius=lambda H: SMART_RADIUS, weights=0.01),
    "sigmoid": Start(sigmoid, _gaussian, nonlinearity="sigmoid", own_radius=lambda H: 0.01 * H**0.5, weights=0.01),
    "identity": Start(identity, lambda H, rng: np.eye(H), radius=1.0, nonlinearity="relu", weights=0.001),
    "orthogonal": Start(orthogonal, _orthogonal, radius=1.0, gated=True),
    "gaussian": Start(gaussian, _gaussian, gated=True),
    "sparse": Start(sparse, _sparse, gated=True, own_radius=lambda H: 0.95),
    "xavier": Start(xavier, _uniform, gated=True),
    "forget-bias": Start(forget_bias, None, gated=True, plain=False),
    "chrono": Start(chrono, None, gated=True, plain=False),
}
MATRICES = {name: start for name, start in STARTS.items() if start.matrix is not None}  # those that speak of W_hh


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


def _recurrent(rnn: Recurrent) -> list[Array]:
    """W_hh of each of the layer's parts."""
    return [p for name, p in rnn.params.items() if name.startswith("weight_hh_")]


def _each_gate(matrix: Matrix, rnn: Recurrent, rng: np.random.Generator) -> Drawn:
    """Each W_hh with its new values, for each gate a matrix of its own."""
    H = rnn.hidden_size
    _require_square(rnn)
    return [(w_hh, np.concatenate([matrix(H, rng) for _ in range(len(w_hh) // H)])) for w_hh in _recurrent(rnn)]


def _require_square(rnn: Recurrent) -> None:
    """A projected LSTM's state has fewer numbers than units, so that no gate's part of W_hh is a square matrix."""
    if rnn._proj_size:
        raise ValueError(f"rnn: expected a layer without projection, whose W_hh is square for each gate, got proj_size={rnn._proj_size}")


def _gate_biases(rnn: Recurrent, draw: Callable[[int], Float64s], also_input: bool) -> Drawn:
    """The biases of each part, with those of the gate that keeps the state drawn anew; the input gate's are the opposite."""
    cell, H = CELLS[rnn._cell], rnn.hidden_size
    if not cell.gated:
        raise TypeError(f"rnn: expected a GRU or LSTM, whose gates have biases, got {_checks.describe(rnn)}")
    drawn: Drawn = []
    for name, b_ih in rnn.params.items():
        if not name.startswith("bias_ih_"):
            continue
        b_hh = rnn.params[name.replace("bias_ih_", "bias_hh_")]
        new_ih, new_hh, values = b_ih.copy(), b_hh.copy(), draw(H)
        for k, gate in enumerate(cell.gates):
            if gate.keeps or (also_input and gate.name == "input"):
                new_ih[k * H : (k + 1) * H] = values * (gate.keeps or -1)
                new_hh[k * H : (k + 1) * H] = 0
        drawn += [(b_ih, new_ih), (b_hh, new_hh)]
    if not drawn:
        raise ValueError("rnn: expected a layer with biases, got one without")
    return drawn


def _scale_to(radius: float, w_hh: Array) -> Array:
    """The matrix, scaled to a spectral radius, in place."""
    found = np.abs(np.linalg.eigvals(w_hh)).max() if np.isfinite(w_hh).all() else np.nan
    if not 0 < found < np.inf:
        raise ValueError(f"rng: what it drew has a spectral radius of {found}, which cannot be scaled to {radius:g}")
    w_hh *= radius / found
    return w_hh


def _thin_out(w_hh: Array, rng: np.random.Generator) -> Array:
    """Leave each unit `SMART_CONNECTIONS` of the weights that go out of it, in place."""
    for outgoing in w_hh.T:
        outgoing[rng.permutation(len(outgoing))[SMART_CONNECTIONS:]] = 0
    return w_hh


def _write(drawn: Drawn) -> None:
    """Copy new values into parameters, all of them or, if Ctrl-C comes first, none."""
    chunks.copy([array for p, values in drawn for array in (p, np.asarray(values, p.dtype, order="C"))])
