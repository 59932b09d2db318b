"""Two directions of a layer at a time, each on a thread of its own: the same bits, and what threads, forks and signals do to it."""

import os
import threading

import numpy as np
import pytest
from processes import run_python
from tolerances import DTYPES, assert_same_bits

import fastbptt
from fastbptt import side_by_side, stacks
from fastbptt.layers import LAYERS


@pytest.fixture(autouse=True)
def little_work_is_shared_too(monkeypatch):
    """That these tests take little time."""
    monkeypatch.setattr(stacks, "LEAST_WORK", 1e6)


def passes(layer, x, **ragged):
    layer.zero_grad()
    out, state = layer(x, **ragged)
    dx, d_state = layer.backward(np.ones_like(out))
    states = [part for pair in (state, d_state) for part in (pair if isinstance(pair, tuple) else (pair,))]
    return [out, dx, layer.flat_grads.copy(), *states]


def of_some_work(name="lstm", dtype=np.float64, B=1):
    layer = LAYERS[name](20, 72, 2, bidirectional=True, dtype=dtype, rng=0)
    return layer, np.random.default_rng(0).standard_normal((250, B, 20)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("B", [1, 3])
def test_the_same_bits(name, dtype, B, threads, monkeypatch):
    layer, x = of_some_work(name, dtype, B)
    lengths = np.linspace(250, 90, B).astype(int)
    threads(1)
    expected = passes(layer, x), passes(layer, x, lengths=lengths)
    count, real = [], stacks.both
    monkeypatch.setattr(stacks, "both", lambda *calls: count.append(1) or real(*calls))
    for n in (2, 3, 5, 2):
        threads(n)
        for got, right in zip((passes(layer, x), passes(layer, x, lengths=lengths)), expected):
            for a, b in zip(got, right, strict=True):
                assert_same_bits("result", a, b)
    assert len(count) == 3 * 2 * 4 and fastbptt.get_num_threads() == 2


def test_bad_input_is_refused_as_ever(threads):
    threads(2)
    layer, x = of_some_work()
    for wrong, message in (
        ({"lengths": np.array([251])}, "lengths: expected numbers of steps"),
        ({"resets": np.ones((250, 1))}, "resets: "),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            layer(x, **wrong)
    with pytest.raises(TypeError, match=r"^x: expected dtype float64"):
        layer(x.astype(np.float32))


def fail(kind):
    raise kind("on purpose")


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_errors_of_either(kind, threads):
    threads(2)
    for calls in ((lambda: fail(kind), lambda: 1), (lambda: 1, lambda: fail(kind)), (lambda: fail(kind), lambda: fail(ValueError))):
        with pytest.raises(kind, match="on purpose"):
            side_by_side.both(*calls)
        assert side_by_side.both(lambda: 3, lambda: 4) == (3, 4)


def test_a_helper_that_does_not_come():
    """The caller takes its call back."""
    begun, go_on = threading.Event(), threading.Event()

    def keep_busy():
        begun.set()
        assert go_on.wait(60)

    owner = threading.Thread(target=side_by_side.both, args=(lambda: begun.wait(60), keep_busy))
    owner.start()
    assert begun.wait(60)
    here = []
    assert side_by_side.both(lambda: 1, lambda: here.append(threading.current_thread()) or 2) == (1, 2)
    assert here == [threading.current_thread()]
    go_on.set()
    owner.join()


IN_A_CHILD = """
import os, sys, threading
import fastbptt, numpy as np
sys.path.insert(0, '.')
from fastbptt import stacks
from test_side_by_side import of_some_work, passes
stacks.LEAST_WORK = 1e6
fastbptt.set_num_threads(2)
layer, x = of_some_work()
expected = passes(layer, x)
for _ in range(5):
    child = os.fork()
    if not child:
        ok = all(a.tobytes() == b.tobytes() for a, b in zip(passes(layer, x), expected))
        os._exit(0 if ok else 3)
    assert os.waitpid(child, 0)[1] == 0
    passes(layer, x)
assert [thread.name for thread in threading.enumerate()].count("fastbptt") == 1
"""


@pytest.mark.one_level
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_where_no_thread_can_be_had(threads, monkeypatch):
    """Nor when the process ends: from Python 3.12 on, none can be started then."""

    def refuse(*_, **__):
        raise RuntimeError("can't start new thread")

    layer, x = of_some_work()
    threads(1)
    expected = passes(layer, x)
    threads(2)
    monkeypatch.setattr(side_by_side, "_calls", None)
    monkeypatch.setattr(side_by_side.threading, "Thread", refuse)
    for got, value in zip(passes(layer, x), expected, strict=True):
        assert_same_bits("a result", got, value)


def test_after_a_fork():
    run_python(IN_A_CHILD)


SIGNALS = """
import signal, sys, time
import fastbptt, numpy as np
sys.path.insert(0, '.')
from fastbptt import stacks
from test_side_by_side import of_some_work, passes
stacks.LEAST_WORK = 1e6
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
fastbptt.set_num_threads(2)
layer, x = of_some_work()
expected = passes(layer, x)
cut = 0
for n in range(30):
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-3 + 5e-4 * n, 5)  # once more, if the first is raised where Python ignores it
        while True: passes(layer, x)
    except Alarm:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    got = passes(layer, x)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected)), n
assert cut == 30
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_interrupted():
    run_python(SIGNALS)
