"""The flow of gradients: its numbers against closed forms, the kernels' backward pass, and derivatives of the reference."""

import math
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, PLAIN, Problem, arrays_of, histories, random_problem
from tolerances import DTYPES, assert_close, bound

import fastbptt
import fastbptt.reference
from fastbptt._notation import format_log10
from fastbptt.gradients.linearised import linearise
from fastbptt.gradients.state_gradients import _by_kernel, _with_exponents, state_gradients

STEP = 1e-30  # of the complex step, as in test_reference.py

LEAKY = {f"leaky-{f}": CELLS["leaky-tanh"]._replace(options={"nonlinearity": f}) for f in ("relu", "sigmoid", "identity")}
ALL_CELLS = CELLS | LEAKY


def flow_of(problem):
    _, _, tape = problem.forward(fastbptt)
    return fastbptt.gradient_flow(tape, problem.d_out, problem._state(problem.d_state))


def linear(u, T, loss="last", h0=0.0, x=0.0):
    """h_t = u h_{t-1} + x of one unit, and its loss at the last step, or at every step."""
    one = np.ones((1, 1))
    d_out = np.zeros((T, 1, 1))
    d_out[-1 if loss == "last" else slice(None)] = 1
    return Problem(CELLS["rnn-identity"], np.full((T, 1, 1), x), (h0 * one,), one, u * one, None, None, d_out, None)


def state_of(tape, t):
    return np.concatenate([history[t] for history in histories(tape)], axis=-1)


def split(state, problem):
    return tuple(np.split(state, problem.cell.states, axis=-1))


def next_state(problem, state):
    """The reference's state after the first step of ``problem`` from ``state`` (B, N), side by side."""
    _, after, _ = problem.steps(0, 1, split(state, problem)).forward(fastbptt.reference)
    return np.concatenate(arrays_of(after), axis=-1)


# One step


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_the_jacobian_of_a_step_against_the_complex_step(cell):
    problem = random_problem(ALL_CELLS[cell], seed=1)
    _, _, tape = problem.forward(fastbptt)
    steps = linearise(tape)
    rng = np.random.default_rng(0)
    for t in (0, 3):
        state = state_of(tape, t)
        B, N = state.shape
        expected = np.empty((B, N, N))
        for j in range(N):
            moved = state.astype(complex)
            moved[:, j] += 1j * STEP
            expected[:, :, j] = next_state(problem.steps(t, t + 1), moved).imag / STEP
        np.testing.assert_allclose(steps.jacobian(t), expected, rtol=1e-12, atol=1e-14)

        v, d = rng.standard_normal((B, 2, N)), rng.standard_normal((4, B, N))
        np.testing.assert_allclose(steps.jvp(t, v), np.einsum("bij,bkj->bki", expected, v), rtol=1e-12, atol=1e-13)
        d_before, da = steps.vjp(t, d)
        np.testing.assert_allclose(d_before, np.einsum("bij,nbi->nbj", expected, d), rtol=1e-12, atol=1e-13)
        assert da.shape == (4, B, len(tape.w_hh))


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_several_steps_at_once(cell):
    _, _, tape = random_problem(ALL_CELLS[cell], seed=1).forward(fastbptt)
    steps = linearise(tape)
    d = np.random.default_rng(0).standard_normal((3, 3, steps.N))
    together = steps.vjp(np.array([4, 0, 2]), d)
    for i, t in enumerate((4, 0, 2)):
        for got, expected in zip(together, steps.vjp(t, d[i])):
            np.testing.assert_allclose(got[i], expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("nonlinearity", "slope"),
    [("tanh", lambda a: 4 * math.exp(-2 * abs(a))), ("sigmoid", lambda a: math.exp(-abs(a)))],
)
@pytest.mark.parametrize("a", [40.0, -40.0, 300.0])
def test_derivatives_keep_their_digits_in_saturation(nonlinearity, slope, a):
    one = np.ones((1, 1))
    _, _, tape = fastbptt.rnn_forward(a * np.ones((1, 1, 1)), None, one, one, nonlinearity=nonlinearity)
    assert linearise(tape).jacobian(0).item() == pytest.approx(slope(a), rel=1e-12)


