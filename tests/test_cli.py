"""The command `fastbptt`, whatever it is asked: what it shows may fail, nothing it prints steers a terminal, pictures may fail too."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from commands import assert_fails, command
from processes import current_level, environment

import fastbptt
from fastbptt.app import cli
from fastbptt.app.interruption import SIGNALS, Interruption
from fastbptt.app.messages import PictureError, drawing, fail, printable, printable_name, say

pytest.importorskip("matplotlib")

from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint
from fastbptt.app.train.display import Silence
from fastbptt.app.train.run import keep
from fastbptt.init import MATRICES, STARTS

TEXT = "What shows may fail; what counts is saved. " * 20
NET = ["--hidden", "7", "--batch", "3", "--seq-len", "10"]
OPTIONS = [*NET, "--updates", "3", "--sample", "5"]
LOST = "fastbptt: error: standard output: {}; what else there was to show is lost\n"
FILES = {"checkpoint.safetensors", "sample.txt", "training.png"}
COMMANDS = {"info": ["info"], "version": ["--version"], "help": ["train", "--help"], "flow": ["flow", "--hidden", "5", "--steps", "9"]}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def full():
    return open("/dev/full", "w") if os.path.exists("/dev/full") else pytest.skip("there is no /dev/full")


def unread():
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


def closed():
    return None


STREAMS = {full: "No space left on device", unread: "Broken pipe", closed: "closed"}


every_bad_stream = pytest.mark.parametrize("make", STREAMS, ids=lambda make: make.__name__)


def main_with(monkeypatch, stream, *arguments, name="stdout"):
    """The command's exit status, in this process, with another standard stream."""
    with monkeypatch.context() as patch, contextlib.nullcontext() if stream is None else stream:
        patch.setattr(sys, name, stream)
        return cli.main([str(argument) for argument in arguments])


# --- What shows may fail ----------------------------------------------------------------------------------------------


@every_bad_stream
@pytest.mark.parametrize("options", [[], ["--no-plot", "--quiet"], ["--no-plot", "--live"]])
def test_a_net_is_trained_unseen(text, tmp_path, monkeypatch, capfd, make, options):
    """The run goes on to its end with all its files; a line and the exit status tell of the lost output."""
    assert main_with(monkeypatch, make(), "train", text, *OPTIONS, *options, "--out", tmp_path / "out") == 1
    assert set(os.listdir(tmp_path / "out")) == (FILES - {"training.png"} if options else FILES)
    assert load_checkpoint(tmp_path / "out" / "checkpoint.safetensors")[0]["training.losses"].size == 3
    assert capfd.readouterr().err == LOST.format(STREAMS[make])


@every_bad_stream
@pytest.mark.parametrize("asked", COMMANDS)
def test_any_command_ends_with_a_line(tmp_path, monkeypatch, capfd, make, asked):
    monkeypatch.chdir(tmp_path)
    assert main_with(monkeypatch, make(), *COMMANDS[asked]) == 1
    assert capfd.readouterr().err == LOST.format(STREAMS[make])
    assert os.listdir(tmp_path) == (["fastbptt-flow.png"] if asked == "flow" else [])


@every_bad_stream
def test_one_line_is_enough(text, tmp_path, monkeypatch, capfd, make):
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", failing(RuntimeError("no fonts")))
    assert main_with(monkeypatch, make(), "train", text, *OPTIONS, "--out", tmp_path / "out") == 1
    assert capfd.readouterr().err == f"fastbptt: error: {tmp_path}/out/training.png: no picture: no fonts\n"


@every_bad_stream
def test_standard_error_may_fail_too(monkeypatch, capfd, make):
    assert main_with(monkeypatch, make(), "train", "--hidden", 0, name="stderr") == 2
    assert main_with(monkeypatch, make(), "--version", name="stderr") == 0
    assert capfd.readouterr() == (f"fastbptt {fastbptt.__version__}\n", "")


def test_standard_streams_that_were_closed_before(text, tmp_path):
    """No file is opened under their descriptors, and nothing fails again at exit."""
    code = f"import sys; from fastbptt.app.cli import main; sys.exit(main({['train', text, *OPTIONS, '--out', str(tmp_path / 'out')]}))"
    shell = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(shell, env=environment(**current_level()), timeout=120).returncode == 1
    assert set(os.listdir(tmp_path / "out")) == FILES


