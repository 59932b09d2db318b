"""The settings of a training run."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from ... import _checks
from ...cells import CELLS
from ...init import STARTS
from ...optim import SGD, Adam, RMSprop
from ...stacks import MOST_LAYERS
from ...tasks import TASKS
from .model import Model, nonlinearity_of

OPTIMISERS = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam}
SCHEDULES = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the course of a training run, whatever is learned: see `TextSettings` and `TaskSettings` for the rest, and the defaults.

    Attributes
    ----------
    cell : {"rnn", "gru", "lstm"}
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"} or None
        Of an RNN, where None means the one that the start is made for; the others have no choice.
    dtype : {"float64", "float32"}
        Of all parameters, states and gradients.
    hidden : int
        Units of a recurrent layer.
    layers : int
        Recurrent layers, one above the other.
    dropout : float
        How likely each number between two of them is left out of an update.
    init : str or None
        How the parameters are drawn: one of `fastbptt.init.STARTS`.
    batch : int
        Rows read in parallel.
    optimiser : {"sgd", "rmsprop", "adam"}
    lr : float or None
        The highest learning rate.
    schedule : {"cosine", "linear", "constant"}
        How the learning rate goes on.
    clip : float
        The largest gradient norm; ``inf`` for any.
    omega : float
        The weight of `fastbptt.omega`, the penalty on gradients that shrink or grow; 0 for none.
    seed : int
    updates : int or None
        The length of the run; None means `UPDATES`, or as many as there is time for.
    minutes : float or None
        The length of the run, if it is to be measured by the clock.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be.
    """

    UPDATES: ClassVar[int]

    cell: str
    nonlinearity: str | None = None
    dtype: str
    hidden: int
    layers: int = 1
    dropout: float = 0.0
    init: str | None = None
    batch: int
    optimiser: str
    lr: float | None = None
    schedule: str
    clip: float = 1.0
    omega: float = 0.0
    seed: int = 0
    updates: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        for name in ("hidden", "batch"):
            _checks.number(name, _checks.size(name, getattr(self, name)), 1, _checks.LARGEST)
        _checks.size("layers", self.layers, 1, MOST_LAYERS)
        _checks.size("seed", self.seed, 0)
        _checks.one_of("cell", self.cell, tuple(CELLS))
        _checks.one_of("dtype", self.dtype, _checks.DTYPES)
        self._settle_start()
        _checks.one_of("optimiser", self.optimiser, tuple(OPTIMISERS))
        _checks.one_of("schedule", self.schedule, tuple(SCHEDULES))
        _checks.number("clip", self.clip, 0, above=True)
        _checks.number("omega", self.omega, 0, _checks.LARGEST)
        self._set("dropout", _checks.share("dropout", self.dropout))
        if self.dropout and self.layers == 1:
            raise ValueError("dropout: it is between layers, of which this net has one; ask for more of them, too")
        if self.omega and self.layers > 1:
            raise ValueError("omega: it is for nets of one layer")
        if self.lr is None:
            self._set("lr", self._usual_rate())
        _checks.number("lr", self.lr, 0, _checks.LARGEST, above=True)
        if self.minutes is not None:
            _checks.number("minutes", self.minutes, 0, _checks.LARGEST, above=True)
            if self.updates is not None:
                raise ValueError("updates: a run has either so many updates or so many minutes")
        elif self.updates is None:
            self._set("updates", self.UPDATES)
        else:
            _checks.size("updates", self.updates)

    @classmethod
    def names(cls):
        """The names of all settings, as the keys of a dict: in their order."""
        return dict.fromkeys(field.name for field in fields(cls))

    @property
    def net(self):
        """The recurrent layers in words."""
        stack = f"{self.layers} layers" if self.layers > 1 else None
        dropout = f"dropout {self.dropout:g}" if self.dropout else None
        return ", ".join(filter(None, (self.cell.upper(), self.nonlinearity, stack, dropout, self.dtype)))

    def model(self, inputs, outputs, rng):
        """A `Model` that has learned nothing."""
        start = {name: getattr(self, name) for name in ("layers", "dropout", "cell", "nonlinearity", "dtype", "init")}
        return Model(inputs, self.hidden, outputs, **start, rng=rng)

    def _settle_start(self):
        """The start, and the nonlinearity, which may depend on it."""
        if self.init is None:
            self._set("init", self._usual_start())
        start = STARTS[_checks.one_of("init", self.init, tuple(STARTS))]
        if CELLS[self.cell].gated and not start.gated:
            raise ValueError(f"init: only the cell rnn has the start {self.init}; this is {self.cell}")
        if not CELLS[self.cell].gated and not start.plain:
            raise ValueError(f"init: only cells with gates have the start {self.init}; this is {self.cell}")
        self._set("nonlinearity", nonlinearity_of(self.cell, self.nonlinearity, start.nonlinearity))

    def _set(self, name, value):
        object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """How to learn to predict the characters of a text, or its words.

    Attributes
    ----------
    seq_len : int
        Steps in a window: how far each gradient goes back.
    words : bool
        Whether tokens are words.
    vocabulary : int or None
        How many different ones at most; all others are one token. None means `VOCABULARY`, and that there are no words.
    """

    UPDATES: ClassVar[int] = 5000
    VOCABULARY: ClassVar[int] = 10_000

    cell: str = "gru"
    dtype: str = "float32"
    hidden: int = 256
    batch: int = 16
    optimiser: str = "rmsprop"
    schedule: str = "cosine"
    seq_len: int = 50
    words: bool = False
    vocabulary: int | None = None

    def __post_init__(self):
        _checks.flag("words", self.words)
        if self.vocabulary is not None:
            if not self.words:
                raise ValueError("vocabulary: it is of words; ask for them, too")
            _checks.number("vocabulary", _checks.size("vocabulary", self.vocabulary, 2), 2, _checks.LARGEST)
        elif self.words:
            self._set("vocabulary", self.VOCABULARY)
        _checks.number("seq-len", _checks.size("seq-len", self.seq_len), 1, _checks.LARGEST)
        super().__post_init__()

    def _usual_start(self):
        return "default"

    def _usual_rate(self):
        return 1.0 if self.optimiser == "sgd" else min(0.01, CELLS[self.cell].rate / self.hidden)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """How to learn a task that needs a long memory; the defaults are those of Pascanu, Mikolov and Bengio (2013), where they say.

    Attributes
    ----------
    task : str
        One of `fastbptt.tasks.TASKS`.
    length : int or (int, int)
        Its length, or a range of lengths.
    check_every : int
        Updates between evaluations.
    """

    UPDATES: ClassVar[int] = 100_000

    cell: str = "rnn"
    dtype: str = "float64"
    hidden: int = 50
    batch: int = 20
    optimiser: str = "sgd"
    schedule: str = "constant"
    task: str
    length: int | tuple[int, int] = 50
    check_every: int = 500

    def __post_init__(self):
        if isinstance(self.length, list):
            self._set("length", tuple(self.length))
        _checks.one_of("task", self.task, tuple(TASKS))
        TASKS[self.task](self.length)
        _checks.size("check-every", self.check_every)
        super().__post_init__()

    def _usual_start(self):
        return "default" if CELLS[self.cell].gated else "basic-tanh"

    def _usual_rate(self):
        return 0.01 if self.optimiser == "sgd" else 0.001
