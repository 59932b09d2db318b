"""One step at a time: the bits of the whole call, states that can be set and reset, bad input, threads."""

import copy
import pickle
import re
import signal
import sys
import threading

import numpy as np
import pytest
from tolerances import DTYPES, assert_same_bits

import fastbptt
from fastbptt.layers import LAYERS

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
KINDS = {
    "rnn": {},
    "relu": {"nonlinearity": "relu"},
    "leaky": {"leak": 0.3},
    "gru": {},
    "lstm": {},
    "projected": {"proj_size": 3},
    "no bias": {"bias": False},
}
CELLS = {"relu": "rnn", "leaky": "rnn", "projected": "lstm", "no bias": "gru"}


def make(kind, I=5, H=7, L=1, **options):
    return LAYERS[CELLS.get(kind, kind)](I, H, L, rng=0, **KINDS[kind], **options)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def assert_same_states(got, expected):
    for a, b in zip(parts(got), parts(expected), strict=True):
        assert_same_bits("state", a, b)


@EACH_DTYPE
@pytest.mark.parametrize("sizes", [(1, 5, 7), (3, 4, 33), (2, 40, 150), (70, 9, 40), (1, 300, 256), (3, 90, 320)], ids=str)
@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_the_whole_call(kind, L, sizes, dtype, threads):
    B, I, H = sizes
    layer = make(kind, I, H, L, dtype=dtype)
    rng = np.random.default_rng(0)
    x, tokens = rng.standard_normal((6, B, I)).astype(dtype), rng.integers(0, I, (6, B))
    for n in (1, 3):
        threads(n)
        stream = layer.stream(B)
        state = None
        for inputs in (x, tokens, x):  # each goes on where the other has ended
            out, state = layer(inputs, state)
            assert_same_bits("out", np.array([stream.step(x_t) for x_t in inputs]), out)
            assert_same_states(stream.state, state)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_states_are_copied_set_and_reset(kind):
    layer = make(kind, L=2)
    rng = np.random.default_rng(0)
    start = tuple(rng.standard_normal((2, 3, 7)) for _ in ("h", "c")[: 1 + (kind == "lstm")])
    start = start if len(start) == 2 else start[0]
    x = rng.standard_normal((4, 3, 5))
    stream = layer.stream(3, start)
    assert_same_states(stream.state, start)
    out, last = layer(x, start)
    assert_same_bits("out", np.array([stream.step(x_t) for x_t in x]), out)
    for part in parts(stream.state):
        part[:] = np.nan  # a copy
    assert_same_states(stream.state, last)
    for rows, gone in [(1, [1]), (np.array([True, False, True]), [0, 2]), ([0, 2], [0, 2]), (np.array([2]), [2]), (None, [0, 1, 2])]:
        stream.state = last
        stream.reset(rows)
        for got, part in zip(parts(stream.state), parts(last)):
            part = part.copy()
            part[:, gone] = 0
            assert_same_bits("state", got, part)
    stream.state = None
    assert not any(part.any() for part in parts(stream.state))


def test_half_a_state_of_an_lstm():
    h = np.ones((1, 1, 7))
    stream = make("lstm").stream(state=(h, None))
    assert (stream.state[0] == 1).all() and not stream.state[1].any()


def test_parameters_are_read_again_when_asked():
    layer, x = make("gru", L=2), np.ones((1, 5))
    stream = layer.stream()
    before = stream.step(x)
    layer.flat_params *= 0.5
    stream.reset()
    assert_same_bits("out", stream.step(x), before)
    stream.refresh()
    stream.reset()
    assert_same_bits("out", stream.step(x), layer(x[None])[0][0])


def test_leak_and_nonlinearity_are_read_again_too():
    layer, x = make("leaky"), np.ones((3, 1, 5))
    stream = layer.stream()
    layer.leak, layer.nonlinearity = 0.9, "relu"
    stream.refresh()
    assert_same_bits("out", np.array([stream.step(x_t) for x_t in x]), layer(x)[0])
    layer.leak = None
    stream.refresh()
    stream.reset()
    assert_same_bits("out", np.array([stream.step(x_t) for x_t in x]), layer(x)[0])


