"""Softmax cross-entropy, the mean squared error, and perplexity."""

import numpy as np
import pytest
from tolerances import DTYPES, TOLERANCES, assert_close

import fastbptt


def plain(logits, targets, mask=None):
    """The formulas, row by row, in long double."""
    V = logits.shape[-1]
    z = logits.reshape(-1, V).astype(np.longdouble)
    y = targets.reshape(-1)
    keep = np.ones(len(z), bool) if mask is None else mask.reshape(-1)
    d, loss = np.zeros_like(z), np.longdouble(0)
    for i in np.flatnonzero(keep):
        e = np.exp(z[i] - z[i].max())
        loss += np.log(e.sum()) + (z[i].max() - z[i][y[i]])
        d[i] = e / e.sum()
        d[i, y[i]] -= 1
    n = max(1, keep.sum())
    return loss / n, (d / n).reshape(logits.shape)


def random_case(*shape, V, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((*shape, V)), rng.integers(0, V, shape)


@pytest.mark.parametrize("V", [1, 2, 3, 7, 8, 9, 16, 17, 65, 1000])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (2, 3, 4), (40, 9)], ids=str)
def test_the_formula(shape, V):
    logits, targets = random_case(*shape, V=V)
    targets = np.asarray(targets)
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets)
    expected_loss, expected_d = plain(logits, targets)
    assert isinstance(loss, float)
    assert loss == pytest.approx(float(expected_loss), rel=1e-14, abs=1e-15)
    if V > 1:
        assert_close("d_logits", d_logits, expected_d, 1e-14)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 1.0])
def test_masked(kept):
    logits, targets = random_case(7, 5, V=11)
    mask = np.random.default_rng(1).random((7, 5)) < kept
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    expected_loss, expected_d = plain(logits, targets, mask)
    assert loss == pytest.approx(float(expected_loss), rel=1e-14)
    np.testing.assert_allclose(d_logits, expected_d.astype(float), rtol=0, atol=1e-15)
    assert not d_logits[~mask].any()


def test_what_is_masked_out_may_be_anything():
    logits, targets = random_case(6, V=5)
    mask = np.array([True, False, True, True, False, True])
    expected = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    logits[1], targets[1], targets[4] = np.nan, -100, 10**9
    got = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])


def test_the_gradient_is_that_of_the_loss():
    logits, targets = random_case(3, V=4)
    _, d_logits = fastbptt.softmax_cross_entropy(logits, targets)
    for index in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        difference = fastbptt.softmax_cross_entropy(up, targets)[0] - fastbptt.softmax_cross_entropy(down, targets)[0]
        assert d_logits[index] == pytest.approx(difference / 2e-6, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(d_logits.sum(axis=-1), 0, atol=1e-15)


@pytest.mark.one_level
def test_against_torch(torch):
    logits, targets = random_case(20, 3, V=31)
    mask = np.random.default_rng(1).random((20, 3)) < 0.7
    z = torch.from_numpy(logits).requires_grad_()
    marked = torch.from_numpy(np.where(mask, targets, -100)).reshape(-1)
    expected = torch.nn.functional.cross_entropy(z.reshape(-1, 31), marked)
    expected.backward()
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    assert loss == pytest.approx(expected.item(), rel=1e-13)
    assert_close("d_logits", d_logits, z.grad.numpy(), 1e-13)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 1e300])
def test_large_logits_do_not_overflow(shift):
    logits = np.array([[0.0, 1.0, 2.0]]) + shift
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, np.array([0]))
    expected_loss, expected_d = plain(logits, np.array([0]))
    assert loss == pytest.approx(float(expected_loss), rel=1e-12)
    np.testing.assert_allclose(d_logits, expected_d.astype(float), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 2, 5, 16, 17, 31, 48, 53])
def test_the_largest_logit_at_any_place(V, dtype):
    logits = np.where(np.eye(V, dtype=bool), dtype.type(1e4), dtype.type(0))
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, np.arange(V))
    assert loss == 0 and not d_logits.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [3, 37, 300, 3000])
def test_a_row_does_not_depend_on_the_others(V, dtype, threads):
    """Short ones are taken several at a time. 16 of them count, which scales all gradients exactly; one of them has a NaN."""
    threads(2)
    logits, targets = random_case(45, V=V)
    logits, mask = logits.astype(dtype), np.zeros(45, bool)
    mask[np.random.default_rng(1).permutation(45)[:16]] = True
    spoilt = np.flatnonzero(mask)[5]
    logits[spoilt, V - 1] = np.nan
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    assert np.isnan(loss) and np.isnan(d_logits[spoilt]).all() and not d_logits[~mask].any()
    for i in np.flatnonzero(mask):
        _, alone = fastbptt.softmax_cross_entropy(logits[i : i + 1], targets[i : i + 1])
        np.testing.assert_array_equal(16 * d_logits[i], alone[0])


