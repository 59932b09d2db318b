"""No kernel reads or writes beyond an array: here each one lies between two pages that may not be touched, close to one of them."""

import pytest
from processes import run_python

GUARDED = """
import ctypes
import itertools
import mmap
import sys

import numpy as np

import fastbptt
from fastbptt._kernels import memory
from problems import ONE_OF_EACH, assert_results_same_bits, random_problem
from test_jvp import tangents, tangents_of
from tolerances import DTYPES

libc = ctypes.CDLL(None)
PAGE = mmap.PAGESIZE
AT_END = sys.argv[1] == "end"


def empty(shape, dtype=float):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = -(-size // PAGE) * PAGE
    pages = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for guard in (start, start + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0) == 0
    return np.frombuffer(pages, np.uint8, size, PAGE + (room - size if AT_END else 0)).view(dtype).reshape(shape)


def guarded(array):
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def zeros(shape, dtype):
    return guarded(np.zeros(shape, dtype))


def layers(cell, shape, tokens, dtype):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    expected = problem.results(fastbptt)
    for key, array in problem.arrays():
        problem = problem.with_array(key, guarded(array))
    kept = memory.empty, memory.zeros
    memory.empty, memory.zeros = empty, zeros
    assert_results_same_bits(problem.results(fastbptt), expected)
    memory.empty, memory.zeros = kept


def forward_mode(cell, shape, tokens, dtype):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    for key, array in problem.arrays():
        problem = problem.with_array(key, guarded(array))
    dots = {name: tuple(map(guarded, dot)) if name == "state" else guarded(dot) for name, dot in tangents_of(problem).items()}
    kept = memory.empty
    memory.empty = empty
    tangents(problem, dots)
    memory.empty = kept


def the_rest(n, dtype):
    rng = np.random.default_rng(n)
    x, d_out = (guarded(rng.standard_normal((7, size)).astype(dtype)) for size in (n, n + 1))
    layer = fastbptt.Linear(n, n + 1, dtype=dtype, rng=0)
    layer(x), layer.backward(d_out)
    fastbptt.softmax_cross_entropy(x, guarded(rng.integers(0, n, 7)), mask=guarded(rng.random(7) < 0.7))
    for p in (1, 2, 3, np.inf):
        fastbptt.clip_grad_norm_([x, d_out], 0.5, p)
    fastbptt.clip_grad_value_(x, 0.01)


fastbptt.set_num_threads(2)
for dtype in DTYPES:
    for cell, shape, tokens in itertools.product(ONE_OF_EACH, [(1, 1, 1, 1), (5, 3, 4, 7), (30, 17, 9, 33), (9, 2, 35, 130)], [False, True]):
        layers(cell, shape, tokens, dtype)
        forward_mode(cell, shape, tokens, dtype)
    for n in [*range(1, 35), 513, 1030]:
        the_rest(n, dtype)
print("alive")
"""


@pytest.mark.parametrize("side", ["start", "end"])
def test_nothing_is_touched_beyond_an_array(side):
    assert run_python(GUARDED, side) == "alive\n"
