"""Nets out of the checkpoints of `fastbptt train`, on what they were trained on, with their real loss: what their gradients do."""

import numpy as np

from .. import _checks
from ..cells import CELLS, NONLINEARITIES
from ..gradients.flow import gradient_flow
from ..layers import LAYERS, Linear
from ..losses import softmax_cross_entropy
from ..tasks import TASKS
from ..train.checkpoint import below, damage_named
from ..train.saved_run import load_run
from ..train.text import DEFAULT_SOURCE, read_corpus, saved_reading

BATCH = 4
KINDS = ("text", "task")


def load_net(path):
    """The net of a checkpoint: a `TextNet` or a `TaskNet`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no checkpoint, or a damaged one.
    """
    arrays, metadata = load_run(path)
    with damage_named(path):
        kind = TextNet if _checks.one_of("kind", metadata["kind"], KINDS) == "text" else TaskNet
        return kind(path, arrays, metadata)


class SavedNet:
    """What both have: the layers. ``self.inputs`` and ``self.outputs`` are known before."""

    def __init__(self, path, arrays, settings):
        self.path = path
        self.rnn = _recurrent(settings, below("rnn.", arrays), self.inputs)
        self.readout = _readout(below("readout.", arrays), self.rnn.hidden_size, self.outputs)
        if self.readout.dtype != self.rnn.dtype:
            raise ValueError(f"its readout is {self.readout.dtype}, its recurrent layer {self.rnn.dtype}")

    def __str__(self):
        rnn = self.rnn
        kind = CELLS[rnn._cell].title(getattr(rnn, "nonlinearity", None))
        return f"{kind}, {rnn.hidden_size} units, {rnn.dtype}, of {self.path}"

    def _flow(self, x, state, loss, targets):
        """The flow of ``loss(outputs, targets)``, which looks at as many of the last steps as there are targets; and the loss."""
        out, _ = self.rnn(x, state)
        tape = self.rnn.take_tape()
        value, d_outputs = loss(self.readout(out[len(out) - len(targets) :]), targets)
        d_out = np.zeros_like(out)
        d_out[len(out) - len(targets) :] = self.readout.backward(d_outputs)
        return gradient_flow(tape, d_out), value


class TextNet(SavedNet):
    """A net that predicts the characters of a text."""

    def __init__(self, path, arrays, metadata):
        self.vocabulary = _vocabulary(arrays["vocabulary"])
        self.inputs = self.outputs = len(self.vocabulary)
        self.steps = _checks.size("seq_len", metadata["settings"]["seq_len"])
        self.reading, self.digest = saved_reading(metadata["description"]), str(metadata["description"]["sha256"])
        super().__init__(path, arrays, metadata["settings"])

    def tokens(self, source=None, encoding=None):
        """A text as the net reads it.

        Parameters
        ----------
        source : str, path or None
            A file; None means the text that the net was trained on.
        encoding : str or None
            Its encoding; None means that of the text that the net was trained on.

        Returns
        -------
        tokens : ndarray (N,) of int64
        source : str
            What was read.
        unknown : int
            How many characters were left out, as the net does not know them.

        Raises
        ------
        OSError, ValueError
            If it cannot be read, or has changed since the net was trained on it.
        """
        given = {name: value for name, value in (("source", source), ("encoding", encoding)) if value is not None}
        try:
            corpus = read_corpus(**self.reading | given)
        except OSError:
            if source is not None or self.reading["source"] == DEFAULT_SOURCE:
                raise
            raise ValueError(
                f"{self.reading['source']}: {self.path} was trained on this text, which cannot be read; give one with --text"
            ) from None
        if source is None and corpus.digest != self.digest:
            raise ValueError(f"{corpus.source}: has changed since {self.path} was trained on it; --text {corpus.source} takes it as it is")
        place = np.minimum(np.searchsorted(self.vocabulary, corpus.vocabulary), len(self.vocabulary) - 1)
        token = np.where(self.vocabulary[place] == corpus.vocabulary, place, -1)[corpus.tokens]
        return token[token >= 0], corpus.source, int(np.count_nonzero(token < 0))

    def flow(self, tokens, *, steps=None, batch=BATCH):
        """Let it read, and take its loss back.

        Parameters
        ----------
        tokens : ndarray (N,)
            ``batch`` places of it are read, each for as many steps before those that are looked at as there are, but at most as many.
        steps, batch : int
            T, by default what the net was trained on, and B.

        Returns
        -------
        flow : GradientFlow
        loss : float
            The mean cross-entropy over what is looked at, in nats.

        Raises
        ------
        ValueError
            If the text is too short.
        """
        T, B = self.steps if steps is None else _checks.size("steps", steps), _checks.size("batch", batch)
        length = (len(tokens) - 1) // B
        if length < T:
            raise ValueError(f"text: {len(tokens)} characters are too few for {B} rows of {T} steps; at least {B * T + 1} are needed")
        before = min(T, length - T)
        at = np.arange(before + T)[:, None] + length * np.arange(B)
        _, state = self.rnn(tokens[at[:before]]) if before else (None, None)
        return self._flow(tokens[at[before:]], state, softmax_cross_entropy, tokens[at[before:] + 1])


class TaskNet(SavedNet):
    """A net that answers the questions of a task."""

    def __init__(self, path, arrays, metadata):
        settings = metadata["settings"]
        self._task = TASKS[_checks.one_of("task", settings["task"], tuple(TASKS))]
        length = settings["length"]
        self.task = self._task(tuple(length) if isinstance(length, list) else length)
        self.inputs, self.outputs = self.task.inputs, self.task.outputs
        super().__init__(path, arrays, settings)

    def flow(self, *, length=None, batch=BATCH, seed=0):
        """Let it answer fresh sequences, and take its loss back.

        Parameters
        ----------
        length : int or None
            L; None means a length that it was trained on.
        batch : int
            B.
        seed : int

        Returns
        -------
        flow : GradientFlow
        loss : float
            The mean loss.

        Raises
        ------
        ValueError
            If the task has no such length.
        """
        task = self.task if length is None else self._task(length)
        _checks.number("batch", _checks.size("batch", batch), 1, _checks.LARGEST)
        x, targets = task.batch(_checks.size("seed", seed, 0), batch, self.rnn.dtype)
        return self._flow(x, None, task.loss, targets)


def _vocabulary(array):
    if array.ndim != 1 or not array.size or array.dtype.kind != "u" or (np.diff(array.astype(np.int64)) <= 0).any():
        raise ValueError("its vocabulary is no ascending list of code points")
    return array


def _recurrent(settings, arrays, inputs):
    cell = CELLS[_checks.one_of("cell", settings["cell"], tuple(CELLS))]
    w_hh = arrays["weight_hh_l0"]
    H = w_hh.shape[-1] if w_hh.ndim else 0
    if w_hh.shape != (len(cell.gates) * H, H) or arrays["weight_ih_l0"].shape != (len(w_hh), inputs):
        raise ValueError(f"its weights are not those of a {cell.name} with {inputs} inputs")
    choice = {} if cell.gated else {"nonlinearity": _checks.one_of("nonlinearity", settings["nonlinearity"], NONLINEARITIES)}
    return _loaded(LAYERS[cell.name](inputs, H, dtype=w_hh.dtype, rng=0, **choice), arrays)


def _readout(arrays, H, outputs):
    if arrays["weight"].shape != (outputs, H):
        raise ValueError(f"its readout is not that of {H} units and {outputs} outputs")
    return _loaded(Linear(H, outputs, dtype=arrays["weight"].dtype, rng=0), arrays)


def _loaded(layer, arrays):
    layer.load_state_dict(arrays)
    return layer
