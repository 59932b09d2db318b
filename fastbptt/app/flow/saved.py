"""Nets out of the checkpoints of `fastbptt train`, on what they were trained on, with their real loss: what their gradients do."""

import numpy as np

from ... import _checks
from ...cells import CELLS
from ...gradients.flow import gradient_flow
from ...losses import softmax_cross_entropy
from ...tasks import TASKS
from ..train.checkpoint import damage_named
from ..train.saved_run import load_run
from ..train.text import read_again
from ..train.words import tokens_of, vocabulary_of

BATCH = 4


def load_net(path):
    """The net of a checkpoint: a `TextNet` or a `TaskNet`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no checkpoint, or a damaged one.
    """
    saved = load_run(path)
    with damage_named(path):
        return {"text": TextNet, "task": TaskNet}[saved.objective_type.kind](saved)


class SavedNet:
    """What both have: the run that was saved, and its model."""

    def __init__(self, saved, inputs, outputs):
        self.path, self.settings, self.description = saved.path, saved.settings, saved.description
        self.model = saved.model(inputs, outputs)
        self.model.rnn.dropout = 0.0  # what is looked at is the net itself

    def __str__(self):
        rnn = self.model.rnn
        kind = CELLS[rnn._cell].title(getattr(rnn, "nonlinearity", None))
        units = f"{rnn.hidden_size} units" if rnn.num_layers == 1 else f"the last of {rnn.num_layers} layers of {rnn.hidden_size} units"
        return f"{kind}, {units}, {rnn.dtype}, of {self.path}"

    def _flow(self, x, state, loss, targets):
        """The flow, in the last layer, of ``loss(outputs, targets)``, which looks at as many of the last steps as there are targets; the loss."""
        out, _ = self.model.rnn(x, state)
        tape = self.model.rnn.take_tape()
        if isinstance(tape, tuple):
            tape = tape[-1]
        d_out = np.zeros_like(out)
        value, d_out[len(out) - len(targets) :] = self.model.loss(loss, out, targets)
        return gradient_flow(tape, d_out), value


class TextNet(SavedNet):
    """A net that predicts the characters, or the words, of a text."""

    def __init__(self, saved):
        read = vocabulary_of if saved.settings.words else _vocabulary
        self.vocabulary, self.digest = read(saved.arrays["vocabulary"]), str(saved.description["sha256"])
        self.unit = "word" if saved.settings.words else "character"
        super().__init__(saved, len(self.vocabulary), len(self.vocabulary))

    def tokens(self, source=None, encoding=None):
        """A text as the net reads it; None stands for the text that it was trained on, and for the encoding of that.

        Returns the tokens (N,), the name of what was read, and how many characters were left out, as the net does not know them; words that
        it does not know are rare ones. OSError or
        ValueError if the text cannot be read, or is no longer the one that the net was trained on.
        """
        corpus = read_again(self.path, self.description, source, encoding, advice="give one with --text")
        if source is None and corpus.digest != self.digest:
            raise ValueError(f"{corpus.source}: has changed since {self.path} was trained on it; --text {corpus.source} takes it as it is")
        if self.settings.words:
            return tokens_of(corpus, self.vocabulary), corpus.source, 0
        place = np.minimum(np.searchsorted(self.vocabulary, corpus.vocabulary), len(self.vocabulary) - 1)
        token = np.where(self.vocabulary[place] == corpus.vocabulary, place, -1)[corpus.tokens]
        return token[token >= 0], corpus.source, int(np.count_nonzero(token < 0))

    def flow(self, tokens, *, steps=None, batch=BATCH):
        """Let it read, and take its loss back: the `GradientFlow`, and the mean cross-entropy of the recorded steps, in nats.

        It reads at B = ``batch`` evenly spaced positions: up to T tokens of warm-up, then T = ``steps`` that are recorded, by default as
        many as in training. ValueError if the text is too short.
        """
        T, B = self.settings.seq_len if steps is None else _checks.size("steps", steps), _checks.size("batch", batch)
        length = (len(tokens) - 1) // B
        if length < T:
            raise ValueError(f"text: {len(tokens)} {self.unit}s are too few for {B} rows of {T} steps; at least {B * T + 1} are needed")
        before = min(T, length - T)
        at = np.arange(before + T)[:, None] + length * np.arange(B)
        _, state = self.model.rnn(tokens[at[:before]]) if before else (None, None)
        return self._flow(tokens[at[before:]], state, softmax_cross_entropy, tokens[at[before:] + 1])


class TaskNet(SavedNet):
    """A net that answers the questions of a task."""

    def __init__(self, saved):
        self.task = TASKS[saved.settings.task](saved.settings.length)
        super().__init__(saved, self.task.inputs, self.task.outputs)

    def flow(self, *, length=None, batch=BATCH, seed=0):
        """Let it answer fresh sequences, and take its loss back: the `GradientFlow`, and the mean loss.

        The length is by default one that it was trained on. ValueError if the task has no such length.
        """
        task = self.task if length is None else TASKS[self.settings.task](length)
        _checks.number("batch", _checks.size("batch", batch), 1, _checks.LARGEST)
        x, targets = task.batch(_checks.size("seed", seed, 0), batch, self.settings.dtype)
        return self._flow(x, None, task.loss, targets)


def _vocabulary(array):
    if array.ndim != 1 or not array.size or array.dtype.kind != "u" or (np.diff(array.astype(np.int64)) <= 0).any():
        raise ValueError("its vocabulary is no ascending list of code points")
    return array
