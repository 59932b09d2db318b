"""A run's directory: for one run at a time, and what another run has made there is not replaced unasked."""

import os
import re
import shutil

import numpy as np
import pytest
from commands import assert_fails
from processes import run_python

from fastbptt.app.train.checkpoint import load_checkpoint
from fastbptt.app.train.folder import Folder
from fastbptt.app.train.loop import Training
from fastbptt.app.train.objective import Evaluation
from fastbptt.app.train.run import CHECKPOINT

TEXT = "Of the same text, the same net comes. " * 20
OPTIONS = ["--hidden", 7, "--batch", 3, "--seq-len", 10, "--sample", 0, "--no-plot"]
FILES = ("checkpoint.safetensors", "training.png", "sample.txt")
EXISTS = "{}: exists already; --overwrite replaces it, --out leads elsewhere"


@pytest.fixture
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def first(run, text, tmp_path):
    """The directory of a run that has ended after 3 updates."""
    assert run("train", text, *OPTIONS, "--updates", 3, "--out", tmp_path / "first").status == 0
    return tmp_path / "first"


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def updates(directory):
    return load_checkpoint(directory / "checkpoint.safetensors")[0]["training.losses"].size


# --- What is there stays there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--quiet"], ["--live"], ["--seed", 7]])
def test_an_earlier_run_is_not_replaced(run, text, first, options):
    before = contents(first)
    result = run("train", text, *OPTIONS, "--updates", 2, "--out", first, *options)
    assert_fails(2, EXISTS.format(first / "checkpoint.safetensors"), result)
    assert result.out == "" and contents(first) == before


def test_nor_is_one_on_a_task(run, first):
    before = contents(first)
    result = run("train", "--task", "adding", "--no-plot", "--updates", 2, "--out", first)
    assert_fails(2, EXISTS.format(first / "checkpoint.safetensors"), result)
    assert contents(first) == before


@pytest.mark.parametrize(("name", "options"), [("training.png", []), ("sample.txt", ["--no-plot"])])
def test_pictures_and_samples_are_not_replaced_either(run, text, tmp_path, name, options):
    if name == "training.png":
        pytest.importorskip("matplotlib")
    (tmp_path / name).write_bytes(b"precious")
    result = run("train", text, *OPTIONS[:6], "--updates", 2, "--out", tmp_path, *options)
    assert_fails(2, EXISTS.format(tmp_path / name), result)
    assert contents(tmp_path) == {name: b"precious"}
    assert run("train", text, *OPTIONS, "--updates", 2, "--out", tmp_path).status == 0
    assert (tmp_path / name).read_bytes() == b"precious"


def test_nor_is_a_link_to_one(run, text, tmp_path):
    (tmp_path / "checkpoint.safetensors").symlink_to("nowhere")
    assert_fails(2, EXISTS.format(tmp_path / "checkpoint.safetensors"), run("train", text, *OPTIONS, "--out", tmp_path))
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]


def test_unless_it_may_be(run, text, first):
    assert run("train", text, *OPTIONS, "--updates", 2, "--out", first, "--overwrite").status == 0
    assert updates(first) == 2


def test_a_run_goes_on_in_its_own_directory_only(run, text, first, tmp_path):
    second = tmp_path / "second"
    assert run("train", text, *OPTIONS, "--updates", 2, "--seed", 7, "--out", second).status == 0
    before = contents(first), contents(second)
    again = ["train", "--resume", first, "--no-plot", "--sample", 0, "--updates", 5]
    assert_fails(2, EXISTS.format(second / "checkpoint.safetensors"), run(*again, "--out", second))
    assert (contents(first), contents(second)) == before
    assert run(*again, "--out", second, "--overwrite").status == 0
    assert (updates(first), updates(second)) == (3, 5)
    (tmp_path / "link").symlink_to("first")
    assert run(*again, "--out", tmp_path / "link").status == 0
    assert updates(first) == 5


