"""Norms and clipping: the plain formulas, what must not be touched, and gradients at the edge of the floating range."""

import re

import numpy as np
import pytest
from problems import PLAIN, arrays_of, random_problem
from tolerances import DTYPES

import fastbptt
from fastbptt import layers

EPS = np.finfo(float).eps
HUGE, TINY = 1e200, 1e-200


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((7, 4)),
        "b": rng.standard_normal(33),
        "c": rng.standard_normal((2, 3, 5)),
        "d": np.array(rng.standard_normal()),
    }


def flat(grads):
    return np.concatenate([np.ravel(g) for g in grads.values()])


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 7.5, np.inf])
def test_total_norm_is_the_formula(p):
    v = np.abs(flat(gradients()))
    expected = v.max() if np.isinf(p) else (v**p).sum() ** (1 / p)
    assert fastbptt.total_norm(gradients(), p) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 16383, 16384, 16385, 100_003])
def test_norm_of_any_length(size, p):
    v = np.random.default_rng(size).standard_normal(size)
    assert fastbptt.total_norm(v, p) == pytest.approx(np.linalg.norm(v.astype(np.longdouble), p), rel=1e-14)
    one = np.zeros(size)
    for place in {0, size // 2, size - 1}:
        one[:] = 0
        one[place] = -3
        assert fastbptt.total_norm(one, p) == 3


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_clipping_is_the_formula(p):
    grads, before = gradients(), gradients()
    norm = fastbptt.clip_grad_norm_(grads, 1.25, p)
    assert norm == fastbptt.total_norm(before, p)
    for name, g in grads.items():
        np.testing.assert_allclose(g, before[name] * (1.25 / norm), rtol=4 * EPS)
    assert fastbptt.total_norm(grads, p) <= 1.25 * (1 + 4 * EPS)


@pytest.mark.one_level
def test_clipping_against_torch(torch):
    for p in (1, 2, 3, np.inf):
        grads = gradients()
        parameters = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads.values()]
        for parameter, g in zip(parameters, grads.values()):
            parameter.grad = torch.from_numpy(np.array(g))
        expected = torch.nn.utils.clip_grad_norm_(parameters, 0.7, p)
        assert fastbptt.clip_grad_norm_(grads, 0.7, p) == pytest.approx(float(expected), rel=1e-12)
        for parameter, g in zip(parameters, grads.values()):
            np.testing.assert_allclose(g, parameter.grad.numpy(), rtol=1e-5)  # torch divides by norm + 1e-6


@pytest.mark.parametrize("limit", [1.0, 1.0 + EPS, 1e300, np.inf])
def test_below_the_limit_nothing_is_touched(limit):
    grads = {name: np.asarray(g / 100) for name, g in gradients().items()}
    grads["b"][:3] = [-0.0, 5e-324, 0.0]
    before = {name: np.copy(g) for name, g in grads.items()}
    fastbptt.clip_grad_norm_(grads, limit)
    for name, g in grads.items():
        assert np.asarray(g).tobytes() == before[name].tobytes()


def test_at_the_limit_nothing_is_touched():
    grads = [np.array([3.0]), np.array([4.0])]
    assert fastbptt.clip_grad_norm_(grads, 5.0) == 5.0
    assert [g.item() for g in grads] == [3.0, 4.0]


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, np.inf])
def test_a_limit_of_zero_gives_zeros(p):
    grads = gradients()
    assert fastbptt.clip_grad_norm_(grads, 0, p) > 0
    assert not flat(grads).any()


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
@pytest.mark.parametrize("scale", [HUGE, 1e300, 1e-140, 1e-160, TINY, 1e-300, 5e-324])
def test_no_overflow_and_no_underflow(scale, p):
    v = np.array([3.0, -4.0, 12.0]) * scale
    expected = {1: 19.0, 2: 13.0, 3: (27 + 64 + 1728) ** (1 / 3), np.inf: 12.0}[p]
    if scale > 1e-323:
        assert fastbptt.total_norm(v, p) == pytest.approx(expected * scale, rel=1e-14)
    else:
        assert abs(fastbptt.total_norm(v, p) - expected * scale) <= scale
    limit = 2.0 * scale
    fastbptt.clip_grad_norm_(v, limit, p)
    if scale > 1e-300:
        np.testing.assert_allclose(v, np.array([3.0, -4.0, 12.0]) * (limit / expected), rtol=1e-14)