@pytest.mark.parametrize("first", ["vectors", "tokens"])
def test_all_layers_have_parameters_of_one_moment(first):
    """Also where vectors and tokens are first seen at different times, between which the layer has learned."""
    layer, inputs = make("gru", L=2), {"vectors": np.ones((2, 1, 5)), "tokens": np.array([[1], [2]])}
    stream = layer.stream()
    stream.step(inputs[first][0])
    layer.flat_params *= 0.5
    for kind in ("tokens", "vectors") if first == "vectors" else ("vectors", "tokens"):
        stream.reset()
        assert_same_bits("out", np.array([stream.step(x_t) for x_t in inputs[kind]]), layer(inputs[kind])[0])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_copies_go_on_by_themselves(copied):
    stream, x = make("lstm", L=2).stream(2), np.ones((2, 5))
    stream.step(x)
    before, other = stream.state, copied(stream)
    out = other.step(x)
    assert_same_states(stream.state, before)
    assert_same_bits("out", stream.step(x), out)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX")
def test_a_handler_that_raises_a_value_error_is_heard():
    class Alarm(ValueError):
        pass

    def handler(*_):
        raise Alarm

    stream, x, heard = make("gru").stream(), np.ones((1, 5)), 0
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for n in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 1e-6 * n, 1)  # once more, if the first is raised where Python ignores it
                while True:
                    stream.step(x)
            except Alarm:
                signal.setitimer(signal.ITIMER_REAL, 0)
                heard += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == 300


def test_nothing_is_dropped_and_nothing_kept():
    layer = make("gru", L=2, dropout=0.5)
    assert layer.training
    layer(np.ones((3, 1, 5)))
    stream, still = layer.stream(), layer.rng.bit_generator.state
    out = [stream.step(np.ones((1, 5))) for _ in range(3)]
    assert layer.rng.bit_generator.state == still
    layer.backward(np.ones((3, 1, 7)))  # the stream has not taken the tape
    assert_same_bits("out", np.array(out), layer.eval()(np.ones((3, 1, 5)))[0])


def test_inputs_of_another_layout():
    layer = make("lstm", I=6)
    rows = np.arange(24.0).reshape(4, 6) / 24
    expected = layer(rows[None, 1:3])[0][0]
    shifted = np.zeros(12 * 8 + 1, np.int8)[1:].view(float).reshape(2, 6)
    shifted[:] = rows[1:3]
    for x in (rows[1:3], np.asfortranarray(rows[1:3]), np.repeat(rows, 2, axis=1)[1:3, ::2], shifted):
        stream = layer.stream(2)
        assert_same_bits("out", stream.step(x), expected)
    for dtype in (np.int8, np.uint16, np.int32, np.uint64, ">i4"):
        stream = layer.stream(2)
        assert_same_bits("out", stream.step(np.array([1, 5], dtype)), layer(np.array([[1, 5]]))[0][0])


def test_each_output_is_an_array_of_its_own():
    stream, x = make("gru").stream(), np.ones((1, 5))
    first = stream.step(x)
    kept = first.copy()
    second = stream.step(x)
    assert first is not second and first.flags.writeable and (first == kept).all() and (first != second).any()
    first[:] = np.nan
    assert np.isfinite(stream.step(x)).all()


def test_what_is_not_finite_stays_in_its_row():
    stream = make("lstm", L=2).stream(3)
    x = np.ones((3, 5))
    expected = [stream.step(x) for _ in range(4)][-1]
    stream.reset()
    x[1, 2] = np.nan
    got = [stream.step(x) for _ in range(4)][-1]
    assert np.isnan(got[1]).all()
    assert_same_bits("out", got[[0, 2]], expected[[0, 2]])


