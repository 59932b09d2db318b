"""Two passes side by side, a thread each: the same bits, and what errors, busy helpers, forks and signals do to it."""

import os
import threading
import time

import numpy as np
import pytest
from processes import run_python
from tolerances import DTYPES, assert_same_bits

import fastbptt
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
    """Pairs of passes that were taken side by side, and those of which one was behind the other."""
    count = {"both": 0, "behind": 0}

    class Counted:
        def __init__(self, bound):
            self.bound = bound

        def with_another(self, behind=False):
            self.behind, self.pair = behind, self.bound.with_another(behind)
            return self

        def __enter__(self):
            self.pair.__enter__()
            return self

        def __exit__(self, *error):
            return self.pair.__exit__(*error)

        def run(self, other=None):
            if other is None:
                return self.bound.run()
            count["behind" if self.behind else "both"] += 1
            return self.pair.run(other.bound)

    for way in ("begin_forward", "begin_backward"):
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
    begun, real = [], functional.begin_forward

    def failing(*arguments, **options):
        begun.append(1)
        if len(begun) == which + 1:
            raise kind("on purpose")
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("fastbptt.layers.begin_forward", failing)
        with pytest.raises(kind, match="on purpose"):
            layer(x)
    assert len(begun) == which + 1
    for got, right in zip(passes(layer, x), expected, strict=True):
        assert_same_bits("result", got, right)


def bound_pass(T=3):
    x, w = np.ones((T, 1, 2)), np.eye(2)
    return functional.forward_pass("rnn", x, {"h0": None}, w, w, None, None, None, None, (None, True, False))


def side_by_side(bound, other):
    with bound.with_another() as pair:
        pair.run(other)


def test_a_pass_is_taken_once():
    bound, _, finish = bound_pass()
    bound.run()
    for again in (bound.run, lambda: side_by_side(bound, bound_pass()[0]), lambda: side_by_side(bound_pass()[0], bound)):
        with pytest.raises(RuntimeError, match=r"^a pass is taken once$"):
            again()
    (bound, _, _), (other, _, _) = bound_pass(), bound_pass()
    with pytest.raises(RuntimeError, match=r"^a pass is taken once$"):
        side_by_side(bound, bound)
    with pytest.raises(TypeError):
        side_by_side(other, None)
    assert finish()[0].shape == (3, 1, 2)


def test_a_pair_is_run_once_and_where_it_has_been_entered():
    (bound, _, finish), (other, _, finish_other), (third, _, _) = bound_pass(), bound_pass(), bound_pass()
    pair = bound.with_another()
    with pytest.raises(RuntimeError, match=r"^a pair of passes is run once, where it has been entered$"):
        pair.run(other)
    with pair:
        pair.run(other)
        with pytest.raises(RuntimeError, match=r"^a pair of passes is run once"):
            pair.run(third)
    with pytest.raises(RuntimeError, match=r"^a pair of passes is run once"):
        pair.run(third)
    with pytest.raises(RuntimeError, match=r"^a pass is taken once$"):
        pair.__enter__()
    assert_same_bits("out", finish()[0], finish_other()[0])
    with pytest.raises(RuntimeError, match=r"^a pair of passes is what with_another returns$"):
        type(pair)().__enter__()
    third.run()


@pytest.mark.parametrize("leave", ["left", "forgotten"])
def test_a_first_without_a_second_is_called_off(leave, threads):
    """Though a helper is in the middle of it: nobody writes to its arrays any more, and the pool is free."""
    threads(2)
    bound, out, _ = bound_pass(2_000_000)
    pair = bound.with_another()
    pair.__enter__()
    del bound
    time.sleep(0.002)  # for a helper to begin
    if leave == "left":
        pair.__exit__(None, None, None)
    del pair
    last = out[-1].tobytes()
    time.sleep(0.2)  # in which it would come to the end
    assert out[-1].tobytes() == last
    layer, x = of_some_work()
    passes(layer, x)


def test_the_kernels_are_needed_while_a_second_is_prepared(threads, monkeypatch):
    """As a finaliser may, which Python calls whenever it likes."""
    w = np.random.default_rng(3).standard_normal((4 * 64, 64)) / 8
    x_inner, inner = np.ones((100, 8, 64)), []

    def meanwhile(*arguments, **options):
        inner.append(fastbptt.lstm_forward(x_inner, None, w, w)[0])
        return functional.begin_forward(*arguments, **options)

    for stack in STACKS:
        layer, x = of_some_work(stack=stack)
        threads(1)
        expected = passes(layer, x)
        right = fastbptt.lstm_forward(x_inner, None, w, w)[0]
        threads(2)
        with monkeypatch.context() as patched:
            patched.setattr("fastbptt.layers.begin_forward", meanwhile)
            got = passes(layer, x)
        for one, other in zip(got, expected, strict=True):
            assert_same_bits("result", one, other)
        assert len(inner) > 2
        while inner:
            assert_same_bits("inner", inner.pop(), right)


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


IN_A_PROCESS = """
import os, signal, sys
import fastbptt, numpy as np
sys.path.insert(0, '.')
from test_side_by_side import STACKS, bound_pass, functional, of_some_work, passes, stacks
stacks.LEAST_WORK = 1e5
fastbptt.set_num_threads(2)
"""

IN_A_CHILD = """
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
    run_python(IN_A_PROCESS + IN_A_CHILD)


BETWEEN_TWO = """
for stack in STACKS:
    layer, x = of_some_work(stack=stack)
    expected = passes(layer, x)
    begun, children = [], []

    def forking(*arguments, **options):
        begun.append(None)
        if len(begun) == 2:
            children.append(os.fork())
        return functional.begin_forward(*arguments, **options)

    fastbptt.layers.begin_forward = forking
    try:
        got = passes(layer, x)
    except RuntimeError as error:
        assert not children[0] and "has forked between two passes" in str(error), error
        fastbptt.layers.begin_forward = functional.begin_forward
        got = passes(layer, x)
        os._exit(0 if all(a.tobytes() == b.tobytes() for a, b in zip(got, expected)) else 3)
    if not children[0]:
        os._exit(4)
    fastbptt.layers.begin_forward = functional.begin_forward
    assert os.waitpid(children[0], 0)[1] == 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected))
"""


@pytest.mark.one_level
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_second_is_prepared():
    """The parent goes on; in the child the call raises, and the next is as ever."""
    run_python(IN_A_PROCESS + BETWEEN_TWO)


WHILE_THE_POOL_IS_TAKEN = """
with bound_pass()[0].with_another():
    first, second = bound_pass(), bound_pass()
    with first[0].with_another() as pair:
        child = os.fork()
        pair.run(second[0])
assert first[2]()[0].tobytes() == second[2]()[0].tobytes()
if not child:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.one_level
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_where_no_helper_has_begun():
    """Nothing is lost in the child, then."""
    run_python(IN_A_PROCESS + WHILE_THE_POOL_IS_TAKEN)


SIGNALS = """
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
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
    run_python(IN_A_PROCESS + SIGNALS)


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