def test_a_relu_is_off_at_zero():
    one = np.ones((1, 1))
    for x, slope in [(0.0, 0.0), (-1.0, 0.0), (1e-300, 1.0)]:
        _, _, tape = fastbptt.rnn_forward(x * np.ones((1, 1, 1)), None, one, one, nonlinearity="relu")
        assert linearise(tape).jacobian(0).item() == slope


@pytest.mark.parametrize("cell", PLAIN)
def test_tokens_mean_their_one_hot_rows(cell):
    problem = random_problem(cell, tokens=True)
    dense = replace(problem, x=np.eye(4)[problem.x])
    got, expected = (linearise(p.forward(fastbptt)[2]).jacobian(2) for p in (problem, dense))
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


# Norms by step


@pytest.mark.parametrize(
    ("u", "T", "log10"),
    [(0.5, 47, math.log10(7.105427357601002e-15)), (0.01, 47, -94), (0.01, 200, -400), (2, 10000, 10000 * math.log10(2))],
)
def test_powers_of_a_scalar(u, T, log10):
    flow = flow_of(linear(u, T))
    assert flow.log10_state_norm.shape == (T + 1, 1)
    assert flow.log10_preactivation_norm.shape == (T, 1)
    np.testing.assert_allclose(flow.log10_state_norm[0, 0], log10, rtol=1e-12)
    np.testing.assert_allclose(flow.log10_state_norm[:, 0], log10 * np.arange(T, -1, -1) / T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flow.log10_preactivation_norm[:, 0], log10 * np.arange(T - 1, -1, -1) / T, rtol=1e-12, atol=1e-12)
    if T == 47:
        assert 10 ** flow.log10_state_norm[0, 0] == pytest.approx(u**47, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_state_gradient_is_that_of_the_rest_of_the_sequence(cell, dtype):
    problem = random_problem(ALL_CELLS[cell], T=6, seed=2, dtype=dtype)
    _, _, tape = problem.forward(fastbptt)
    oracle = problem.astype(np.float64)
    flow = flow_of(problem)
    limit = 2 * bound(dtype, problem.K, 6) / np.log(10)
    for t in range(6):
        rest = oracle.steps(t, 6, split(state_of(tape, t).astype(np.float64), oracle), oracle.d_state)
        _, _, rest_tape = rest.forward(fastbptt.reference)
        state = np.concatenate(arrays_of(rest.backward(fastbptt.reference, rest_tape).state), axis=-1)
        if t:
            state[:, :7] += oracle.d_out[t - 1]
        np.testing.assert_allclose(flow.log10_state_norm[t], np.log10(np.linalg.norm(state, axis=-1)), atol=limit)
    final = np.concatenate([d.astype(np.float64) for d in problem.d_state], axis=-1)
    final[:, :7] += problem.d_out[-1]
    np.testing.assert_allclose(flow.log10_state_norm[6], np.log10(np.linalg.norm(final, axis=-1)), atol=limit)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_pre_activation_gradients_make_up_the_weights_gradient(cell):
    problem = random_problem(ALL_CELLS[cell], seed=3)
    _, _, tape = problem.forward(fastbptt)
    dh, dc, da, exponent, _ = state_gradients(tape, problem.d_out, problem.d_state)
    assert (dc is None) == (tape.c is None) and exponent.dtype == np.int64 and not exponent.any()
    grads = problem.backward(fastbptt, tape)
    np.testing.assert_allclose(np.einsum("tbi,tbj->ij", da, tape.h[:-1]), grads.w_hh, rtol=1e-12, atol=1e-13)
    for got, expected in zip((dh, dc), arrays_of(grads.state)):
        np.testing.assert_allclose(got[0], expected, rtol=1e-12, atol=1e-13)
    with np.errstate(divide="ignore"):  # ReLUs that are off
        expected = np.log10(np.linalg.norm(da, axis=-1))
    np.testing.assert_allclose(flow_of(problem).log10_preactivation_norm, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ["every step", "the end", "one step"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 4, 3, 7), (1, 1, 1, 6), (40, 3, 2, 150), (60, 33, 3, 20)], ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_the_kernel_and_the_walk_with_exponents(cell, shape, dtype, loss):
    """Both agree where no exponents are needed; a row without a loss has no gradient in either."""
    problem = random_problem(ALL_CELLS[cell], *shape, dtype=dtype, seed=3)
    _, _, tape = problem.forward(fastbptt)
    d_out = np.zeros_like(problem.d_out)
    steps = {"every step": slice(None), "the end": slice(0, 0), "one step": shape[0] // 2}[loss]
    d_out[steps] = problem.d_out[steps]
    d_state = tuple(part if loss == "the end" else None for part in problem.d_state)
    d_out[:, shape[1] // 2 :] *= shape[1] == 1
    got, expected = (walk(tape, d_out, d_state) for walk in (_by_kernel, _with_exponents))
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert_close(name, a, b, bound(np.float64, problem.K, shape[0]) if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("value", [1e-300, 1e300, 0.0, np.inf, np.nan])
def test_gradients_that_the_kernel_leaves_to_the_walk_with_exponents(value):
    problem = random_problem("rnn-tanh")
    _, _, tape = problem.forward(fastbptt)
    d_out = problem.d_out.copy()
    d_out[2:, 1] = value
    got = _by_kernel(tape, d_out, (None,))
    assert (got is None) == (value != 0)


def test_rows_have_exponents_of_their_own():
    """One row explodes, one vanishes, one has no gradient; then a loss of ordinary size is added."""
    w = np.diag([1e3, 1e-3])
    d_state = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    d_out = np.zeros((250, 3, 2))
    d_out[49, :2] = 1  # at the state after 50 steps, 200 from the end
    _, _, tape = fastbptt.rnn_forward(np.zeros((250, 3, 1)), None, np.ones((2, 1)), w, nonlinearity="identity")
    norms = fastbptt.gradient_flow(tape, d_out, d_state).log10_state_norm
    np.testing.assert_allclose(norms[51], [597, -597, -np.inf], rtol=1e-12)
    np.testing.assert_allclose(norms[50], [600, math.log10(math.sqrt(2)), -np.inf], rtol=1e-12)
    np.testing.assert_allclose(norms[0], [750, 150, -np.inf], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e300, 5e-324])
def test_losses_of_any_size(scale):
    problem = linear(0.5, 60, "all")
    flow = flow_of(replace(problem, d_out=scale * problem.d_out))
    expected = math.log10(scale) + np.log10(2 - 0.5 ** np.arange(59, -1, -1))
    np.testing.assert_allclose(flow.log10_state_norm[1:, 0], expected, rtol=1e-14)


# By lag


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_the_parts_by_lag_add_up_to_the_gradient(cell, dtype):
    problem = random_problem(ALL_CELLS[cell], T=9, B=4, seed=4, dtype=dtype)
    flow = flow_of(problem)
    parts = flow.lag_gradients()
    gradient = problem.backward(fastbptt, problem.forward(fastbptt)[2]).w_hh
    limit = 1e-12 if dtype == np.float64 else bound(dtype, problem.K, 9)
    assert parts.shape == (9, *gradient.shape)
    assert np.abs(parts.sum(axis=0) - gradient).max() <= limit * np.abs(gradient).max()
    np.testing.assert_allclose(flow.by_lag, np.linalg.norm(parts, axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(flow.log10_by_lag, np.log10(flow.by_lag), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_contributions_of_each_loss_to_each_step(cell):
    """The gradient of the loss at t alone that step k adds: what the last t - k + 1 steps before t give, less what the last t - k do."""
    T = 5
    problem = random_problem(ALL_CELLS[cell], T=T, B=2, seed=5)
    _, _, tape = problem.forward(fastbptt)
    flow = flow_of(problem)
    got = flow.contributions
    assert got.shape == (T, T)
    np.testing.assert_array_equal(got[np.triu_indices(T, 1)], 0)
    by_lag = np.zeros((T, *tape.w_hh.shape))
    for t in range(T):
        later = np.zeros(tape.w_hh.shape)
        for k in reversed(range(t + 1)):
            d_out = np.zeros_like(problem.d_out)
            d_out[t] = problem.d_out[t]
            d_state = problem.d_state if t == T - 1 else None
            piece = replace(problem, d_out=d_out).steps(k, T, split(state_of(tape, k), problem), d_state)
            gradient = piece.backward(fastbptt.reference, piece.forward(fastbptt.reference)[2]).w_hh
            assert got[t, k] == pytest.approx(np.linalg.norm(gradient - later), rel=1e-9), (t, k)
            by_lag[t - k] += gradient - later
            later = gradient
    np.testing.assert_allclose(flow.lag_gradients(), by_lag, rtol=1e-9, atol=1e-12)


def test_contributions_where_the_batch_is_larger_than_the_layer():
    problem = random_problem("gru", T=4, B=9, H=3, seed=6)
    flow = flow_of(problem)
    only_last = replace(problem, d_out=np.where(np.arange(4)[:, None, None] == 3, problem.d_out, 0))
    np.testing.assert_allclose(flow.contributions[3, ::-1], flow_of(only_last).by_lag, rtol=1e-12)


def test_lags_far_beyond_the_floating_range():
    flow = flow_of(linear(0.01, 300, "all", x=1.0))
    h = (1 - 0.01 ** np.arange(300)) / 0.99
    t, k = np.tril_indices(300)
    with np.errstate(divide="ignore"):  # h_0 is 0
        np.testing.assert_allclose(flow.log10_contributions[t, k], -2.0 * (t - k) + np.log10(h[k]), rtol=1e-12, atol=1e-12)
        expected = -2.0 * np.arange(300) + np.log10(np.cumsum(h)[::-1])  # at lag l, the steps k = 0 .. T - 1 - l
    np.testing.assert_allclose(flow.log10_by_lag, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flow.log10_decay, -2.0 * np.arange(301), rtol=1e-12, atol=1e-12)
    assert flow.by_lag[0] > 0 == flow.by_lag[-2]


def test_losses_that_are_not_there():
    """Steps whose loss has a zero gradient are left out, without changing the result."""
    problem = random_problem("lstm", T=8, seed=7)
    d_out = problem.d_out.copy()
    d_out[[0, 1, 3, 6]] = 0
    flow = flow_of(replace(problem, d_out=d_out, d_state=None))
    assert np.isneginf(flow.log10_contributions[[0, 1, 3, 6]]).all()
    whole = flow_of(replace(problem, d_state=None))
    np.testing.assert_allclose(flow.contributions[[2, 4, 5, 7]], whole.contributions[[2, 4, 5, 7]], rtol=1e-12)


# What it comes to


@pytest.mark.parametrize("loss", ["last", "all"])
@pytest.mark.parametrize(
    ("u", "half_life", "verdict"),
    [
        (0.5, 1.0, "vanishing"),
        (0.01, math.log(0.5) / math.log(0.01), "vanishing"),
        (1.0, math.inf, "stable"),
        (1.2, math.inf, "exploding"),
        (0.99, 68.96756, "stable"),
    ],
)
def test_half_life_and_verdict_of_a_scalar(u, half_life, verdict, loss):
    flow = flow_of(linear(u, 40, loss))
    if u == 1:
        assert abs(flow.log10_slope) < 1e-15  # either side of 0 will do
    else:
        assert flow.log10_slope == pytest.approx(math.log10(u), rel=1e-12)
        assert flow.half_life == pytest.approx(half_life, rel=1e-6)
    assert flow.verdict == verdict
    assert flow.log10_decay[40] == pytest.approx(40 * math.log10(u), rel=1e-12, abs=1e-12)


def test_the_fit_weighs_each_lag_by_the_losses_that_reach_it():
    problem = random_problem("gru", T=12)
    problem.d_out[[0, 3, 4, 8]] = 0
    flow = flow_of(problem)
    reach = np.array([8, 8, 7, 6, 6, 6, 5, 4, 3, 3, 2, 1])  # losses at 1, 2, 5, 6, 7, 9, 10, 11 that get to lags 1 .. 12
    slope, _ = np.polyfit(np.arange(1, 13), flow.log10_decay[1:], 1, w=np.sqrt(reach))
    assert flow.log10_slope == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(("bias", "half_life"), [(0, 1), (1, 2.2126), (2, 5.4612), (5, 103.2)])
def test_the_half_life_of_an_lstm_without_weights_is_that_of_its_forget_gate(bias, half_life):
    b = np.zeros(8)
    b[2:4] = bias
    x, w_ih, w_hh = np.zeros((100, 1, 3)), np.zeros((8, 3)), np.zeros((8, 2))
    _, _, tape = fastbptt.lstm_forward(x, (np.ones((1, 2)), np.ones((1, 2))), w_ih, w_hh, b, None)
    flow = fastbptt.gradient_flow(tape, None, (None, np.ones((1, 2))))
    f = 1 / (1 + math.exp(-bias))
    np.testing.assert_allclose(flow.log10_state_norm[0] - flow.log10_state_norm[-1], 100 * math.log10(f), rtol=1e-12)
    assert flow.half_life == pytest.approx(half_life, rel=1e-3)
    # The same if it starts at h: the first step, from h to c, is not part of the fit.
    from_h = fastbptt.gradient_flow(tape, None, (np.full((1, 2), 1e-3), None))
    assert from_h.log10_decay[1] < math.log10(f) - 0.3
    assert from_h.half_life == pytest.approx(flow.half_life, rel=1e-9)
    assert flow.verdict == ("stable" if bias == 5 else "vanishing")


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_a_gru_without_weights_forgets_by_its_update_gate(bias):
    b = np.repeat([0.0, bias, 0.0], 2)
    _, _, tape = fastbptt.gru_forward(np.zeros((100, 1, 3)), np.ones((1, 2)), np.zeros((6, 3)), np.zeros((6, 2)), b, None)
    flow = fastbptt.gradient_flow(tape, None, np.ones((1, 2)))
    z = 1 / (1 + math.exp(-bias))
    np.testing.assert_allclose(flow.log10_state_norm[0] - flow.log10_state_norm[-1], 100 * math.log10(z), rtol=1e-12)


def test_saturation():
    a = np.array([0.0, 2.9, 3.1, -3.1])  # sech^2 falls below 1 % of its peak at 2.993
    _, _, tape = fastbptt.rnn_forward(a.reshape(1, 1, 4), None, np.eye(4), np.zeros((4, 4)))
    assert fastbptt.gradient_flow(tape, None).saturated == 0.5
    _, _, tape = fastbptt.rnn_forward(2 * a.reshape(1, 1, 4), None, np.eye(4), np.zeros((4, 4)), nonlinearity="sigmoid")
    assert fastbptt.gradient_flow(tape, None).saturated_gates == {"h": 0.5}
    _, _, tape = fastbptt.rnn_forward(a.reshape(1, 1, 4), None, np.eye(4), np.zeros((4, 4)), nonlinearity="relu")
    assert fastbptt.gradient_flow(tape, None).saturated == 0.5
    b = np.array([10.0, 0.0, 0.0, -10.0])
    _, _, tape = fastbptt.lstm_forward(np.zeros((2, 1, 1)), None, np.zeros((4, 1)), np.zeros((4, 1)), b)
    flow = fastbptt.gradient_flow(tape, None)
    assert flow.saturated_gates == {"i": 1.0, "f": 0.0, "g": 0.0, "o": 1.0} and flow.saturated == 0.5


def test_reports_in_words():
    assert str(flow_of(linear(0.8, 40))).startswith("vanishing: half-life 3.1 steps; after 40 steps 1.3e-04 of the gradient is left\n")
    assert str(flow_of(linear(2.0, 4000))).startswith("exploding: doubles every 1 steps; after 4000 steps the gradient is 1.3e+1204 times")
    assert "1e-400" in str(flow_of(linear(0.01, 200)))
    assert str(flow_of(linear(0.99, 40))).startswith("stable: half-life 69 steps; after 40 steps 0.67 of the gradient is left")
    problem = random_problem("lstm")
    assert "LSTM: 5 steps, 3 rows, 7 units; saturated: " in str(flow_of(problem)) and "dL/d(h, c)" in str(flow_of(problem))
    assert "leaky tanh RNN" in str(flow_of(random_problem("leaky-tanh")))
    assert "nothing" not in repr(flow_of(problem)) and "GradientFlow" in repr(flow_of(problem))


@pytest.mark.parametrize(
    "problem", [linear(0.8, 40), random_problem("lstm"), random_problem("gru", T=0)], ids=["linear", "lstm", "no steps"]
)
def test_the_parts_of_the_report(problem):
    flow = flow_of(problem)
    first, second, *_ = str(flow).split("\n  ")
    assert (flow.headline, flow.setting) == (first, second) and flow.headline == f"{flow.verdict}: {flow.finding}"


def test_what_was_found_and_in_what():
    flow = flow_of(linear(0.8, 40))
    assert flow.finding == "half-life 3.1 steps; after 40 steps 1.3e-04 of the gradient is left"
    assert flow.setting == "identity RNN: 40 steps, 1 row, 1 unit; saturated: 0%"


@pytest.mark.parametrize(
    ("log10", "text"),
    [
        (-400, "1e-400"),
        (3010.3, "2e+3010"),
        (math.log10(9.96e-7), "1e-06"),
        (0, "1"),
        (2, "100"),
        (3.5, "3162"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_in_words(log10, text):
    assert format_log10(log10) == text


def test_gradients_that_die():
    """ReLUs that are off stop the gradient: nothing is left, and the half-life is 0."""
    _, _, tape = fastbptt.rnn_forward(-np.ones((5, 2, 3)), None, np.eye(3), np.eye(3), nonlinearity="relu")
    flow = fastbptt.gradient_flow(tape, None, np.ones((2, 3)))
    assert flow.verdict == "vanishing" and flow.half_life == 0 and flow.saturated == 1
    assert np.isneginf(flow.log10_state_norm[:-1]).all()
    assert "after 5 steps 0 of the gradient is left" in str(flow)


@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("cell", ["leaky-tanh", *PLAIN])
def test_little_or_nothing(cell, T, B):
    flow = flow_of(random_problem(cell, T=T, B=B))
    assert flow.log10_state_norm.shape == (T + 1, B) and flow.log10_preactivation_norm.shape == (T, B)
    assert flow.by_lag.shape == (T,) and flow.contributions.shape == (T, T) and flow.lag_gradients().shape[0] == T
    assert flow.verdict in ("stable", "vanishing", "exploding") and str(flow)


def test_no_loss():
    flow = flow_of(replace(random_problem("gru"), d_out=None, d_state=None))
    assert flow.verdict == "stable" and math.isnan(flow.half_life) and "no gradient" in str(flow)
    assert np.isneginf(flow.log10_state_norm).all() and not flow.by_lag.any()


# inf and NaN


def spoiled(key, index, value, cell="rnn-tanh"):
    problem = random_problem(cell)
    array = dict(problem.arrays())[key].copy()
    array[index] = value
    return problem.with_array(key, array)


@pytest.mark.parametrize(
    ("key", "index", "value", "reason"),
    [
        ("w_hh", (1, 2), np.nan, "w_hh[1, 2] is nan"),
        ("b_ih", (4,), np.inf, "b_ih[4] is inf"),
        ("x", (2, 1, 3), np.nan, "x[2, 1, 3] is nan"),
        ("x", (2, 1, 3), -np.inf, "x[2, 1, 3] is -inf"),
        (("state", 0), (1, 5), np.nan, "the initial state h[1, 5] is nan"),
        ("d_out", (3, 0, 6), np.nan, "d_out[3, 0, 6] is nan"),
        (("d_state", 0), (2, 0), np.inf, "d_state[2, 0] is inf"),
    ],
)
def test_the_first_nan_is_named(key, index, value, reason):
    flow = flow_of(spoiled(key, index, value))
    assert flow.verdict == "nonfinite" and flow.reason == reason
    assert str(flow).startswith(f"nonfinite: {reason}")
    assert flow.by_lag.shape == (5,) and flow.contributions.shape == (5, 5)


def test_nans_of_an_lstm_are_named():
    assert flow_of(spoiled(("state", 1), (0, 0), np.nan, "lstm")).reason == "the initial state c[0, 0] is nan"
    assert flow_of(spoiled(("d_state", 1), (0, 0), np.nan, "lstm")).reason == "d_state[1][0, 0] is nan"
    assert flow_of(spoiled("x", (1, 0, 0), np.nan, "lstm")).reason == "x[1, 0, 0] is nan"


def test_a_state_that_overflows_is_named():
    flow = flow_of(linear(1e100, 10, h0=1.0))
    assert flow.reason.startswith("h[4, 0, 0] is inf, the state after step 3, though") and flow.verdict == "nonfinite"
    assert flow.log10_state_norm[0, 0] == pytest.approx(1000)


def test_a_gradient_that_overflows_in_one_step_is_named():
    w = np.full((2, 2), 1e308)
    _, _, tape = fastbptt.rnn_forward(np.zeros((3, 1, 1)), None, np.ones((2, 1)), w)
    flow = fastbptt.gradient_flow(tape, None, np.ones((1, 2)))
    assert flow.reason == "the gradient of the state before step 2 is the first on the way back that is not finite, though d_out is"


# Bad input


def test_what_cannot_be_looked_at():
    problem = random_problem("lstm")
    _, _, tape = problem.forward(fastbptt)
    with pytest.raises(TypeError, match="tape: expected the tape of a forward pass, got None"):
        fastbptt.gradient_flow(None, problem.d_out)
    with pytest.raises(TypeError, match="tape: expected the tape"):
        fastbptt.gradient_flow(problem.forward(fastbptt.reference)[2], problem.d_out)
    with pytest.raises(TypeError, match="tape: expected the tape"):
        fastbptt.gradient_flow(fastbptt.Tape(), problem.d_out)
    with pytest.raises(ValueError, match=r"d_out: expected shape \(5, 3, 7\), got \(4, 3, 7\)"):
        fastbptt.gradient_flow(tape, problem.d_out[1:])
    with pytest.raises(TypeError, match="d_out: expected dtype float64"):
        fastbptt.gradient_flow(tape, problem.d_out.astype(np.float32))
    with pytest.raises(TypeError, match="d_state: expected a pair"):
        fastbptt.gradient_flow(tape, None, problem.d_state[0])
    with pytest.raises(ValueError, match=r"d_state\[1\]: expected shape"):
        fastbptt.gradient_flow(tape, None, (None, problem.d_state[0][1:]))


def test_arguments_are_left_as_they_are():
    problem = random_problem("gru")
    before = {key: array.copy() for key, array in problem.arrays()}
    flow = flow_of(problem)
    str(flow), flow.lag_gradients(), flow.contributions
    for key, array in problem.arrays():
        np.testing.assert_array_equal(array, before[key])
