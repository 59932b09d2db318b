"""The cells: a row says all that the package must know of one, but for its equations (`_kernels/cells.pxi`, and plainly `reference.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ._typing import Array, CellName, Float64s

if TYPE_CHECKING:
    from .tape import Tape


class Nonlinearity(NamedTuple):
    """A function f."""

    number: int  # what the kernels call it
    steepest: float  # gamma = sup f'
    slope: Callable[[Array, Array], Array]  # f'(a), from a and f(a)
    curvature: Callable[[Array, Array], Array]  # f''(a), from f(a) and f'(a)


class Gate(NamedTuple):
    """A block of H pre-activations."""

    letter: str
    name: str
    nonlinearity: str | None  # None: the one that the caller chooses
    keeps: int = 0  # whether the past is kept where it is open (1) or where it is shut (-1)


#: `Linearised`'s keep, slopes, show and gate_slopes, in float64.
Derivatives: TypeAlias = "tuple[Array | None, Array, Array | None, Array]"


class Cell(NamedTuple):
    """What turns an input and a state into the next state."""

    name: CellName
    number: int  # what the kernels call it
    gates: tuple[Gate, ...]
    states: tuple[str, ...]  # ("h",) or ("h", "c")
    derivatives: Callable[[Tape, Float64s, Float64s], Derivatives]  # of all steps of a tape
    rate: float  # what suits it on a text, with RMSprop: learning rate times units
    reset_after: bool = False  # whether W_hh h + b_hh of the last gate is multiplied by another: as m on the tape, and with its own db_hh
    tape_gates: bool = True  # whether the gates are kept on the tape; or else only with a leak, since without one they are the states

    @property
    def gated(self) -> bool:
        """Whether it has gates; if not, it is a vanilla RNN, whose nonlinearity the caller chooses."""
        return len(self.gates) > 1

    @property
    def keeper(self) -> Gate | None:
        """The gate that keeps the past, or None."""
        return next((gate for gate in self.gates if gate.keeps), None)

    def state(self, parts: Sequence[Any]) -> Any:
        """A state of these parts as the functions take and return it: an array, or a tuple of them."""
        return parts[0] if len(self.states) == 1 else tuple(parts)

    def title(self, nonlinearity: str) -> str:
        """The cell in words."""
        return self.name.upper() if self.gated else f"{nonlinearity} {self.name.upper()}"


def sigmoid(a: Array) -> tuple[Array, Array]:
    """The sigmoid and its derivative, which has all its digits in saturation too."""
    e = np.exp(-np.abs(a))
    return np.where(a < 0, e, 1.0) / (1 + e), e / (1 + e) ** 2


def tanh_slope(a: Array) -> Array:
    """sech^2, with all its digits in saturation too."""
    e = np.exp(-2 * np.abs(a))
    return 4 * e / (1 + e) ** 2


def activations(tape: Tape) -> Array:
    """f(a), of a vanilla RNN."""
    return tape.h[1:] if tape.gates is None else tape.gates


def _rnn(tape: Tape, a_x: Float64s, a_h: Float64s) -> Derivatives:
    slope = NONLINEARITIES[tape.nonlinearity].slope(a_x + a_h, activations(tape))
    if tape.leak is None:
        return None, slope, None, slope
    # h_t = (1 - leak) h_{t-1} + leak f(a)
    leak = tape.leak.astype(np.float64)
    return np.broadcast_to(1 - leak, slope.shape), leak * slope, None, slope


def _gru(tape: Tape, a_x: Float64s, a_h: Float64s) -> Derivatives:
    (a_r, a_z, a_n), (m_r, m_z, m) = np.split(a_x, 3, axis=-1), np.split(a_h, 3, axis=-1)
    (r, d_r), (z, d_z) = sigmoid(a_r + m_r), sigmoid(a_z + m_z)
    a_n = a_n + r * m
    d_n = tanh_slope(a_n)
    # h_t = (1 - z) n + z h_{t-1}, with n = tanh(a_n + r m), and 1 - z = sigmoid(-a_z)
    into = sigmoid(-(a_z + m_z))[0] * d_n
    slopes = np.concatenate([into * m * d_r, (tape.h[:-1] - np.tanh(a_n)) * d_z, into * r], axis=-1)
    return z, slopes, None, np.concatenate([d_r, d_z, d_n], axis=-1)


def _lstm(tape: Tape, a_x: Float64s, a_h: Float64s) -> Derivatives:
    assert tape.c is not None
    c = tape.c.astype(np.float64, copy=False)
    a_i, a_f, a_g, a_o = np.split(a_x + a_h, 4, axis=-1)
    (i, d_i), (f, d_f), (o, d_o) = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
    g, d_g = np.tanh(a_g), tanh_slope(a_g)
    # c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)
    slopes = np.concatenate([g * d_i, c[:-1] * d_f, i * d_g, np.tanh(c[1:]) * d_o], axis=-1)
    return f, slopes, o * tanh_slope(c[1:]), np.concatenate([d_i, d_f, d_g, d_o], axis=-1)


NONLINEARITIES: dict[str, Nonlinearity] = {
    "tanh": Nonlinearity(0, 1.0, lambda a, f_a: tanh_slope(a), lambda f_a, slope: -2 * f_a * slope),
    # 1 where the unit is on; as in the kernels, that is read off f(a), so that rounding here cannot tell otherwise
    "relu": Nonlinearity(1, 1.0, lambda a, f_a: np.where(f_a <= 0, 0.0, 1.0), lambda f_a, slope: np.zeros_like(slope)),
    "sigmoid": Nonlinearity(2, 0.25, lambda a, f_a: sigmoid(a)[1], lambda f_a, slope: (1 - 2 * f_a) * slope),
    "identity": Nonlinearity(3, 1.0, lambda a, f_a: np.ones(a.shape), lambda f_a, slope: np.zeros_like(slope)),
}
RZN = Gate("r", "reset", "sigmoid"), Gate("z", "update", "sigmoid", keeps=1), Gate("n", "new", "tanh")
IFGO = Gate("i", "input", "sigmoid"), Gate("f", "forget", "sigmoid", keeps=1), Gate("g", "cell", "tanh"), Gate("o", "output", "sigmoid")
CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn", 0, (Gate("h", "unit", None),), ("h",), _rnn, rate=1.2, tape_gates=False),
        Cell("gru", 1, RZN, ("h",), _gru, rate=2.0, reset_after=True),
        Cell("lstm", 2, IFGO, ("h", "c"), _lstm, rate=1.2),
    )
}
