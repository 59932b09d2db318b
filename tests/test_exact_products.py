"""Singular values and Lyapunov exponents of difficult nets, against products of Jacobians in hundreds of digits.

FASTBPTT_TEST_NETS is the number of nets, 64 unless set: one of each kind.
"""

import math
import os

import exact_products
import mpmath
import numpy as np
import pytest
from problems import CELLS, PLAIN, random_problem

import fastbptt
from fastbptt._kernels import kernels
from fastbptt.gradients.frames import random_frame
from fastbptt.gradients.linearised import linearise
from fastbptt.gradients.lyapunov import batch_bounds

NETS = int(os.environ.get("FASTBPTT_TEST_NETS", len(CELLS) * len(exact_products.KINDS)))
LIMIT = 1e-9  # absolute, in the logarithm


def linear(w_hh, T):
    w_hh = np.array(w_hh, float)
    return fastbptt.rnn_forward(np.zeros((T, 1, 1)), None, np.zeros((len(w_hh), 1)), w_hh, nonlinearity="identity")[2]


@pytest.mark.parametrize("seed", range(NETS))
def test_difficult_nets(seed):
    problem, name = exact_products.difficult_net(seed)
    _, _, tape = problem.forward(fastbptt)
    with mpmath.workdps(600):
        jacobians = exact_products.exact_jacobians(tape)
        expected = exact_products.log_singular_values(jacobians)
        volumes = [exact_products.log_volume(J) for J in jacobians]
    np.testing.assert_allclose(fastbptt.log_singular_values(tape)[0], expected, rtol=0, atol=LIMIT, err_msg=name)
    for burn_in in {0, len(tape) // 2}:
        spectrum = fastbptt.lyapunov_spectrum(tape, burn_in=burn_in)
        np.testing.assert_allclose(spectrum.exponents[0].sum(), np.mean(volumes[burn_in:]), rtol=0, atol=LIMIT, err_msg=name)


@pytest.mark.parametrize(
    ("w_hh", "T", "expected"),
    [
        ([[1, 1e-16], [1, -1e-16]], 1, [math.log(2) / 2, math.log(2) / 2 - 16 * math.log(10)]),
        ([[1, 1e20], [0, 1]], 3, [math.log(3) + 20 * math.log(10), -math.log(3) - 20 * math.log(10)]),
        ([[1, 1e20], [0, 1]], 200, [math.log(200) + 20 * math.log(10), -math.log(200) - 20 * math.log(10)]),
        ([[1e-200, 0], [0, 1e100]], 1, [100 * math.log(10), -200 * math.log(10)]),
        ([[1e3, 1e6, 1e-9], [0, 1e-6, 1e8], [0, 0, 1e-2]], 1, None),
        ([[3e-26, 2e-4, 1e-23], [2e-33, 3e-11, 2e-30], [2e-20, 2e-16, 2e-9]], 1, None),
        ([[1, 1], [1, 1]], 3, [3 * math.log(2), -math.inf]),
        ([[0, 1e-30], [0, 1]], 2, [0, -math.inf]),
    ],
)
def test_small_columns(w_hh, T, expected):
    tape = linear(w_hh, T)
    if expected is None:
        with mpmath.workdps(300):
            expected = exact_products.log_singular_values(exact_products.exact_jacobians(tape))
    np.testing.assert_allclose(fastbptt.log_singular_values(tape)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(T * fastbptt.lyapunov_spectrum(tape).exponents.sum(), np.sum(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("k", "burn_in"), [(4, 0), (4, 5), (2, 0)])
def test_each_exponent_is_that_of_the_exact_product(k, burn_in):
    """With very uneven columns: all tangents or the first alone, with and without burn-in."""
    rng = np.random.default_rng(3)
    T, H = 12, 4
    w_hh = rng.standard_normal((H, H)) * 10.0 ** np.array([0, -9, -18, -3])
    with mpmath.workdps(400):
        J, frame, logs = mpmath.matrix(w_hh.tolist()), mpmath.matrix(random_frame(1, k, H)[0].T.tolist()), []
        for _ in range(T):
            frame, r = mpmath.qr(J * frame, mode="skinny")
            logs.append([float(mpmath.log(abs(r[i, i]))) for i in range(k)])
    assert len(batch_bounds(T - burn_in)) > 2  # so that frames stand at bounds in between
    expected = -np.sort(-np.mean(logs[burn_in:], axis=0))
    got = fastbptt.lyapunov_spectrum(linear(w_hh, T), k, burn_in=burn_in).exponents[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("cell", PLAIN)
def test_no_rows(cell):
    _, _, tape = random_problem(cell, B=0).forward(fastbptt)
    N = 7 * CELLS[cell].states
    assert fastbptt.log_singular_values(tape).shape == fastbptt.lyapunov_spectrum(tape).exponents.shape == (0, N)


@pytest.mark.parametrize("cell", PLAIN)
def test_a_row_has_the_same_bits_beside_one_that_needs_more_care(cell):
    problem = random_problem(cell, T=6, B=4, H=5)
    problem.x[:, 2] *= 40
    problem.w_hh[:, 0] *= 1e-3 if cell == "rnn-tanh" else 1
    _, _, tape = problem.forward(fastbptt)
    for function in (fastbptt.log_singular_values, lambda tape: fastbptt.lyapunov_spectrum(tape).exponents):
        together = function(tape)
        for b in range(4):
            np.testing.assert_array_equal(function(tape.row(b))[0], together[b])


def test_rows_of_all_kinds_in_one_batch():
    """Forget gates that are shut in every second row."""
    problem = random_problem("lstm", T=7, B=4, I=1, H=3)
    problem.w_ih[:] = 0
    problem.w_ih[3:6] = -30.0
    problem.x[:] = np.array([0.0, 1.0, 0.0, 1.0])[:, None]
    _, _, tape = problem.forward(fastbptt)
    expected = [np.linalg.slogdet(J)[1] for J in np.array([linearise(tape).jacobian(t) for t in range(7)]).swapaxes(0, 1)]
    got = fastbptt.lyapunov_spectrum(tape).exponents.sum(axis=-1)
    assert got[1] < -20 < got[0]
    np.testing.assert_allclose(got[::2], np.mean(expected, axis=-1)[::2], atol=LIMIT)
    with mpmath.workdps(100):
        exact = [np.mean([exact_products.log_volume(J) for J in exact_products.exact_jacobians(tape.row(b))]) for b in range(4)]
    np.testing.assert_allclose(got, exact, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_steps_without_full_rank(rank):
    """Rank-deficient up to rounding; a row or a column of zeros; units that are off."""
    rng = np.random.default_rng(rank)
    w_hh = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 8))
    hollow = rng.standard_normal((8, 8))
    hollow[:, rank] = 0
    for name, tape, finite in (
        ("low rank", linear(w_hh, 4), rank),
        ("zero column", linear(hollow, 4), 7),
        ("zero row", linear(hollow.T, 4), 7),
    ):
        for logs in (fastbptt.log_singular_values(tape)[0], fastbptt.lyapunov_spectrum(tape).exponents[0]):
            assert np.isfinite(logs[:finite]).all(), name
            assert np.isneginf(logs[finite:]).all(), name


@pytest.mark.parametrize(("dtype", "large", "small"), [(np.float64, 2**40, 2**8), (np.float32, 2**16, 2**4)])
@pytest.mark.parametrize("seed", range(10))
def test_what_a_row_has_lost_is_lost_to_the_rows_after_it(seed, dtype, large, small):
    """The third row is the difference of the first two, times 2**30: what is left of it comes from the rounding of the second."""
    rng = np.random.default_rng(seed)
    row, difference = (rng.integers(-size, size, 40).astype(dtype) for size in (large, small))
    v, logs = np.stack([row, row + difference, difference * dtype(2**30)])[None], np.zeros((1, 3))
    np.testing.assert_array_equal(v[0, 1] - v[0, 0], difference)
    kernels[np.dtype(dtype)].eliminate(v, logs)
    assert np.isfinite(logs[0, :2]).all() and logs[0, 2] == -np.inf
    assert not v[0, 2].any()
