"""Learning to predict a text, character by character or word by word: truncated BPTT over parallel streams; a held-out part to be judged by."""

import math

import numpy as np

from ...losses import perplexity, softmax_cross_entropy
from ..messages import printable_name
from .checkpoint import damage_named
from .objective import Evaluation, Objective, Window
from .settings import TextSettings
from .text import read_again
from .words import by_words

EVALUATION_STEPS, EVALUATION_SCORES = 4096, 1 << 22  # tokens, and scores of them, evaluated in one call: what bounds the memory


class TextObjective(Objective):
    """A text as an objective; see `Objective`.

    Parameters
    ----------
    settings : TextSettings
    corpus : fastbptt.app.train.text.Corpus
        Read by the character. If the settings say so, its words are learned.

    Raises
    ------
    ValueError
        If the text is too short.
    """

    kind = "text"
    settings_type = TextSettings

    def __init__(self, settings, corpus):
        if settings.words:
            corpus = by_words(corpus, settings.vocabulary)
        self.settings, self.corpus, self.unit = settings, corpus, corpus.unit
        self.inputs = self.outputs = len(corpus.vocabulary)
        self.steps = settings.seq_len
        self.streams = corpus.streams(settings.batch, settings.seq_len)
        self.windows = -(-self.streams[0].shape[1] // settings.seq_len)

    def window(self, updates, rng):
        """The streams are cut into windows of seq_len steps, or one less, so that none is short."""
        window = updates % self.windows
        length = self.streams[0].shape[1]
        steps = slice(length * window // self.windows, length * (window + 1) // self.windows)
        inputs, targets = (stream[:, steps].T for stream in self.streams)
        return Window(inputs, targets, begins=window == 0)

    def units(self, inputs):
        return inputs.size

    loss = staticmethod(softmax_cross_entropy)

    def evaluate(self, model, updates, *, thoroughly=False):
        """The held-out text is read once from its beginning to its end."""
        return Evaluation(updates, mean_loss(model, self.corpus.held_out))

    def sample(self, model, length, temperature, rng):
        """Text by the net, as if after a line break."""
        return self.corpus.decode(generate(model, self.corpus.line_break, length, temperature=temperature, rng=rng))

    def introduction(self):
        corpus = self.corpus
        return "text", f"{printable_name(corpus.source)}: {corpus.size()}; the last {len(corpus.held_out):,} are held out"

    def portions(self):
        return f"{self.settings.batch} streams in windows of {self.steps}"

    def readings(self, training):
        return {"perplexity": f"{perplexity(training.recent_loss):.2f}"}

    def verdict(self, evaluation):
        return f"perplexity {perplexity(evaluation.loss):.4f} per {self.unit[:-1]} ({evaluation.loss / math.log(2):.4f} bits)"

    def picture(self, evaluations, last):
        level = None if last is None else (last.loss, f"held-out text: perplexity {perplexity(last.loss):.3f}")
        return {"loss_label": f"loss (nats per {self.unit[:-1]})", "level": level, "perplexities": True}

    def description(self):
        corpus = self.corpus
        return {
            "source": corpus.source,
            "encoding": corpus.encoding,
            "newline": corpus.newline,
            "sha256": corpus.digest,
            "characters": len(corpus.tokens),
            "different": self.inputs,
        }

    def arrays(self):
        return {"vocabulary": self.corpus.array()}

    @classmethod
    def from_checkpoint(cls, path, settings, description, source=None, encoding=None):
        with damage_named(path):
            digest = str(description["sha256"])
            expected = f"expected {int(description['characters'])}, {int(description['different'])} different"
        corpus = read_again(path, description, source, encoding, advice="say where it is now")
        if corpus.digest != digest:
            objective = cls(settings, corpus) if settings.words else None
            corpus = corpus if objective is None else objective.corpus
            size = f"{len(corpus.tokens)} {corpus.unit}, {len(corpus.vocabulary)} different"
            raise ValueError(f"{corpus.source}: not the text that {path} was trained on: {size}; {expected}")
        with damage_named(path):
            return cls(settings, corpus)


def mean_loss(model, tokens):
    """The mean cross-entropy, in nats, of every token (N,) but the first, each predicted from all that stand before it."""
    total, state = 0.0, None
    steps = max(1, min(EVALUATION_STEPS, EVALUATION_SCORES // model.readout.out_features))
    with model.evaluating():
        for start in range(0, len(tokens) - 1, steps):
            piece = tokens[start : start + steps + 1, None]
            out, state = model.rnn(piece[:-1], state)
            loss, _ = softmax_cross_entropy(model.readout(out), piece[1:])
            total += loss * (len(piece) - 1)
    return total / (len(tokens) - 1)


def generate(model, first, length, *, temperature=1.0, rng=None):
    """Tokens drawn one by one, each from the prediction that follows the ones before.

    Parameters
    ----------
    model : Model
    first : int
        The token to start after; it is not part of the result.
    length : int
    temperature : float
        The scores are divided by it: below 1 is more cautious, and 0 always takes the likeliest token.
    rng : None, int or numpy.random.Generator

    Returns
    -------
    ndarray (length,) of int64
    """
    rng = np.random.default_rng(rng)
    tokens, stream = np.empty(length + 1, np.int64), model.rnn.stream()
    tokens[0] = first
    with model.evaluating():
        for t in range(length):
            out = stream.step(tokens[t : t + 1])
            tokens[t + 1] = _draw(model.readout(out)[0], temperature, rng)
    return tokens[1:]


def _draw(scores, temperature, rng):
    """A token, with the probabilities softmax(scores / temperature)."""
    u = rng.random()
    if temperature == 0:
        return scores.argmax()
    scores = scores.astype(np.float64)
    with np.errstate(over="ignore"):
        cumulative = np.exp((scores - scores.max()) / temperature).cumsum()
    return min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), len(scores) - 1)
