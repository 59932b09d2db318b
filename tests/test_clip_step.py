"""Clipping inside the backward pass: what is clipped and when, that no row knows of another, and what becomes of inf and NaN."""

from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, arrays_of, assert_results_close, assert_results_same_bits, cells_and_shapes, random_problem
from test_early_stop import EACH_NET, only_at, without_the_stop
from test_gradients import AWKWARD, assert_right
from tolerances import DTYPES, TOLERANCES, assert_same_bits

import fastbptt
import fastbptt.reference

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", CELLS)
EACH_KIND = pytest.mark.parametrize("kind", ["value", "norm"])


def limit_in_the_middle(problem, kind):
    """A limit that some of the rows, or of the elements, exceed at some of the steps, and others do not."""
    d = np.concatenate([np.ravel(array) for array in (problem.d_out, *problem.d_state)]).astype(float)
    typical = np.median(np.abs(d))
    return kind, float(typical * (1 if kind == "value" else np.sqrt(len(problem.d_state) * problem.d_out.shape[-1])))


def by_hand(problem, tape, clip_step):
    """The same gradients from backward passes of one step, without clipping: what goes into each is clipped here, in longdouble."""
    kind, c = clip_step
    sums, dx, d_state = None, [], [part.astype(np.longdouble) for part in problem.d_state]
    for t in reversed(range(len(problem.x))):
        d_state[0] = d_state[0] + problem.d_out[t]
        if kind == "value":
            d_state = [np.minimum(np.maximum(part, -c), c) for part in d_state]
        else:
            norm = np.sqrt(sum((part**2).sum(axis=1) for part in d_state))
            d_state = [part * np.where(norm > c, c / norm, 1)[:, None] for part in d_state]
        step = problem.steps(t, t + 1, tuple(h[t] for h in states_of(tape)), tuple(d_state))
        grads = replace(step, d_out=None).backward(fastbptt.reference, replace(step, d_out=None).forward(fastbptt.reference)[2])
        d_state = list(arrays_of(grads.state))
        dx.append(grads.x[0])
        weights = [np.asarray(grads[i]) for i in range(2, 6)]
        sums = weights if sums is None else [a + b for a, b in zip(sums, weights)]
    return {"d_x": np.array(dx[::-1])} | dict(zip(("d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh"), sums)) | {
        f"d_initial_state {i}": part for i, part in enumerate(d_state)
    }  # fmt: skip


def states_of(tape):
    return (tape.h,) if tape.c is None else (tape.h, tape.c)


