"""Text by the word: the frequent words as tokens of their own, and one token for all the others."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .text import Corpus, decode, held_out_of

REST = ""  # the word that stands for all that are rare: no text has it
SHOWN_REST = "<rest>"
SPLIT = re.compile(r"\w+|[^\w\s]|\n")  # words, marks, and ends of lines; spaces between them are left out
NO_SPACE_BEFORE, NO_SPACE_BEHIND = set(".,;:!?)]}'\n"), set("([{'\n")


@dataclass(frozen=True, eq=False)
class WordCorpus(Corpus):
    """A text, its words numbered.

    Attributes
    ----------
    vocabulary : tuple of str
        `REST`, then the most frequent words of the training part, the most frequent first. A word's place here is its token.
    """

    unit = "words"

    @property
    def line_break(self):
        return self.vocabulary.index("\n") if "\n" in self.vocabulary else 0

    def decode(self, tokens):
        return written([self.vocabulary[token] for token in tokens])

    def array(self):
        return np.frombuffer("\0".join(self.vocabulary).encode("utf-32-le"), np.uint32)

    def size(self):
        rest = np.count_nonzero(self.tokens == 0) / len(self.tokens)
        return f"{super().size()}, with one for the rare ones, {rest:.1%} of the text"


def by_words(corpus, most):
    """The `WordCorpus` of a text that was read by the character.

    Parameters
    ----------
    corpus : Corpus
    most : int
        How large the vocabulary may be, with `REST`.

    Raises
    ------
    ValueError
        If the text has fewer than two words.
    """
    words = SPLIT.findall(decode(corpus.vocabulary, corpus.tokens))
    if len(words) < 2:
        raise ValueError(f"{corpus.source}: the text has fewer than two words")
    counts = Counter(words[: len(words) - held_out_of(len(words))])
    vocabulary = (REST, *sorted(counts, key=lambda word: (-counts[word], word))[: most - 1])
    return WordCorpus(corpus.source, vocabulary, numbered(words, vocabulary), corpus.digest, corpus.encoding, corpus.newline)


def tokens_of(corpus, vocabulary):
    """The tokens of a text that was read by the character, in another's vocabulary."""
    return numbered(SPLIT.findall(decode(corpus.vocabulary, corpus.tokens)), vocabulary)


def numbered(words, vocabulary):
    place = {word: token for token, word in enumerate(vocabulary)}
    return np.array([place.get(word, 0) for word in words], np.int32)


def vocabulary_of(array):
    """What `WordCorpus.array` was made of. ValueError if it was not."""
    vocabulary = tuple(array.astype("<u4").tobytes().decode("utf-32-le").split("\0"))
    if array.ndim != 1 or vocabulary[0] != REST or len(set(vocabulary)) < len(vocabulary):
        raise ValueError("its vocabulary is no list of words")
    return vocabulary


def written(words):
    """The words as a text: with spaces where one writes them."""
    text = ""
    for word in words:
        word = word or SHOWN_REST
        text += word if not text or word[0] in NO_SPACE_BEFORE or text[-1] in NO_SPACE_BEHIND else f" {word}"
    return text
