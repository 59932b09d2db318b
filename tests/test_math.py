"""The vector exp, tanh and sigmoid: their error in units in the last place, and their values at the edges.

tanh and sigmoid are seen through one step of an RNN with W_ih = 1 and W_hh = 0, exp through the kernels' own door and through the loss.
FASTBPTT_TEST_POINTS is the number of random points, 10^5 unless set.
"""

import os

import numpy as np
import pytest
from problems import GATED
from tolerances import DTYPES

import fastbptt
from fastbptt import cells
from fastbptt._kernels import kernels

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
POINTS = int(os.environ.get("FASTBPTT_TEST_POINTS", 100_000))
PUBLISHED = 2.0  # ULP: the README's figure
LARGEST, SMALLEST_NORMAL, SMALLEST = np.finfo(float).max, np.finfo(float).tiny, 5e-324

long_double_is_wide = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="np.longdouble is no wider than float64 here")


def apply(function, values):
    """f of each value. Zeros are -0 wherever one is added, so that -0 reaches f."""
    values = np.asarray(values)
    values = values.astype(np.float32 if values.dtype == np.float32 else float)
    if function == "exp":
        result = np.empty_like(values)
        kernels[values.dtype].vector_function(function, values, result)
        return result
    minus = np.array([-0.0], values.dtype)
    out, _, _ = fastbptt.rnn_forward(
        values.reshape(1, -1, 1),
        np.full((values.size, 1), -0.0, values.dtype),
        np.ones((1, 1), values.dtype),
        np.zeros((1, 1), values.dtype),
        minus,
        minus,
        nonlinearity=function,
    )
    return out.reshape(values.shape)


def exact_sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


EXACT = {"exp": np.exp, "tanh": np.tanh, "sigmoid": exact_sigmoid}  # in a wider type
EACH_FUNCTION = pytest.mark.parametrize("function", EXACT)


