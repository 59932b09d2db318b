"""Text: what is read, what is held out, how the rest is cut into streams, and what is no text."""

import os
import threading

import numpy as np
import pytest

from fastbptt.app.train.text import DEFAULT_SOURCE, corpus_of, decode, read_corpus


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_the_default_text_is_the_same_every_time():
    one, two = read_corpus(), read_corpus(DEFAULT_SOURCE)
    assert one.digest == two.digest and one.source == DEFAULT_SOURCE
    assert len(one.tokens) > 300_000 and len(one.vocabulary) < 200
    assert decode(one.vocabulary, one.tokens[:22]) == 'The "assert" statement'


@pytest.mark.parametrize("text", ["a", "banana", "naïve — 漢字 😀\n\ttabs", "\x01\x7f\n", "e\u0301"])
def test_any_text_comes_back(tmp_path, text):
    corpus = read_corpus(write(tmp_path / "text", text))
    assert decode(corpus.vocabulary, corpus.tokens) == text
    assert "".join(map(chr, corpus.vocabulary)) == "".join(sorted(set(text)))


def test_a_byte_order_mark_is_no_character(tmp_path):
    assert read_corpus(write(tmp_path / "text", b"\xef\xbb\xbfabc")).digest == corpus_of("abc", "").digest


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n\r\r\n"])
def test_line_ends_are_read_as_python_does(tmp_path, ends):
    path = write(tmp_path / "text", f"one{ends}two\x85three\u2028{ends}")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    corpus = read_corpus(path)
    assert decode(corpus.vocabulary, corpus.tokens) == text and "\r" not in text


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_any_encoding_is_the_same_text(tmp_path, encoding):
    corpus = read_corpus(write(tmp_path / "text", "naïve\r\ncafé".encode(encoding)), encoding)
    assert corpus.digest == corpus_of("naïve\ncafé", "").digest and corpus.encoding == encoding


def test_no_encoding(tmp_path):
    path = write(tmp_path / "text", "text")
    for encoding in ("cube", "base64", ""):
        with pytest.raises(ValueError, match=f"^encoding: expected one that Python knows, such as utf-16 or latin-1, got '{encoding}'$"):
            read_corpus(path, encoding)
    with pytest.raises(ValueError, match=r"^encoding: pydoc_data\.topics is not read from a file$"):
        read_corpus(None, "utf-8")


def test_a_pipe_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=write, args=(tmp_path / "pipe", "through a pipe"))
    writer.start()
    assert len(read_corpus(tmp_path / "pipe").tokens) == 14
    writer.join()


@pytest.mark.parametrize(("length", "held_out"), [(3, 2), (40, 2), (59, 2), (60, 3), (1000, 50), (1019, 50)])
def test_the_last_twentieth_is_held_out(length, held_out):
    corpus = corpus_of("".join(chr(200 + i) for i in range(length)), "")
    assert np.array_equal(np.concatenate([corpus.training, corpus.held_out]), np.arange(length))
    assert len(corpus.held_out) == held_out


def test_streams_are_neighbouring_stretches_and_targets_one_step_ahead():
    corpus = corpus_of("".join(chr(200 + i) for i in range(100)), "")
    inputs, targets = corpus.streams(batch=4, steps=5)
    assert np.array_equal(inputs, np.arange(4 * 23).reshape(4, 23))
    assert np.array_equal(targets, inputs + 1)
    assert targets.max() < 95


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 18), (1, 19), (1, 20), (3, 7), (4, 9), (5, 19), (16, 50), (32, 100)])
def test_the_least_length_is_told_exactly(batch, steps):
    with pytest.raises(ValueError, match=f"text: 3 characters are too few for {batch + 9} streams of {steps}; at least ") as error:
        corpus_of("abc", "text").streams(batch + 9, steps)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert corpus_of("x" * least, "").streams(batch + 9, steps)[0].shape[1] >= steps
    with pytest.raises(ValueError, match="too few"):
        corpus_of("x" * (least - 1), "").streams(batch + 9, steps)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"ab\0cd", "not a text file in UTF-8: character 2 is NUL; --encoding takes another"),
        (b"caf\xe9", "not a text file in UTF-8: byte 3 is 0xe9; --encoding takes another"),
        ("text".encode("utf-16"), "not a text file in UTF-8: byte 0 is 0xff; it begins as UTF-16 does: --encoding utf-16"),
        ("text".encode("utf-32"), "not a text file in UTF-8: byte 0 is 0xff; it begins as UTF-32 does: --encoding utf-32"),
        ("text".encode("utf-16-le"), "not a text file in UTF-8: character 1 is NUL; it looks like UTF-16: --encoding utf-16-le"),
        ("text".encode("utf-16-be"), "not a text file in UTF-8: character 0 is NUL; it looks like UTF-16: --encoding utf-16-be"),
        (b"\xed\xa0\x80", "not a text file in UTF-8: byte 0 is 0xed; --encoding takes another"),
    ],
)
def test_no_text(tmp_path, content, complaint):
    path = write(tmp_path / "text", content)
    with pytest.raises(ValueError, match=f"^{path}: {complaint}$"):
        read_corpus(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_corpus(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"^'a\\x00b': no file has such a name$"):
        read_corpus("a\0b")
    with pytest.raises(ValueError, match="not a text file in UTF-7; --encoding takes another"):
        read_corpus(write(tmp_path / "surrogate", b"+2AA-"), "utf-7")
    with pytest.raises(ValueError, match="expected a text file, got a directory"):
        read_corpus(tmp_path)
    with pytest.raises(ValueError, match="expected a text file, got a device"):
        read_corpus(os.devnull)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path):
    path = write(tmp_path / "text", "secret")
    os.chmod(path, 0)
    with pytest.raises(PermissionError):
        read_corpus(path)