def test_a_checkpoint_of_another_name_is_another_runs(run, first):
    os.rename(first / "checkpoint.safetensors", first / "best.safetensors")
    again = ["train", "--resume", first / "best.safetensors", "--no-plot", "--sample", 0, "--updates", 5]
    assert run(*again).status == 0
    assert_fails(2, EXISTS.format(first / "checkpoint.safetensors"), run(*again, "--updates", 6))
    assert updates(first) == 5


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "training.png", "sample.txt"])
def test_a_directory_in_a_files_place_is_noticed_before_training(run, text, tmp_path, name):
    pytest.importorskip("matplotlib")
    (tmp_path / name).mkdir()
    result = run("train", text, *OPTIONS[:6], "--updates", 2, "--out", tmp_path, "--overwrite")
    assert_fails(2, f"{tmp_path / name}: expected a file, got a directory", result)
    assert os.listdir(tmp_path) == [name]


# --- One run at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--quiet"], ["--resume", "first"]])
def test_while_a_run_is_at_work(run, text, first, options):
    before = contents(first)
    arguments = ["--resume", first, "--no-plot"] if "--resume" in options else [text, *OPTIONS, "--out", first, *options]
    with Folder(first):
        assert_fails(2, f"{first}: another run is at work there; --out leads elsewhere", run("train", *arguments))
    assert contents(first) == before


def test_two_that_find_no_directory(tmp_path):
    """The one that makes it has it."""
    with Folder(tmp_path / "new") as one, Folder(tmp_path / "new") as two:
        one.prepare([tmp_path / "new" / "file"])
        with pytest.raises(ValueError, match="another run is at work there"):
            two.prepare([tmp_path / "new" / "file"])
    assert os.listdir(tmp_path / "new") == []


def test_it_is_free_when_its_process_has_died(tmp_path):
    code = "import os, sys\nfrom fastbptt.app.train.folder import Folder\nFolder(sys.argv[1]).__enter__()\nos.kill(os.getpid(), 9)"
    assert run_python(code, tmp_path, check=False).returncode == -9
    with Folder(tmp_path) as folder:
        folder.prepare([])
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_it_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr("fastbptt._files.fcntl", None)
    with Folder(tmp_path) as one, Folder(tmp_path) as two:
        one.prepare([])
        two.prepare([])


# --- A directory that is moved while a run is at work -----------------------------------------------------------------


def during_a_run(monkeypatch, at, happen):
    """Let something happen before an update of the runs that follow."""
    update = Training.update

    def disturbed(training):
        if training.updates == at:
            happen()
        update(training)

    monkeypatch.setattr(Training, "update", disturbed)


@pytest.fixture
def another(tmp_path):
    """What the run that begins later under the same name has made."""

    def begin(path):
        path.mkdir()
        for name in FILES:
            (path / name).write_bytes(b"another run's")

    return begin


MOVED = "{0}: moved or replaced while this run was at work there; {1} is in the directory that it has begun in"


@pytest.mark.parametrize("save_every", [0, 1000])
def test_it_is_moved_and_another_run_begins(run, text, tmp_path, monkeypatch, another, save_every):
    """The net goes to where the run has begun; the other's files stay as they are."""
    out, moved = tmp_path / "out", tmp_path / "moved"
    during_a_run(monkeypatch, 2, lambda: (out.rename(moved), another(out)))
    result = run("train", text, *OPTIONS, "--updates", 4, "--out", out, "--save-every", save_every)
    kept = "this run has saved no checkpoint yet" if save_every else f"the checkpoint of update 2 is no longer in {out}/{CHECKPOINT}"
    assert_fails(1, re.escape(f"{MOVED.format(out, CHECKPOINT)}; {kept}"), result)
    assert contents(out) == dict.fromkeys(FILES, b"another run's")
    assert updates(moved) == (4 if save_every else 3)


def test_a_link_to_it_leads_elsewhere(run, text, tmp_path, monkeypatch, another):
    (tmp_path / "one").mkdir()
    another(tmp_path / "two")
    out = tmp_path / "out"
    out.symlink_to("one")
    during_a_run(monkeypatch, 2, lambda: (out.unlink(), out.symlink_to("two")))
    result = run("train", text, *OPTIONS, "--updates", 4, "--out", out)
    assert_fails(1, re.escape(MOVED.format(out, CHECKPOINT)) + "; .*", result)
    assert contents(tmp_path / "two") == dict.fromkeys(FILES, b"another run's") and updates(tmp_path / "one") == 4