def test_huge_gradients_to_an_ordinary_norm():
    v = np.full(10, HUGE)
    assert fastbptt.clip_grad_norm_(v, 5.0) == pytest.approx(HUGE * np.sqrt(10))
    np.testing.assert_allclose(v, 5.0 / np.sqrt(10), rtol=1e-14)


def test_huge_among_tiny_ones():
    v = [np.array([HUGE, 1e30, 1.0]), np.array([TINY])]
    assert fastbptt.clip_grad_norm_(v, 1.0) == HUGE
    np.testing.assert_allclose(v[0], [1.0, 1e-170, 1e-200], rtol=1e-14)


@pytest.mark.parametrize("p", [0.5, 0.001, 1, 2, 3, np.inf])
def test_finite_gradients_have_a_finite_norm(p):
    v = np.full(100, np.finfo(float).max)
    norm = fastbptt.total_norm(v, p)
    assert np.isfinite(norm) and norm >= v[0]
    assert fastbptt.clip_grad_norm_(v, 1.0, p) == norm
    assert np.isfinite(v).all() and (v >= 0).all() and fastbptt.total_norm(v, p) <= 1 + 100 * EPS


@pytest.mark.parametrize(
    ("value", "n", "p", "expected"),
    [
        (1e-300, 3, 0.001, 1.32207081948080667e177),  # 3^1000 = 1.32e477
        (1e-300, 2, 0.0005, 1.14813069527425455e302),  # 2^2000 = 1.15e602
        (5e-324, 2, 1 / 2097, 2.0**1023),  # 5e-324 = 2^-1074
        (2.5, 1, 1e-300, 2.5),
    ],
)
def test_norms_of_a_small_order(value, n, p, expected):
    """That of n equal elements is one of them times n^(1/p): this factor can overflow where the norm does not."""
    v = np.full(n, value)
    assert fastbptt.total_norm(v, p) == pytest.approx(expected, rel=1e-11)
    fastbptt.clip_grad_norm_(v, expected / 16, p)
    np.testing.assert_allclose(v, value / 16, rtol=1e-11)


def test_norms_beyond_all_range():
    """1e-300 * 3^1e6 is clipped by its true value, to 0, though only the largest double can be returned."""
    v = np.full(3, 1e-300)
    assert fastbptt.clip_grad_norm_(v, 1.0, 1e-6) == np.finfo(float).max
    assert not v.any()
    v = np.ones(2)
    assert fastbptt.clip_grad_norm_(v, 2.0**1000, 1 / 1030) == np.finfo(float).max
    np.testing.assert_allclose(v, 2.0**-30, rtol=1e-11)


def test_small_elements_count_in_norms_of_a_small_order():
    """However small beside the largest: (1 + (1e-400)^0.01)^100 is (1 + 1e-4)^100."""
    v = np.array([1e200, 1e-200])
    assert fastbptt.total_norm(v, 0.01) == pytest.approx(1e200 * 1.0001**100, rel=1e-12)
    fastbptt.clip_grad_norm_(v, 1e100, 0.01)
    np.testing.assert_allclose(v, np.array([1e100, 1e-300]) / 1.0001**100, rtol=1e-12)


@pytest.mark.parametrize("limit", [1e-150, 1e-115])
def test_clipping_further_than_the_range_of_a_factor(limit):
    """1e200 to 1e-150 is a factor of 1e-350, which underflows; 1e-315 is subnormal, with three digits. No result may lose any."""
    v = np.array([3 * HUGE, -4 * HUGE])
    fastbptt.clip_grad_norm_(v, limit)
    np.testing.assert_allclose(v, [0.6 * limit, -0.8 * limit], rtol=1e-14)


# --- float32: measured and scaled in double precision -------------------------------------------------------------------


def single(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, np.inf])
def test_single_norms_are_those_of_the_same_numbers_in_double(p):
    grads = [g.astype(np.float32) for g in gradients().values()]
    wide = [g.astype(float) for g in grads]
    assert fastbptt.total_norm(grads, p) == pytest.approx(fastbptt.total_norm(wide, p), rel=1e-13)
    norm = fastbptt.clip_grad_norm_(grads, 1.25, p)
    assert norm == pytest.approx(fastbptt.clip_grad_norm_(wide, 1.25, p), rel=1e-13)
    for g, w in zip(grads, wide):
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, w, rtol=2.0**-22)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("value", [1e30, 3e38, 1e-30, 1e-45])
def test_single_norms_beyond_single_precision(value, p):
    """The squares, and here and there the norm itself, are far out of float32's range."""
    v = np.full(1000, value, np.float32)
    expected = float(v[0]) * 1000 ** (1 / p)
    assert fastbptt.total_norm(v, p) == pytest.approx(expected, rel=1e-13)
    if value > 1e-40:
        limit = expected / 4
        assert fastbptt.clip_grad_norm_(v, limit, p) == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(v, np.float32(value) / 4, rtol=2.0**-22)


