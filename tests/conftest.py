"""Fixtures for all test files. The helpers are modules beside this one: `problems`, `tolerances`, `processes`, `commands`, `other_levels`."""

import functools
import signal

import other_levels as levels
import pytest
from commands import Run
from problems import CELLS, ONE_OF_EACH

import fastbptt


@pytest.fixture
def threads():
    """`fastbptt.set_num_threads`, undone after the test."""
    before = fastbptt.get_num_threads()
    yield fastbptt.set_num_threads
    fastbptt.set_num_threads(before)


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


@pytest.fixture(scope="session")
def other_levels(tmp_path_factory):
    with levels.runs(tmp_path_factory.mktemp("levels")) as runs:
        yield runs


@pytest.fixture(scope="session", autouse=True)
def begin_with_what_lasts(request):
    """Whatever is waited for in the end runs beside the other tests."""
    if any("other_levels" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("other_levels")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "other_levels" in getattr(item, "fixturenames", ()))


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


def pytest_itemcollected(item):
    """At the other levels the kernels' tests take one cell of each kind: test_levels.py has a smoke test that takes all."""
    cell = getattr(item, "callspec", None) and item.callspec.params.get("cell")
    if isinstance(cell, str) and cell in CELLS and cell not in ONE_OF_EACH:
        item.add_marker("one_level")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes several seconds")
    config.addinivalue_line("markers", "one_level: takes PyTorch, or long: run at one instruction-set level only, see test_levels.py")
