"""Lists of arrays that kernels write: what is refused before anything is written, and what is done by one call."""

import numpy as np
import pytest
from test_clipping import UNFIT
from tolerances import DTYPES

from fastbptt._kernels import chunks, kernels

LARGE = 40_001  # elements, of several chunks


def sgd(*arrays):
    """A step of 1, planned; its arrays are a parameter, its gradient and its momentum, if any, and so on."""
    return kernels[arrays[0].dtype].sgd(list(arrays), 1.0, 0.5, 0.0, 0.0, False, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_before_it_is_carried_out(dtype):
    arrays = [np.full(size, value, dtype) for size in (3, 0, LARGE) for value in (5, 2, 4)]
    arrays[2] = None
    update = sgd(*arrays)
    assert all((p == 5).all() for p in arrays[::3])
    chunks.carry_out([update])
    assert (arrays[0] == 3).all() and (arrays[6] == 1).all() and (arrays[8] == 4).all()
    assert all((g == 2).all() for g in arrays[1::3])


def test_attributes_are_set_last():
    """Whatever a subclass makes of setting them, which may raise when all is written."""

    class Owner:
        a, b = (property(fset=lambda self, value, name=name: seen.update({name: (value, p[0])})) for name in "ab")

        def __setattr__(self, name, value):
            raise AssertionError(name)

    seen, p, q = {}, np.ones(3), np.ones(LARGE, np.float32)
    chunks.carry_out([sgd(p, np.ones(3), None), sgd(q, np.ones_like(q), None)], Owner(), a=1, b="two")
    assert seen == {"a": (1, 0.0), "b": ("two", 0.0)} and not q.any()


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit_arrays_are_refused(kind):
    with pytest.raises((BufferError, ValueError)):
        sgd(np.ones(4), np.ones(4), None, UNFIT[kind](), np.ones(4), None)


def test_arrays_of_a_group_are_of_one_size():
    for others in ((np.ones(4), None), (np.ones(3), np.ones(4)), (np.ones(3, np.float32), None)):
        with pytest.raises(ValueError, match="of different sizes"):
            sgd(np.ones(3), *others)
    target = np.ones(4)
    with pytest.raises(ValueError, match="of different sizes"):
        chunks.copy([target, np.zeros(4), np.ones(4), np.zeros(5)])
    assert (target == 1).all()


def test_what_is_only_read_may_be_read_only():
    p, g = np.ones(3), np.ones(3)
    g.flags.writeable = False
    chunks.carry_out([sgd(p, g, None)])
    assert not p.any()
    with pytest.raises(ValueError, match="read-only"):
        sgd(g, p, None)


def test_copying_and_zeroing_arrays_of_any_dtype():
    targets = [np.zeros((3, 5)), np.zeros(LARGE, np.float32), np.zeros(0), np.zeros((2, 7), np.float32)]
    values = [np.random.default_rng(i).standard_normal(target.shape).astype(target.dtype) for i, target in enumerate(targets)]
    chunks.copy([array for pair in zip(targets, values) for array in pair])
    for target, value in zip(targets, values):
        np.testing.assert_array_equal(target, value)
    chunks.zero(targets)
    assert not any(target.any() for target in targets)


def test_disjoint():
    whole, other = np.ones(10), np.ones(3, np.float32)
    assert chunks.disjoint([whole[5:], other, whole[:5]])
    assert not chunks.disjoint([whole[5:], other, whole[:6]])


def test_disjoint_in_any_order_of_addresses():
    """Of so many that looking at each pair would take minutes."""
    n = 100_000
    parts = list(np.ones((n, 2)))
    rng = np.random.default_rng(0)
    for order in (range(n), range(n)[::-1], [*range(n // 2, n), *range(n // 2)], rng.permutation(n)):
        shuffled = [parts[i] for i in order]
        assert chunks.disjoint(shuffled)
        twice = int(rng.integers(n))
        assert not chunks.disjoint([*shuffled, parts[twice][1:]]) and not chunks.disjoint([parts[twice][:1], *shuffled])


def test_an_empty_array_at_the_beginning_of_another_overlaps_nothing():
    whole = np.ones(3)
    assert chunks.disjoint([whole[:0], whole]) and chunks.disjoint([whole, whole[:0]]) and chunks.disjoint([whole, whole[:0], whole[:0]])
