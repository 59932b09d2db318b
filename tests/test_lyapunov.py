"""Lyapunov exponents against what is known in closed form."""

import math

import mpmath
import numpy as np
import pytest
from problems import CELLS, random_problem
from processes import run_python

import fastbptt
from fastbptt._kernels import kernels
from fastbptt.gradients.chain import Chain
from fastbptt.gradients.frames import orthonormalise, random_frame, stretch
from fastbptt.gradients.linearised import linearise
from fastbptt.gradients.lyapunov import time_means

KERNELS = kernels[np.dtype(np.float64)]


def carry(v, steps, logs):
    """Tangents v (B, k, N) through the Jacobians (T, N, N), in place, eliminated after each; logs (T, B, k)."""
    B, _, N = v.shape
    for J, log in zip(steps, logs, strict=True):
        KERNELS.carry(J, np.ones((1, B, 1, 1, N)), None, None, None, 1, v, log[None])


def eliminate(v, logs):
    carry(v, np.eye(v.shape[2])[None], logs[None])


def autonomous(w_hh, T, h0, **options):
    """The tape of a net without input from the states h0 (B, H)."""
    H = len(w_hh)
    return fastbptt.rnn_forward(np.zeros((T, len(h0), 1)), h0, np.zeros((H, 1)), w_hh, **options)[2]


def gaussian(N, g, seed=0):
    return g / math.sqrt(N) * np.random.default_rng(seed).standard_normal((N, N))


def growth_of_volume(J, h):
    """ln |det J| + mean of sum ln f'(a) over the steps that begin at these states (T, B, N): the sum of all exponents, for any N and T."""
    a = np.abs(h @ J.T)
    log_slope = math.log(4) - 2 * a - 2 * np.log1p(np.exp(-2 * a))
    return np.linalg.slogdet(J)[1] + log_slope.sum(axis=-1).mean(axis=0)


@pytest.mark.parametrize("g", [0.9, 3.0, 5.0, 12.0])
def test_the_sum_is_the_mean_growth_of_volume(g):
    """Hard where units are deep in saturation (f' = 1e-40 at g = 12)."""
    J = gaussian(40, g)
    tape = autonomous(J, 120, np.random.default_rng(1).standard_normal((2, 40)))
    np.testing.assert_allclose(fastbptt.lyapunov_spectrum(tape).exponents.sum(axis=-1), growth_of_volume(J, tape.h[:-1]), atol=1e-8)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn-relu"])  # where a unit that is off makes all determinants 0
def test_the_sum_is_that_of_the_determinants(cell, every):
    _, _, tape = random_problem(cell, T=30, seed=1, gain=1.5).forward(fastbptt)
    steps = linearise(tape)
    expected = np.mean([np.linalg.slogdet(steps.jacobian(t))[1] for t in range(10, 30)], axis=0)
    got = fastbptt.lyapunov_spectrum(tape, burn_in=10, every=every)
    assert got.exponents.shape == got.stderr.shape == (3, steps.N)
    assert (np.diff(got.exponents, axis=-1) <= 0).all()
    np.testing.assert_allclose(got.exponents.sum(axis=-1), expected, atol=1e-6 if every == 2 else 1e-9)


def test_a_linear_net_with_eigenvalues_apart():
    eigenvalues = np.array([1.1, -0.9, 0.6, 0.3, -0.05])
    S = np.random.default_rng(0).standard_normal((5, 5))
    J = S @ np.diag(eigenvalues) @ np.linalg.inv(S)
    tape = autonomous(J, 400, np.zeros((1, 5)), nonlinearity="identity")
    got = fastbptt.lyapunov_spectrum(tape, burn_in=300)
    np.testing.assert_allclose(got.exponents[0], np.log(np.abs(eigenvalues)), atol=1e-10)
    assert (got.stderr < 1e-10).all()


def test_a_quiet_tanh_net_has_the_eigenvalues_of_its_weights():
    J = gaussian(20, 0.8)
    tape = autonomous(J, 4000, np.zeros((1, 20)))
    got = fastbptt.lyapunov_spectrum(tape, burn_in=200)
    expected = np.sort(np.log(np.abs(np.linalg.eigvals(J))))[::-1]
    np.testing.assert_allclose(got.exponents[0], expected, atol=2e-3)


