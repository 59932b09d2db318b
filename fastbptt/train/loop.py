"""Training a character-level net: truncated BPTT over parallel streams, clipping by the norm, RMSprop."""

import copy
import math
import time

import numpy as np

from ..clipping import clip_grad_norm_
from ..losses import softmax_cross_entropy
from ..optim import RMSprop
from ..truncation import TruncatedBPTT
from .model import CharacterModel
from .settings import SCHEDULES
from .text import decode

WARM_UP = 100  # updates until the learning rate is reached: what RMSprop's mean square, with its alpha of 0.99, remembers
RECENT = 100  # updates that the displayed loss is the mean of


class Training:
    """A training run, one update at a time.

    The same settings and text give the same bits, at any number of threads; so does a run that was saved and resumed
    (`fastbptt.train.resume`) at any update.

    Parameters
    ----------
    settings : Settings
    corpus : fastbptt.train.text.Corpus

    Attributes
    ----------
    model : CharacterModel
    losses, norms : list of float
        Of every update so far: the window's mean cross-entropy, and the gradient norm before clipping.
    clipped : int
        How many updates were clipped.
    seconds : float
        Time spent in updates; of a resumed run, since then, unless it is what the run is measured by.
    characters : int
        Characters read since the run began or was resumed.

    Raises
    ------
    ValueError
        If the text is too short.

    Examples
    --------
    >>> from fastbptt.train.settings import Settings
    >>> from fastbptt.train.text import read_corpus
    >>> training = Training(Settings(hidden=8, batch=4, seq_len=10, updates=3), read_corpus())
    >>> while not training.done:
    ...     training.update()
    >>> len(training.losses), training.losses[0] > 4
    (3, True)
    """

    def __init__(self, settings, corpus):
        self.settings, self.corpus = settings, corpus
        self.inputs, self.targets = corpus.streams(settings.batch, settings.seq_len)
        self.windows = -(-self.inputs.shape[1] // settings.seq_len)
        self.rng = np.random.default_rng(settings.seed)
        self.model = CharacterModel(
            len(corpus.vocabulary),
            settings.hidden,
            cell=settings.cell,
            nonlinearity=settings.nonlinearity,
            dtype=settings.dtype,
            rng=self.rng,
        )
        self.optimiser = RMSprop(self.model.layers)
        self.reader = TruncatedBPTT(self.model.rnn, settings.seq_len)
        self.losses, self.norms = [], []
        self.clipped = self.characters = 0
        self.seconds = 0.0

    @property
    def updates(self):
        """How many updates have been made."""
        return len(self.losses)

    @property
    def progress(self):
        """The share of the run that is done, from 0 to 1."""
        if self.settings.minutes is None:
            return min(1.0, self.updates / self.settings.updates)
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    @property
    def done(self):
        return self.progress >= 1

    @property
    def recent_loss(self):
        """The mean loss of the latest updates."""
        latest = self.losses[-RECENT:]
        return sum(latest) / len(latest)

    @property
    def learning_rate(self):
        """Of the next update."""
        return self.settings.lr * min(1.0, self.updates / WARM_UP) * SCHEDULES[self.settings.schedule](self.progress)

    def update(self):
        """Read one window of every stream, and learn from it.

        Raises
        ------
        FloatingPointError
            If the loss or the gradient is not finite. The parameters are then as they were.
        """
        start = time.perf_counter()
        inputs, targets = self._next_window()
        out = self.reader.forward(inputs)
        loss, d_logits = softmax_cross_entropy(self.model.readout(out), targets)
        self._require_finite("loss", loss)
        self.model.zero_grad()
        self.reader.backward(self.model.readout.backward(d_logits), need_dx=False)
        norm = clip_grad_norm_(self.model.layers, self.settings.clip, nonfinite="skip")
        self._require_finite("gradient norm", norm)
        self.optimiser.lr = self.learning_rate
        self.optimiser.step()
        self._record(loss, norm, inputs.size, time.perf_counter() - start)

    def held_out_loss(self):
        """The mean cross-entropy of the held-out text, read once from its beginning to its end."""
        return self.model.loss(self.corpus.held_out)

    def sample(self, length, temperature):
        """Text by the net, as if after a line break. The same run gives the same text."""
        break_ = np.flatnonzero(self.corpus.vocabulary == ord("\n"))
        first = int(break_[0]) if break_.size else 0
        tokens = self.model.generate(first, length, temperature=temperature, rng=copy.deepcopy(self.rng))
        return decode(self.corpus.vocabulary, tokens)

    def _next_window(self):
        """Inputs and targets (T, B). The streams are cut into windows of seq_len steps, or one less, so that none is short."""
        window = self.updates % self.windows
        if window == 0:
            self.reader.reset()
        length = self.inputs.shape[1]
        steps = slice(length * window // self.windows, length * (window + 1) // self.windows)
        return self.inputs[:, steps].T, self.targets[:, steps].T

    def _require_finite(self, what, value):
        if not math.isfinite(value):
            raise FloatingPointError(f"update {self.updates + 1}: the {what} is {value}")

    def _record(self, loss, norm, characters, seconds):
        self.losses.append(loss)
        self.norms.append(norm)
        self.clipped += norm > self.settings.clip
        self.characters += characters
        self.seconds += seconds