@EACH_KIND
@EACH_CELL
def test_the_reference_clips_what_goes_into_each_step(cell, kind):
    problem = random_problem(cell, 9, 4, 3, 5, gain=2.0)
    clip_step = limit_in_the_middle(problem, kind)
    tape = problem.forward(fastbptt.reference)[2]
    got = problem.results(fastbptt.reference, clip_step=clip_step)
    expected = by_hand(problem, tape, clip_step)
    assert_results_close({name: got[name] for name in expected}, expected, 1e-14)
    plain = problem.results(fastbptt.reference)
    assert not np.allclose(got["d_w_hh"], plain["d_w_hh"], rtol=0.01)


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize(("cell", "shape"), cells_and_shapes(AWKWARD), ids=str)
def test_against_reference(cell, shape, kind, dtype):
    problem = random_problem(cell, *shape, dtype=dtype)
    clip_step = limit_in_the_middle(problem, kind)
    assert_right(problem, problem.results(fastbptt, clip_step=clip_step), clip_step=clip_step)


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@EACH_CELL
def test_with_whatever_may_be_left_out(cell, tokens, kind, dtype):
    problem = random_problem(cell, 7, 3, 4, 9, dtype=dtype, tokens=tokens, biases=(False, True))
    clip_step = limit_in_the_middle(problem, kind)
    for part in (problem, replace(problem, d_out=None), replace(problem, d_state=None)):
        assert_right(part, part.results(fastbptt, clip_step=clip_step), clip_step=clip_step)
    with_dx = problem.results(fastbptt, clip_step=clip_step)
    assert_results_same_bits(problem.results(fastbptt, clip_step=clip_step, need_dx=False), with_dx | {"d_x": None})


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("shape", [(30, 5, 4, 9), (600, 1, 3, 11), (90, 11, 20, 41), (5, 2, 5, 140)], ids=str)
@EACH_CELL
def test_no_limit_has_the_bits_of_no_clipping(cell, shape, kind, dtype):
    problem = random_problem(cell, *shape, dtype=dtype)
    assert_results_same_bits(problem.results(fastbptt, clip_step=(kind, np.inf)), problem.results(fastbptt))
    assert_results_same_bits(problem.results(fastbptt, clip_step=[kind, 1e300]), problem.results(fastbptt, clip_step=None))


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("shape", [(40, 7, 20, 33), (400, 1, 40, 24), (20, 65, 31, 80), (550, 2, 9, 167), (60, 1, 9, 260)], ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_any_thread_count(cell, shape, kind, dtype, threads):
    problem = random_problem(cell, *shape, dtype=dtype)
    clip_step = limit_in_the_middle(problem, kind)
    threads(1)
    expected = problem.results(fastbptt, clip_step=clip_step)
    for n in (2, 3, 5):
        threads(n)
        assert_results_same_bits(problem.results(fastbptt, clip_step=clip_step), expected)


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("H", [5, 33, 130])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_a_row_in_any_batch(cell, H, kind, dtype, threads):
    """However much the other rows are clipped."""
    batch = random_problem(cell, 12, 19, 4, H, dtype=dtype)
    clip_step = limit_in_the_middle(batch, kind)
    batch.d_out[:, ::3] *= 1000
    for n in (1, 2):
        threads(n)
        whole = batch.results(fastbptt, clip_step=clip_step)
        for rows in ([0], [7], [18, 3], list(range(11)), list(range(18, -1, -1))):
            part = batch.rows(rows).results(fastbptt, clip_step=clip_step)
            assert_same_bits("d_x", part["d_x"], np.ascontiguousarray(whole["d_x"][:, rows]))
            for i in range(batch.cell.states):
                assert_same_bits("d_initial_state", part[f"d_initial_state {i}"], whole[f"d_initial_state {i}"][rows])


@EACH_DTYPE
@EACH_KIND
@EACH_CELL
def test_pieces_of_a_sequence(cell, kind, dtype):
    """The gradient of the initial state is not clipped; so that what is handed from piece to piece is clipped once, as in one pass."""
    problem = random_problem(cell, 12, 3, 4, 7, dtype=dtype, gain=2.0)
    clip_step = limit_in_the_middle(problem, kind)
    whole = problem.results(fastbptt, clip_step=clip_step)
    tape = problem.forward(fastbptt)[2]
    late = problem.steps(5, 12, tuple(h[5] for h in states_of(tape)), problem.d_state)
    after = late.results(fastbptt, clip_step=clip_step)
    carried = tuple(after[f"d_initial_state {i}"] for i in range(problem.cell.states))
    before = problem.steps(0, 5, problem.state, carried).results(fastbptt, clip_step=clip_step)
    for i in range(problem.cell.states):
        name = f"d_initial_state {i}"
        np.testing.assert_allclose(before[name], whole[name], rtol=100 * TOLERANCES[dtype].eps, atol=100 * TOLERANCES[dtype].eps)


# --- What is carried, seen -----------------------------------------------------------------------------------------------
#
# With W_ih = 1 and f(a) = a, dx_t is the gradient of the state that goes into step t.


def transparent(H=9, T=60, B=4, dtype=np.float64, gain=1.0, seed=0, scale=1.0):
    dtype = np.dtype(dtype)
    problem = random_problem("rnn-identity", T, B, H, H, dtype=dtype, seed=seed)
    w_hh = gain * np.linalg.qr(np.random.default_rng(seed).standard_normal((H, H)))[0]
    d_out, d_state = problem.d_out * dtype.type(scale), tuple(part * dtype.type(scale) for part in problem.d_state)
    x, state, b_ih = np.zeros_like(problem.x), tuple(np.zeros_like(part) for part in problem.state), np.zeros_like(problem.b_ih)
    weights = {"w_ih": np.eye(H, dtype=dtype), "w_hh": w_hh.astype(dtype), "b_ih": b_ih, "b_hh": b_ih}
    return replace(problem, x=x, state=state, d_out=d_out, d_state=d_state, **weights)


@EACH_DTYPE
@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("c", [1e-3, 1.0, 3.5])
def test_the_carried_norm_never_exceeds_c(c, gain, dtype):
    eps = TOLERANCES[dtype].eps
    problem = transparent(gain=gain, dtype=dtype)
    norms = np.linalg.norm(problem.results(fastbptt, clip_step=("norm", c))["d_x"].astype(float), axis=-1)
    assert norms.max() <= c * (1 + 4 * eps)
    assert (norms > c * (1 - 4 * eps)).any() and np.linalg.norm(problem.results(fastbptt)["d_x"], axis=-1).max() > c
    values = np.abs(problem.results(fastbptt, clip_step=("value", c))["d_x"])
    assert values.max() == dtype.type(c)


@EACH_DTYPE
def test_clipping_by_norm_keeps_the_direction(dtype):
    problem = transparent(T=1, dtype=dtype)
    d = (problem.d_out[0] + problem.d_state[0]).astype(float)
    got = problem.results(fastbptt, clip_step=("norm", 0.25))["d_x"][0]
    np.testing.assert_allclose(got, 0.25 * d / np.linalg.norm(d, axis=1, keepdims=True), rtol=8 * TOLERANCES[dtype].eps)


@EACH_DTYPE
def test_an_explosion_is_held(dtype):
    """3^2000 without."""
    problem = transparent(T=2000, gain=3.0, dtype=dtype)
    assert not np.isfinite(problem.results(fastbptt)["d_w_ih"]).all() or not np.isfinite(problem.results(fastbptt)["d_x"]).all()
    for kind in ("value", "norm"):
        assert all(np.isfinite(array).all() for array in problem.results(fastbptt, clip_step=(kind, 1.0)).values())


@pytest.mark.parametrize(
    ("scale", "c"),
    [(1e200, 1.0), (1e307, 2.0), (1e307, 1e-150), (1e300, 1e299), (1e-170, 1e-171), (1e-300, 1e-305), (1e-300, 1.0), (1e200, 1e-115)],
)
def test_squares_out_of_range(scale, c):
    """The norm is that of the numbers, wherever they are: it does not overflow, nor is a row shortened that is short enough."""
    problem = transparent(T=1, scale=scale)
    d = np.longdouble(problem.d_out[0]) + problem.d_state[0]
    norm = np.sqrt((d**2).sum(axis=1, keepdims=True))
    expected = np.where(norm > c, d / norm * c, d)
    for module in (fastbptt, fastbptt.reference):
        np.testing.assert_allclose(problem.results(module, clip_step=("norm", c))["d_x"][0], expected.astype(float), rtol=1e-14)


@pytest.mark.parametrize(("scale", "c"), [(1e37, 1.0), (1e30, 1e-30), (1e-30, 1e-31), (1e-30, 1.0), (3e37, 1e36)])
def test_single_squares_out_of_range(scale, c):
    problem = transparent(T=1, scale=scale, dtype=np.dtype(np.float32))
    d = (problem.d_out[0] + problem.d_state[0]).astype(float)
    norm = np.linalg.norm(d, axis=1, keepdims=True)
    got = problem.results(fastbptt, clip_step=("norm", c))["d_x"][0]
    np.testing.assert_allclose(got, np.where(norm > c, d / norm * c, d), rtol=1e-6)


def test_dh_and_dc_are_clipped_together():
    """One step of an LSTM whose gates are all open or shut: what comes back through f = 1 is dc, shortened by the norm of both."""
    w_ih, w_hh, b_ih = np.zeros((4, 1)), np.zeros((4, 1)), np.array([-1e3, 1e3, 0, 1e3])
    state = np.zeros((1, 1)), np.zeros((1, 1))
    tape = fastbptt.lstm_forward(np.zeros((1, 1, 1)), state, w_ih, w_hh, b_ih)[2]
    d_state = np.array([[3.0]]), np.array([[4.0]])
    plain = fastbptt.lstm_backward(tape, None, d_state).state[1].item()
    assert plain == 7  # dc + o tanh'(c) dh
    assert fastbptt.lstm_backward(tape, None, d_state, clip_step=("norm", 2.5)).state[1].item() == pytest.approx(3.5, rel=1e-15)
    assert fastbptt.lstm_backward(tape, None, d_state, clip_step=("value", 3.5)).state[1].item() == 6.5


# --- inf and NaN -----------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("module", [fastbptt, fastbptt.reference], ids=lambda module: module.__name__)
def test_what_is_not_finite(module, dtype):
    """By value inf becomes c, and NaN stays. By norm the row stays as it is; the others are clipped as ever."""
    problem = transparent(H=3, T=1, B=4, dtype=dtype)
    d = np.array([[3, 0, 4], [np.inf, 1, 0], [np.nan, 9, 0], [-np.inf, np.nan, 9]], dtype)
    problem = replace(problem, d_out=None, d_state=(d,), w_ih=np.eye(3, dtype=dtype), w_hh=np.zeros((3, 3), dtype))
    with np.errstate(all="ignore"):
        seen = {kind: what_goes_in(problem, module, (kind, 2.5)) for kind in ("value", "norm")}
    np.testing.assert_array_equal(seen["value"], [[2.5, 0, 2.5], [2.5, 1, 0], [np.nan, 2.5, 0], [-2.5, np.nan, 2.5]])
    np.testing.assert_allclose(seen["norm"], [[1.5, 0, 2], [np.inf, 1, 0], [np.nan, 9, 0], [-np.inf, np.nan, 9]], rtol=1e-6)


def what_goes_in(problem, module, clip_step):
    """What goes into the step, a row at a time, as the gradient of the bias: products with 0 would turn inf into NaN."""
    parts = [problem.rows([b]) for b in range(len(problem.d_state[0]))]
    return np.array([part.backward(module, part.forward(module)[2], clip_step=clip_step).b_ih for part in parts])


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_a_nan_is_still_seen_in_the_weights(cell, kind, dtype):
    problem = random_problem(cell, 30, 3, 4, 7, dtype=dtype)
    problem.d_out[20, 1, 2] = np.nan
    grads = problem.results(fastbptt, clip_step=(kind, 0.1))
    assert all(np.isnan(grads[name]).any() for name in ("d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh"))
    assert np.isfinite(grads["d_x"][:, [0, 2]]).all() and np.isfinite(grads["d_x"][21:]).all() and np.isnan(grads["d_x"][:21, 1]).any()


# --- The early stop, layers, truncation ------------------------------------------------------------------------------------


@EACH_DTYPE
@EACH_KIND
@EACH_NET
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_the_early_stop(cell, net, kind, dtype):
    problem = only_at(net(random_problem(cell, 1100, 1, 3, 5, dtype=dtype)), 1090, 700)
    clip_step = kind, 0.05
    tape = problem.forward(fastbptt)[2]
    got = problem.backward(fastbptt, tape, clip_step=clip_step)
    full = without_the_stop(problem).backward(fastbptt, tape, clip_step=clip_step)
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "x"):
        np.testing.assert_array_equal(getattr(got, name), getattr(full, name), err_msg=name)


