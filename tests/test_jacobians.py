"""Products of Jacobians against closed forms, and against arithmetic of hundreds of digits."""

import math

import mpmath
import numpy as np
import pytest
from problems import CELLS, PLAIN, random_problem

import fastbptt
from fastbptt.gradients.jacobians import _log_singular_values_of_rows, _rounds
from fastbptt.gradients.linearised import linearise


def linear(w_hh, T, B=1):
    H = len(w_hh)
    return fastbptt.rnn_forward(np.zeros((T, B, 1)), None, np.zeros((H, 1)), w_hh, nonlinearity="identity")[2]


def orthogonal(N, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0]


def exact_log_singular_values(jacobians):
    """Of the product of these matrices (N, N), the last applied last, with enough digits for the smallest."""
    with mpmath.workdps(120 + 100 * len(jacobians)):
        product = mpmath.eye(len(jacobians[0]))
        for J in jacobians:
            product = mpmath.matrix(J.tolist()) * product
        return np.array([float(mpmath.log(s)) if s else -np.inf for s in mpmath.svd_r(product, compute_uv=False)])


# Singular values


@pytest.mark.parametrize("rho", [0.9, 1.0, 1.7])
def test_a_scaled_rotation(rho):
    N = 200 if rho == 1.7 else 60  # two panels of columns, and what is left, do; once the size that users have
    tape = linear(rho * orthogonal(N), 100)
    got = fastbptt.log_singular_values(tape, 0, 100)
    assert got.shape == (1, N)
    np.testing.assert_allclose(got, 100 * math.log(rho), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("cell", ["rnn-sigmoid", "leaky-tanh", *PLAIN])
def test_all_digits_of_the_small_ones_too(cell, steps):
    _, _, tape = random_problem(cell, T=42, B=2, H=4, seed=1, gain=1.5).forward(fastbptt)
    linearised = linearise(tape)
    got = fastbptt.log_singular_values(tape, 1, 1 + steps)
    assert got.shape == (2, linearised.N) and (np.diff(got, axis=-1) <= 0).all()
    for b in range(2):
        expected = exact_log_singular_values([linearised.jacobian(t)[b] for t in range(1, 1 + steps)])
        # an LSTM's Jacobian has rows for h that are nearly its rows for c: the rounding of its elements alone is felt at the small end
        np.testing.assert_allclose(got[b], expected, rtol=1e-12, atol=1e-8 if cell == "lstm" else 1e-11)


def test_units_in_deep_saturation():
    """f'(a) down to 1e-50 in single steps."""
    _, _, tape = random_problem("rnn-tanh", T=8, B=1, H=6, seed=2, gain=40.0).forward(fastbptt)
    steps = linearise(tape)
    assert steps.slopes.min() < 1e-40
    expected = exact_log_singular_values([steps.jacobian(t)[0] for t in range(8)])
    np.testing.assert_allclose(fastbptt.log_singular_values(tape)[0], expected, rtol=1e-12, atol=1e-11)


def test_far_beyond_the_floating_range():
    rates = np.array([3.0, 1.0, 0.5, 0.01, 1e-12])
    u = orthogonal(5, 1)
    got = fastbptt.log_singular_values(linear(u @ np.diag(rates) @ u.T, 1000), 0, 1000)[0]
    # u diag u^T is only rounded to 1e-16 of its largest element, and the small eigenvalues suffer from that, not from the product
    np.testing.assert_allclose(got, 1000 * np.log(rates), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(got[:3], 1000 * np.log(rates[:3]), atol=1e-10)
    w = np.diag([2.0, 0.01, 0.01, 1.0, 0.0])
    got = fastbptt.log_singular_values(linear(w, 10000), 0, 10000)[0]
    np.testing.assert_allclose(got[:4], 10000 * np.log([2, 1, 0.01, 0.01]), rtol=1e-12, atol=1e-11)
    assert np.isneginf(got[4])


def test_units_that_are_off_have_singular_values_of_zero():
    """The products of the identity with masks: a unit that is ever off is gone, and the others have 1."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((6, 3, 8)) < 0.8, 1.0, -9.0)
    _, _, tape = fastbptt.rnn_forward(x, None, np.eye(8), np.eye(8), nonlinearity="relu")
    alive = (tape.h[1:] > 0).all(axis=0).sum(axis=-1)
    got = fastbptt.log_singular_values(tape)
    for b in range(3):
        assert 0 < alive[b] < 8
        np.testing.assert_allclose(got[b, : alive[b]], 0, atol=1e-13)
        assert np.isneginf(got[b, alive[b] :]).all()


def test_relu_units_that_are_on_and_off_by_turns():
    """With identity weights a unit that was off once is lost, and the others are as they were: 0 or 1, and nothing between."""
    x = 0.3 * np.random.default_rng(0).standard_normal((60, 1, 20))
    _, _, tape = fastbptt.rnn_forward(x, None, np.eye(20), np.eye(20), nonlinearity="relu")
    on = (tape.h[41:61, 0] > 0).all(axis=0).sum()
    logs = fastbptt.log_singular_values(tape, 40, 60)[0]
    assert 0 < on < 20
    np.testing.assert_allclose(logs[:on], 0, atol=1e-12)
    assert np.isneginf(logs[on:]).all()


def test_weights_of_low_rank():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 2)) @ rng.standard_normal((2, 7))
    got = fastbptt.log_singular_values(linear(w, 5), 0, 5)[0]
    expected = np.log(np.linalg.svd(np.linalg.matrix_power(w, 5))[1][:2])
    np.testing.assert_allclose(got[:2], expected, rtol=1e-12)
    assert np.isneginf(got[2:]).all()


def test_no_step_is_the_identity():
    _, _, tape = random_problem("lstm").forward(fastbptt)
    np.testing.assert_array_equal(fastbptt.log_singular_values(tape, 3, 3), np.zeros((3, 14)))


@pytest.mark.parametrize("N", [1, 2, 5, 8])
def test_rounds_have_every_pair_once(N):
    pairs = []
    for p, q in _rounds(N):
        assert len({*p, *q}) == 2 * len(p)
        pairs += [tuple(sorted(pair)) for pair in zip(p.tolist(), q.tolist())]
    assert sorted(pairs) == [(i, j) for i in range(N) for j in range(i + 1, N)]


def test_rotations_of_graded_rows():
    """Scales too far apart for one matrix of floating-point numbers, with nearly equal neighbours among them."""
    rng = np.random.default_rng(3)
    x, scale = rng.standard_normal((1, 6, 6)), np.array([[0.0, -0.001, -700.0, 800.0, -3000.0, -3000.0]])
    with mpmath.workdps(4000):
        rows = [[mpmath.exp(s) * mpmath.mpf(value) for value in row] for row, s in zip(x[0].tolist(), scale[0].tolist())]
        expected = [float(mpmath.log(s)) for s in mpmath.svd_r(mpmath.matrix(rows), compute_uv=False)]
    np.testing.assert_allclose(_log_singular_values_of_rows(x, scale)[0], expected, rtol=1e-13, atol=1e-12)


# Norms


@pytest.mark.parametrize(("u", "T"), [(0.5, 47), (0.01, 200), (2.0, 10000)])
def test_norms_of_a_scalar(u, T):
    tape = linear(np.full((1, 1), u), T)
    expected = np.arange(T + 1) * math.log(u)
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape)[:, 0], expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape, until=T)[::-1, 0], expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fastbptt.log_singular_values(tape)[0, 0], expected[-1], rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_norms_of_every_product(cell):
    _, _, tape = random_problem(cell, T=6, seed=3).forward(fastbptt)
    steps = linearise(tape)

    def norm(k, t):
        product = np.eye(steps.N)
        for s in range(k, t):
            product = steps.jacobian(s) @ product
        return np.linalg.norm(product, 2, axis=(1, 2)) if t > k else np.ones(3)

    with np.errstate(divide="ignore"):
        since, until = (np.log([norm(2, t) for t in range(2, 7)]), np.log([norm(k, 5) for k in range(6)]))
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape, since=2), since, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape, until=5), until, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fastbptt.log_singular_values(tape, 2, 6)[:, 0], since[-1], rtol=1e-12, atol=1e-13)


def test_an_identity_relu_net_keeps_everything():
    """W = I, ReLU, positive arguments: every Jacobian is exactly the identity."""
    rng = np.random.default_rng(0)
    _, _, tape = fastbptt.rnn_forward(rng.random((50, 2, 3)), None, rng.random((6, 3)), np.eye(6), nonlinearity="relu")
    for t in (0, 49):
        np.testing.assert_array_equal(linearise(tape).jacobian(t), np.broadcast_to(np.eye(6), (2, 6, 6)))
    np.testing.assert_array_equal(fastbptt.jacobian_product_norms(tape), np.zeros((51, 2)))
    np.testing.assert_allclose(fastbptt.log_singular_values(tape), np.zeros((2, 6)), atol=1e-13)


@pytest.mark.parametrize("bias", [0.0, 1.0, 5.0])
def test_cells_without_weights_forget_by_their_gates(bias):
    keep = -100 * math.log1p(math.exp(-bias))
    b = np.zeros(8)
    b[2:4] = bias
    _, _, tape = fastbptt.lstm_forward(np.zeros((100, 1, 3)), None, np.zeros((8, 3)), np.zeros((8, 2)), b)
    values = fastbptt.log_singular_values(tape)[0]
    # d(h_T, c_T) / dc_0 is (show, 1) f^T with show = o (1 - tanh^2 c) = 1/2 where c is 0; h_0 has no part in it
    np.testing.assert_allclose(values[:2], keep + math.log(1.25) / 2, rtol=1e-12)
    assert np.isneginf(values[2:]).all()
    J = np.eye(4)
    for t in range(100):
        J = linearise(tape).jacobian(t)[0] @ J
    np.testing.assert_allclose(J[2:, 2:], math.exp(keep) * np.eye(2), rtol=1e-12)

    _, _, tape = fastbptt.gru_forward(np.zeros((100, 1, 3)), None, np.zeros((6, 3)), np.zeros((6, 2)), np.repeat([0.0, bias, 0.0], 2))
    np.testing.assert_allclose(fastbptt.log_singular_values(tape), keep, rtol=1e-12)
    np.testing.assert_allclose(fastbptt.jacobian_product_norms(tape)[-1], keep, rtol=1e-12)


def test_norms_where_nothing_is_left_or_not_finite():
    _, _, tape = fastbptt.rnn_forward(-np.ones((5, 2, 3)), None, np.eye(3), np.eye(3), nonlinearity="relu")
    np.testing.assert_array_equal(fastbptt.jacobian_product_norms(tape)[:2], [[0, 0], [-np.inf, -np.inf]])
    assert np.isneginf(fastbptt.log_singular_values(tape)).all()
    x = np.zeros((3, 2, 1))
    x[1, 0] = np.nan
    _, _, tape = fastbptt.rnn_forward(x, None, np.ones((2, 1)), np.eye(2))
    norms = fastbptt.jacobian_product_norms(tape)
    assert np.isnan(norms[2:, 0]).all() and np.isfinite(norms[:, 1]).all() and np.isfinite(norms[:2]).all()


# The condition on the weights


@pytest.mark.parametrize(
    ("scale", "nonlinearity", "must_vanish", "may_explode"),
    [
        (0.99, "tanh", True, False),
        (1.01, "tanh", False, True),
        (3.9, "sigmoid", True, False),
        (4.1, "sigmoid", False, True),
        (1.0, "relu", False, False),
    ],
)
def test_the_conditions_of_pascanu(scale, nonlinearity, must_vanish, may_explode):
    w = scale * np.diag([1.0, -0.5, 0.1])
    got = fastbptt.vanishing_condition(w, nonlinearity)
    assert (got.must_vanish, got.may_explode) == (must_vanish, may_explode)
    assert got.sigma_max == pytest.approx(scale) and got.spectral_radius == pytest.approx(scale)
    assert got.gamma == (0.25 if nonlinearity == "sigmoid" else 1)
    assert ("must vanish" in str(got)) == must_vanish and ("may explode" in str(got)) == may_explode
    assert str(got) == f"{got.finding} (spectral radius {scale:g})"


def test_the_singular_value_decides_and_not_the_radius():
    got = fastbptt.vanishing_condition(np.array([[0.5, 9.0], [0.0, 0.5]], np.float32))
    assert got.spectral_radius == pytest.approx(0.5, rel=1e-6) and got.sigma_max > 9 and got.may_explode and not got.must_vanish


def test_bad_input():
    _, _, tape = random_problem("gru").forward(fastbptt)
    for function in (fastbptt.jacobian_product_norms, fastbptt.log_singular_values):
        with pytest.raises(TypeError, match="tape: expected the tape of a forward pass, got None"):
            function(None)
    with pytest.raises(ValueError, match="stop: expected a state from 0 to 5, got 6"):
        fastbptt.log_singular_values(tape, 0, 6)
    with pytest.raises(ValueError, match="start: expected a state from 0 to 3, got 4"):
        fastbptt.log_singular_values(tape, 4, 3)
    with pytest.raises(ValueError, match="since: expected an integer of at least 0, got -1"):
        fastbptt.jacobian_product_norms(tape, since=-1)
    with pytest.raises(ValueError, match="until: expected a state from 0 to 5, got 7"):
        fastbptt.jacobian_product_norms(tape, until=7)
    with pytest.raises(ValueError, match="until: expected None together with since"):
        fastbptt.jacobian_product_norms(tape, since=0, until=5)
    with pytest.raises(ValueError, match=r"w_hh: expected shape \(H, H\) with H >= 1, got \(21, 7\)"):
        fastbptt.vanishing_condition(tape.w_hh)
    with pytest.raises(ValueError, match="w_hh: expected finite"):
        fastbptt.vanishing_condition(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="nonlinearity: expected one of 'tanh'"):
        fastbptt.vanishing_condition(np.eye(2), "gelu")
