"""`fastbptt train --words`: a text by its words, the rare ones as one token."""

from dataclasses import replace

import numpy as np
import pytest
from commands import assert_fails

from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint
from fastbptt.app.train.loop import Training
from fastbptt.app.train.saved_run import resume, save
from fastbptt.app.train.settings import TextSettings
from fastbptt.app.train.text import corpus_of, read_corpus
from fastbptt.app.train.text_objective import TextObjective
from fastbptt.app.train.words import by_words, tokens_of, vocabulary_of, written

TEXT = "the cat sat on the mat; the dog sat on the cat.\n" * 30 + "a rare (very rare) bird, isn't it?\n"
SMALL = TextSettings(words=True, vocabulary=10, hidden=7, batch=3, seq_len=10, updates=40, seed=5, dtype="float64", cell="rnn")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text(TEXT)
    return str(path)


def test_frequent_words_have_tokens_of_their_own():
    corpus = by_words(corpus_of(TEXT, "x"), 7)
    assert corpus.vocabulary == ("", "the", "cat", "on", "sat", "mat", "\n")  # by frequency, then in order
    assert corpus.unit == "words" and corpus.line_break == 6 and len(corpus.tokens) == 30 * 15 + 14
    assert corpus.tokens[:15].tolist() == [1, 2, 4, 3, 1, 5, 0, 1, 0, 4, 3, 1, 2, 0, 6]
    assert (corpus.tokens[-14:-1] == 0).all()
    whole = by_words(corpus_of(TEXT, "x"), 1000)
    assert whole.decode(whole.tokens[:15]) == "the cat sat on the mat; the dog sat on the cat.\n"
    assert vocabulary_of(whole.array()) == whole.vocabulary
    np.testing.assert_array_equal(tokens_of(corpus_of(TEXT, "x"), whole.vocabulary), whole.tokens)
    assert "rare" not in whole.vocabulary  # it is in the held-out part alone
    assert len(corpus.held_out) == len(corpus.tokens) // 20


def test_words_as_they_are_written():
    assert written(["a", "rare", "(", "very", "rare", ")", "bird", ",", "", "\n", "it", "?"]) == "a rare (very rare) bird, <rest>\nit?"


@pytest.mark.parametrize("text", ["   ", "word", "\u3000"])
def test_a_text_without_words(text):
    with pytest.raises(ValueError, match=r"^x: the text has fewer than two words$"):
        by_words(corpus_of(text, "x"), 10)


def finished(training):
    while not training.done:
        training.update()
    return training


def test_it_learns_what_can_be_known_and_goes_on_to_the_same_bits(text, tmp_path):
    whole = finished(Training(TextObjective(replace(SMALL, lr=0.01, updates=400), read_corpus(text))))
    assert np.exp(whole.recent_loss) < 1.7  # after "the" there are two that are likely
    part = Training(TextObjective(whole.settings, read_corpus(text)))
    while part.updates < 13:
        part.update()
    save(part, tmp_path / "part")
    save(finished(resume(tmp_path / "part", words=True)), tmp_path / "resumed")
    save(whole, tmp_path / "whole")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_from_the_command_line(run, text, tmp_path):
    size = "--hidden", 7, "--batch", 3, "--seq-len", 10, "--no-plot"
    result = run("train", text, "--words", "--vocabulary", 8, *size, "--updates", 5, "--sample", 20, "--out", tmp_path / "run")
    assert result.status == 0, result.err
    assert "464 words, 8 different, with one for the rare ones, 15.7% of the text" in result.out
    assert "-7-8:" in result.out and " per word (" in result.out and "20 words at temperature" in result.out and "words/s" in result.out
    assert run("train", "--resume", tmp_path / "run", "--updates", 7, "--no-plot").status == 0
    flow = "flow", tmp_path / "run" / "checkpoint.safetensors", "--no-picture", "--steps", 10
    result = run(*flow)
    assert result.status == 0 and "nats per word" in result.out
    assert run(*flow, "--text", text).out == result.out
    for options, message in {
        "--vocabulary 9": "vocabulary: it is of words; ask for them, too",
        "--words --vocabulary 1": "vocabulary: expected an integer of at least 2, got 1",
        "--words --batch 100": ".*some.txt: 464 words are too few for 100 streams of 50; .*",
    }.items():
        assert_fails(2, message, run("train", text, *options.split(), "--out", tmp_path / "none"))
    assert_fails(2, "words: a task has no such setting", run("train", "--task", "adding", "--words", "--out", tmp_path / "none"))
    with open(text, "a") as file:
        file.write("more\n")
    assert_fails(
        2, ".*some.txt: not the text .*: 466 words, 8 different; expected 464, 8 different", run("train", "--resume", tmp_path / "run")
    )


@pytest.mark.parametrize("damage", [["b", "a"], ["", "a", "a"], None], ids=["no rest", "a word twice", "no text"])
def test_a_vocabulary_that_is_damaged(run, text, tmp_path, damage):
    training = Training(TextObjective(SMALL, read_corpus(text)))
    training.update()
    save(training, tmp_path / "net")
    arrays, metadata = load_checkpoint(tmp_path / "net")
    array = np.full(3, 2**31, np.uint32) if damage is None else np.frombuffer("\0".join(damage).encode("utf-32-le"), np.uint32)
    save_checkpoint(tmp_path / "net", arrays | {"vocabulary": array}, metadata)
    for command in (("flow", tmp_path / "net", "--no-picture"), ("train", "--resume", tmp_path / "net")):
        assert_fails(2, ".*damaged checkpoint.*", run(*command))
