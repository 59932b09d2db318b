"""The vector exp, tanh and sigmoid: their error in units in the last place, and their values at the edges.

tanh and sigmoid are seen through one step of an RNN with W_ih = 1 and W_hh = 0, exp through the gradient of the loss.
FASTBPTT_TEST_POINTS is the number of random points, 10^5 unless set.
"""

import os

import numpy as np
import pytest
from tolerances import DTYPES

import fastbptt

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
POINTS = int(os.environ.get("FASTBPTT_TEST_POINTS", 100_000))
HARD_LIMIT = 4.0  # ULP; 2 are aimed at
LARGEST, SMALLEST_NORMAL, SMALLEST = np.finfo(float).max, np.finfo(float).tiny, 5e-324

long_double_is_wide = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="np.longdouble is no wider than float64 here")


def apply(nonlinearity, values):
    """f of each value. Zeros are -0 wherever one is added, so that -0 reaches f."""
    values = np.asarray(values)
    values = values.astype(np.float32 if values.dtype == np.float32 else float)
    minus = np.array([-0.0], values.dtype)
    out, _, _ = fastbptt.rnn_forward(
        values.reshape(1, -1, 1),
        np.full((values.size, 1), -0.0, values.dtype),
        np.ones((1, 1), values.dtype),
        np.zeros((1, 1), values.dtype),
        minus,
        minus,
        nonlinearity=nonlinearity,
    )
    return out.reshape(values.shape)


def apply_exp(values):
    """exp of values <= 0, from the gradients s e^0 and s e^v at the logits 0 and v; as a long double, to add no rounding of its own."""
    n = 1 << max(0, int(np.ceil(np.log2(values.size))))  # a power of two: the weight 1/n of each row is exact then
    logits = np.zeros((n, 3), values.dtype)
    logits[: values.size, 1] = values
    logits[:, 2] = -np.inf
    _, d_logits = fastbptt.softmax_cross_entropy(logits, np.full(n, 2))
    d_logits = d_logits[: values.size].astype(np.longdouble)
    return d_logits[:, 1] / d_logits[:, 0]


def exact_tanh(x):
    return np.tanh(x)


def exact_sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


EXACT = {"tanh": exact_tanh, "sigmoid": exact_sigmoid}


def ulps(got, exact):
    """The distance in units of the last place of the exact value."""
    return np.abs(got.astype(np.longdouble) - exact) / np.spacing(np.abs(exact.astype(float)))


