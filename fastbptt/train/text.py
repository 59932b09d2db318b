"""Text as a recurrent net reads it: characters as tokens, some held out, the rest cut into parallel streams."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEFAULT_SOURCE = "pydoc_data.topics"
HELD_OUT = 20  # one part in so many is held out
LEAST_HELD_OUT = 2  # characters: one to read, one to predict


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, its characters numbered.

    Attributes
    ----------
    source : str
        The file that it was read from, as given, or `DEFAULT_SOURCE`.
    vocabulary : ndarray (V,) of uint32
        The code points that occur, ascending. A character's place here is its token.
    tokens : ndarray (N,), integer
        The text.
    digest : str
        SHA-256 of the text in UTF-8.
    """

    source: str
    vocabulary: np.ndarray
    tokens: np.ndarray
    digest: str

    @property
    def training(self):
        """The tokens to learn from: all but the last 5 %."""
        return self.tokens[: len(self.tokens) - len(self.held_out)]

    @property
    def held_out(self):
        """The last 5 % of the tokens, to be judged by."""
        return self.tokens[len(self.tokens) - max(LEAST_HELD_OUT, len(self.tokens) // HELD_OUT) :]

    def streams(self, batch, steps):
        """The training text, cut into parallel streams.

        Parameters
        ----------
        batch : int
            The number of streams, B.
        steps : int
            The least length of a stream.

        Returns
        -------
        inputs, targets : ndarray (B, L), integer
            ``targets[:, t]`` is the character that follows ``inputs[:, t]``.

        Raises
        ------
        ValueError
            If the text is too short for that.
        """
        length = (len(self.training) - 1) // batch
        if length < steps:
            least = batch * steps + 1 + max(LEAST_HELD_OUT, batch * steps // (HELD_OUT - 1))
            raise ValueError(
                f"{self.source}: {len(self.tokens)} characters are too few for {batch} streams of {steps}; "
                f"at least {least} are needed, or a smaller batch or seq-len"
            )
        return self.training[: batch * length].reshape(batch, length), self.training[1 : batch * length + 1].reshape(batch, length)


def read_corpus(source=None):
    """Read a text file, or the English that comes with Python.

    Parameters
    ----------
    source : str, path or None
        A UTF-8 file; ``None`` means the language reference in CPython's `pydoc_data.topics`, half a megabyte.

    Returns
    -------
    Corpus

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no text, or empty.

    Examples
    --------
    >>> corpus = read_corpus()
    >>> decode(corpus.vocabulary, corpus.tokens[:22])
    'The "assert" statement'
    """
    if source is None or source == DEFAULT_SOURCE:
        return corpus_of(_python_topics(), DEFAULT_SOURCE)
    return corpus_of(_read_text(source), os.fspath(source))


def corpus_of(text, source):
    """The `Corpus` of a string. ValueError if it is empty."""
    if not text:
        raise ValueError(f"{source}: the file is empty")
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    occurs = np.zeros(int(points.max()) + 1, bool)
    occurs[points] = True
    vocabulary = np.flatnonzero(occurs).astype(np.uint32)
    token_of = np.zeros(len(occurs), np.int32)
    token_of[vocabulary] = np.arange(len(vocabulary))
    return Corpus(source, vocabulary, token_of[points], hashlib.sha256(text.encode()).hexdigest())


def decode(vocabulary, tokens):
    """The string that tokens stand for."""
    return vocabulary[tokens].astype("<u4").tobytes().decode("utf-32-le")


def _python_topics():
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(f"{DEFAULT_SOURCE}: this Python comes without it; give a text file") from None
    return "\n".join(topics[name] for name in sorted(topics))


def _read_text(path):
    kind = Path(path).stat().st_mode
    if stat.S_ISDIR(kind):
        raise ValueError(f"{path}: expected a text file, got a directory")
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
        raise ValueError(f"{path}: expected a text file, got a device or socket")
    content = Path(path).read_bytes()
    if (at := content.find(0)) >= 0:
        raise ValueError(f"{path}: not a text file: byte {at} is NUL")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: byte {error.start} is {content[error.start]:#04x}") from None