def exact_by_mpmath(function, points):
    """f of each point as the sum of two floats, the nearest one and what is then left: 106 bits."""
    mpmath = pytest.importorskip("mpmath")
    f = {"exp": mpmath.exp, "tanh": mpmath.tanh, "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v))}[function]
    with mpmath.workprec(160):
        values = [f(mpmath.mpf(max(-1e6, min(1e6, point)))) for point in points.tolist()]
        nearest = [float(value) for value in values]
        return np.array(nearest), np.array([float(value - near) for value, near in zip(values, nearest)])


def ulps(got, nearest, rest=0.0):
    """The distance in units of the last place of the exact value, ``nearest + rest``."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs((got - nearest) - rest) / np.spacing(np.abs(nearest).astype(float))
    error[(got == nearest) & np.isinf(nearest)] = 0
    return error.astype(float)


def assert_published(error, points):
    worst = np.nanargmax(np.where(np.isnan(error), np.inf, error))
    assert error[worst] <= PUBLISHED, f"{error[worst]:.3f} ULP at {points[worst]!r}"


def bit_patterns(count, seed=0):
    """Any finite float."""
    points = np.random.default_rng(seed).integers(0, 2**64, count + count // 100, dtype=np.uint64).view(float)
    return points[np.isfinite(points)][:count]


def bent_points(count, seed=0):
    """Where the functions bend: magnitudes from 2^-30 to 2^10, evenly in the exponent."""
    rng = np.random.default_rng(seed)
    return np.exp2(rng.uniform(-30, 10, count)) * rng.choice([-1, 1], count)


def random_points(count, seed=0):
    return np.concatenate([bit_patterns(count // 2, seed), bent_points(count - count // 2, seed)])


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
        0.17401129732227125,  # the worst of 6e7 for a tanh before this one: 2.12 ULP
    ]
    centres = np.array([*centres, LARGEST, SMALLEST_NORMAL])
    with np.errstate(over="ignore"):
        points = np.concatenate([centres, np.nextafter(centres, 0), np.nextafter(centres, np.inf)])
    points = points[np.isfinite(points)]
    return np.concatenate([points, -points])


@EACH_FUNCTION
def test_error_at_any_bit_pattern(function, record_property):
    x = bit_patterns(POINTS)
    assert len(x) == POINTS
    error = ulps(apply(function, x), *exact_by_mpmath(function, x))
    record_property(f"max_ulp_{function}_bit_patterns", float(error.max()))
    assert_published(error, x)


@EACH_FUNCTION
def test_error_at_boundaries(function):
    x = boundary_points()
    assert_published(ulps(apply(function, x), *exact_by_mpmath(function, x)), x)


@long_double_is_wide
@EACH_FUNCTION
def test_error_where_the_function_bends(function, record_property):
    """Against long double, whose own error is seen to be a few thousandths of a unit."""
    x = bent_points(POINTS)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = EXACT[function](x.astype(np.longdouble))
        nearest = exact.astype(float)
        rest = exact - nearest
    some = np.flatnonzero(np.abs(x) < 700)[:500]
    assert ulps(exact[some], *exact_by_mpmath(function, x[some])).max() <= 0.01
    error = ulps(apply(function, x), nearest, rest)
    record_property(f"max_ulp_{function}", float(error.max()))
    assert_published(error, x)


def test_exp_of_the_smallest_results():
    """One prediction, so that the gradient at a far lower logit is exp itself."""
    mpmath = pytest.importorskip("mpmath")
    for value in [-707.5, -708.4, -709.0, -720.25, -740.0, -744.4, -745.1, -745.2, -746.0, -800.0, -1e300, -np.inf]:
        _, d_logits = fastbptt.softmax_cross_entropy(np.array([[0.0, value]]), np.array([0]))
        exact = float(mpmath.exp(value))
        assert abs(d_logits[0, 1] - exact) <= (PUBLISHED + 0.5) * np.spacing(exact), value


@pytest.mark.parametrize("place", range(9))
def test_every_lane_computes_the_same(place):
    """The same values in whole vectors, in tails, and beside inf and NaN."""
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
# float64 is accurate enough as an oracle. A sweep of all 2^32 inputs is in benchmarks/.

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
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = exact.astype(np.float32)
        error = np.abs(got.astype(float) - exact) / np.spacing(np.abs(nearest)).astype(float)
    error[(got == nearest) & np.isinf(nearest)] = 0
    return error


@pytest.mark.parametrize("points", [single_points, single_boundaries], ids=["random", "boundaries"])
@EACH_FUNCTION
def test_error_in_single_precision(function, points, record_property):
    x = points(SINGLE_POINTS) if points is single_points else points()
    with np.errstate(over="ignore", under="ignore"):
        error = single_ulps(apply(function, x), EXACT[function](x.astype(float)))
    record_property(f"max_ulp_{function}_float32", float(error.max()))
    assert_published(error, x)


def test_exp_of_the_smallest_results_in_single_precision():
    for value in [-86.5, -87.3, -87.34, -88.0, -92.5, -100.0, -103.2, -103.9, -104.0, -105.0, -1e30, -np.inf]:
        _, d_logits = fastbptt.softmax_cross_entropy(np.array([[0.0, value]], np.float32), np.array([0]))
        exact = np.exp(np.float64(np.float32(value)))
        assert abs(float(d_logits[0, 1]) - exact) <= (PUBLISHED + 0.5) * np.spacing(np.float32(exact)), value


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
@pytest.mark.parametrize("cell", GATED)
def test_gates_are_the_same_functions(cell, dtype):
    """The tanh and the sigmoid of a gated cell are those of the RNN, to the bit."""
    row, n = cells.CELLS[cell], 999
    G = len(row.gates)
    x = (single_points if dtype == np.float32 else random_points)(n, seed=3)
    minus = np.full(G, -0.0, dtype)
    run = getattr(fastbptt, f"{cell}_forward")
    _, _, tape = run(x.reshape(1, -1, 1), None, np.ones((G, 1), dtype), np.zeros((G, 1), dtype), minus, minus)
    for gate, expected in enumerate(row.gates):
        np.testing.assert_array_equal(tape.gates[0, :, gate], apply(expected.nonlinearity, x), err_msg=expected.name)
