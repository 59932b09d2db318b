"""Text as a recurrent net reads it: characters as tokens, some held out, the rest cut into parallel streams."""

import codecs
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ... import _checks
from ..._files import errors_name
from .checkpoint import damage_named

DEFAULT_SOURCE = "pydoc_data.topics"
HELD_OUT = 20  # one part in so many is held out
LEAST_HELD_OUT = 2  # characters: one to read, one to predict
MARKS = {  # byte order marks that are no UTF-8; those of UTF-16 begin those of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


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
    encoding, newline : str or None
        How it was read; see `read_corpus`.
    """

    source: str
    vocabulary: np.ndarray
    tokens: np.ndarray
    digest: str
    encoding: str | None = None
    newline: str | None = None

    unit: ClassVar[str] = "characters"

    @property
    def training(self):
        """The tokens to learn from: all but the last 5 %."""
        return self.tokens[: len(self.tokens) - len(self.held_out)]

    @property
    def held_out(self):
        """The last 5 % of the tokens, to be judged by."""
        return self.tokens[len(self.tokens) - held_out_of(len(self.tokens)) :]

    @property
    def line_break(self):
        """Its token; 0 if there is none."""
        at = np.flatnonzero(self.vocabulary == ord("\n"))
        return int(at[0]) if at.size else 0

    def decode(self, tokens):
        """The string that tokens stand for."""
        return decode(self.vocabulary, tokens)

    def array(self):
        """The vocabulary as an array of code points."""
        return self.vocabulary

    def size(self):
        """How much text it is, in words."""
        return f"{len(self.tokens):,} {self.unit}, {len(self.vocabulary):,} different"

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
            ``targets[:, t]`` is the token that follows ``inputs[:, t]``.

        Raises
        ------
        ValueError
            If the text is too short for that.
        """
        length = (len(self.training) - 1) // batch
        if length < steps:
            least = batch * steps + 1 + max(LEAST_HELD_OUT, batch * steps // (HELD_OUT - 1))
            raise ValueError(
                f"{self.source}: {len(self.tokens)} {self.unit} are too few for {batch} streams of {steps}; "
                f"at least {least} are needed, or a smaller batch or seq-len"
            )
        return self.training[: batch * length].reshape(batch, length), self.training[1 : batch * length + 1].reshape(batch, length)


def held_out_of(count):
    """How many of so many tokens are held out."""
    return max(LEAST_HELD_OUT, count // HELD_OUT)


def read_corpus(source=None, encoding=None, newline=None):
    """Read a text file, or the English that comes with Python.

    Parameters
    ----------
    source : str, path or None
        A file; None means the language reference in CPython's `pydoc_data.topics`, half a megabyte.
    encoding : str or None
        The file's, by a name that Python knows; None means UTF-8. A byte order mark is no part of the text.
    newline : {None, ""}
        As of `open`: None reads all line ends as line feeds, "" leaves them as they are.

    Returns
    -------
    Corpus

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no text in this encoding, or empty.

    Examples
    --------
    >>> corpus = read_corpus()
    >>> decode(corpus.vocabulary, corpus.tokens[:22])
    'The "assert" statement'
    """
    if source is not None and source != DEFAULT_SOURCE:
        return corpus_of(_read_text(source, encoding, newline), os.fspath(source), encoding, newline)
    if encoding is not None:
        raise ValueError(f"encoding: {DEFAULT_SOURCE} is not read from a file")
    return corpus_of(_python_topics(), DEFAULT_SOURCE)


def read_again(path, description, source=None, encoding=None, *, advice):
    """The `Corpus` that the checkpoint at ``path`` describes; or, with a source or an encoding, another that is otherwise read as that was.

    OSError or ValueError if it cannot be read, with ``advice`` if it is no longer there, or if the checkpoint is damaged.
    """
    with damage_named(path):
        before = _saved_reading(description)
    asked = {name: value for name, value in (("source", source), ("encoding", encoding)) if value is not None}
    try:
        return read_corpus(**before | asked)
    except OSError:
        if source is not None or before["source"] == DEFAULT_SOURCE:
            raise
        raise ValueError(f"{before['source']}: {path} was trained on this text, which cannot be read; {advice}") from None


def _saved_reading(description):
    """Arguments of `read_corpus`, out of a checkpoint's description. The first checkpoints had no choice: UTF-8, line ends as they are."""
    source, encoding, newline = description["source"], description.get("encoding"), description.get("newline", "")
    if not isinstance(source, str) or not source:
        raise ValueError(f"no text has the name {_checks.quoted(source)}")
    if not (encoding is None or _is_known(encoding)) or newline not in (None, ""):
        raise ValueError(f"no text is read with encoding {_checks.quoted(encoding)}, newline {_checks.quoted(newline)}")
    return {"source": source, "encoding": encoding, "newline": newline}


def corpus_of(text, source, encoding=None, newline=None):
    """The `Corpus` of a string. ValueError if it is empty."""
    if not text:
        raise ValueError(f"{source}: the file is empty")
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    occurs = np.zeros(int(points.max()) + 1, bool)
    occurs[points] = True
    vocabulary = np.flatnonzero(occurs).astype(np.uint32)
    token_of = np.zeros(len(occurs), np.int32)
    token_of[vocabulary] = np.arange(len(vocabulary))
    return Corpus(source, vocabulary, token_of[points], hashlib.sha256(text.encode()).hexdigest(), encoding, newline)


def decode(vocabulary, tokens):
    """The string that tokens stand for."""
    return vocabulary[tokens].astype("<u4").tobytes().decode("utf-32-le")


def _is_known(encoding):
    try:
        return isinstance(encoding, str) and bool("a".encode(encoding))
    except (LookupError, ValueError):
        return False


def _python_topics():
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(f"{DEFAULT_SOURCE}: this Python comes without it; give a text file") from None
    return "\n".join(topics[name] for name in sorted(topics))


def _read_text(path, encoding, newline):
    content = _read_bytes(path)
    encoding = "utf-8" if encoding is None else encoding
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
        text.encode()
    except LookupError:
        raise ValueError(f"encoding: expected one that Python knows, such as utf-16 or latin-1, got {encoding!r}") from None
    except UnicodeDecodeError as error:
        complaint = f": byte {error.start} is {content[error.start]:#04x}"
    except ValueError:
        complaint = ""
    else:
        if (at := text.find("\0")) < 0:
            return text.replace("\r\n", "\n").replace("\r", "\n") if newline is None else text
        complaint = f": character {at} is NUL"
    raise ValueError(f"{path}: not a text file in {encoding.upper()}{complaint}; {_advice(content)}")


def _read_bytes(path):
    try:
        kind = Path(path).stat().st_mode
    except ValueError:
        raise ValueError(f"{path!r}: no file has such a name") from None
    if stat.S_ISDIR(kind):
        raise ValueError(f"{path}: expected a text file, got a directory")
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
        raise ValueError(f"{path}: expected a text file, got a device or socket")
    with errors_name(path):
        return Path(path).read_bytes()


def _advice(content):
    """What encoding it may be in, by its byte order mark, or because every other byte is NUL, as it is in UTF-16 of most letters."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return f"it begins as UTF-{encoding[-2:]} does: --encoding {encoding}"
    even, odd = (content[first:10_000:2].count(0) for first in (0, 1))
    if max(even, odd) > len(content[:10_000]) / 4 and min(even, odd) == 0:
        return f"it looks like UTF-16: --encoding utf-16-{'le' if odd else 'be'}"
    return "--encoding takes another"
