"""Two passes in one call of the kernels, a thread each: the same bits, and what errors, busy helpers, forks and signals do to it."""

import os
import threading

import numpy as np
import pytest
from processes import run_python
from tolerances import DTYPES, assert_same_bits

from fastbptt import functional, stacks
from fastbptt.layers import LAYERS

STACKS = {"bidirectional": {"num_layers": 2, "bidirectional": True}, "layers": {"num_layers": 3}}


@pytest.fixture(autouse=True)
def little_work_is_shared_too(monkeypatch):
    """That these tests take little time."""
    monkeypatch.setattr(stacks, "LEAST_WORK", 1e5)


def passes(layer, x, d_out=None, **options):
    layer.zero_grad()
    out, state = layer(x, **options)
    dx, d_state = layer.backward(np.ones_like(out) if d_out is None else d_out)
    states = [part for pair in (state, d_state) for part in (pair if isinstance(pair, tuple) else (pair,))]
    return [out, layer.flat_grads.copy(), *states] + ([] if dx is None else [dx])


def of_some_work(name="lstm", dtype=np.float64, B=1, stack="bidirectional", **options):
    layer = LAYERS[name](20, 40, dtype=dtype, rng=0, **STACKS[stack], **options)
    return layer, np.random.default_rng(0).standard_normal((120, B, 20)).astype(dtype)