def random_points(count, seed=0):
    """Half of them any bit pattern, half where the functions bend: magnitudes from 2^-30 to 2^10, evenly in the exponent."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**64, count // 2, dtype=np.uint64).view(float)
    bent = np.exp2(rng.uniform(-30, 10, count - count // 2)) * rng.choice([-1, 1], count - count // 2)
    points = np.concatenate([patterns, bent])
    return points[np.isfinite(points)]


def boundary_points():
    """Where a formula changes or a rounding is at stake: powers of two, multiples of ln 2 / 4, limits; each with its neighbours."""
    centres = [k * np.log(2) / 4 for k in range(1, 240)] + [2.0**k for k in range(-1074, 11)]
    centres += [
        19.06154746539849600897,
        20.0,
        36.7368005696771,
        40.0,
        708.3964185322641,
        709.782712893384,
        710.0,
        744.4400719213812,
        745.2,
        746.0,
    ]
    centres = np.array([*centres, LARGEST, SMALLEST_NORMAL])
    with np.errstate(over="ignore"):
        points = np.concatenate([centres, np.nextafter(centres, 0), np.nextafter(centres, np.inf)])
    points = points[np.isfinite(points)]
    return np.concatenate([points, -points])


@long_double_is_wide
@pytest.mark.parametrize("function", EXACT)
def test_error_at_random_points(function, record_property):
    x = random_points(POINTS)
    error = ulps(apply(function, x), EXACT[function](x.astype(np.longdouble)))
    record_property(f"max_ulp_{function}", float(error.max()))
    assert error.max() <= HARD_LIMIT, f"{error.max():.3f} ULP at {x[error.argmax()]!r}"


@pytest.mark.parametrize("function", EXACT)
def test_error_at_boundaries_against_mpmath(function):
    mpmath = pytest.importorskip("mpmath")
    x = boundary_points()
    got = apply(function, x)
    with mpmath.workprec(160):
        exact = {"tanh": mpmath.tanh, "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v))}[function]
        for value, result in zip(x.tolist(), got.tolist()):
            right = exact(mpmath.mpf(max(-1e6, min(1e6, value))))
            error = abs(mpmath.mpf(result) - right) / mpmath.mpf(float(np.spacing(abs(float(right)))))
            assert error <= HARD_LIMIT, f"{function}({value!r}): {result!r} is {float(error):.3f} ULP off"


@long_double_is_wide
def test_error_of_exp(record_property):
    rng = np.random.default_rng(1)
    x = -np.concatenate([rng.uniform(0, 708, POINTS // 2), np.exp2(rng.uniform(-30, 9, POINTS // 2)), np.arange(1, 2800) * np.log(2) / 4])
    exact = np.exp(x.astype(np.longdouble))
    rows = 1 << int(np.ceil(np.log2(x.size)))
    keep = exact > rows * 4 * SMALLEST_NORMAL
    error = ulps(apply_exp(x[keep]), exact[keep])
    record_property("max_ulp_exp", float(error.max()))
    assert error.max() <= HARD_LIMIT + 0.5, f"{error.max():.3f} ULP at {x[keep][error.argmax()]!r}; half of one is the scaling's"


def test_exp_of_the_smallest_results():
    """One prediction, so that the gradient at a far lower logit is exp itself."""
    mpmath = pytest.importorskip("mpmath")
    for value in [-707.5, -708.4, -709.0, -720.25, -740.0, -744.4, -745.1, -745.2, -746.0, -800.0, -1e300, -np.inf]:
        _, d_logits = fastbptt.softmax_cross_entropy(np.array([[0.0, value]]), np.array([0]))
        exact = float(mpmath.exp(value))
        assert abs(d_logits[0, 1] - exact) <= HARD_LIMIT * np.spacing(exact), value


@pytest.mark.parametrize("place", range(9))
def test_every_lane_computes_the_same(place):
    """The same values in vectors, in tails, and with ugly neighbours."""
    x = random_points(400, seed=2)
    neighbours = np.resize([np.nan, np.inf, -np.inf, 1e308, SMALLEST], place)
    for function in EXACT:
        assert apply(function, np.concatenate([neighbours, x]))[place:].tobytes() == apply(function, x).tobytes()
        assert apply(function, x).tobytes() == b"".join(apply(function, x[i : i + 1]).tobytes() for i in range(x.size))


def test_tanh_is_odd_and_bounded():
    x = np.concatenate([np.abs(random_points(POINTS)), boundary_points()])
    y = apply("tanh", x)
    assert (np.abs(y) <= 1).all()
    assert apply("tanh", -x).tobytes() == (-y).tobytes()


def test_sigmoid_is_bounded():
    y = apply("sigmoid", np.concatenate([random_points(POINTS), boundary_points()]))
    assert ((y >= 0) & (y <= 1)).all()


def test_edges_of_tanh():
    for value, expected in [(0.0, 0.0), (-0.0, -0.0), (np.inf, 1.0), (-np.inf, -1.0), (1e308, 1.0), (-LARGEST, -1.0), (20.0, 1.0)]:
        y = apply("tanh", [value])
        assert y[0] == expected and np.signbit(y[0]) == np.signbit(expected), value
    assert np.isnan(apply("tanh", [np.nan, -np.nan])).all()


@pytest.mark.parametrize("tiny", [SMALLEST, 3 * SMALLEST, 1e-320, SMALLEST_NORMAL / 2, SMALLEST_NORMAL, 1e-300, 1e-20])
def test_tanh_of_the_smallest_is_the_argument(tiny):
    assert apply("tanh", [tiny, -tiny]).tolist() == [tiny, -tiny]


def test_edges_of_sigmoid():
    for value, expected in [
        (0.0, 0.5),
        (-0.0, 0.5),
        (SMALLEST, 0.5),
        (np.inf, 1.0),
        (-np.inf, 0.0),
        (1e308, 1.0),
        (-LARGEST, 0.0),
        (-800.0, 0.0),
    ]:
        y = apply("sigmoid", [value])
        assert y[0] == expected and not np.signbit(y[0]), value
    assert np.isnan(apply("sigmoid", [np.nan, -np.nan])).all()


@pytest.mark.parametrize("value", [-708.5, -720.0, -740.0, -745.1])
def test_subnormal_results_of_sigmoid(value):
    y = apply("sigmoid", [value])[0]
    assert 0 < y < SMALLEST_NORMAL
    assert abs(y - np.exp(value)) <= 2 * SMALLEST


@EACH_DTYPE
def test_relu_and_identity_at_the_edges(dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    values = np.array([-np.inf, -1.0, -0.0, 0.0, smallest, 2.0, np.inf, np.nan], dtype)
    assert apply("identity", values).tobytes() == values.tobytes()
    np.testing.assert_array_equal(apply("relu", values), [0, 0, 0, 0, smallest, 2, np.inf, np.nan])


# --- float32 ----------------------------------------------------------------------------------------------------------
#
# float64 is exact enough to compare with. A sweep of all 2^32 inputs is in benchmarks/.

SINGLE = np.finfo(np.float32)
SINGLE_POINTS = 10 * POINTS


def single_points(count, seed=0):
    """As `random_points`: half of them any bit pattern, half where the functions bend."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    bent = np.exp2(rng.uniform(-15, 8, count - count // 2)) * rng.choice([-1, 1], count - count // 2)
    points = np.concatenate([patterns, bent.astype(np.float32)])
    return points[np.isfinite(points)]


