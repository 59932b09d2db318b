"""Nets out of the checkpoints of `fastbptt train`, on text, with their real loss: what their gradients do."""

import numpy as np

from . import _checks
from .flow import gradient_flow
from .layers import GRU, LSTM, RNN, Linear
from .linearised import GATES
from .losses import softmax_cross_entropy
from .train.checkpoint import load_checkpoint
from .train.text import DEFAULT_SOURCE, read_corpus

LAYERS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
BATCH = 4


class SavedNet:
    """A character-level net out of a checkpoint.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no checkpoint, or a damaged one.
    """

    def __init__(self, path):
        self.path = path
        arrays, metadata = load_checkpoint(path)
        try:
            if metadata.get("kind", "text") != "text":
                raise NotImplementedError
            settings = metadata["settings"]
            self.seq_len = _checks.size("seq_len", settings["seq_len"])
            self.digest, self.source = (str((metadata.get("text") or metadata["description"])[key]) for key in ("sha256", "source"))
            self.vocabulary = _vocabulary(arrays["vocabulary"])
            self.rnn = _recurrent(settings, _below("rnn.", arrays), len(self.vocabulary))
            self.readout = _readout(_below("readout.", arrays), self.rnn.hidden_size, len(self.vocabulary))
        except NotImplementedError:
            raise ValueError(f"{path}: trained on a {metadata['kind']}, not on a text") from None
        except KeyError as error:
            raise ValueError(f"{path}: damaged checkpoint: {error} is missing") from None
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged checkpoint: {error}") from None

    def __str__(self):
        kind = "LSTM" if isinstance(self.rnn, LSTM) else "GRU" if isinstance(self.rnn, GRU) else f"{self.rnn.nonlinearity} RNN"
        return f"{kind}, {self.rnn.hidden_size} units, {self.rnn.dtype}, of {self.path}"

    def tokens(self, source=None):
        """A text as the net reads it.

        Parameters
        ----------
        source : str, path or None
            A file; None means the text that the net was trained on.

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
        try:
            corpus = read_corpus(self.source if source is None else source)
        except OSError:
            if source is not None or self.source == DEFAULT_SOURCE:
                raise
            raise ValueError(f"{self.source}: {self.path} was trained on this text, which cannot be read; give one with --text") from None
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
        T, B = self.seq_len if steps is None else _checks.size("steps", steps), _checks.size("batch", batch)
        length = (len(tokens) - 1) // B
        if length < T:
            raise ValueError(f"text: {len(tokens)} characters are too few for {B} rows of {T} steps; at least {B * T + 1} are needed")
        before = min(T, length - T)
        at = np.arange(before + T)[:, None] + length * np.arange(B)
        _, state = self.rnn(tokens[at[:before]]) if before else (None, None)
        out, _ = self.rnn(tokens[at[before:]], state)
        tape = self.rnn.take_tape()
        loss, d_logits = softmax_cross_entropy(self.readout(out), tokens[at[before:] + 1])
        return gradient_flow(tape, self.readout.backward(d_logits)), loss


def _vocabulary(array):
    if array.ndim != 1 or not array.size or array.dtype.kind != "u" or (np.diff(array.astype(np.int64)) <= 0).any():
        raise ValueError("its vocabulary is no ascending list of code points")
    return array


def _recurrent(settings, arrays, V):
    cell = _checks.one_of("cell", settings["cell"], tuple(LAYERS))
    w_hh = arrays["weight_hh_l0"]
    H = w_hh.shape[-1] if w_hh.ndim else 0
    if w_hh.shape != (len(GATES[cell]) * H, H) or arrays["weight_ih_l0"].shape != (len(w_hh), V):
        raise ValueError(f"its weights are not those of a {cell} on {V} different characters")
    choice = {"nonlinearity": settings["nonlinearity"]} if cell == "rnn" else {}
    return _loaded(LAYERS[cell](V, H, dtype=w_hh.dtype, rng=0, **choice), arrays)


def _readout(arrays, H, V):
    if arrays["weight"].shape != (V, H):
        raise ValueError(f"its readout is not that of {H} units and {V} different characters")
    return _loaded(Linear(H, V, dtype=arrays["weight"].dtype, rng=0), arrays)


def _loaded(layer, arrays):
    layer.load_state_dict(arrays)
    return layer


def _below(prefix, arrays):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
