"""Files that are written whole or not at all: their permissions, links, what a kill leaves, and which file an error names."""

import errno
import os
import stat

import pytest

from fastbptt import _files
from fastbptt._files import lock, require_writable, write_atomically

LEFT = ".fastbptt-0123456789abcdef.tmp"


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("before", [0o600, 0o640, 0o666, 0o444])
def test_a_file_keeps_its_permissions(tmp_path, umask, before):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    write_atomically(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", before)


def test_a_new_file_has_the_permissions_of_any(tmp_path, umask):
    write_atomically(tmp_path / "file", b"new")
    assert mode(tmp_path / "file") == 0o640


def test_a_secret_is_never_open_to_others(tmp_path, monkeypatch):
    """Not even briefly: a file that is open once can be read later."""
    opened = []
    monkeypatch.setattr(os, "open", lambda *arguments, open=os.open, **within: opened.append(arguments) or open(*arguments, **within))
    path = tmp_path / "file"
    path.touch(0o600)
    opened.clear()
    write_atomically(path, b"new")
    assert [arguments[2] for arguments in opened if arguments[1] & os.O_CREAT] == [0o600]


def test_a_planted_link_is_not_followed(tmp_path):
    """Neither at a guessed name of the temporary file nor at the file's own."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("precious")
    (tmp_path / f".file.{os.getpid()}.probe").symlink_to("precious")
    (tmp_path / "file").symlink_to("precious")
    require_writable(tmp_path / "file")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
    assert len(os.listdir(tmp_path)) == 4


def test_names_that_leave_no_room(tmp_path):
    write_atomically(tmp_path / ("n" * 255), b"new")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_what_a_kill_has_left_is_removed(tmp_path):
    for name in (LEFT, LEFT.replace("0", "f"), "kept.tmp", ".file.77.tmp", ".fastbptt-run.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / LEFT.replace("1", "d")).mkdir()
    (tmp_path / LEFT.replace("2", "e")).symlink_to("kept.tmp")
    write_atomically(tmp_path / "file", b"new")
    left = {"kept.tmp", ".file.77.tmp", ".fastbptt-run.tmp", LEFT.replace("1", "d"), LEFT.replace("2", "e")}
    assert set(os.listdir(tmp_path)) == left | {"file"}


def test_what_another_writes_is_not_removed(tmp_path):
    """It is locked as long as its process lives."""
    with open(tmp_path / LEFT, "wb") as other:
        assert lock(other.fileno())
        write_atomically(tmp_path / "file", b"new")
        assert set(os.listdir(tmp_path)) == {LEFT, "file"}
    write_atomically(tmp_path / "file", b"newer")
    assert os.listdir(tmp_path) == ["file"]


def test_one_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    removed = []

    def after_the_broom(descriptor):
        if not removed:
            removed.extend(name for name in os.listdir(tmp_path) if name.startswith(".fastbptt-"))
            os.unlink(tmp_path / removed[0])
        return lock(descriptor)

    monkeypatch.setattr(_files, "lock", after_the_broom)
    write_atomically(tmp_path / "file", b"new")
    assert len(removed) == 1 and os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "fcntl", None)
    (tmp_path / LEFT).touch()
    write_atomically(tmp_path / "file", b"new")
    assert set(os.listdir(tmp_path)) == {LEFT, "file"}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_error_names_the_file(tmp_path, monkeypatch, call):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), LEFT)

    if call == "write":
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        monkeypatch.setattr(os, "fsync", lambda *_: pytest.fail("nothing may be written"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    else:
        monkeypatch.setattr(os, call, fail)
    try:
        with pytest.raises(OSError) as error:
            write_atomically(tmp_path / "file", bytes(100_000))
    finally:
        if call == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "file"), None)
    assert error.value.errno == (errno.EFBIG if call == "write" else errno.ENOSPC)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_known_before(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}: expected a file, got a directory$"):
        require_writable(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        require_writable(tmp_path / "missing" / "file")
    assert error.value.filename == str(tmp_path / "missing" / "file")
    require_writable(tmp_path / "file")
    assert os.listdir(tmp_path) == []