def test_a_certain_mistake():
    loss, d_logits = fastbptt.softmax_cross_entropy(np.array([[0.0, -1e4], [0.0, -np.inf]]), np.array([1, 0]))
    assert loss == 5000.0
    np.testing.assert_array_equal(d_logits, [[0.5, -0.5], [0.0, 0.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_row_stays_in_its_row(bad):
    logits, targets = random_case(9, V=13)
    expected = fastbptt.softmax_cross_entropy(logits, targets)[1]
    logits[4, 7] = bad
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets)
    assert np.isnan(loss)
    assert np.isnan(d_logits[4]).all()
    others = np.arange(9) != 4
    np.testing.assert_array_equal(d_logits[others], expected[others])


def test_no_predictions():
    for logits, targets in [(np.zeros((0, 5)), np.zeros(0, int)), (np.zeros((3, 0, 5)), np.zeros((3, 0), int))]:
        loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets)
        assert loss == 0.0 and d_logits.shape == logits.shape


def test_any_layout_and_nothing_modified():
    logits, targets = random_case(5, 3, V=9)
    mask = np.arange(15).reshape(5, 3) % 4 > 0
    expected = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    for z, y, m in [
        (np.asfortranarray(logits), np.asfortranarray(targets), np.asfortranarray(mask)),
        (logits[:, ::-1].copy()[:, ::-1], targets[::-1].copy()[::-1], mask[::-1].copy()[::-1]),
        (np.repeat(logits, 2, axis=2)[..., ::2], targets.astype(np.int16), np.repeat(mask, 2, axis=1)[:, ::2]),
    ]:
        before = z.copy(), y.copy(), m.copy()
        got = fastbptt.softmax_cross_entropy(z, y, mask=m)
        assert got[0] == expected[0]
        np.testing.assert_array_equal(got[1], expected[1])
        for array, copy in zip((z, y, m), before):
            np.testing.assert_array_equal(array, copy)


# --- float32 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("V", [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 65, 1000])
@pytest.mark.parametrize("shape", [(), (5, 3), (40, 9)], ids=str)
@pytest.mark.parametrize("kept", [None, 0.6])
def test_the_formula_in_single_precision(shape, V, kept):
    logits, targets = random_case(*shape, V=V)
    logits, targets = logits.astype(np.float32), np.asarray(targets)
    mask = None if kept is None else np.asarray(np.random.default_rng(1).random(shape) < kept)
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets, mask=mask)
    expected_loss, expected_d = plain(logits.astype(float), targets, mask)
    assert isinstance(loss, float) and d_logits.dtype == np.float32
    assert loss == pytest.approx(float(expected_loss), rel=1e-6, abs=1e-7)
    assert np.abs(d_logits - expected_d).max() <= 4 * np.finfo(np.float32).eps * max(np.abs(expected_d).max(), 1e-30) + 1e-8


@pytest.mark.one_level
def test_single_precision_against_torch(torch):
    logits, targets = random_case(20, 3, V=31)
    logits = logits.astype(np.float32)
    z = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.functional.cross_entropy(z.reshape(-1, 31), torch.from_numpy(targets.reshape(-1)))
    expected.backward()
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, targets)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(d_logits, z.grad.numpy(), rtol=1.3e-6, atol=1e-5 * np.abs(d_logits).max())


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 1e30, -3e38])
def test_large_single_logits_do_not_overflow(shift):
    logits = (np.array([[0.0, 1.0, 2.0]]) + shift).astype(np.float32)
    loss, d_logits = fastbptt.softmax_cross_entropy(logits, np.array([0]))
    expected_loss, expected_d = plain(logits.astype(float), np.array([0]))
    assert loss == pytest.approx(float(expected_loss), rel=1e-6)
    np.testing.assert_allclose(d_logits, expected_d.astype(float), rtol=1e-6)


def test_a_mean_over_very_many_single_predictions():
    """Each loss is log 2; their sum is kept in double precision."""
    loss, d_logits = fastbptt.softmax_cross_entropy(np.zeros((1_000_000, 2), np.float32), np.zeros(1_000_000, int))
    assert loss == pytest.approx(np.log(2), rel=1e-12)
    np.testing.assert_allclose(d_logits[:, 1], 5e-7, rtol=1e-6)


def test_a_certain_mistake_in_single_precision():
    """Both logits are finite, but their difference is not in float32."""
    loss, d_logits = fastbptt.softmax_cross_entropy(np.array([[3e38, -3e38]], np.float32), np.array([1]))
    assert loss == pytest.approx(6e38, rel=1e-6)
    np.testing.assert_array_equal(d_logits, [[1, -1]])


