"""Truncation at random: factors on the way back, their expectation, and how far back windows are kept."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, arrays_of, assert_results_same_bits, cells_and_shapes, random_problem
from test_gradients import AWKWARD, assert_right
from test_truncation import EACH_LAYER, fresh_like, random_run, read, scalar_layer
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits

import fastbptt
import fastbptt.reference

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- carry ------------------------------------------------------------------------------------------------------------


def factors(problem, chance=0.2):
    """Some 0, the others of all sizes."""
    rng = np.random.default_rng(0)
    shape = problem.x.shape[:2]
    return np.where(rng.random(shape) < chance, 0, rng.uniform(0.5, 1.5, shape)).astype(problem.w_hh.dtype)


@EACH_DTYPE
@pytest.mark.parametrize(("cell", "shape"), cells_and_shapes(AWKWARD), ids=str)
def test_factors_against_the_reference(cell, shape, dtype):
    problem = random_problem(cell, *shape, dtype=dtype)
    for part in (problem, replace(problem, d_out=None)):
        assert_right(part, part.results(fastbptt, carry=factors(problem)), carry=factors(problem))


@pytest.mark.parametrize("cell", CELLS)
def test_factors_in_the_reference(cell):
    """Step by step: what a backward pass of one step returns for its initial state, times the factor, is what the one before it gets."""
    problem = random_problem(cell, 7, 3, 4, 5)
    carry = factors(problem)
    tape = problem.forward(fastbptt.reference)[2]
    states = (tape.h,) if tape.c is None else (tape.h, tape.c)
    d_state, dw_hh = problem.d_state, 0
    for t in reversed(range(7)):
        step = problem.steps(t, t + 1, tuple(h[t] for h in states), d_state)
        grads = step.backward(fastbptt.reference, step.forward(fastbptt.reference)[2])
        d_state = tuple(carry[t][:, None] * part for part in arrays_of(grads.state))
        dw_hh = dw_hh + grads.w_hh
    got = problem.backward(fastbptt.reference, tape, carry=carry)
    np.testing.assert_allclose(got.w_hh, dw_hh, rtol=1e-13, atol=1e-13)
    for part, expected in zip(arrays_of(got.state), d_state):
        np.testing.assert_allclose(part, expected, rtol=1e-13, atol=1e-13)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(40, 7, 20, 33), (400, 1, 40, 24), (270, 2, 9, 140)], ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_factors_at_any_thread_count_and_with_clipping(cell, shape, dtype, threads):
    problem = random_problem(cell, *shape, dtype=dtype)
    options = {"carry": factors(problem, 0.01), "clip_step": ("norm", 3.0)}
    threads(1)
    expected = problem.results(fastbptt, **options)
    assert_right(problem, expected, **options)
    for n in (2, 5):
        threads(n)
        assert_results_same_bits(problem.results(fastbptt, **options), expected)


@EACH_DTYPE
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_nothing_gets_past_a_cut(cell, dtype):
    """Not even NaN: what is before it has the bits of the piece alone."""
    problem = random_problem(cell, 600, 2, 4, 7, dtype=dtype)
    problem.d_out[400:] = np.nan
    carry = np.ones((600, 2), dtype)
    carry[400] = 0
    got = problem.results(fastbptt, carry=carry)
    piece = replace(problem.steps(0, 400, problem.state), d_state=None).results(fastbptt, carry=carry[:400])
    assert_same_bits("d_x", got["d_x"][:400], piece["d_x"])
    for i in range(problem.cell.states):
        assert_same_bits("d_initial_state", got[f"d_initial_state {i}"], piece[f"d_initial_state {i}"])


# --- The expectation ------------------------------------------------------------------------------------------------------


def every_pattern(T, c):
    """All 2^(T-1) patterns of cuts, a row each: the factors (T, patterns), and each one's probability."""
    cuts = np.array(list(itertools.product([False, True], repeat=T - 1))).T
    inner = np.where(cuts, 0, 1 / (1 - np.asarray(c)))
    return np.concatenate([np.ones((1, cuts.shape[1])), inner]), np.where(cuts, c, 1 - np.asarray(c)).prod(axis=0)