def test_a_sum_of_many_single_numbers_loses_nothing():
    """10^7 ones, of which a float32 sum would stop growing at 2^24."""
    v = np.ones(20_000_000, np.float32)
    assert fastbptt.total_norm(v, 1) == 2e7
    assert fastbptt.total_norm(v) == np.sqrt(2e7)


@pytest.mark.parametrize(
    ("scale", "limit"), [(1e30, 5.0), (3e37, 1.0), (3e37, 1e-3), (3e37, 1e-5), (3e37, 1e-9), (1e38, 1e-30), (1e-10, 1e-35)]
)
def test_single_clipping_further_than_a_single_factor(scale, limit):
    """The factor can underflow in float32 where the result does not: digits and direction must be kept."""
    v = single(0.6, -0.8, 0.0) * np.float32(scale)
    assert fastbptt.clip_grad_norm_(v, limit) == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(v, single(0.6, -0.8, 0.0) * np.float32(limit), rtol=1e-6)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0, 1e38, np.inf])
def test_single_clipping_by_value(limit):
    v = np.concatenate([gradients()["b"].astype(np.float32), single(np.nan, np.inf, -np.inf, -0.0, 1e-45)])
    expected = np.clip(v, -np.float32(limit), np.float32(limit))
    fastbptt.clip_grad_value_(v, limit)
    np.testing.assert_array_equal(v, expected)


@pytest.mark.parametrize("limit", [1e39, 1e300])
def test_single_clipping_by_a_value_beyond_single_precision(limit):
    v = single(1, -3e38)
    fastbptt.clip_grad_value_(v, limit)
    np.testing.assert_array_equal(v, single(1, -3e38))


@pytest.mark.parametrize("policy", ["raise", "zero", "skip"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_single_nonfinite(policy, bad):
    v = single(1, 2, bad, 4)
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"first culprit is grads at \(2,\)"):
            fastbptt.clip_grad_norm_(v, 1.0)
    else:
        assert not np.isfinite(fastbptt.clip_grad_norm_(v, 1.0, nonfinite=policy))
    np.testing.assert_array_equal(v, [0] * 4 if policy == "zero" else [1, 2, bad, 4])


def test_single_below_the_limit_nothing_is_touched():
    v = single(3, -0.0, 1e-45, 4)
    before = v.copy()
    assert fastbptt.clip_grad_norm_(v, 5.0) == 5.0
    assert v.tobytes() == before.tobytes()


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_single_layers_and_gradients(make, torch):
    layer = make(3, 5, dtype=np.float32, rng=0)
    layer.flat_grads[:] = np.random.default_rng(0).standard_normal(layer.flat_grads.size)
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in layer.grads.values()]
    for parameter, g in zip(parameters, layer.grads.values()):
        parameter.grad = torch.from_numpy(g.copy())
    expected = torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    assert fastbptt.clip_grad_norm_(layer, 0.7) == pytest.approx(float(expected), rel=1e-6)
    for parameter, g in zip(parameters, layer.grads.values()):
        np.testing.assert_allclose(g, parameter.grad.numpy(), rtol=1e-5)


# --- Non-finite gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
class TestNonfinite:
    def grads(self, bad):
        grads = gradients()
        grads["c"][1, 2, 3] = bad
        return grads

    def test_raise(self, bad, p):
        grads, before = self.grads(bad), self.grads(bad)
        with pytest.raises(FloatingPointError, match=r"grads: the norm is (nan|inf); the first culprit is grads\['c'\] at \(1, 2, 3\)"):
            fastbptt.clip_grad_norm_(grads, 1.0, p)
        np.testing.assert_array_equal(flat(grads), flat(before))

    def test_zero(self, bad, p):
        grads = self.grads(bad)
        assert not np.isfinite(fastbptt.clip_grad_norm_(grads, 1.0, p, nonfinite="zero"))
        assert not flat(grads).any()

    def test_skip(self, bad, p):
        grads, before = self.grads(bad), self.grads(bad)
        norm = fastbptt.clip_grad_norm_(grads, 1.0, p, nonfinite="skip")
        assert np.isnan(norm) if np.isnan(bad) else norm == np.inf
        np.testing.assert_array_equal(flat(grads), flat(before))

    def test_total_norm(self, bad, p):
        norm = fastbptt.total_norm(self.grads(bad), p)
        assert np.isnan(norm) if np.isnan(bad) else norm == np.inf