def test_random_gaussian_steps_and_the_standard_error():
    """A fresh matrix at every step: lambda_i = ln g + (ln(2 / N) + psi((N - i + 1) / 2)) / 2, for every N."""
    N, g, rows, T = 4, 1.3, 200, 400
    steps = g / math.sqrt(N) * np.random.default_rng(0).standard_normal((rows, T, N, N))
    logs = np.zeros((T, rows, N))
    for row in range(rows):
        carry(random_frame(1, N, N), steps[row], logs[:, row : row + 1])
    exact = [math.log(g) + (math.log(2 / N) + float(mpmath.digamma((N - i) / 2))) / 2 for i in range(N)]
    assert sum(exact) - N * math.log(g) == pytest.approx(-2.427020, abs=1e-6)
    exponents, stderr = time_means(logs)
    errors = (exponents - exact) / stderr
    assert np.abs(errors.mean(axis=0)).max() < 4 / math.sqrt(rows)
    np.testing.assert_allclose(errors.std(axis=0), 1, atol=0.25)


def test_the_standard_error_allows_for_correlations():
    """A process with correlation 0.8 from step to step has 3 times the error of one without: sqrt((1 + 0.8) / (1 - 0.8))."""
    rng = np.random.default_rng(0)
    x = np.zeros((4000, 100, 1))
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + 0.6 * rng.standard_normal((100, 1))
    exponents, stderr = time_means(x)
    assert stderr.mean() == pytest.approx(3 / math.sqrt(4000), rel=0.1)
    assert exponents.std() == pytest.approx(3 / math.sqrt(4000), rel=0.25)


def test_the_henon_map():
    """x' = 1 - 1.4 x^2 + 0.3 y', y' = x: its area shrinks by 0.3 at every step, exactly."""
    x, y, jacobians = 0.1, 0.1, []
    for _ in range(5000):
        jacobians.append(np.array([[-2.8 * x, 1.0], [0.3, 0.0]]))
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
    logs, frame, last = np.zeros((5000, 1, 2)), random_frame(1, 2, 2), np.empty((1, 2))
    carry(frame, jacobians, logs)
    KERNELS.orthonormalise(frame, last)
    logs[-1] += last
    exponents, stderr = time_means(logs)
    assert exponents.sum() == pytest.approx(math.log(0.3), abs=1e-12)
    assert abs(exponents[0, 0] - 0.4192) < 4 * stderr[0, 0] < 0.05


def test_a_chaotic_net_of_200_units():
    """g = 3: .310249 for N to infinity by mean field theory, and at N = 200 less by some 3 / N."""
    J = gaussian(200, 3, seed=5)
    tape = autonomous(J, 2200, np.random.default_rng(1).standard_normal((1, 200)))
    exponents, stderr = fastbptt.lyapunov_spectrum(tape, 4, burn_in=200)
    bias = 0.310249 - exponents[0, 0]
    assert 0 < stderr[0, 0] < 0.01
    assert -3 * stderr[0, 0] < bias < 0.03 + 3 * stderr[0, 0]
    whole = fastbptt.lyapunov_spectrum(tape.last(150)).exponents
    np.testing.assert_allclose(whole.sum(axis=-1), growth_of_volume(J, tape.h[-151:-1]), atol=1e-8)


def test_the_mean_exponent_of_a_large_chaotic_net():
    """g = 3: -2.272805 for N to infinity by mean field theory; nets of 800 units scatter by 0.01, those of 200 by 0.04."""
    J = gaussian(800, 3, seed=5)
    tape = autonomous(J, 2200, np.random.default_rng(1).standard_normal((1, 800)))
    assert growth_of_volume(J, tape.h[200:-1]) / 800 == pytest.approx(-2.272805, abs=0.03)