def some_calls(layer, x):
    """Of every kind that goes another way through two passes."""
    T, B, I = x.shape
    ends = np.linspace(T, T // 3, B).astype(int)
    late = np.zeros((T, B, layer(x)[0].shape[2]), x.dtype)
    late[100] = 1
    resets = np.random.default_rng(1).random((T, B)) < 0.02
    yield from ((x, {}), (x, {"d_out": late}), (x, {"lengths": ends}), (x, {"resets": resets}), (x, {"memory_budget": 10**8}))
    yield np.random.default_rng(2).integers(0, I, (T, B)), {}


@pytest.fixture
def taken(monkeypatch):
    """Pairs of passes that one call of the kernels has taken, and of these, those of which one was behind the other."""
    count = {"both": 0, "behind": 0}

    class Counted:
        def __init__(self, bound):
            self.bound, self.run = bound, bound.run

        def run_with(self, other, behind=False):
            count["behind" if behind else "both"] += 1
            return self.bound.run_with(other.bound, behind)

    for way in ("forward_pass", "backward_pass"):
        real = getattr(functional, way)

        def watched(*arguments, real=real, **options):
            bound, *others = real(*arguments, **options)
            return None if bound is None else Counted(bound), *others

        monkeypatch.setattr(f"fastbptt.layers.{way}", watched)
    return count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("stack", STACKS)
def test_the_same_bits(name, dtype, B, stack, threads, taken):
    layer, x = of_some_work(name, dtype, B, stack)
    for given, options in some_calls(layer, x):
        threads(1)
        expected = passes(layer, given, **options)
        taken.update(both=0, behind=0)
        for n in (2, 3, 5):
            threads(n)
            for got, right in zip(passes(layer, given, **options), expected, strict=True):
                assert_same_bits("result", got, right)
        if "memory_budget" in options:
            pairs = {"both": 0, "behind": 0}
        elif stack == "bidirectional":
            pairs = {"both": 2 * 2 * 2, "behind": 0}
        else:
            pairs = {"both": 0, "behind": 0 if options.keys() & {"lengths", "resets"} and (B > 1 or "resets" in options) else 2 * 2}
        assert taken == pairs, options


def test_without_a_tape(threads):
    for stack in STACKS:
        layer, x = of_some_work(stack=stack, B=2)
        layer.eval()
        threads(1)
        expected, _ = layer(x)
        threads(2)
        assert_same_bits("out", layer(x)[0], expected)


def test_projected_and_dropped(threads, taken):
    layer, x = of_some_work(stack="layers", proj_size=20)
    threads(1)
    expected = passes(layer, x)
    threads(2)
    for got, right in zip(passes(layer, x), expected, strict=True):
        assert_same_bits("result", got, right)
    assert taken == {"both": 0, "behind": 2}
    layer, x = of_some_work(stack="layers", dropout=0.5)
    passes(layer, x)
    assert taken == {"both": 0, "behind": 2}
    layer.eval()
    layer(x)
    assert taken == {"both": 0, "behind": 3}


def test_bad_input_is_refused_as_ever(threads):
    threads(2)
    layer, x = of_some_work()
    for wrong, message in (
        ({"lengths": np.array([121])}, "lengths: expected numbers of steps"),
        ({"resets": np.ones((120, 1))}, "resets: "),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            layer(x, **wrong)
    with pytest.raises(TypeError, match=r"^x: expected dtype float64"):
        layer(x.astype(np.float32))


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("which", [0, 1])
def test_errors_of_either(kind, stack, which, threads, monkeypatch):
    """Nothing is left of the other, and the next call is as ever."""
    threads(2)
    layer, x = of_some_work(stack=stack)
    expected = passes(layer, x)
    begun, real = [], functional.forward_pass

    def failing(*arguments, **options):
        begun.append(1)
        if len(begun) == which + 1:
            raise kind("on purpose")
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("fastbptt.layers.forward_pass", failing)
        with pytest.raises(kind, match="on purpose"):
            layer(x)
    assert len(begun) == which + 1
    for got, right in zip(passes(layer, x), expected, strict=True):
        assert_same_bits("result", got, right)


def bound_pass(T=3):
    x, w = np.ones((T, 1, 2)), np.eye(2)
    return functional.forward_pass("rnn", x, {"h0": None}, w, w, None, None, None, None, (None, True, False))


def test_a_pass_is_taken_once():
    bound, _, finish = bound_pass()
    bound.run()
    for again in (bound.run, lambda: bound.run_with(bound_pass()[0]), lambda: bound_pass()[0].run_with(bound)):
        with pytest.raises(RuntimeError, match=r"^a pass is taken once$"):
            again()
    (bound, _, _), (other, _, _) = bound_pass(), bound_pass()
    with pytest.raises(RuntimeError, match=r"^a pass is taken once$"):
        bound.run_with(bound)
    with pytest.raises(TypeError):
        other.run_with(None)
    assert finish()[0].shape == (3, 1, 2)


def test_helpers_that_are_busy(threads):
    """The caller takes both, one after the other, the one that is behind second."""
    expected = {}
    for stack in STACKS:
        layer, x = of_some_work(stack=stack)
        threads(1)
        expected[stack] = passes(layer, x)
    threads(2)
    stop, large = threading.Event(), LAYERS["lstm"](64, 256, rng=0)

    def keep_busy():
        while not stop.is_set():
            large(np.ones((40, 16, 64)))

    other = threading.Thread(target=keep_busy)
    other.start()
    try:
        for stack in STACKS:
            layer, x = of_some_work(stack=stack)
            for _ in range(5):
                for got, right in zip(passes(layer, x), expected[stack], strict=True):
                    assert_same_bits("result", got, right)
    finally:
        stop.set()
        other.join()


IN_A_CHILD = """
import os, sys
import fastbptt, numpy as np
sys.path.insert(0, '.')
fastbptt.stacks.LEAST_WORK = 1e5
from test_side_by_side import STACKS, of_some_work, passes
fastbptt.set_num_threads(2)
for stack in STACKS:
    layer, x = of_some_work(stack=stack)
    expected = passes(layer, x)
    for _ in range(5):
        child = os.fork()
        if not child:
            ok = all(a.tobytes() == b.tobytes() for a, b in zip(passes(layer, x), expected))
            os._exit(0 if ok else 3)
        assert os.waitpid(child, 0)[1] == 0
        passes(layer, x)
"""


@pytest.mark.one_level
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork():
    run_python(IN_A_CHILD)


SIGNALS = """
import signal, sys
import fastbptt, numpy as np
sys.path.insert(0, '.')
fastbptt.stacks.LEAST_WORK = 1e5
from test_side_by_side import STACKS, of_some_work, passes
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
fastbptt.set_num_threads(2)
for stack in STACKS:
    layer, x = of_some_work(stack=stack)
    expected = passes(layer, x)
    cut = 0
    for n in range(20):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-3 + 2e-4 * n, 5)  # once more, if the first is raised where Python ignores it
            while True: passes(layer, x)
        except Alarm:
            cut += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        got = passes(layer, x)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected)), (stack, n)
    assert cut == 20
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_interrupted():
    run_python(SIGNALS)


IN_A_LONG_CALL = """
import signal, sys, time
import fastbptt, numpy as np
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
fastbptt.set_num_threads(2)
for stack in ({"bidirectional": True}, {"num_layers": 2}):
    layer = fastbptt.LSTM(8, 64, rng=0, **stack)
    x = np.ones((20_000, 1, 8))
    out, _ = layer(x)
    for call in (lambda: layer(x), lambda: layer.backward(np.ones_like(out))):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            call()
            raise SystemExit("not interrupted")
        except Alarm:
            pass
    layer.zero_grad()
    assert not layer.flat_grads.any()
    layer.backward(np.ones_like(out))
    assert np.isfinite(layer.flat_grads).all() and layer.flat_grads.any()
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_interrupted_while_both_are_at_work():
    """Neither goes on to its end, and nothing is added to the gradients."""
    run_python(IN_A_LONG_CALL)