def test_nan_wins_over_inf():
    for v in ([np.nan, np.inf], [np.inf, np.nan]):
        for p in (1, 2, 3, np.inf):
            assert np.isnan(fastbptt.total_norm(np.array(v), p))


# --- By value ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 0.3, 1e300, np.inf])
def test_clip_by_value_is_np_clip(limit):
    grads, before = gradients(), gradients()
    fastbptt.clip_grad_value_(grads, limit)
    np.testing.assert_array_equal(flat(grads), np.clip(flat(before), -limit, limit))


def test_clip_by_value_of_the_nonfinite():
    v = np.array([np.nan, np.inf, -np.inf, 0.5])
    fastbptt.clip_grad_value_(v, 2.0)
    np.testing.assert_array_equal(v, [np.nan, 2.0, -2.0, 0.5])


def test_clip_by_value_over_many_chunks():
    v = np.random.default_rng(0).standard_normal(200_001)
    expected = np.clip(v, -0.1, 0.1)
    fastbptt.clip_grad_value_(v, 0.1)
    np.testing.assert_array_equal(v, expected)


# --- Forms of gradients -----------------------------------------------------------------------------------------------


def test_all_forms_give_one_norm():
    grads = gradients()
    expected = np.sqrt((flat(grads) ** 2).sum())
    layers = [fastbptt.RNN(4, 7, rng=0), fastbptt.Linear(7, 3, rng=0)]
    layers[0].flat_grads[:9], layers[1].flat_grads[:9] = 1, 2
    for form in (grads, list(grads.values()), tuple(grads.values()), flat(grads)):
        assert fastbptt.total_norm(form) == pytest.approx(expected, rel=1e-14)
    assert fastbptt.total_norm(layers[0]) == 3
    assert fastbptt.total_norm(layers) == pytest.approx(np.sqrt(45), rel=1e-15)
    assert fastbptt.clip_grad_norm_(layers, 1.0) == pytest.approx(np.sqrt(45), rel=1e-15)
    assert fastbptt.total_norm(layers) == pytest.approx(1.0, rel=4 * EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_of_gradients_the_weights_are_meant(cell, dtype):
    eps = float(np.finfo(dtype).eps)
    problem = random_problem(cell, dtype=dtype)
    grads = problem.backward(fastbptt, problem.forward(fastbptt)[2])
    dx, d_state = grads.x.copy(), [part.copy() for part in arrays_of(grads.state)]
    weights = [grads.w_ih, grads.w_hh, grads.b_ih, grads.b_hh]
    expected = np.sqrt(sum((w.astype(float) ** 2).sum() for w in weights))
    assert fastbptt.clip_grad_norm_(grads, 0.1) == pytest.approx(expected, rel=1e-14)
    assert fastbptt.total_norm(weights) == pytest.approx(0.1, rel=4 * eps)
    np.testing.assert_array_equal(grads.x, dx)
    for part, before in zip(arrays_of(grads.state), d_state):
        np.testing.assert_array_equal(part, before)


def test_nothing_at_all_has_norm_zero():
    for empty in ([], {}, (), np.empty(0), [np.empty((0, 3))]):
        assert fastbptt.total_norm(empty) == 0.0
        assert fastbptt.clip_grad_norm_(empty, 1.0) == 0.0
        fastbptt.clip_grad_value_(empty, 1.0)
    assert fastbptt.clip_grad_norm_(np.zeros(5), 0.0) == 0.0


def test_fortran_order_is_clipped_in_place():
    g = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    expected = g / np.sqrt((g**2).sum())
    fastbptt.clip_grad_norm_([g], 1.0)
    np.testing.assert_allclose(g, expected, rtol=1e-15)


# --- What may not be written ------------------------------------------------------------------------------------------


def locked():
    g = np.ones(4)
    g.flags.writeable = False
    return g


def unaligned():
    return np.zeros(33, np.uint8)[1:].view(float)


UNFIT = {
    "read-only": locked,
    "strided": lambda: np.ones(8)[::2],
    "reversed": lambda: np.ones(4)[::-1],
    "stride 0": lambda: np.broadcast_to(1.0, 4),
    "unaligned": unaligned,
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("clip", [fastbptt.clip_grad_norm_, fastbptt.clip_grad_value_])
def test_unfit_arrays_are_refused_before_any_write(clip, kind):
    first = np.full(3, 100.0)
    with pytest.raises(ValueError, match=r"grads\[1\]: expected a contiguous, aligned and writeable array"):
        clip([first, UNFIT[kind]()], 0.5)
    assert (first == 100).all()


@pytest.mark.parametrize("clip", [fastbptt.clip_grad_norm_, fastbptt.clip_grad_value_])
def test_overlapping_arrays_are_refused_before_any_write(clip):
    whole = np.full(10, 100.0)
    for pair in ([whole, whole], [whole[:6], whole[5:]], [whole, whole[3:5]], [whole[5:], whole[:6]]):
        with pytest.raises(ValueError, match=r"grads\[\d\]: overlaps grads\[\d\]"):
            clip(pair, 0.5)
    assert (whole == 100).all()
    clip([whole[:5], whole[5:]], 0.5)
    assert (whole <= 0.5).all()


def test_reading_a_norm_needs_no_writing():
    assert fastbptt.total_norm([locked(), np.broadcast_to(2.0, 1)]) == np.sqrt(8)


@pytest.mark.parametrize(
    ("max_norm", "error"), [(-1.0, ValueError), (np.nan, ValueError), (-np.inf, ValueError), (None, TypeError), ("1", TypeError)]
)
def test_bad_limits(max_norm, error):
    g = np.ones(3)
    with pytest.raises(error, match="max_norm: expected a number"):
        fastbptt.clip_grad_norm_(g, max_norm)
    with pytest.raises(error, match="clip_value: expected a number"):
        fastbptt.clip_grad_value_(g, max_norm)
    assert (g == 1).all()


@pytest.mark.parametrize(("p", "error"), [(0, ValueError), (-2, ValueError), (np.nan, ValueError), ("2", TypeError), (True, TypeError)])
def test_bad_norm_types(p, error):
    with pytest.raises(error, match="norm_type: expected a number"):
        fastbptt.clip_grad_norm_(np.ones(3), 1.0, p)
    with pytest.raises(error, match="norm_type: expected a number"):
        fastbptt.total_norm(np.ones(3), p)


@pytest.mark.parametrize(("policy", "error"), [("explode", ValueError), (None, TypeError), ([], TypeError)])
def test_bad_policies(policy, error):
    with pytest.raises(error, match="nonfinite: expected one of 'raise', 'zero', 'skip'"):
        fastbptt.clip_grad_norm_(np.ones(3), 1.0, nonfinite=policy)


def read_only_and_empty():
    return np.broadcast_to(1.0, (0,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_gradients_are_fine_wherever_they_are(dtype):
    """Nothing of them is written, so they overlap nothing, and need not be aligned or writeable."""
    a, b = np.ones((3, 1), dtype), np.full(6, 2, dtype)
    nowhere = np.zeros(9, np.uint8)[1:1].view(dtype)
    grads = [a[:, :0], a, b[2:2], a[1:1], b, b[6:], a[:0], nowhere, read_only_and_empty().astype(dtype)[::-1]]
    grads[-1].flags.writeable = False
    for order in (grads, grads[::-1]):
        assert dtype.type(fastbptt.total_norm(order)) == np.sqrt(27, dtype=dtype)
        assert fastbptt.clip_grad_norm_(order, 100.0) == pytest.approx(np.sqrt(27), rel=1e-6)
    fastbptt.clip_grad_value_(grads, 0.5)
    assert (a == 0.5).all() and (b == 0.5).all()
    b[1] = np.nan
    fastbptt.clip_grad_norm_(grads, 1.0, nonfinite="zero")
    assert not a.any() and not b.any()
    assert fastbptt.clip_grad_norm_([a[:, :0], nowhere], 1.0) == 0
    with pytest.raises(ValueError, match=r"^grads\[2\]: overlaps grads\[0\]"):
        fastbptt.clip_grad_norm_([b, b[3:3], b[4:]], 1.0)


def test_empty_views_cost_optimisers_nothing():
    a = np.ones((3, 1))
    for make in (fastbptt.SGD, fastbptt.RMSprop, fastbptt.Adam):
        make([a, a[:, :0]], lr=0.0).step([np.ones((3, 1)), a[:, :0]])


@pytest.mark.parametrize(
    "clip", [lambda g: fastbptt.clip_grad_norm_(g, 1.0), lambda g: fastbptt.clip_grad_value_(g, 1.0), fastbptt.total_norm]
)
def test_a_single_array_is_called_grads(clip):
    with pytest.raises(TypeError, match=r"^grads: expected dtype float"):
        clip(np.ones(3, int))
    layer = fastbptt.Linear(3, 4)
    layer.flat_grads[5] = np.inf
    with pytest.raises(FloatingPointError, match=r"; the first culprit is grads\['weight'\] at \(1, 2\): inf$"):
        fastbptt.clip_grad_norm_(layer, 1.0)


# --- Which parameter, and which step ----------------------------------------------------------------------------------


def message_of(grads):
    with pytest.raises(FloatingPointError) as caught:
        fastbptt.clip_grad_norm_(grads, 1.0)
    return str(caught.value)


def run_back(make, bad, dtype=np.float64, read=None, **options):
    """A layer after a backward pass in which something was not finite at step 3 of 6."""
    rng = np.random.default_rng(0)
    layer = make(4, 7, rng=0, dtype=dtype, **options)
    x, d_out = rng.standard_normal((6, 2, 4)).astype(dtype), rng.standard_normal((6, 2, 7)).astype(dtype)
    {"x": x, "d_out": d_out}[bad][3, 1, 2] = np.nan
    if options.get("batch_first"):
        x, d_out = x.swapaxes(0, 1), d_out.swapaxes(0, 1)
    reader = layer if read is None else read(layer)
    reader.forward(x)
    return layer, lambda **clip: reader.backward(d_out, **clip)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("read", [None, lambda layer: fastbptt.TruncatedBPTT(layer, 6)], ids=["layer", "truncated"])
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_a_layer_names_the_parameter_and_the_step(make, read, dtype, batch_first):
    for bad, step in (("x", r"x\[3, 1, 2\] is nan"), ("d_out", r"d_out\[3, 1, 2\] is nan")):
        for clip in ({}, {"clip_step": ("norm", 1.0)}):
            layer, backward = run_back(make, bad, dtype, read, batch_first=batch_first)
            backward(**clip)
            message = message_of(layer)
            pattern = rf"grads: the norm is nan; the first culprit is grads\['weight_ih_l0'\] at \(\d+, \d\): nan; {step}"
            assert re.fullmatch(pattern, message), message
            message = message_of([fastbptt.Linear(7, 2, dtype=dtype), layer])
            assert re.search(rf"culprit is grads\[1\]\['weight_ih_l0'\] at .*; {step}$", message), message
            layer.zero_grad()
            layer.flat_grads[-1] = np.inf
            assert re.search(r"culprit is grads\['bias_hh_l0'\] at \(\d+,\): inf$", message_of(layer))


def test_an_explosion_on_the_way_back_is_told_by_its_step():
    layer = fastbptt.RNN(1, 1, nonlinearity="identity", rng=0)
    layer.flat_params[:] = [0, 1e200, 0, 0]
    out, _ = layer(np.zeros((5, 1, 1)))
    layer.backward(np.ones_like(out))
    found = "; the gradient of the state before step 3, of row 0, is the first on the way back beyond float64: 1e400"
    assert message_of(layer).endswith(found), message_of(layer)


def test_gradients_tell_the_step_by_that_of_the_input():
    problem = random_problem("gru")
    problem.d_out[3, 1, 2] = np.nan
    tape = problem.forward(fastbptt)[2]
    step = "; on the way back, the gradient of the input is not finite from step 3 on"
    assert re.search(rf"culprit is grads\['w_ih'\] at \(0, 0\): nan{step}$", message_of(problem.backward(fastbptt, tape)))
    assert message_of(problem.backward(fastbptt, tape, need_dx=False)).endswith("grads['w_ih'] at (0, 0): nan")


def test_what_is_found_is_not_written_where_all_is_finite():
    layer = fastbptt.LSTM(3, 4, rng=0)
    out, _ = layer(np.ones((5, 2, 3)))
    layer.backward(np.ones_like(out))
    assert layer._first_nonfinite is None