@EACH_DTYPE
@EACH_KIND
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers(make, batch_first, kind, dtype):
    layer = make(4, 7, rng=0, dtype=dtype, batch_first=batch_first)
    rng = np.random.default_rng(0)
    x, d_out = rng.standard_normal((5, 5, 4)).astype(dtype), rng.standard_normal((5, 5, 7)).astype(dtype)
    layer(x)
    tape = layer.take_tape()
    clip_step = kind, 0.3
    expected = layer.gradients_through(tape, d_out, clip_step=clip_step)
    layer(x)
    dx, d_state = layer.backward(d_out, clip_step=clip_step)
    np.testing.assert_array_equal(dx, expected.x.swapaxes(0, 1) if batch_first else expected.x)
    for got, part in zip(arrays_of(d_state), arrays_of(expected.state)):
        np.testing.assert_array_equal(got[0], part)
    for got, part in zip(layer.grads.values(), expected[2:]):
        np.testing.assert_array_equal(got, part)
    assert not np.array_equal(expected.w_hh, layer.gradients_through(tape, d_out).w_hh)


@EACH_KIND
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_through_the_windows_of_truncated_bptt(make, kind):
    rng = np.random.default_rng(0)
    x, d_out = rng.standard_normal((12, 3, 4)), 3 * rng.standard_normal((12, 3, 7))
    reader, full = (make(4, 7, rng=0) for _ in range(2))
    windows = fastbptt.TruncatedBPTT(reader, 100, 4)
    for start in (0, 4, 8):
        windows.forward(x[start : start + 4])
    windows.backward(d_out[8:], clip_step=(kind, 0.3))
    d_out[:8] = 0
    full(x)
    full.backward(d_out, clip_step=(kind, 0.3))
    np.testing.assert_allclose(reader.flat_grads, full.flat_grads, rtol=1e-12, atol=1e-14)