def test_cells_without_weights():
    """The gate that keeps the state sets the exponents; an LSTM's h does not depend on the last one, so that H of them are -inf."""
    b = np.zeros(8)
    b[2:4] = 1
    _, _, tape = fastbptt.lstm_forward(np.zeros((20, 1, 3)), None, np.zeros((8, 3)), np.zeros((8, 2)), b)
    got = fastbptt.lyapunov_spectrum(tape, burn_in=5).exponents[0]
    np.testing.assert_allclose(got[:2], -math.log1p(math.exp(-1)), rtol=1e-12)
    assert np.isneginf(got[2:]).all()
    _, _, tape = fastbptt.gru_forward(np.zeros((20, 1, 3)), None, np.zeros((6, 3)), np.zeros((6, 2)), np.repeat([0.0, 2.0, 0.0], 2))
    np.testing.assert_allclose(fastbptt.lyapunov_spectrum(tape).exponents, -math.log1p(math.exp(-2)), rtol=1e-12)


def test_the_rank_of_a_step():
    """After a step of half the rank half of the exponents are -inf; only rarely is a rounding error taken for growth."""
    right = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((100, 50)) @ rng.standard_normal((50, 100))
        exponents = fastbptt.lyapunov_spectrum(autonomous(w, 1, rng.standard_normal((1, 100)), nonlinearity="identity")).exponents[0]
        assert np.isfinite(exponents[:50]).all()
        right += np.isneginf(exponents[50:]).all()
    assert right >= 18


@pytest.mark.parametrize(
    ("w_hh", "x", "options", "expected"),
    [
        (0.5 * np.eye(2), [1000, *[0] * 49], {"burn_in": 20}, [math.log(0.5)] * 2),  # saturated at first: f' = 0
        (np.array([[1, 0.3], [0.2, 0.4]]), [0] * 1100, {"burn_in": 1000, "every": 50}, None),  # the second lost in the first's rounding
    ],
)
def test_directions_that_are_lost_before_it_counts(w_hh, x, options, expected):
    """Directions that are 0 after burn-in have exponents of their own afterwards."""
    nonlinearity = "tanh" if expected else "identity"
    x = np.array(x, dtype=float)[:, None, None]
    _, _, tape = fastbptt.rnn_forward(x, None, np.ones((2, 1)), w_hh, nonlinearity=nonlinearity)
    got = fastbptt.lyapunov_spectrum(tape, **options).exponents[0]
    if expected is None:
        expected = np.sort(np.log(np.abs(np.linalg.eigvals(w_hh))))[::-1]
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_directions_of_their_own_for_tangents_that_are_zero():
    v = random_frame(1, 40, 50)
    v[0, [3, 17, 39]] = 0
    before, logs = v.copy(), np.empty((1, 40))
    KERNELS.orthonormalise(v, logs)
    np.testing.assert_allclose(v[0] @ v[0].T, np.eye(40), atol=1e-14)
    assert np.flatnonzero(np.isneginf(logs[0])).tolist() == [3, 17, 39]
    kept = before[0].any(axis=1)
    np.testing.assert_allclose(logs[0, kept], 0, atol=0.6)  # for those behind, less is left


@pytest.mark.parametrize("every", [1, 7, 2**63])
def test_a_single_step(every):
    _, _, tape = random_problem("lstm", T=1, H=20).forward(fastbptt)
    got = fastbptt.lyapunov_spectrum(tape, every=every)
    expected = np.linalg.slogdet(linearise(tape).jacobian(0))[1]
    np.testing.assert_allclose(got.exponents.sum(axis=-1), expected, atol=1e-9)
    assert np.isnan(got.stderr).all()


NOT_FINITE = """
import numpy as np, fastbptt
rng = np.random.default_rng(0)
for H in (1, 17, 170, 300, 400, 520, 1000):
    w = rng.standard_normal((H, H)) / H**0.5
    for spoiled in (np.full((H, H), np.nan), np.where(np.arange(H) == H // 2, np.nan, w), 1e30 * H * w):
        for threads, T, every in ((1, 2, 1), (2, 2, 1), (2, 20, 20)):
            if H * T > 6000:
                continue
            fastbptt.set_num_threads(threads)
            h0 = rng.standard_normal((1, H))
            _, _, tape = fastbptt.rnn_forward(np.zeros((T, 1, 1)), h0, np.zeros((H, 1)), spoiled, nonlinearity="identity")
            exponents = fastbptt.lyapunov_spectrum(tape, every=every).exponents
            assert every > 1 or not np.isfinite(exponents).all() or np.isfinite(spoiled).all()
print("alive")
"""


