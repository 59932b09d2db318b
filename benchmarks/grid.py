"""The table of cases: which layers are measured, in which sizes, on which numbers.

Sizes: T steps, B rows of the batch, I inputs, H hidden units, G gates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastbptt.cells import CELLS as KNOWN

# Each layer that can be measured, and what the interfaces call it: a vanilla RNN goes by its nonlinearity here.
LAYERS = {"tanh": "rnn", "relu": "rnn"} | {name: name for name, cell in KNOWN.items() if cell.gated}

# What the benchmarks measure unless asked otherwise.
CELLS = ("tanh", "gru", "lstm")
DTYPES = ("float64", "float32")
STEPS = 100
BATCHES = (1, 16, 64)
WIDTHS = (32, 128, 512)
PASSES = {"both": "forward + backward", "forward": "forward"}


class Arrays(NamedTuple):
    """The numbers of a case: ``x`` (T, B, I), ``state`` (h0,) or (h0, c0), the weights in PyTorch's layout, ``d_out`` (T, B, H)."""

    x: np.ndarray
    state: tuple
    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray
    b_hh: np.ndarray
    d_out: np.ndarray

    @property
    def weights(self):
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh

    def astype(self, dtype):
        return Arrays(*(tuple(s.astype(dtype) for s in a) if isinstance(a, tuple) else a.astype(dtype) for a in self))


@dataclass(frozen=True)
class Case:
    """One layer at one size."""

    cell: str
    dtype: str
    T: int
    B: int
    I: int
    H: int

    def __str__(self):
        inputs = "" if self.I == self.H else f" I={self.I}"
        return f"{self.cell} {self.dtype} T={self.T} B={self.B}{inputs} H={self.H}"

    @property
    def family(self):
        """The layer's name in the interfaces."""
        return LAYERS[self.cell]

    @property
    def traits(self):
        """What fastbptt knows of the cell: its row."""
        return KNOWN[self.family]

    def flops(self, backward=True):
        """Floating-point operations of the matrix products; the backward pass has two for each of the forward pass."""
        forward = 2 * self.T * self.B * len(self.traits.gates) * self.H * (self.I + self.H)
        return 3 * forward if backward else forward

    def arrays(self, seed=0):
        """Fixed random numbers: weights as PyTorch initialises them, a state that is not zero, a cotangent for every output."""
        rng = np.random.default_rng(seed)
        T, B, I, H, N = self.T, self.B, self.I, self.H, len(self.traits.gates) * self.H
        weights = (rng.uniform(-1, 1, shape) / np.sqrt(H) for shape in ((N, I), (N, H), N, N))
        state = tuple(rng.standard_normal((B, H)) for _ in self.traits.states)
        return Arrays(rng.standard_normal((T, B, I)), state, *weights, rng.standard_normal((T, B, H))).astype(self.dtype)


def grid(cells=CELLS, dtypes=DTYPES, batches=BATCHES, widths=WIDTHS, T=STEPS):
    """All cases of the product, inputs as wide as the layer."""
    return [Case(cell, dtype, T, B, H, H) for dtype in dtypes for cell in cells for B in batches for H in widths]