# --- Bad input -------------------------------------------------------------------------------------------------------------

PAIR = r'^clip_step: expected \("value", c\), \("norm", c\) or None, got '


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (1.0, TypeError, PAIR + r"1\.0$"),
        ("norm", TypeError, PAIR + r"'norm'$"),
        (True, TypeError, PAIR + "True$"),
        ({"norm": 1.0}, TypeError, PAIR + "dict$"),
        (np.ones(2), TypeError, PAIR + "ndarray of shape"),
        ((), TypeError, PAIR + "tuple$"),
        (("norm",), TypeError, PAIR + "tuple$"),
        (("norm", 1.0, 2.0), TypeError, PAIR + "tuple$"),
        ((1.0, "norm"), TypeError, r"^clip_step\[0\]: expected one of 'value', 'norm', got 1\.0$"),
        (("l2", 1.0), ValueError, r"^clip_step\[0\]: expected one of 'value', 'norm', got 'l2'$"),
        (("norm", 0), ValueError, r"^clip_step\[1\]: expected a number above 0, got 0$"),
        (("value", 0.0), ValueError, r"^clip_step\[1\]: expected a number above 0, got 0\.0$"),
        (("norm", -1.0), ValueError, r"^clip_step\[1\]: expected a number above 0, got -1\.0$"),
        (("norm", -np.inf), ValueError, r"^clip_step\[1\]: expected a number above 0, got -inf$"),
        (("norm", np.nan), ValueError, r"^clip_step\[1\]: expected a number above 0, got nan$"),
        (("norm", True), TypeError, r"^clip_step\[1\]: expected a number, got True$"),
        (("value", None), TypeError, r"^clip_step\[1\]: expected a number, got NoneType$"),
        (("value", "1"), TypeError, r"^clip_step\[1\]: expected a number, got '1'$"),
        (("value", np.ones(2)), TypeError, r"^clip_step\[1\]: expected a number, got ndarray"),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["rnn-tanh", "gru", "lstm"])
def test_bad_input(cell, wrong, error, message):
    problem = random_problem(cell)
    tape = problem.forward(fastbptt)[2]
    with pytest.raises(error, match=message):
        problem.backward(fastbptt, tape, clip_step=wrong)
    layer = {"rnn": fastbptt.RNN, "gru": fastbptt.GRU, "lstm": fastbptt.LSTM}[problem.cell.prefix](4, 7, rng=0)
    out, _ = layer(problem.x)
    with pytest.raises(error, match=message):
        layer.backward(np.ones_like(out), clip_step=wrong)
    assert not layer.flat_grads.any()
    layer.backward(np.ones_like(out))