def test_what_is_not_finite_leaves_memory_alone():
    """With NaN, elimination can pick a column twice; in a process of its own, since an access out of bounds would end it."""
    assert run_python(NOT_FINITE, MALLOC_PERTURB_="85").strip() == "alive"


def test_an_infinite_cell_state():
    _, _, tape = fastbptt.lstm_forward(np.zeros((3, 1, 1)), (None, np.array([[np.inf, 0.0]])), np.ones((8, 1)), np.ones((8, 2)))
    assert not np.isfinite(fastbptt.lyapunov_spectrum(tape).exponents).all()


def test_leading_exponents_alone():
    _, _, tape = random_problem("gru", T=400, gain=2.0, H=6).forward(fastbptt)
    whole = fastbptt.lyapunov_spectrum(tape, burn_in=100)
    for every in (1, 5):
        some = fastbptt.lyapunov_spectrum(tape, 2, burn_in=100, every=every)
        assert some.exponents.shape == (3, 2)
        np.testing.assert_allclose(some.exponents, whole.exponents[:, :2], atol=5e-3)


def test_too_few_decompositions_lose_small_exponents():
    """Growth from 1.5 to 1e-7 a step: after 5 steps the small ones are lost in the rounding errors of the large ones."""
    rates = np.array([1.5, 0.5, 1e-3, 1e-7])
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    tape = autonomous(q @ np.diag(rates) @ q.T, 300, np.zeros((1, 4)), nonlinearity="identity")
    each, fifth = (fastbptt.lyapunov_spectrum(tape, burn_in=20, every=every).exponents[0] for every in (1, 5))
    np.testing.assert_allclose(each, np.log(rates), atol=1e-6)
    assert abs(fifth[3] - math.log(1e-7)) > 1


@pytest.mark.parametrize(("k", "N"), [(1, 1), (1, 5), (5, 5), (16, 16), (17, 17), (40, 61), (61, 61)])
def test_elimination(k, N):
    """v = C q with C lower triangular, and every row of q with a 1 where the rows after it have a 0."""
    v = np.random.default_rng(0).standard_normal((3, k, N))
    q, logs = v.copy(), np.zeros((3, k))
    eliminate(q, logs)
    for before, after, log in zip(v, q, logs, strict=True):
        pivots = np.abs(after).argmax(axis=1)
        assert len(set(pivots)) == k
        np.testing.assert_array_equal(after[range(k), pivots], 1)
        at_pivots = after[:, pivots]
        np.testing.assert_array_equal(np.tril(at_pivots, -1), 0)
        C = before[:, pivots] @ np.linalg.inv(at_pivots)
        np.testing.assert_allclose(np.tril(C) @ after, before, atol=1e-12 * N)
        np.testing.assert_allclose(np.log(np.abs(np.diag(C))), log, atol=1e-10 * N)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("k", [1, 20, None])
@pytest.mark.parametrize("cell", CELLS)
def test_stretching_is_what_qr_decompositions_at_every_step_make_of_it(cell, k, every):
    """Cut anywhere: whatever the frames in between, the logarithms add up to the same."""
    _, _, tape = random_problem(cell, T=11, B=2, H=24, seed=3, gain=1.5).forward(fastbptt)
    steps = linearise(tape)
    k = min(k or steps.N, 5 if cell == "rnn-relu" else steps.N)  # where units are off, the product has not full rank
    frame, expected = random_frame(2, k, steps.N), np.zeros((2, k))
    got, pushed = frame.copy(), frame
    for start, stop in ((0, 4), (4, 5), (5, 5), (5, 11)):
        logs = stretch(Chain(steps, 0, 11), range(start, stop), got, every)
        assert logs.shape == (stop - start, 2, k)
        for t in range(start, stop):
            pushed, r = orthonormalise(steps.jvp(t, pushed))
            expected += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))
        np.testing.assert_allclose(got @ got.swapaxes(1, 2), np.broadcast_to(np.eye(k), (2, k, k)), atol=1e-12)
        expected -= logs.sum(axis=0)
        np.testing.assert_allclose(expected, 0, atol=1e-8 if every == 1 else 1e-5)