LOGITS, TARGETS = np.zeros((5, 3, 4)), np.zeros((5, 3), int)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, TARGETS), TypeError, "logits: expected a NumPy array, got NoneType"),
        ((LOGITS.tolist(), TARGETS), TypeError, "logits: expected a NumPy array, got list"),
        ((LOGITS.astype(np.float16), TARGETS), TypeError, "logits: expected dtype float"),
        ((LOGITS.astype(complex), TARGETS), TypeError, "logits: expected dtype float"),
        ((np.ma.masked_array(LOGITS), TARGETS), TypeError, "logits: expected a plain NumPy array"),
        ((np.array(1.0), TARGETS), ValueError, r"logits: expected shape \(\.\.\., V\) with V >= 1, got \(\)"),
        ((np.zeros((5, 3, 0)), TARGETS), ValueError, r"logits: expected shape .* got \(5, 3, 0\)"),
        ((LOGITS, None), TypeError, "targets: expected a NumPy array"),
        ((LOGITS, TARGETS.astype(float)), TypeError, "targets: expected integers, got dtype float64"),
        ((LOGITS, TARGETS.astype(bool)), TypeError, "targets: expected integers, got dtype bool"),
        ((LOGITS, TARGETS.astype(object)), TypeError, "targets: expected integers, got dtype object"),
        ((LOGITS, np.ma.masked_array(TARGETS)), TypeError, "targets: expected a plain NumPy array, got a masked one"),
        ((LOGITS, TARGETS.tolist()), TypeError, "targets: expected a NumPy array, got list"),
        ((LOGITS, TARGETS.T), ValueError, r"targets: expected shape \(5, 3\), got \(3, 5\)"),
        ((LOGITS, TARGETS + 4), IndexError, "targets: expected classes from 0 to 3, got 4"),
        ((LOGITS, TARGETS - 1), IndexError, "targets: expected classes from 0 to 3, got -1"),
        (
            (LOGITS, TARGETS.astype(np.uint64) + np.uint64(2**63)),
            IndexError,
            "targets: expected classes from 0 to 3, got 9223372036854775808",
        ),
    ],
)
@pytest.mark.parametrize("mask", [None, np.ones((5, 3), bool)], ids=["all", "masked"])
def test_bad_arguments(arguments, error, message, mask):
    with pytest.raises(error, match=message):
        fastbptt.softmax_cross_entropy(*arguments, mask=mask)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True], TypeError, "mask: expected a NumPy array, got list"),
        (np.ones((5, 3)), TypeError, "mask: expected dtype bool, got float64"),
        (np.ones((3, 5), bool), ValueError, r"mask: expected shape \(5, 3\), got \(3, 5\)"),
    ],
)
def test_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        fastbptt.softmax_cross_entropy(LOGITS, TARGETS, mask=mask)


def test_perplexity():
    assert fastbptt.perplexity(0.0) == 1.0
    assert fastbptt.perplexity(np.log(50)) == pytest.approx(50)
    assert fastbptt.perplexity(1e6) == np.inf and fastbptt.perplexity(np.inf) == np.inf
    assert np.isnan(fastbptt.perplexity(np.nan))


# --- The mean squared error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (1, 20, 1)], ids=str)
def test_the_mean_squared_error(shape, dtype):
    rng = np.random.default_rng(0)
    outputs, targets = (np.asarray(rng.standard_normal(shape)).astype(dtype) for _ in range(2))
    loss, d_outputs = fastbptt.mean_squared_error(outputs, targets)
    error = outputs.astype(np.longdouble) - targets
    assert isinstance(loss, float) and d_outputs.dtype == dtype
    assert loss == pytest.approx(float((error**2).mean()), rel=1e-14)
    assert_close("d_outputs", d_outputs, 2 * error / error.size, 4 * TOLERANCES[dtype].eps)


@pytest.mark.one_level
def test_the_mean_squared_error_is_that_of_pytorch(torch):
    outputs, targets = np.random.default_rng(0).standard_normal((2, 4, 5, 3))
    theirs = torch.tensor(outputs, requires_grad=True)
    expected = torch.nn.functional.mse_loss(theirs, torch.tensor(targets))
    expected.backward()
    loss, d_outputs = fastbptt.mean_squared_error(outputs, targets)
    assert loss == pytest.approx(expected.item(), rel=1e-14)
    assert_close("d_outputs", d_outputs, theirs.grad.numpy(), 1e-15)


def test_squared_errors_of_extremes():
    loss, d_outputs = fastbptt.mean_squared_error(np.float32([3e38, 0]), np.float32([-3e38, 0]))
    assert loss == pytest.approx(1.8e77, rel=1e-6) and np.isinf(fastbptt.mean_squared_error(np.array([1e200]), np.zeros(1))[0])
    assert d_outputs.tolist() == [np.inf, 0]
    assert np.isnan(fastbptt.mean_squared_error(np.array([np.inf]), np.array([np.inf]))[0])
    loss, d_outputs = fastbptt.mean_squared_error(np.zeros((0, 3)), np.zeros((0, 3)))
    assert loss == 0.0 and d_outputs.shape == (0, 3)


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (None, np.zeros(3), TypeError, "outputs: expected a NumPy array, got NoneType"),
        (np.zeros(3, int), np.zeros(3), TypeError, "outputs: expected dtype float64 or float32 in native byte order, got int64"),
        (np.zeros(3), [0.0] * 3, TypeError, "targets: expected a NumPy array, got list"),
        (
            np.zeros(3),
            np.zeros(3, np.float32),
            TypeError,
            "targets: expected dtype float64 like the other arrays of this call, got float32",
        ),
        (np.zeros((5, 3)), np.zeros((3, 5)), ValueError, r"targets: expected shape \(5, 3\), got \(3, 5\)"),
    ],
)
def test_bad_arguments_of_the_mean_squared_error(outputs, targets, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        fastbptt.mean_squared_error(outputs, targets)
