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
    """The numbers of a case.

    ``x`` (T, B, I); ``state`` (h0,) or (h0, c0), of a stack one for each direction; ``weights``, in PyTorch's layout and order;
    ``d_out``, as the outputs.
    """

    x: np.ndarray
    state: tuple
    weights: tuple
    d_out: np.ndarray

    def astype(self, dtype):
        return Arrays(*(tuple(part.astype(dtype) for part in a) if isinstance(a, tuple) else a.astype(dtype) for a in self))


@dataclass(frozen=True)
class Case:
    """One layer, or stack of layers, at one size.

    Attributes
    ----------
    cell, dtype : str
    T, B, I, H : int
    lengths : {None, "full", "uniform"}
        The steps of each row: not said, said to be all, drawn from 1 to T.
    resets : float
        The share of all (step, row) pairs before which the state is set to zero.
    layers : int
    bidirectional : bool
    """

    cell: str
    dtype: str
    T: int
    B: int
    I: int
    H: int
    lengths: str | None = None
    resets: float = 0.0
    layers: int = 1
    bidirectional: bool = False

    def __str__(self):
        inputs = "" if self.I == self.H else f" I={self.I}"
        return f"{self.cell} {self.dtype} T={self.T} B={self.B}{inputs} H={self.H} {self.kind}".rstrip()

    @property
    def kind(self):
        """What is more than a rectangle's way through one layer, in words; as a rule, nothing."""
        stack = [f"layers={self.layers}"] * (self.layers > 1) + ["bidirectional"] * self.bidirectional
        rows = [f"lengths={self.lengths}"] * bool(self.lengths) + [f"resets={self.resets:g}"] * bool(self.resets)
        return " ".join(stack + rows)

    @property
    def family(self):
        """The layer's name in the interfaces."""
        return LAYERS[self.cell]

    @property
    def traits(self):
        """What fastbptt knows of the cell: its row."""
        return KNOWN[self.family]

    @property
    def is_stack(self):
        return self.layers > 1 or self.bidirectional

    @property
    def sides(self):
        """Directions of each layer."""
        return 2 if self.bidirectional else 1

    def ragged(self):
        """``lengths`` and ``resets``, as far as there are any."""
        rng, options = np.random.default_rng(0), {}
        if self.lengths:
            options["lengths"] = np.full(self.B, self.T) if self.lengths == "full" else rng.integers(1, self.T + 1, self.B)
        if self.resets:
            options["resets"] = rng.random((self.T, self.B)) < self.resets
        return options

    def inputs(self):
        """How many numbers each direction of each layer reads."""
        return [self.sides * self.H if layer else self.I for layer in range(self.layers) for _ in range(self.sides)]

    def flops(self, backward=True):
        """Floating-point operations of the matrix products; the backward pass has two for each of the forward pass."""
        steps = self.ragged().get("lengths", np.full(self.B, self.T)).sum()
        forward = 2 * int(steps) * len(self.traits.gates) * self.H * sum(I + self.H for I in self.inputs())
        return 3 * forward if backward else forward

    def arrays(self, seed=0):
        """Fixed random numbers: weights as PyTorch initialises them, a state that is not zero, a cotangent for every output."""
        rng = np.random.default_rng(seed)
        T, B, I, H, N = self.T, self.B, self.I, self.H, len(self.traits.gates) * self.H
        shapes = [shape for width in self.inputs() for shape in ((N, width), (N, H), N, N)]
        weights = tuple(rng.uniform(-1, 1, shape) / np.sqrt(H) for shape in shapes)
        state = tuple(rng.standard_normal((self.layers * self.sides, B, H) if self.is_stack else (B, H)) for _ in self.traits.states)
        return Arrays(rng.standard_normal((T, B, I)), state, weights, rng.standard_normal((T, B, self.sides * H))).astype(self.dtype)


def grid(cells=CELLS, dtypes=DTYPES, batches=BATCHES, widths=WIDTHS, T=STEPS, **others):
    """All cases of the product, inputs as wide as the layer; ``others`` are fields of every case."""
    return [Case(cell, dtype, T, B, H, H, **others) for dtype in dtypes for cell in cells for B in batches for H in widths]
