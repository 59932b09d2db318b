"""The regularisers: against their definitions, and their derivatives against central differences."""

from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, WEIGHTS, arrays_of, histories, random_problem
from tolerances import DTYPES

import fastbptt
import fastbptt.reference
from fastbptt.gradients.linearised import linearise

# Omega


def state_gradients(problem, tape):
    """dL/d state_t for t = 1 .. T from the reference, each from the rest of the sequence: (T, B, N)."""
    T, H = len(problem.x), tape.h.shape[-1]
    d = []
    for t in range(1, T + 1):
        rest = problem.steps(t, T, tuple(history[t] for history in histories(tape)), problem.d_state)
        state = np.concatenate(arrays_of(rest.backward(fastbptt.reference, rest.forward(fastbptt.reference)[2]).state), axis=-1)
        state[:, :H] += problem.d_out[t - 1]
        d.append(state)
    return np.array(d)


def value_at(w_hh, steps, d):
    """Omega with d and all else constant but this w_hh."""
    moved = type(steps)(w_hh, steps.keep, steps.slopes, steps.show, steps.gate_slopes)
    before = np.array([moved.vjp(t, d[t])[0] for t in range(len(d))])
    return np.mean(((before**2).sum(axis=-1) / (d**2).sum(axis=-1) - 1) ** 2)