def single_boundaries():
    centres = [k * np.log(2) / 4 for k in range(1, 160)] + [2.0**k for k in range(-149, 9)]
    centres += [8.664339756999316, 9.010913347279289, 10.0, 16.635532333438686, 17.32867951, 18.0, 87.33654475, 88.0, 88.72283905206835]
    centres += [88.7228, 89.0, 103.27892990343184, 103.97207708399179, 104.0, 105.0, float(SINGLE.max), float(SINGLE.tiny)]
    centres = np.array(centres, np.float32)
    with np.errstate(over="ignore"):
        points = np.concatenate([centres, *(np.nextafter(centres, np.float32(to)) for to in (0, np.inf))])
    points = points[np.isfinite(points)]
    return np.concatenate([points, -points])


def single_ulps(got, exact):
    return np.abs(got.astype(float) - exact) / np.spacing(np.abs(exact.astype(np.float32))).astype(float)


@pytest.mark.parametrize("points", [single_points, single_boundaries], ids=["random", "boundaries"])
@pytest.mark.parametrize("function", EXACT)
def test_error_in_single_precision(function, points, record_property):
    x = points(SINGLE_POINTS) if points is single_points else points()
    with np.errstate(under="ignore"):
        error = single_ulps(apply(function, x), EXACT[function](x.astype(float)))
    record_property(f"max_ulp_{function}_float32", float(error.max()))
    assert error.max() <= HARD_LIMIT, f"{error.max():.3f} ULP at {x[error.argmax()]!r}"


def test_error_of_exp_in_single_precision(record_property):
    """Through the loss, as in double precision: results from 1 down to the smallest normal number times the number of rows."""
    rng = np.random.default_rng(1)
    n = POINTS
    x = -np.concatenate([rng.uniform(0, 87, n), np.exp2(rng.uniform(-15, 6.4, n)), np.arange(1, 500) * np.log(2) / 4]).astype(np.float32)
    exact = np.exp(x.astype(float))
    rows = 1 << int(np.ceil(np.log2(x.size)))
    keep = exact > rows * 4 * float(SINGLE.tiny)
    error = single_ulps(apply_exp(x[keep]).astype(float), exact[keep])
    record_property("max_ulp_exp_float32", float(error.max()))
    assert keep.sum() > n / 2
    assert error.max() <= HARD_LIMIT + 0.5, f"{error.max():.3f} ULP at {x[keep][error.argmax()]!r}; half of one is the scaling's"