@pytest.mark.parametrize("c", [0.1, 0.5, np.linspace(0.05, 0.9, 7)[:, None]], ids=["0.1", "0.5", "another at each step"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_expectation_over_all_patterns_is_the_gradient(cell, c):
    """To rounding: each pattern is a row, its loss weighted by its probability."""
    T = 8
    problem = random_problem(cell, T, 1, 4, 7)
    carry, weight = every_pattern(T, c)
    assert weight.sum() == pytest.approx(1, rel=1e-14)
    many = problem.rows([0] * len(weight))
    d_state = tuple(part * weight[:, None] for part in many.d_state)
    many = replace(many, d_out=many.d_out * weight[:, None], d_state=d_state)
    got = many.backward(fastbptt, many.forward(fastbptt)[2], carry=carry)
    full = problem.backward(fastbptt, problem.forward(fastbptt)[2])
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        assert_close(name, getattr(got, name), getattr(full, name), 1e-13)
    for part, expected in zip(arrays_of(got.state), arrays_of(full.state)):
        assert_close("state", part.sum(axis=0), expected[0], 1e-13)
    assert_close("x", got.x.sum(axis=1), full.x[:, 0], 1e-13)


def estimates(layer, x, d_out, probability, window, batches, rows, seed=0):
    """Mean gradients over ``rows`` draws, ``batches`` times over, each read window by window."""
    reader = fastbptt.ARTBP(layer, probability, rng=seed)
    x, d_out = np.repeat(x, rows, axis=1), np.repeat(d_out, rows, axis=1) / rows
    found = []
    for _ in range(batches):
        layer.zero_grad()
        reader.reset()
        read(reader, x, d_out, window)
        found.append(layer.flat_grads.copy())
    return np.array(found)


@pytest.mark.parametrize("probability", [0.2, np.array([0.0, 0.6, 0.3, 0.1])], ids=["geometric", "by the steps since the last cut"])
@pytest.mark.parametrize("window", [10, 3], ids=["one window", "windows"])
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_the_mean_of_many_draws_is_the_gradient(make, window, probability):
    """10^5 draws: within 3 standard errors, in the directions of the gradient and of a random vector."""
    rng = np.random.default_rng(0)
    layer = make(2, 3, rng=0)
    layer.flat_params *= 2
    x, d_out = rng.standard_normal((10, 1, 2)), rng.standard_normal((10, 1, 3))
    full = fresh_like(layer)
    full(x)
    full.backward(d_out)
    found = estimates(layer, x, d_out, probability, window, batches=100, rows=1000)
    for direction in (full.flat_grads, rng.standard_normal(full.flat_grads.size)):
        along = found @ direction
        error = along.std(ddof=1) / np.sqrt(len(along))
        assert abs(along.mean() - full.flat_grads @ direction) < 3 * error
    cut = fresh_like(layer)  # truncation without compensation is far outside
    read(fastbptt.TruncatedBPTT(cut, 2), x, d_out, 2)
    along = found @ full.flat_grads
    assert abs(along.mean() - cut.flat_grads @ full.flat_grads) > 10 * along.std(ddof=1) / np.sqrt(len(along))


def test_a_linear_unit():
    """w = 0.9, a loss at T = 50, c = 0.1: the mean over 10^5 draws is the gradient; of BPTT(10; 1) it is a fifth."""
    T, w = 50, 0.9
    layer = scalar_layer(w)
    reader = fastbptt.ARTBP(layer, 0.1, rng=0)
    found = []
    for _ in range(100):
        layer.zero_grad()
        reader.reset(np.ones((1, 1000, 1)))
        out = reader.forward(np.zeros((T, 1000, 1)))
        d_out = np.zeros_like(out)
        d_out[-1] = 1 / 1000
        reader.backward(d_out)
        found.append(layer.grads["weight_hh_l0"].item() / (T * w ** (T - 1)))
    assert abs(np.mean(found) - 1) < 3 * np.std(found, ddof=1) / 10
    assert np.std(found, ddof=1) / 10 < 0.02


@pytest.mark.parametrize("h", [1, 5, 25, 50])
def test_truncation_without_compensation_has_h_of_T(h):
    """The identity of BPTT(h; h') for x_t = w x_{t-1} and a loss at T alone."""
    T, w = 50, 0.9
    layer = scalar_layer(w)
    reader = fastbptt.TruncatedBPTT(layer, h, 1)
    reader.reset(np.ones((1, 1, 1)))
    for t in range(T):
        reader.forward(np.zeros((1, 1, 1)))
        reader.backward(np.full((1, 1, 1), float(t == T - 1)))
    assert layer.grads["weight_hh_l0"].item() / (T * w ** (T - 1)) == pytest.approx(h / T, rel=1e-12)


# --- Windows ------------------------------------------------------------------------------------------------------------


@EACH_LAYER
@pytest.mark.parametrize("window", [1, 7, 24])
def test_without_cuts_it_is_full_bptt(window, make, dtype):
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.ARTBP(layer, 0.0, rng=0)
    reader.reset(h0)
    out, _ = read(reader, x, d_out, window)
    full = fresh_like(layer)
    np.testing.assert_array_equal(out, full(x, h0)[0])
    full.backward(d_out)
    for name, g in layer.grads.items():
        assert_close(name, g, full.grads[name], 500 * TOLERANCES[dtype].eps)


@EACH_LAYER
def test_windows_mean_nothing(make, dtype):
    """The same draws give the same gradients, however the sequence is cut into windows."""
    found = []
    for window in (24, 24, 5, 1):
        layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
        reader = fastbptt.ARTBP(layer, 0.15, rng=3)
        reader.reset(h0)
        read(reader, x, d_out, window)
        found.append(layer.grads)
    for name, g in found[0].items():
        np.testing.assert_array_equal(found[1][name], g)
        for other in found[2:]:
            assert_close(name, other[name], g, 500 * TOLERANCES[dtype].eps)


def test_how_long_pieces_are():
    """Geometric, and as given: with 0, 0, almost 1, three steps each. The factors are 0 or 1 / (1 - c), and no cut is before the first step."""
    layer = fastbptt.RNN(1, 1, rng=0)
    reader = fastbptt.ARTBP(layer, 0.25, rng=0)
    reader.forward(np.zeros((4000, 5, 1)))
    carry = reader._windows[0][1]
    assert (carry[0] == 1).all() and set(np.unique(carry)) == {0, 1, 1 / 0.75}
    assert (carry == 0).mean() == pytest.approx(0.25, abs=0.01)
    reader = fastbptt.ARTBP(layer, np.array([0, 0, 1 - 1e-15]), rng=0)
    carry = []
    for _ in range(7):
        reader.forward(np.zeros((2, 1, 1)))
        carry += reader._windows[-1][1][:, 0].tolist()
    assert [t for t, factor in enumerate(carry) if factor == 0] == [3, 6, 9, 12]


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_windows_behind_the_last_cut_are_let_go(make):
    layer, x, d_out, _ = random_run(T=400, B=2, make=make)
    reader = fastbptt.ARTBP(layer, 0.2, rng=0)
    references, longest = [], 0
    for start in range(0, 400, 2):
        out = reader.forward(x[start : start + 2])
        references.append(weakref.ref(out.base))
        del out
        alive = [r() is not None for r in references]
        first = alive.index(True)
        assert all(alive[first:])
        longest = max(longest, sum(alive))
        if start % 3 == 0:
            reader.backward(d_out[start : start + 2])
    assert 3 < longest < 25


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_batch_first_tokens_and_evaluation(make):
    tokens = np.arange(36).reshape(3, 12) * 7 % 4
    d_out = np.random.default_rng(0).standard_normal((3, 12, 7))
    by_row, by_step = make(4, 7, rng=0, batch_first=True), make(4, 7, rng=0)
    for layer, turn in ((by_row, np.asarray), (by_step, lambda array: array.swapaxes(0, 1))):
        reader = fastbptt.ARTBP(layer, 0.3, rng=0)
        for start in range(0, 12, 4):
            reader.forward(turn(tokens[:, start : start + 4]))
            assert reader.backward(turn(d_out[:, start : start + 4])) is None
        layer.eval()
        reader.forward(turn(tokens))
        assert reader.tape is None and reader._windows == ()
    np.testing.assert_array_equal(by_row.flat_grads, by_step.flat_grads)
    assert by_row.flat_grads.any()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"layer": fastbptt.Linear(2, 3)}, TypeError, "layer: expected one of RNN, GRU, LSTM, got Linear"),
        ({"probability": 1.0}, ValueError, r"probability: expected numbers of at least 0 and below 1, got 1\.0"),
        ({"probability": -0.1}, ValueError, r"probability: expected numbers of at least 0 and below 1, got -0\.1"),
        ({"probability": np.nan}, ValueError, "probability: expected numbers of at least 0 and below 1, got nan"),
        ({"probability": True}, TypeError, "probability: expected a number, got True"),
        ({"probability": [0.1]}, TypeError, "probability: expected a number, got list"),
        ({"probability": np.array([0.1, 1.5])}, ValueError, r"probability: expected numbers of at least 0 and below 1, got 1\.5"),
        ({"probability": np.ones((2, 2))}, ValueError, "probability: expected a number, or a one-dimensional array"),
        ({"probability": np.empty(0)}, ValueError, "probability: expected a number, or a one-dimensional array"),
        ({"rng": -1}, ValueError, "rng: expected an integer of at least 0, got -1"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "".join(value),
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fastbptt.ARTBP(**{"layer": fastbptt.RNN(2, 3), "probability": 0.1} | wrong)


@pytest.mark.parametrize("cell", ["rnn-tanh", "gru", "lstm"])
def test_bad_factors(cell):
    problem = random_problem(cell)
    tape = problem.forward(fastbptt)[2]
    for wrong, error, message in (
        (0.5, TypeError, "carry: expected a NumPy array, got 0.5"),
        (np.ones(5), ValueError, r"carry: expected shape \(5, 3\), got \(5,\)"),
        (np.ones((5, 3), np.float32), TypeError, "carry: expected dtype float64"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            problem.backward(fastbptt, tape, carry=wrong)