@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm"])
def test_the_spectrum_keeps_its_bits_at_any_thread_count(cell):
    """One row, whose tangents threads share; and three, of which each has one."""
    problem = random_problem(cell, T=20, B=3, H=90, gain=1.5)
    tapes = [p.forward(fastbptt)[2] for p in (problem, problem.rows(slice(0, 1)))]
    before = fastbptt.get_num_threads()
    try:
        spectra = []
        for threads in (1, 2, 3, 5, 16):
            fastbptt.set_num_threads(threads)
            spectra.append([fastbptt.lyapunov_spectrum(tape, every=every).exponents for tape in tapes for every in (1, 2)])
    finally:
        fastbptt.set_num_threads(before)
    for others in spectra[1:]:
        for first, other in zip(spectra[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


def test_what_elimination_leaves_of_dependent_tangents():
    rng = np.random.default_rng(0)
    v = np.concatenate([rng.standard_normal((1, 20, 30)), np.zeros((1, 20, 30))])
    v[0, 7] = v[0, :7].sum(axis=0)
    v[0, 18] = v[0, 3] - v[0, 17]
    logs = np.zeros((2, 20))
    eliminate(v, logs)
    assert np.flatnonzero(np.isneginf(logs[0])).tolist() == [7, 18]
    assert not v[0, [7, 18]].any()
    assert np.isneginf(logs[1]).all()
    v[1, 3, 5] = np.nan
    eliminate(v, logs)
    assert np.isnan(logs[1, 3]) and np.isfinite(logs[1, 2:3]).sum() == 0


def test_rows_do_not_depend_on_the_batch():
    problem = random_problem("lstm", T=20, B=3)
    whole = fastbptt.lyapunov_spectrum(problem.forward(fastbptt)[2]).exponents
    for i in range(3):
        alone = fastbptt.lyapunov_spectrum(problem.rows(slice(i, i + 1)).forward(fastbptt)[2]).exponents
        np.testing.assert_array_equal(whole[i], alone[0])


def test_float32_tapes_are_worked_on_in_float64():
    problem = random_problem("leaky-tanh", T=40)
    double, single = (fastbptt.lyapunov_spectrum(p.forward(fastbptt)[2]).exponents for p in (problem, problem.astype(np.float32)))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.parametrize("grading", [1.0, 1e-3, 1e-30])
def test_orthonormal_frames(grading):
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 5, 8)) * rng.permutation(np.geomspace(1, grading, 8))
    frame, r = orthonormalise(v)
    np.testing.assert_allclose(frame @ frame.swapaxes(1, 2), np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-14)
    np.testing.assert_allclose(r.swapaxes(1, 2) @ frame, v, rtol=1e-10, atol=1e-15)
    np.testing.assert_array_equal(np.tril(r, -1), 0)


def test_what_has_no_spectrum():
    _, _, tape = random_problem("lstm").forward(fastbptt)
    with pytest.raises(TypeError, match="tape: expected the tape of a forward pass"):
        fastbptt.lyapunov_spectrum(tape.h)
    with pytest.raises(ValueError, match="k: expected at most the 14 dimensions of the state, got 15"):
        fastbptt.lyapunov_spectrum(tape, 15)
    with pytest.raises(ValueError, match="k: expected an integer of at least 1, got 0"):
        fastbptt.lyapunov_spectrum(tape, 0)
    with pytest.raises(ValueError, match="burn_in: expected fewer than the tape's 5 steps, got 5"):
        fastbptt.lyapunov_spectrum(tape, burn_in=5)
    with pytest.raises(TypeError, match="every: expected an integer"):
        fastbptt.lyapunov_spectrum(tape, every=1.5)
    assert np.isnan(fastbptt.lyapunov_spectrum(tape, burn_in=2).stderr).all()
