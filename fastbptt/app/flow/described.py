"""Nets that a few numbers describe, for looking at what their gradients do before anything is trained."""

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ... import _checks, functional
from ...cells import CELLS
from ...gradients.flow import gradient_flow
from ...init import MATRICES
from ..train.model import nonlinearity_of

LOSSES = ("every", "last")
USUAL = {"init": "gaussian", "radius": 0.9, "gain": 0.3}  # where nothing is said


@dataclass(frozen=True)
class DescribedNet:
    """A net with random weights, driven by noise, and a loss.

    Every gate has a recurrent matrix of its own, of the given start and spectral radius. Inputs are as many as units, independent and
    from N(0, 1); input weights are from N(0, gain^2 / H), so that every pre-activation is driven by noise of standard deviation ``gain``.
    The initial state is of the same kind, h_0 = tanh of N(0, 1). The loss is L = sum over t of g_t . h_t, with g_t from N(0, 1).

    Attributes
    ----------
    cell : {"rnn", "gru", "lstm"}
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"} or None
        Of an RNN, where None means the one that the start is made for; the others have no choice.
    init : str or None
        One of `fastbptt.init.MATRICES`, those of `STARTS` that speak of recurrent matrices. What the start says holds, as in
        `fastbptt train`: the kind of its recurrent matrices, their radius, the size of the input weights if it draws them, the
        nonlinearity; unless ``radius``, ``gain`` or ``nonlinearity`` say otherwise. None means gaussian matrices of radius 0.9.
    radius : float or None
        Their spectral radius, the largest magnitude of their eigenvalues. None means what the start gives them.
    hidden, steps, batch : int
        H, T and B.
    gain : float or None
        Of the inputs. None means what the start gives them, or 0.3 if it leaves the input weights alone.
    gate_bias : float or None
        The bias of the gate that keeps the state: f of an LSTM, z of a GRU; its opposite, if the gate keeps the state where it is shut.
        None means 1. An RNN has none.
    loss : {"every", "last"}
        Whether there is a loss at every step, or at the last one alone.
    seed : int
    dtype : {"float64", "float32"}

    Raises
    ------
    TypeError, ValueError
        If a value cannot be.

    Examples
    --------
    >>> flow = DescribedNet(nonlinearity="identity", init="orthogonal", radius=0.5, loss="last").flow()
    >>> round(flow.half_life, 9)
    1.0
    """

    cell: str = "rnn"
    nonlinearity: str | None = None
    init: str | None = None
    radius: float | None = None
    hidden: int = 100
    steps: int = 100
    batch: int = 4
    gain: float | None = None
    gate_bias: float | None = None
    loss: str = "every"
    seed: int = 0
    dtype: str = "float64"

    def __post_init__(self):
        for name in ("hidden", "steps", "batch"):
            _checks.number(name, _checks.size(name, getattr(self, name)), 1, _checks.LARGEST)
        _checks.size("seed", self.seed, 0)
        if self.init is None:
            object.__setattr__(self, "init", USUAL["init"])
            object.__setattr__(self, "radius", USUAL["radius"] if self.radius is None else self.radius)
        for name, allowed in (("cell", tuple(CELLS)), ("init", tuple(MATRICES)), ("loss", LOSSES), ("dtype", _checks.DTYPES)):
            _checks.one_of(name, getattr(self, name), allowed)
        start = MATRICES[self.init]
        if self.radius is None:
            object.__setattr__(self, "radius", start.own_radius(self.hidden))
        if self.gain is None:
            object.__setattr__(self, "gain", USUAL["gain"] if start.weights is None else start.weights * self.hidden**0.5)
        _checks.number("radius", self.radius, 0, _checks.LARGEST)
        _checks.number("gain", self.gain, 0, _checks.LARGEST)
        object.__setattr__(self, "nonlinearity", nonlinearity_of(self.cell, self.nonlinearity, start.nonlinearity))
        if not CELLS[self.cell].gated:
            if self.gate_bias is not None:
                gated = " and ".join(name for name, cell in CELLS.items() if cell.gated)
                raise ValueError(f"gate-bias: an {self.cell} has no gates; only {gated} have")
            return
        object.__setattr__(self, "gate_bias", 1.0 if self.gate_bias is None else self.gate_bias)
        _checks.number("gate-bias", self.gate_bias, -_checks.LARGEST, _checks.LARGEST)

    @property
    def name(self):
        """The cell in words."""
        return CELLS[self.cell].title(self.nonlinearity)

    def __str__(self):
        keeper = CELLS[self.cell].keeper
        bias = "" if keeper is None else f", bias {keeper.keeps * self.gate_bias:g} of the {keeper.letter} gate"
        return f"{self.name}, {self.hidden} units, {self.init} start of radius {self.radius:g}, input gain {self.gain:g}{bias}"

    def tape(self):
        """Run it: the tape of the forward pass."""
        cell, H, dtype = CELLS[self.cell], self.hidden, np.dtype(self.dtype)
        G = len(cell.gates)
        matrices, radii, rng = _recurrent(self.init, H, G, self.seed)
        rng = deepcopy(rng)
        w_hh = (self.radius / radii * matrices).reshape(G * H, H).astype(dtype, copy=False)
        w_ih = (self.gain / np.sqrt(H) * rng.standard_normal((G * H, H))).astype(dtype, copy=False)
        x = rng.standard_normal((self.steps, self.batch, H)).astype(dtype, copy=False)
        h0 = np.tanh(rng.standard_normal((self.batch, H))).astype(dtype, copy=False)
        state = cell.state([h0, *(np.zeros_like(h0) for _ in cell.states[1:])])
        bias = np.repeat([gate.keeps and gate.keeps * self.gate_bias for gate in cell.gates], H).astype(dtype)
        choice = {} if cell.gated else {"nonlinearity": self.nonlinearity}
        return getattr(functional, f"{cell.name}_forward")(x, state, w_ih, w_hh, bias, None, **choice)[2]

    def flow(self):
        """Run it forwards and backwards: the `GradientFlow` of its loss."""
        tape = self.tape()
        d_out = np.random.default_rng([self.seed, 1]).standard_normal(tape.shape).astype(tape.h.dtype, copy=False)
        if self.loss == "last":
            d_out[:-1] = 0
        return gradient_flow(tape, d_out)


