"""The settings of a training run."""

import math
from dataclasses import dataclass

from .. import _checks
from .._kernels import kernels
from ..functional import NONLINEARITIES
from .model import CELLS

UPDATES = 5000
DTYPES = tuple(dtype.name for dtype in kernels)
RATES = {"rnn": 1.2, "gru": 2.0, "lstm": 1.2}  # what suits them: learning rate times units
LARGEST = 1e6  # for any size or rate that could be meant
SCHEDULES = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Settings:
    """What decides the course of a training run, besides the text.

    Attributes
    ----------
    cell : {"rnn", "gru", "lstm"}
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"} or None
        Of an RNN, where None means tanh; the others have no choice.
    dtype : {"float64", "float32"}
        Of all parameters, states and gradients.
    hidden : int
        Units of the recurrent layer.
    seq_len : int
        Steps in a window: how far each gradient goes back.
    batch : int
        Streams read in parallel.
    lr : float or None
        The highest learning rate. None means 1.2 / hidden, for the GRU 2 / hidden, and at most 0.01.
    schedule : {"cosine", "linear", "constant"}
        How the learning rate falls to 0.
    clip : float
        The largest gradient norm; ``inf`` for any.
    seed : int
    updates : int or None
        The length of the run; None means 5000, or as many as there is time for.
    minutes : float or None
        The length of the run, if it is to be measured by the clock.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be.
    """

    cell: str = "gru"
    nonlinearity: str | None = None
    dtype: str = "float32"
    hidden: int = 256
    seq_len: int = 50
    batch: int = 16
    lr: float | None = None
    schedule: str = "cosine"
    clip: float = 1.0
    seed: int = 0
    updates: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        for name, size in (("hidden", self.hidden), ("seq-len", self.seq_len), ("batch", self.batch)):
            _checks.number(name, _checks.size(name, size), 1, LARGEST)
        _checks.size("seed", self.seed, 0)
        _checks.one_of("cell", self.cell, tuple(CELLS))
        _checks.one_of("dtype", self.dtype, DTYPES)
        self._settle_nonlinearity()
        _checks.one_of("schedule", self.schedule, tuple(SCHEDULES))
        _checks.number("clip", self.clip, 0, above=True)
        if self.lr is None:
            object.__setattr__(self, "lr", min(0.01, RATES[self.cell] / self.hidden))
        _checks.number("lr", self.lr, 0, LARGEST, above=True)
        if self.minutes is not None:
            _checks.number("minutes", self.minutes, 0, LARGEST, above=True)
            if self.updates is not None:
                raise ValueError("updates: a run has either so many updates or so many minutes")
        elif self.updates is None:
            object.__setattr__(self, "updates", UPDATES)
        else:
            _checks.size("updates", self.updates)

    @property
    def net(self):
        """The recurrent layer in words."""
        return ", ".join(filter(None, (self.cell.upper(), self.nonlinearity, self.dtype)))

    def _settle_nonlinearity(self):
        if self.nonlinearity is None:
            object.__setattr__(self, "nonlinearity", "tanh" if self.cell == "rnn" else None)
        elif self.cell != "rnn":
            raise ValueError(f"nonlinearity: only the cell rnn has a choice of it; this is {self.cell}")
        else:
            _checks.one_of("nonlinearity", self.nonlinearity, NONLINEARITIES)
