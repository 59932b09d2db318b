"""The cells under test, and random problems for them. Most test files take a new cell from its row in CELLS."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from tolerances import assert_close, assert_same_bits

from fastbptt import cells

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


NONLINEARITIES = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid, "identity": lambda a: a}


# The next state of a net of one unit, written out: the equations of the documentation, in numbers. a = W_ih x + b_ih, m = W_hh h + b_hh.


def rnn_step(a, m, h, nonlinearity, leak=1.0):
    return [(1 - leak) * h + leak * NONLINEARITIES[nonlinearity](a[0] + m[0])]


def gru_step(a, m, h):
    r, z = sigmoid(a[0] + m[0]), sigmoid(a[1] + m[1])
    n = np.tanh(a[2] + r * m[2])
    return [(1 - z) * n + z * h]


def lstm_step(a, m, h, c):
    i, f, g, o = (squash(a_k + m_k) for squash, a_k, m_k in zip((sigmoid, sigmoid, np.tanh, sigmoid), a, m))
    c = f * c + i * g
    return [o * np.tanh(c), c]


class Cell(NamedTuple):
    """A cell: its functions and options. ``torch`` is its class in torch.nn, with the arguments to make it the same cell."""

    prefix: str
    step: Callable
    options: dict
    torch: tuple | None
    leak: str | None = None  # "scalar" or "per unit"

    @property
    def row(self):
        """What the package knows of it."""
        return cells.CELLS[self.prefix]

    @property
    def gates(self):
        """How many."""
        return len(self.row.gates)

    @property
    def states(self):
        """How many: h, or h and c."""
        return len(self.row.states)


CELLS = {
    "rnn-tanh": Cell("rnn", rnn_step, {"nonlinearity": "tanh"}, ("RNN", {"nonlinearity": "tanh"})),
    "rnn-relu": Cell("rnn", rnn_step, {"nonlinearity": "relu"}, ("RNN", {"nonlinearity": "relu"})),
    "rnn-sigmoid": Cell("rnn", rnn_step, {"nonlinearity": "sigmoid"}, None),
    "rnn-identity": Cell("rnn", rnn_step, {"nonlinearity": "identity"}, None),
    "leaky-tanh": Cell("rnn", rnn_step, {"nonlinearity": "tanh"}, None, "scalar"),
    "leaky-relu-units": Cell("rnn", rnn_step, {"nonlinearity": "relu"}, None, "per unit"),
    "gru": Cell("gru", gru_step, {}, ("GRU", {})),
    "lstm": Cell("lstm", lstm_step, {}, ("LSTM", {})),
}
# Where the nonlinearity makes no difference: the first row of each cell, of those that have gates, and with one that leaks.
PLAIN = [next(key for key, row in CELLS.items() if row.prefix == name) for name in cells.CELLS]
GATED = [key for key in PLAIN if cells.CELLS[CELLS[key].prefix].gated]
ONE_OF_EACH = [key for key in CELLS if key in PLAIN or key == "leaky-relu-units"]


def cells_and_shapes(shapes):
    """Each cell at each shape (T, B, I, H), but one cell of each kind where there are many steps or products: those are the same for all."""
    few = [shape for shape in shapes if is_small(*shape)]
    return [(cell, shape) for cell in CELLS for shape in (shapes if cell in ONE_OF_EACH else few)]


def is_small(T, B, I, H):
    return T <= 500 and T * B * H * (I + H) <= 2e6


LEAK = float(np.float32(0.3))  # the same number in every precision


def arrays_of(state):
    """A state as a tuple of arrays: (h,) or (h, c); none for None."""
    return () if state is None else state if isinstance(state, tuple) else (state,)


@dataclass
class Problem:
    """The arguments of one forward and one backward call. A state, and its gradient, is a tuple of arrays or Nones, or None."""

    cell: Cell
    x: np.ndarray
    state: tuple | None
    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray | None
    b_hh: np.ndarray | None
    d_out: np.ndarray | None
    d_state: tuple | None
    leak: np.ndarray | float | None = None
    options: dict = field(default_factory=dict)

    def forward(self, module):
        """(out, final state, tape) from ``module``: fastbptt or its reference."""
        run = getattr(module, f"{self.cell.prefix}_forward")
        return run(self.x, self._state(self.state), self.w_ih, self.w_hh, self.b_ih, self.b_hh, **self.all_options())

    def all_options(self):
        return self.cell.options | ({} if self.leak is None else {"leak": self.leak}) | self.options

    def backward(self, module, tape, **options):
        return getattr(module, f"{self.cell.prefix}_backward")(tape, self.d_out, self._state(self.d_state), **options)

    def results(self, module, **options):
        """All that the two calls return, by name."""
        out, state, tape = self.forward(module)
        grads = self.backward(module, tape, **options)
        return results_by_name(out, state, grads)

    def arrays(self):
        """All array arguments by name, (name, index) within a state."""
        for name in ("x", *WEIGHTS, "d_out", "leak"):
            if isinstance(getattr(self, name), np.ndarray):
                yield name, getattr(self, name)
        for name in ("state", "d_state"):
            for i, array in enumerate(getattr(self, name) or ()):
                if array is not None:
                    yield (name, i), array

    def with_array(self, key, array):
        """The same problem with another array under a key of `arrays`."""
        if isinstance(key, str):
            return replace(self, **{key: array})
        name, i = key
        arrays = list(getattr(self, name))
        arrays[i] = array
        return replace(self, **{name: tuple(arrays)})

    def astype(self, dtype):
        """The same problem in another element type; tokens stay."""
        problem = self
        for key, array in self.arrays():
            if array.dtype.kind not in "iu":
                problem = problem.with_array(key, array.astype(dtype))
        return problem

    def steps(self, start, stop, state=None, d_state=None):
        """A piece of the sequence, between states of its own."""
        d_out = None if self.d_out is None else self.d_out[start:stop]
        return replace(self, x=self.x[start:stop], d_out=d_out, state=state, d_state=d_state)

    def rows(self, index):
        """Some rows of the batch."""
        d_out = None if self.d_out is None else self.d_out[:, index]
        cut = [None if state is None else tuple(array[index] for array in state) for state in (self.state, self.d_state)]
        return replace(self, x=self.x[:, index], d_out=d_out, state=cut[0], d_state=cut[1])

    @property
    def K(self):
        """The longest sum of products in one step: over inputs and units forward, over the batch for the weights."""
        return max(sum(self.w_ih.shape[1:]) + self.w_hh.shape[1], self.w_hh.shape[0], self.x.shape[1])

    def _state(self, arrays):
        return None if arrays is None else self.cell.row.state(arrays)


def results_by_name(out, state, grads):
    named = {"out": out}
    named |= {f"final state {i}": array for i, array in enumerate(arrays_of(state))}
    named |= {f"d_{name}": getattr(grads, name) for name in ("x", *WEIGHTS)}
    if grads.w_hr is not None:
        named["d_w_hr"] = grads.w_hr
    named |= {f"d_initial_state {i}": array for i, array in enumerate(arrays_of(grads.state))}
    return named


def random_problem(cell, T=5, B=3, I=4, H=7, *, seed=0, dtype=np.float64, tokens=False, biases=(True, True), gain=0.9):
    """Weights with a spectral radius of about ``gain``, and random values for everything else: states and cotangents too."""
    if isinstance(cell, str):
        cell = CELLS[cell]
    rng = np.random.default_rng([seed, T, B, I, H])
    N = cell.gates * H

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    def states():
        return tuple(normal(B, H) for _ in range(cell.states))

    return Problem(
        cell,
        rng.integers(0, I, (T, B)) if tokens else normal(T, B, I),
        states(),
        normal(N, I, scale=I**-0.5),
        normal(N, H, scale=gain * H**-0.5),
        normal(N, scale=0.5) if biases[0] else None,
        normal(N, scale=0.5) if biases[1] else None,
        normal(T, B, H),
        states(),
        {"scalar": LEAK, "per unit": (1 - rng.random(H)).astype(dtype), None: None}[cell.leak],
    )


def histories(tape):
    """The tape's arrays of states, initial ones first: (h,) or (h, c)."""
    return tuple(getattr(tape, name) for name in cells.CELLS[tape.cell].states)


def assert_results_close(got, expected, limit, relative=0.0):
    """Each result to within ``limit`` of its largest element, or of `kin_of`'s if it is so small that terms may have cancelled.

    Or, if that is more, to within ``relative`` of the element itself on top.
    """
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = None
        if value is not None and 0 < value.size < 16:
            scale = max(np.abs(expected[other]).max(initial=0) for other in kin_of(name) if expected.get(other) is not None)
        assert_close(name, got[name], value, limit, scale, relative)


def kin_of(name):
    """Results on one scale, since they are made of the same terms: states, sums over time, gradients carried back."""
    states, passed_back = [f"final state {i}" for i in range(2)], [f"d_initial_state {i}" for i in range(2)]
    weights = [f"d_{weight}" for weight in (*WEIGHTS, "w_hr")]
    return next(kin for kin in (["out", *states], ["d_x", *passed_back], weights) if name in kin)


def assert_results_same_bits(got, expected, names=None):
    assert got.keys() == expected.keys()
    for name in names or expected:
        assert_same_bits(name, got[name], expected[name])
