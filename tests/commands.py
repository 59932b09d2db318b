"""The command `fastbptt`, run in this process or in one of its own."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest
from processes import current_level, environment

from fastbptt.app import cli


class Run:
    """The command in this process, run to its end: its exit status and what it printed. Made by the fixture `run`."""

    def __init__(self, capsys, *arguments):
        self.status = cli.main([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()


def command(*arguments, **variables):
    """``python -m fastbptt`` in a process of its own, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fastbptt", *map(str, arguments)],
        env=environment(**(current_level() | variables)),
        capture_output=True,
        text=True,
        timeout=120,
    )


def shown_in_terminal(*arguments, **variables):
    """What ``python -m fastbptt`` writes to a terminal, as bytes, when run to its end there."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastbptt", *map(str, arguments)],
        env=environment(**current_level(), TERM="xterm", **variables),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(120) == 0
    return shown


def started(*arguments):
    """``python -m fastbptt train`` in a process of its own, once it has written its first checkpoint."""
    path = arguments[arguments.index("--out") + 1] / "checkpoint.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-m", "fastbptt", "train", *map(str, arguments)],
        env=environment(**current_level()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def assert_fails(status, complaint, result):
    """One line on standard error, the right exit status."""
    assert re.fullmatch(f"fastbptt: error: {complaint}\n", result.err), result.err
    assert status == result.status