@pytest.mark.parametrize("cell", CELLS)
def test_value_and_immediate_derivative(cell):
    problem = random_problem(cell, T=6, seed=1)
    _, _, tape = problem.forward(fastbptt)
    value, d_w_hh = fastbptt.omega(tape, problem.d_out, problem._state(problem.d_state))
    steps, d = linearise(tape), state_gradients(problem, tape)
    assert value == pytest.approx(value_at(tape.w_hh, steps, d), rel=1e-12)
    expected, step = np.empty_like(d_w_hh), 1e-5
    for index in np.ndindex(expected.shape):
        up, down = tape.w_hh.copy(), tape.w_hh.copy()
        up[index] += step
        down[index] -= step
        expected[index] = (value_at(up, steps, d) - value_at(down, steps, d)) / (2 * step)
    np.testing.assert_allclose(d_w_hh, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_the_authors_formula():
    """As in the paper's program, written out for a tanh net: rows d_t f'(h_t) times W, squared norms."""
    problem = random_problem("rnn-tanh", T=6, seed=2)
    _, _, tape = problem.forward(fastbptt)
    d, h = state_gradients(problem, tape), tape.h[1:]
    v = d * (1 - h**2)
    z = v @ tape.w_hh
    q = (z**2).sum(axis=-1) / (d**2).sum(axis=-1)
    scale = 4 * (q - 1) / (d**2).sum(axis=-1) / q.size
    value, d_w_hh = fastbptt.omega(tape, problem.d_out, problem.d_state[0])
    assert value == pytest.approx(((q - 1) ** 2).mean(), rel=1e-12)
    np.testing.assert_allclose(d_w_hh, np.einsum("tb,tbi,tbj->ij", scale, v, z), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rho", [0.5, 1.0, 1.3])
def test_a_scaled_rotation(rho):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    _, _, tape = fastbptt.rnn_forward(np.zeros((12, 2, 1)), None, np.ones((6, 1)), rho * q, nonlinearity="identity")
    value, d_w_hh = fastbptt.omega(tape, None, np.random.default_rng(1).standard_normal((2, 6)))
    assert value == pytest.approx((rho**2 - 1) ** 2, rel=1e-12, abs=1e-25)
    assert (d_w_hh * q).sum() == pytest.approx(4 * rho * (rho**2 - 1), rel=1e-12, abs=1e-12)  # d/d rho


def test_gradients_that_are_too_small_do_not_count_unless_wanted():
    w = np.full((1, 1), 0.01)
    _, _, tape = fastbptt.rnn_forward(np.zeros((200, 1, 1)), None, w, w, nonlinearity="identity")
    d_out = np.zeros((200, 1, 1))
    d_out[100:] = 1e-30
    for least, loss, expected in [(1e-10, d_out, 0.0), (0, d_out, None), (1e-10, np.zeros_like(d_out), 0.0)]:
        value, d_w_hh = fastbptt.omega(tape, loss, least=least)
        assert (value == expected == d_w_hh.item()) if expected is not None else value == pytest.approx((1e-4 - 1) ** 2)
    # the step from lag 5 on is below the default threshold of 1e-10, and the same at all lags where there is none
    value, d_w_hh = fastbptt.omega(tape, None, np.ones((1, 1)), least=0)
    assert d_w_hh.item() == pytest.approx(4 * 0.01 * (1e-4 - 1), rel=1e-12) and value == pytest.approx((1e-4 - 1) ** 2, rel=1e-12)


def test_steps_without_gradient_are_not_in_the_mean():
    w = np.full((1, 1), 0.5)
    _, _, tape = fastbptt.rnn_forward(np.zeros((10, 2, 1)), None, w, w, nonlinearity="identity")
    d_out = np.zeros((10, 2, 1))
    d_out[3, 0] = 1  # row 1 has no loss, nor have the steps after
    value, d_w_hh = fastbptt.omega(tape, d_out)
    assert (value, d_w_hh.item()) == pytest.approx(((0.25 - 1) ** 2, 4 * 0.5 * (0.25 - 1)), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_derivative_can_be_added_to_the_gradient(dtype):
    problem = random_problem("gru", dtype=dtype)
    _, _, tape = problem.forward(fastbptt)
    grads = problem.backward(fastbptt, tape)
    value, d_w_hh = fastbptt.omega(tape, problem.d_out, problem.d_state[0])
    assert d_w_hh.dtype == dtype and d_w_hh.shape == grads.w_hh.shape and isinstance(value, float)
    oracle = problem.astype(np.float64)
    expected = fastbptt.omega(oracle.forward(fastbptt)[2], oracle.d_out, oracle.d_state[0])
    assert value == pytest.approx(expected[0], rel=1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("w", [1e50, 1e80, 1e-80, np.nan])
def test_gradients_beyond_the_floating_range(w):
    """10 steps of 1e50 end far beyond the floating range."""
    w = np.full((1, 1), w)
    _, _, tape = fastbptt.rnn_forward(np.zeros((10, 1, 1)), None, w, w, nonlinearity="identity")
    value, _ = fastbptt.omega(tape, None, np.ones((1, 1)), least=1e-90)
    w = w.item()
    assert value == pytest.approx((w * w - 1) * (w * w - 1), rel=1e-12, nan_ok=True)


def test_bad_input():
    problem = random_problem("rnn-tanh")
    _, _, tape = problem.forward(fastbptt)
    with pytest.raises(TypeError, match="tape: expected the tape"):
        fastbptt.omega(None, problem.d_out)
    with pytest.raises(ValueError, match="d_out: expected shape"):
        fastbptt.omega(tape, problem.d_out[:, :1])
    with pytest.raises(ValueError, match="least: expected a number at least 0"):
        fastbptt.omega(tape, problem.d_out, least=-1)


# Gradient flossing


def flossing(problem, **options):
    return fastbptt.gradient_flossing(problem.forward(fastbptt)[2], **options)


@pytest.mark.parametrize("options", [{}, {"k": 2, "burn_in": 3, "target": -0.5}], ids=str)
@pytest.mark.parametrize("cell", ["rnn-tanh", "rnn-sigmoid", "rnn-identity", "leaky-tanh", "leaky-relu-units"])
def test_every_derivative_of_flossing_against_central_differences(cell, options):
    problem = random_problem(cell, T=7, B=2, I=3, H=4, seed=3, gain=1.5)
    value, grads = flossing(problem, **options)
    assert value > 0.01
    if options == {}:
        exponents = fastbptt.lyapunov_spectrum(problem.forward(fastbptt)[2]).exponents
        assert value == pytest.approx((exponents**2).mean(), rel=1e-12)
    step = 1e-5
    for key in ("x", ("state", 0), *WEIGHTS):
        array = dict(problem.arrays())[key]
        expected = np.empty_like(array)
        for index in np.ndindex(array.shape):
            up, down = array.copy(), array.copy()
            up[index] += step
            down[index] -= step
            expected[index] = (
                flossing(problem.with_array(key, up), **options)[0] - flossing(problem.with_array(key, down), **options)[0]
            ) / (2 * step)
        got = grads.state if key == ("state", 0) else getattr(grads, key)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7, err_msg=str(key))


def test_flossing_keeps_exponents_at_the_target():
    """Plain gradient descent on the weights takes a net that forgets to the edge of chaos."""
    problem = random_problem("rnn-tanh", T=30, B=1, I=2, H=8, gain=0.5)
    before, _ = flossing(problem, k=2, burn_in=5)
    for _ in range(60):
        _, grads = flossing(problem, k=2, burn_in=5)
        problem = replace(problem, w_hh=problem.w_hh - 0.1 * grads.w_hh)
    after, _ = flossing(problem, k=2, burn_in=5)
    assert after < 0.05 * before


def test_flossing_takes_tokens_and_float32():
    problem = random_problem("rnn-tanh", tokens=True, biases=(True, False))
    value, grads = flossing(problem)
    dense = flossing(replace(problem, x=np.eye(4)[problem.x]))
    assert grads.x is None and grads.b_hh is None and value == pytest.approx(dense[0], rel=1e-12)
    np.testing.assert_allclose(grads.w_ih, dense[1].w_ih, rtol=1e-9, atol=1e-12)
    single = flossing(problem.astype(np.float32))
    assert {grad.dtype for grad in single[1] if grad is not None} == {np.dtype(np.float32)}
    assert single[0] == pytest.approx(value, rel=1e-4)


def test_what_cannot_be_flossed():
    with pytest.raises(ValueError, match="tape: expected the tape of rnn_forward, got that of gru_forward"):
        flossing(random_problem("gru"))
    with pytest.raises(ValueError, match="k: expected at most the 7 units, got 8"):
        flossing(random_problem("rnn-tanh"), k=8)
    with pytest.raises(ValueError, match="burn_in: expected fewer than the tape's 5 steps, got 5"):
        flossing(random_problem("rnn-tanh"), burn_in=5)


@pytest.mark.parametrize(
    ("kept", "said"), [([0, 0, 0], ""), ([1, 1, 0], "; with k = 2 it would not be looked at"), ([1, 0, 0], "; with k = 1")]
)
def test_flossing_says_where_an_exponent_has_no_derivative(kept, said):
    """A step of too low a rank: the finite exponents can still be flossed."""
    w_hh = np.diag(kept) * random_problem("rnn-tanh", H=3).w_hh
    problem = replace(random_problem("rnn-tanh", H=3), w_hh=w_hh)
    k = sum(kept)
    with pytest.raises(FloatingPointError, match=f"tape: step 0 leaves nothing of direction {k} of row 0, .* no derivative{said}"):
        flossing(problem)
    if k:
        value, grads = flossing(problem, k=k)
        assert np.isfinite(value) and np.isfinite(grads.w_hh).all()


def flossed(w_hh, T, h0=None, **options):
    """Of a net without input."""
    H = len(w_hh)
    x, w_ih = np.zeros((T, 1, 1), w_hh.dtype), np.zeros((H, 1), w_hh.dtype)
    return fastbptt.gradient_flossing(fastbptt.rnn_forward(x, h0, w_ih, w_hh, **options)[2])


def test_a_direction_that_shrinks_beside_one_that_grows_is_not_lost():
    """The step takes the two apart by 17 orders of magnitude, and each keeps its digits; they change places, so that both exponents are small."""
    a, b, T = 1e8, 1e-9, 6
    value, grads = flossed(np.array([[0, a], [b, 0]]), T, nonlinearity="identity")
    both = np.log(a * b) / 2  # over an even number of steps the product is a power of a b times the identity
    assert value == pytest.approx(both**2, rel=1e-12)
    np.testing.assert_allclose(np.diag(grads.w_hh[::-1]), [both / b, both / a], rtol=1e-12)
    assert np.abs(np.diag(grads.w_hh)).max() < 1e-15 * np.abs(grads.w_hh).max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_not_called_lost(bad, dtype):
    for w_hh in ([[bad]], [[bad, 1], [1, 2]]):
        value, grads = flossed(np.array(w_hh, dtype), 3, nonlinearity="identity")
        assert not np.isfinite(value) and not np.isfinite(grads.w_hh).all()


@pytest.mark.filterwarnings("error")
def test_flossing_gives_no_warnings():
    """Overflow shows in the results, as inf or NaN."""
    for w, dtype, h0 in ((1e-40, np.float32, 1.0), (1e30, np.float32, 1.0), (1e200, np.float64, 1e200), (1e-307, np.float64, 1.0)):
        value, grads = flossed(np.full((1, 1), w, dtype), 5, np.full((1, 1), h0, dtype), nonlinearity="identity")
        assert value == pytest.approx(np.log(w) ** 2, rel=1e-6) and not np.isfinite(grads.w_hh)
    for w in (5e-324, 1e-310, 0.0):  # of which no derivative of the logarithm has room
        with pytest.raises(FloatingPointError, match="tape: step 0 leaves nothing of direction 0 of row 0"):
            flossed(np.full((1, 1), w), 5)