@lru_cache(maxsize=1)
def _recurrent(init, H, G, seed):
    """The recurrent matrices (G, H, H), their spectral radii (G, 1, 1), and the generator of random numbers that has made them.

    Eigenvalues take longer than all that a slider of the page can change, so the last net's are kept.
    """
    start, rng = MATRICES[init], np.random.default_rng(seed)
    matrices = np.empty((G, H, H))
    for matrix in matrices:
        matrix[:] = start.matrix(H, rng)
    radii = np.abs(np.linalg.eigvals(matrices)).max(axis=1) if start.radius is None else np.full(G, start.radius)
    return matrices, radii[:, None, None], rng


def compared(**settings):
    """The nets that `fastbptt flow --compare` puts side by side, with these settings of `DescribedNet` in common, by name.

    tanh; ReLU started with the identity (Le, Jaitly and Hinton 2015), whose radius is 1 and whose start is its own; GRU; LSTM.
    """
    gates = settings.pop("gate_bias", None)
    if settings.get("gain") is None:
        settings["gain"] = USUAL["gain"]  # the same inputs for all
    return {
        "tanh": DescribedNet(**settings),
        "ReLU, identity start": DescribedNet(**settings | {"nonlinearity": "relu", "init": "identity", "radius": 1.0}),
        "GRU": DescribedNet(cell="gru", gate_bias=gates, **settings),
        "LSTM": DescribedNet(cell="lstm", gate_bias=gates, **settings),
    }