@pytest.mark.parametrize("begun", [False, True])
def test_it_is_removed(run, text, tmp_path, monkeypatch, another, begun):
    out = tmp_path / "out"
    during_a_run(monkeypatch, 2, lambda: (shutil.rmtree(out), begun and another(out)))
    result = run("train", text, *OPTIONS, "--updates", 4, "--out", out, "--save-every", 0)
    gone = f"{out}: removed while this run was at work there; the checkpoint of update 2 is no longer in {out}/{CHECKPOINT}"
    assert_fails(1, re.escape(gone), result)
    assert not out.exists() if not begun else contents(out) == dict.fromkeys(FILES, b"another run's")


@pytest.mark.parametrize("name", ["training.png", "sample.txt"])
def test_it_is_moved_after_training(run, text, tmp_path, monkeypatch, another, name):
    pytest.importorskip("matplotlib")
    out, moved = tmp_path / "out", tmp_path / "moved"
    judge = Training.last_evaluation
    monkeypatch.setattr(Training, "last_evaluation", lambda training: (out.rename(moved), another(out)) and judge(training))
    options = ["--sample", 5, "--no-plot"] if name == "sample.txt" else ["--sample", 0]
    result = run("train", text, *OPTIONS[:6], "--updates", 2, "--out", out, *options)
    lost = f"the checkpoint of update 2 is no longer in {out}/{CHECKPOINT}"
    assert_fails(1, re.escape(f"{lost}; {MOVED.format(out, name)}"), result)
    assert "\ncheckpoint " not in result.out
    assert contents(out) == dict.fromkeys(FILES, b"another run's") and set(os.listdir(moved)) == {CHECKPOINT, name}


def test_it_is_moved_while_a_run_starts(tmp_path):
    """What was looked for in one directory is not written to another."""
    (tmp_path / "out").mkdir()
    with Folder(tmp_path / "out") as folder:
        (tmp_path / "out").rename(tmp_path / "moved")
        (tmp_path / "out").mkdir()
        with pytest.raises(ValueError, match=f"^{tmp_path}/out: moved or replaced while this run was starting there$"):
            folder.prepare([tmp_path / "out" / "file"])


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_checkpoint_that_goes_after_training(run, text, tmp_path, monkeypatch, interrupted):
    def remove(_):
        (tmp_path / CHECKPOINT).unlink()
        if interrupted:
            raise KeyboardInterrupt
        return Evaluation(2, 1.0)

    monkeypatch.setattr(Training, "last_evaluation", remove)
    result = run("train", text, *OPTIONS, "--updates", 2, "--out", tmp_path)
    lost = f"the checkpoint of update 2 is no longer in {tmp_path}/{CHECKPOINT}"
    assert_fails(130 if interrupted else 1, f"{'interrupted at update 2; ' if interrupted else ''}{re.escape(lost)}", result)
    assert "everything is saved" not in result.out and "\ncheckpoint " not in result.out


@pytest.mark.parametrize("replace", [False, True])
def test_a_checkpoint_that_is_gone_is_not_said_to_be_kept(run, text, tmp_path, monkeypatch, replace):
    path = tmp_path / CHECKPOINT
    during_a_run(monkeypatch, 2, lambda: (path.unlink(), replace and path.mkdir()))
    options = ["--save-every", 0, "--cell", "rnn", "--nonlinearity", "identity"]
    norms = iter([1.0, 1.0, np.inf])
    monkeypatch.setattr("fastbptt.app.train.loop.clip_grad_norm_", lambda *_, **__: next(norms))
    result = run("train", text, *OPTIONS, "--updates", 4, "--out", tmp_path, *options)
    said = f"update 3: the gradient norm is inf; the checkpoint of update 2 is no longer in {path}; a smaller --lr or --clip may help"
    assert_fails(1, re.escape(said), result)


def test_a_link_to_the_same_checkpoint_is_no_run_that_goes_on(run, text, first, tmp_path):
    """A second name of the file, hard or symbolic, does not make two directories one."""
    for make in (os.link, os.symlink):
        other = tmp_path / make.__name__
        other.mkdir()
        make(first / CHECKPOINT, other / CHECKPOINT)
        (other / "sample.txt").write_bytes(b"precious")
        again = ["train", "--resume", first, "--no-plot", "--sample", 5, "--updates", 5, "--out", other]
        assert_fails(2, EXISTS.format(other / CHECKPOINT), run(*again))
        assert (other / "sample.txt").read_bytes() == b"precious"
