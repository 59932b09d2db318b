"""Fixtures for all test files. The helpers are modules beside this one: `problems`, `tolerances`, `processes`, `commands`, `remembered`."""

import functools
import gc
import os
import signal

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for NumPy's products, all small here: its threads would wait for each other where cores are busy

import numpy as np
import pytest
from commands import Run
from problems import CELLS, ONE_OF_EACH

import fastbptt
from fastbptt._kernels import memory, pool

collect_ignore = ["consumer"]  # a package that is installed elsewhere, by tests/consumers.py


@pytest.fixture(scope="session", autouse=True)
def near_cores():
    """Threads share the steps of the same calls on every machine, small ones too."""
    before = pool.assume_step_cost(20)
    yield
    pool.assume_step_cost(before)


@pytest.fixture
def threads():
    """`fastbptt.set_num_threads`, undone after the test."""
    before = fastbptt.get_num_threads()
    yield fastbptt.set_num_threads
    fastbptt.set_num_threads(before)


@pytest.fixture
def dirty_memory(monkeypatch):
    """A function that fills with NaN all memory that the package may be given next, NumPy's and recycled blocks, up to 16 MB."""

    def numpy_empty(*arguments, empty=np.empty, **options):
        array = empty(*arguments, **options)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    def make():
        monkeypatch.setattr(np, "empty", numpy_empty)
        blocks = [memory.Block(1 << exponent) for exponent in range(12, 25)]
        for block in blocks:
            np.frombuffer(block, np.uint8).fill(0xFF)  # all ones: a NaN in both precisions

    return make


@pytest.fixture(autouse=True)
def usual_signals():
    """The default handlers, in tests and the processes that they start: under nohup and in background jobs some signals are ignored."""
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    ignored = [number for name in usual if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number.name])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def run(capsys):
    """The command in this process: ``run("train", ...)`` is a `Run`."""
    return functools.partial(Run, capsys)


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread: these sizes are small, and its threads are slow on a busy machine."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


def pytest_collection_finish():
    """What there is by now stays to the end: no garbage collection needs to look through it again."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite is shared out by pytest-xdist to a process for each core, up to eight; what is chosen runs in this one, or as -n says."""
    chosen = config.args_source is not config.ArgsSource.TESTPATHS or config.option.keyword or config.option.markexpr
    undecided = getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb
    if undecided and not chosen and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.dist = "logical", "worksteal"
        config.option.maxprocesses = config.option.maxprocesses or 8


def pytest_collection_modifyitems(items):
    """What lasts comes first, so that in the end no process has it left to do while the others have nothing."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_itemcollected(item):
    """At the other levels the kernels' tests take one cell of each kind: test_levels.py has a smoke test that takes all."""
    cell = getattr(item, "callspec", None) and item.callspec.params.get("cell")
    if isinstance(cell, str) and cell in CELLS and cell not in ONE_OF_EACH:
        item.add_marker("one_level")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes a minute or more, and comes first")
    config.addinivalue_line("markers", "one_level: takes PyTorch, or long: run at one instruction-set level only, see test_levels.py")