def test_a_reader_that_leaves(text, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "fastbptt", "train", text, *OPTIONS, "--out", str(tmp_path / "out")],
        env=environment(**current_level()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == LOST.format("Broken pipe")
    process.stderr.close()
    assert process.wait(120) == 1 and set(os.listdir(tmp_path / "out")) == FILES


def test_the_last_save_is_before_the_last_drawing(text, tmp_path, monkeypatch):
    class Broken(Silence):
        def __exit__(self, *_):
            raise RuntimeError("the display has failed")

    monkeypatch.setattr("fastbptt.app.train.run.display_for", lambda *_: Broken())
    with pytest.raises(RuntimeError, match="the display has failed"):
        cli.main(["train", text, *OPTIONS, "--out", str(tmp_path / "out")])
    assert load_checkpoint(tmp_path / "out" / "checkpoint.safetensors")[0]["training.losses"].size == 3


@pytest.mark.parametrize(("command", "known"), [("train", STARTS), ("flow", MATRICES)])
def test_the_commands_know_every_start(command, known, capsys):
    """`flow` draws matrices, and has an option of its own for the gates' biases."""
    parse = cli.build_parser().parse_args
    assert [parse([command, "--init", name]).init for name in known] == list(known)
    for name in STARTS.keys() - known.keys():
        with pytest.raises(SystemExit):
            parse([command, "--init", name])
        assert f"argument --init: invalid choice: '{name}'" in capsys.readouterr().err


def test_signals_that_are_ignored_stay_so():
    """As SIGHUP is under nohup."""
    assert signal.SIGHUP in SIGNALS
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not interruption.signal
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def deadly():
    """Signals that would kill this process fail the test instead."""
    before = {number: signal.signal(number, lambda number, _: pytest.fail(f"signal {number} ends it")) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", ["last_evaluation", "sample", "draw"])
def test_a_signal_after_training(run, text, tmp_path, monkeypatch, deadly, number, step):
    """While the net is judged, and its results are made: everything is saved, and a line says how to go on."""
    where = "fastbptt.app.train.run.plot_training" if step == "draw" else f"fastbptt.app.train.loop.Training.{step}"
    calls = iter([lambda: os.kill(os.getpid(), number)])
    monkeypatch.setattr(where, lambda *_, **__: next(calls, int)())
    result = run("train", text, *OPTIONS, "--out", tmp_path / "out")
    assert (result.status, result.err) == (128 + number, "")
    last = f"interrupted at update 3; everything is saved; to resume: fastbptt train --resume {tmp_path}/out/checkpoint.safetensors"
    assert result.out.splitlines()[-1] == last
    assert load_checkpoint(tmp_path / "out" / "checkpoint.safetensors")[0]["training.losses"].size == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_repeated(run, text, tmp_path, monkeypatch, deadly, number):
    """The status is its own."""
    monkeypatch.setattr(Interruption, "PATIENCE", -1.0)
    monkeypatch.setattr("fastbptt.app.train.loop.Training.update", lambda _: [os.kill(os.getpid(), number) for _ in range(2)])
    assert_fails(128 + number, "interrupted", run("train", text, *OPTIONS, "--out", tmp_path / "out"))


# --- Nothing steers a terminal ----------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;pwned\x07\x9b31m\r\u202e\u2066"
SHOWN = r"\x1b]0;pwned\x07\x9b31m\r\u202e\u2066"


def test_controls_are_escaped_and_nothing_else():
    assert printable(HOSTILE) == SHOWN
    assert printable("\x00\x08\x7f\x85") == r"\x00\x08\x7f\x85"
    harmless = "naïve\n\t\u3000\xa0\u200b\u200d\u200f\u2009 漢字 שלום 😀👨\u200d👩 \ue000 e\u0301 \N{SOFT HYPHEN}"
    assert printable(harmless) == harmless


def test_messages_are_escaped_where_they_leave(capsys):
    assert fail(ValueError(f"a{HOSTILE.replace(chr(13), '')}b"), 2) == 2
    say(f"w{HOSTILE}", f"one{HOSTILE}\ntwo")
    out, err = capsys.readouterr()
    assert err == f"fastbptt: error: a{SHOWN.replace(chr(92) + 'r', '')}b\n"
    assert out == f"w{SHOWN} one{SHOWN}\n            two\n"


def test_errors_are_of_bounded_length(run, tmp_path, capsys):
    """Their beginning and end are shown, whoever has written them."""
    assert fail(ValueError(f"name: {'x' * 10**6}; --option helps"), 2) == 2
    error = capsys.readouterr().err
    assert re.fullmatch("fastbptt: error: name: x{240,250} [.]{3} x{200,250}; --option helps\n", error), error
    header = json.dumps({"__metadata__": {"fastbptt": "{}"}, "n" * 900_000: {"dtype": "X", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for arguments in (["train", "--resume", tmp_path / "file"], ["flow", tmp_path / "file"], ["train", "--seed", "9" * 5000]):
        result = run(*arguments)
        assert result.status == 2 and len(result.err) < 600 and result.err.count("\n") == 1


def test_names_with_line_breaks_forge_no_lines(run, tmp_path, monkeypatch):
    """They are shown in one line, in results as in errors."""
    monkeypatch.chdir(tmp_path)
    forged = "a\nheld-out\tperplexity 1"
    (tmp_path / f"{forged}.txt").write_text(TEXT)
    results = [
        run("train", f"{forged}.txt", *OPTIONS, "--out", forged),
        run("train", f"{forged}.txt", *OPTIONS, "--out", forged),
        run("flow", f"{forged}/checkpoint.safetensors", "--out", f"{forged}.png"),
    ]
    assert [result.status for result in results] == [0, 2, 0]
    for result in results:
        assert not re.search("^ *held-out\tperplexity 1", result.out + result.err, re.MULTILINE), result.out
    assert f"\ncheckpoint  {printable_name(forged)}/checkpoint.safetensors\n" in results[0].out
    assert results[0].out.count(printable_name(forged)) == results[2].out.count(printable_name(forged)) + 1 == 4


@pytest.mark.parametrize("out", ["-x", "-x y", "a b"])
def test_the_command_that_resumes_is_one(run, text, tmp_path, monkeypatch, out):
    """Also of a directory whose name looks like an option."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastbptt.app.train.run.report", failing(KeyboardInterrupt()))
    result = run("train", text, *OPTIONS, "--no-plot", f"--out={out}")
    assert result.status == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = shlex.split(result.out.splitlines()[-1].partition("to resume: fastbptt ")[2])
    assert run(*again, "--no-plot", "--updates", 4).status == 0


def damaged(name):
    """What to change in a checkpoint to have a hostile name there."""
    return {
        "source": lambda arrays, metadata: metadata["description"].update(source=HOSTILE),
        "encoding": lambda arrays, metadata: metadata["description"].update(encoding=HOSTILE),
        "digest": lambda arrays, metadata: metadata["description"].update(sha256=HOSTILE),
        "format": lambda arrays, metadata: metadata.update(format=HOSTILE),
        "kind": lambda arrays, metadata: metadata.update(kind=HOSTILE),
        "a setting": lambda arrays, metadata: metadata["settings"].update({HOSTILE: 1}),
        "a cell": lambda arrays, metadata: metadata["settings"].update(cell=HOSTILE),
        "an array": lambda arrays, metadata: arrays.update({HOSTILE: arrays["readout.bias"]}),
    }[name]


@pytest.mark.parametrize("name", ["source", "encoding", "digest", "format", "kind", "a setting", "a cell", "an array"])
def test_a_checkpoint_cannot_steer_the_terminal(run, text, tmp_path, name):
    assert run("train", text, *OPTIONS, "--no-plot", "--out", tmp_path / "out").status == 0
    path = tmp_path / "out" / "checkpoint.safetensors"
    arrays, metadata = load_checkpoint(path)
    damaged(name)(arrays, metadata)
    save_checkpoint(path, arrays, metadata)
    for arguments in (["train", "--resume", path, "--updates", 4], ["flow", path, "--no-picture"]):
        result = run(*arguments)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", result.out + result.err), result.err
        assert arguments[0] == "flow" or (result.status == 2 and result.err.count("\n") == 1)


def test_nor_can_a_file_that_is_none(run, tmp_path):
    header = json.dumps({"__metadata__": {"fastbptt": "{}"}, HOSTILE: {"dtype": HOSTILE, "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for arguments in (["train", "--resume", tmp_path / "file"], ["flow", tmp_path / "file"]):
        result = run(*arguments)
        assert result.status == 2 and "pwned" in result.err and "\x1b" not in result.err and "\x07" not in result.err


def test_nor_can_the_name_of_a_text(run, tmp_path):
    (tmp_path / f"{HOSTILE}.txt").write_text(TEXT)
    result = run("train", tmp_path / f"{HOSTILE}.txt", *OPTIONS, "--no-plot", "--out", tmp_path / "out")
    assert result.status == 0 and f"{SHOWN}.txt: {len(TEXT)} characters" in result.out
    assert not set(result.out) & set("\x1b\x07\x9b\r\u202e")


# --- Pictures and files that fail -------------------------------------------------------------------------------------


def test_latex_that_is_missing(text, tmp_path, monkeypatch):
    """The net's results are there all the same."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    nowhere = {"PATH": str(tmp_path), "MATPLOTLIBRC": str(tmp_path)}
    result = command("train", text, *OPTIONS, "--out", tmp_path / "out", **nowhere)
    assert result.returncode == 1
    assert re.fullmatch(f"fastbptt: error: {tmp_path}/out/training.png: no picture: .*latex.*\n", result.stderr), result.stderr
    assert re.search(r"^held-out +perplexity", result.stdout, re.MULTILINE) and "\nsample      5 characters" in result.stdout
    assert "\npicture " not in result.stdout and "\ncheckpoint  " in result.stdout
    assert set(os.listdir(tmp_path / "out")) == FILES - {"training.png"}


PICTURES = {
    "x.png: no picture: first line": RuntimeError("first line\nsecond line"),
    "x.png: no picture: KeyError": KeyError(),
    "there: No space left on device": OSError(28, "No space left on device", "there"),
    "not enough memory": MemoryError(),
}


@pytest.mark.parametrize("line", PICTURES)
def test_a_picture_may_fail_in_any_way(run, text, tmp_path, monkeypatch, line):
    with pytest.raises(PictureError, match=f"^{line}$"), drawing("x.png"):
        raise PICTURES[line]
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", failing(PICTURES[line]))
    monkeypatch.setattr("fastbptt.app.flow.command.draw_portrait", failing(PICTURES[line]))
    monkeypatch.chdir(tmp_path)
    result = run("train", text, *OPTIONS, "--out", "out")
    assert_fails(1, line.replace("x.png", "out/training.png"), result)
    assert "held-out" in result.out and "checkpoint " in result.out and "picture " not in result.out
    result = run("flow", "--hidden", 5, "--steps", 9)
    assert_fails(1, line.replace("x.png", "fastbptt-flow.png"), result)
    assert "Lyapunov" in result.out and "picture " not in result.out


def test_warnings_about_a_picture_are_not_shown(run, text, tmp_path, monkeypatch):
    """As of a name with letters that the font lacks, or of numbers that overflow. Here, a warning shown is an error."""
    warn = partial(warnings.warn, "overflow", RuntimeWarning, stacklevel=2)
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", lambda *_, **__: warn())
    monkeypatch.setattr("fastbptt.app.flow.command.draw_portrait", lambda *_, **__: warn())
    result = run("train", text, *OPTIONS, "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    result = run("flow", "--hidden", 5, "--steps", 9, "--out", tmp_path / "x.png")
    assert (result.status, result.err) == (0, "")


def test_a_failed_run_is_told_before_its_picture(run, text, tmp_path, monkeypatch):
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", failing(RuntimeError("no fonts")))
    linear = ["--cell", "rnn", "--nonlinearity", "identity", "--lr", 1e6, "--updates", 500]
    result = run("train", text, *NET, *linear, "--out", tmp_path / "out")
    assert_fails(1, rf"update \d+: the .* may help; {tmp_path}/out/training.png: no picture: no fonts", result)


def test_a_sample_that_cannot_be_written(run, text, tmp_path, monkeypatch):
    full = SimpleNamespace(path=tmp_path / "out", write=failing(OSError(28, "No space left on device", "out/sample.txt")))
    monkeypatch.setattr("fastbptt.app.train.run.keep", lambda sample, output: keep(sample, replace(output, folder=full)))
    result = run("train", text, *OPTIONS, "--out", tmp_path / "out")
    assert_fails(1, "out/sample.txt: No space left on device", result)
    assert "\nsample      5 characters at temperature 0.8\n" in result.out
    assert set(os.listdir(tmp_path / "out")) == FILES - {"sample.txt"}


@pytest.mark.parametrize("arguments", ["train FILE", "train --out", "train --resume", "flow CHECKPOINT", "flow --text", "flow --out"])
def test_an_empty_name(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    asked, what = arguments.split()
    result = run(asked, *([what] if what.startswith("--") else []), "")
    assert_fails(2, rf"argument {what}: expected a name, got '' \(see fastbptt {asked} --help\)", result)
    assert os.listdir(tmp_path) == []