BAD = [
    (np.ones((2, 5)), ValueError, "x_t: expected shape (3, 5), got (2, 5)"),
    (np.ones((3, 4)), ValueError, "x_t: expected shape (3, 5), got (3, 4)"),
    (np.ones((1, 3, 5)), ValueError, "x_t: expected shape (3, 5), or integer tokens (3,), got (1, 3, 5)"),
    (np.ones(3), ValueError, "x_t: expected shape (3, 5), or integer tokens (3,), got (3,)"),
    (np.ones((3, 5), np.float32), TypeError, "x_t: expected dtype float64 like the other arrays of this call, got float32"),
    (np.ones((3, 5), int), TypeError, "x_t: expected dtype float64 like the other arrays of this call, got int64"),
    (np.array([0, 1]), ValueError, "x_t: expected shape (3,), got (2,)"),
    (np.array([0, 1, 5]), IndexError, "x_t: expected tokens from 0 to 4, got 5"),
    (np.array([0, -1, 2]), IndexError, "x_t: expected tokens from 0 to 4, got -1"),
    (np.array([0, 1, 200], np.uint8), IndexError, "x_t: expected tokens from 0 to 4, got 200"),
    ([[1.0] * 5] * 3, TypeError, "x_t: expected a NumPy array, got list"),
    (None, TypeError, "x_t: expected a NumPy array, got NoneType"),
    (np.ma.ones((3, 5)), TypeError, "x_t: expected a plain NumPy array"),
]


@pytest.mark.parametrize(("x_t", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_makes_no_step(x_t, error, message):
    layer = make("lstm", L=2)
    stream = layer.stream(3)
    stream.step(np.ones((3, 5)))
    before = stream.state
    with pytest.raises(error, match=re.escape(message)) as caught:
        stream.step(x_t)
    assert caught.value.__context__ is None
    assert_same_states(stream.state, before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make("gru", bidirectional=True).stream(), ValueError, "layer: expected one direction, got a bidirectional layer, whose"),
        (lambda: make("gru").stream(0), ValueError, "batch_size: expected an integer of at least 1, got 0"),
        (lambda: make("gru").stream(1.5), TypeError, "batch_size: expected an integer, got 1.5"),
        (lambda: make("gru").stream(2, np.ones((1, 3, 7))), ValueError, "state: expected shape (1, 2, 7), got (1, 3, 7)"),
        (lambda: make("gru", L=2).stream(2, np.ones((1, 2, 7))), ValueError, "state: expected shape (2, 2, 7), got (1, 2, 7)"),
        (lambda: make("lstm").stream(2, np.ones((1, 2, 7))), TypeError, "state: expected a pair of arrays or None, got ndarray"),
        (lambda: make("gru").stream(3).reset(3), ValueError, "rows: expected an integer of at most 2, got 3"),
        (lambda: make("gru").stream(3).reset([0, -1]), ValueError, "rows[1]: expected an integer of at least 0, got -1"),
        (lambda: make("gru").stream(3).reset(np.array([0, 3])), IndexError, "rows: expected numbers of rows from 0 to 2, got 3"),
        (lambda: make("gru").stream(3).reset(np.array([True, False])), ValueError, "rows: expected shape (3,), got (2,)"),
        (lambda: make("gru").stream(3).reset("all"), TypeError, "rows: expected an integer, got 'all'"),
        (lambda: make("gru").stream(3).reset([True, False, True]), TypeError, "rows[0]: expected an integer, got True"),
        (lambda: fastbptt.Stream(fastbptt.Linear(3, 4)), TypeError, "layer: expected one of RNN, GRU, LSTM, got Linear"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.filterwarnings("ignore:Setting the shape")
def test_a_layer_whose_arrays_have_another_shape():
    layer = make("gru")
    weight = layer.params["weight_hh_l0"]
    weight.shape = 7, 21
    with pytest.raises(ValueError, match=re.escape("params['weight_hh_l0']: expected shape (21, 7), got (7, 21)")):
        layer.stream()


def test_two_threads_at_one_stream(threads):
    """Each step is made or refused, and no state is half of one step and half of another."""
    threads(1)
    stream, x = make("lstm", 40, 300, 2).stream(4), np.ones((4, 40))
    made, refused, interval = [], [], sys.getswitchinterval()

    def work():
        for _ in range(60):
            try:
                made.append(stream.step(x))
            except RuntimeError as error:
                refused.append(str(error))

    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(3)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
    finally:
        sys.setswitchinterval(interval)
    assert len(made) + len(refused) == 180 and made
    assert set(refused) <= {"stream: a step is under way, in another thread or below a signal's handler; it serves one at a time"}
    again = make("lstm", 40, 300, 2).stream(4)
    expected = [again.step(x) for _ in made]
    assert_same_states(stream.state, again.state)
    assert {out.tobytes() for out in made} == {out.tobytes() for out in expected}