def test_exp_of_the_smallest_results_in_single_precision():
    for value in [-86.5, -87.3, -87.34, -88.0, -92.5, -100.0, -103.2, -103.9, -104.0, -105.0, -1e30, -np.inf]:
        _, d_logits = fastbptt.softmax_cross_entropy(np.array([[0.0, value]], np.float32), np.array([0]))
        exact = np.exp(np.float64(np.float32(value)))
        assert abs(float(d_logits[0, 1]) - exact) <= HARD_LIMIT * np.spacing(np.float32(exact)), value


@pytest.mark.parametrize("place", range(17))
def test_every_lane_computes_the_same_in_single_precision(place):
    x = single_points(600, seed=2)
    neighbours = np.resize(np.array([np.nan, np.inf, -np.inf, 1e38, 1e-45], np.float32), place)
    for function in EXACT:
        assert apply(function, np.concatenate([neighbours, x]))[place:].tobytes() == apply(function, x).tobytes()
        if place == 0:
            assert apply(function, x).tobytes() == b"".join(apply(function, x[i : i + 1]).tobytes() for i in range(x.size))


def test_tanh_and_sigmoid_are_bounded_in_single_precision():
    x = np.concatenate([np.abs(single_points(SINGLE_POINTS)), single_boundaries()])
    y = apply("tanh", x)
    assert (np.abs(y) <= 1).all()
    assert apply("tanh", -x).tobytes() == (-y).tobytes()
    for s in (apply("sigmoid", x), apply("sigmoid", -x)):
        assert ((s >= 0) & (s <= 1)).all()


def test_edges_of_tanh_in_single_precision():
    largest = float(SINGLE.max)
    for value, expected in [(0.0, 0.0), (-0.0, -0.0), (np.inf, 1), (-np.inf, -1), (1e38, 1), (-largest, -1), (10.0, 1), (-10.0, -1)]:
        y = apply("tanh", np.array([value], np.float32))
        assert y.dtype == np.float32 and y[0] == expected and np.signbit(y[0]) == np.signbit(expected), value
    assert np.isnan(apply("tanh", np.array([np.nan, -np.nan], np.float32))).all()
    tiny = np.array([1e-45, 3e-45, 1e-40, SINGLE.tiny / 2, SINGLE.tiny, 1e-30, 1e-10], np.float32)
    assert apply("tanh", tiny).tobytes() == tiny.tobytes() and apply("tanh", -tiny).tobytes() == (-tiny).tobytes()


def test_edges_of_sigmoid_in_single_precision():
    largest, half = float(SINGLE.max), 0.5
    for value, expected in [(0.0, half), (-0.0, half), (1e-45, half), (np.inf, 1), (-np.inf, 0), (1e38, 1), (-largest, 0), (-110.0, 0)]:
        y = apply("sigmoid", np.array([value], np.float32))
        assert y[0] == expected and not np.signbit(y[0]), value
    assert np.isnan(apply("sigmoid", np.array([np.nan, -np.nan], np.float32))).all()
    for value in (-87.5, -90.0, -100.0, -103.2):
        y = apply("sigmoid", np.array([value], np.float32))[0]
        assert 0 < y < SINGLE.tiny and abs(float(y) - np.exp(value)) <= 2 * float(SINGLE.smallest_subnormal)


@EACH_DTYPE
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gates_are_the_same_functions(cell, dtype):
    """The tanh and the sigmoid of a gated cell are those of the RNN, to the bit."""
    G, n = {"gru": 3, "lstm": 4}[cell], 999
    x = (single_points if dtype == np.float32 else random_points)(n, seed=3)
    minus = np.full(G, -0.0, dtype)
    run = fastbptt.gru_forward if cell == "gru" else fastbptt.lstm_forward
    _, _, tape = run(x.reshape(1, -1, 1), None, np.ones((G, 1), dtype), np.zeros((G, 1), dtype), minus, minus)
    for gate, function in enumerate({"gru": ["sigmoid", "sigmoid", "tanh"], "lstm": ["sigmoid", "sigmoid", "tanh", "sigmoid"]}[cell]):
        np.testing.assert_array_equal(tape.gates[0, :, gate], apply(function, x))
