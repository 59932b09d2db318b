"""Forward mode: against the reference, complex steps and the backward pass; bits, rows of different lengths, what is not finite, bad input."""

import copy
import re

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, WEIGHTS, arrays_of, cells_and_shapes, random_problem
from remembered import remembered
from test_core import RAGGED, Ragged
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits, bound

import fastbptt
import fastbptt.reference
from fastbptt._kernels import kernels, memory
from fastbptt.cells import CELLS as ROWS
from fastbptt.tape import kernel_arguments

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", CELLS)
ONE_CELL = pytest.mark.parametrize("cell", ONE_OF_EACH)
STEP = 1e-30  # of the complex step

# One number of everything; several blocks of time; few rows and many units, so that threads share the units, in several blocks too; many
# rows, also with more units than fit a block; no steps, no rows.
SHAPES = [
    (5, 3, 4, 7), (1, 1, 1, 1), (1, 1, 9, 130), (30, 17, 9, 33), (260, 2, 5, 19), (180, 3, 7, 136), (520, 1, 40, 24), (6, 65, 31, 80),
    (2, 70, 6, 300), (0, 3, 4, 7), (4, 0, 3, 5), (0, 0, 2, 3),
]  # fmt: skip


def tangents_of(problem, seed=0, only=None):
    """Random tangents by the names of a jvp's arguments, states as tuples; or ``only`` one, where a state's is (name, index)."""
    rng = np.random.default_rng([seed, 17])
    wide = {
        name: rng.standard_normal(array.shape) for name, array in problem.arrays() if array.dtype.kind == "f" and name in ("x", *WEIGHTS)
    }
    wide["state"] = tuple(rng.standard_normal(array.shape) for array in problem.state)
    dtype = problem.w_hh.dtype
    dots = {name: tuple(s.astype(dtype) for s in dot) if name == "state" else dot.astype(dtype) for name, dot in wide.items()}
    if only is None:
        return dots
    if isinstance(only, str):
        return {only: dots[only]}
    return {"state": tuple(dot if i == only[1] else None for i, dot in enumerate(dots["state"]))}


def arguments(problem):
    """All that can have a tangent alone: names, and (state, index)."""
    return [*(name for name in tangents_of(problem) if name != "state"), *(("state", i) for i in range(problem.cell.states))]


def run(module, problem, tape, dots):
    """The tangents (out, states...) of a jvp by ``module``."""
    given = {name: ROWS[problem.cell.prefix].state(dot) if name == "state" else dot for name, dot in dots.items()}
    out_dot, state_dot = getattr(module, f"{problem.cell.prefix}_jvp")(tape, **given)
    return out_dot, *arrays_of(state_dot)


def in_dtype(dots, dtype):
    return {name: tuple(s.astype(dtype) for s in dot) if name == "state" else dot.astype(dtype) for name, dot in dots.items()}


def tangents(problem, dots):
    return run(fastbptt, problem, problem.forward(fastbptt)[2], dots)


def moved(problem, dots):
    """The problem, an infinitesimal step in the direction of the tangents away."""
    for name, dot in dots.items():
        if name == "state":
            for i, part in enumerate(dot):
                if part is not None:
                    problem = problem.with_array(("state", i), problem.state[i] + 1j * STEP * part)
        else:
            problem = problem.with_array(name, getattr(problem, name) + 1j * STEP * dot)
    return problem


# --- Right ------------------------------------------------------------------------------------------------------------


@EACH_CELL
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_the_reference_by_complex_steps(cell, tokens):
    problem = random_problem(cell, 5, 3, 4, 7, tokens=tokens)
    _, _, tape = problem.forward(fastbptt.reference)
    for only in (None, *arguments(problem)):
        dots = tangents_of(problem, only=only)
        out, state, _ = moved(problem, dots).forward(fastbptt.reference)
        got = run(fastbptt.reference, problem, tape, dots)
        for a, b in zip(got, (out, *arrays_of(state)), strict=True):
            np.testing.assert_allclose(a, b.imag / STEP, rtol=1e-12, atol=1e-13, err_msg=str(only))


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize(("cell", "shape"), cells_and_shapes(SHAPES), ids=str)
def test_against_the_reference(cell, shape, tokens, dtype, threads):
    """All tangents at once, at one thread and at two."""
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens, gain=0.6)
    dots = tangents_of(problem)
    assert_right(problem, [dots], threads)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (70, 2, 11, 130), (20, 33, 5, 40)], ids=str)
@EACH_CELL
def test_each_argument_alone(cell, shape, dtype, threads):
    problem = random_problem(cell, *shape, dtype=dtype, gain=0.6)
    assert_right(problem, [tangents_of(problem, only=only) for only in arguments(problem)], threads)


@remembered
def oracle(problem, tangents_given):
    """What the reference says, in a wider type, of each of these sets of tangents."""
    wide = problem.astype(TOLERANCES[problem.w_hh.dtype].oracle)
    with np.errstate(over="ignore"):
        _, _, tape = wide.forward(fastbptt.reference)
        return [run(fastbptt.reference, wide, tape, dots) for dots in tangents_given]


def assert_right(problem, tangents_given, threads):
    """Each of these sets of tangents alone."""
    dtype = problem.w_hh.dtype
    limit = bound(dtype, problem.K, len(problem.x))
    for dots, expected in zip(tangents_given, oracle(problem, tangents_given)):
        assert any(e.any() for e in expected) or problem.state[0].size < 2  # a single unit may be at rest
        scale = max(np.abs(e).max(initial=0) for e in expected)
        for n in (1, 2):
            threads(n)
            for name, a, b in zip(("out", "h_n", "c_n"), tangents(problem, dots), expected):
                assert a.dtype == dtype
                assert_close(f"{name} of {', '.join(dots)} at {n} threads", a, b.reshape(a.shape), limit, scale)


@pytest.mark.parametrize("seed", range(7))
@EACH_CELL
def test_it_is_the_transpose_of_the_backward_pass(cell, seed):
    """<v, jvp u> = <vjp v, u>, for each argument alone and all together, relative to the sizes of the terms."""
    rng = np.random.default_rng([seed, 5])
    for _ in range(6):
        T, B, I, H = (int(rng.integers(low, high)) for low, high in ((0, 50), (0, 25), (1, 20), (1, 50)))
        biases = (bool(rng.integers(2)), bool(rng.integers(2)))
        problem = random_problem(cell, T, B, I, H, seed=seed, tokens=bool(rng.integers(3) == 0), biases=biases)
        _, _, tape = problem.forward(fastbptt)
        grads = problem.backward(fastbptt, tape)
        for only in (None, *arguments(problem)):
            dots = tangents_of(problem, seed, only)
            left = [v * u for v, u in zip((problem.d_out, *problem.d_state), run(fastbptt, problem, tape, dots))]
            right = [getattr(grads, name) * dot for name, dot in dots.items() if name != "state"]
            right += [v * u for v, u in zip(arrays_of(grads.state), dots.get("state", ())) if u is not None]
            size = sum(np.abs(term).sum() for term in (*left, *right))
            difference = sum(term.sum() for term in left) - sum(term.sum() for term in right)
            assert abs(difference) <= 1e-12 * size, (T, B, I, H, only)


@EACH_CELL
def test_nothing_changes_nothing(cell):
    problem = random_problem(cell, 6, 3, 4, 7)
    for dot in tangents(problem, {}):
        np.testing.assert_array_equal(dot, 0)


@EACH_CELL
def test_a_tangent_of_zeros_is_none(cell):
    problem = random_problem(cell, 6, 3, 4, 7)
    dots = tangents_of(problem, only="w_hh")
    zeros = {
        name: tuple(np.zeros_like(s) for s in dot) if name == "state" else np.zeros_like(dot) for name, dot in tangents_of(problem).items()
    }
    for a, b in zip(tangents(problem, zeros | dots), tangents(problem, dots), strict=True):
        np.testing.assert_array_equal(a, b)


@EACH_DTYPE
@ONE_CELL
def test_a_tape_is_read_and_its_parts_have_tangents(cell, dtype):
    """A tape may be used again; that of the last steps goes on from the state before them."""
    problem = random_problem(cell, 9, 3, 4, 7, dtype=dtype)
    _, _, tape = problem.forward(fastbptt)
    dots = tangents_of(problem)
    whole, again = run(fastbptt, problem, tape, dots), run(fastbptt, problem, tape, dots)
    first = problem.steps(0, 4, problem.state)
    begun = run(fastbptt, first, first.forward(fastbptt)[2], dots | {"x": dots["x"][:4]})
    rest = run(fastbptt, problem, tape.last(5), dots | {"x": dots["x"][4:], "state": begun[1:]})
    alone = {"x": np.ascontiguousarray(dots["x"][:, 1:2]), "state": tuple(s[1:2] for s in dots["state"])}
    row = run(fastbptt, problem, tape.row(1), dots | alone)
    for a, b in zip(whole, again, strict=True):
        assert_same_bits("again", a, b)
    assert_same_bits("out", np.concatenate([begun[0], rest[0]]), whole[0])
    assert_same_bits("out of a row", row[0], np.ascontiguousarray(whole[0][:, 1:2]))
    for a, b, c in zip(rest[1:], row[1:], whole[1:], strict=True):
        assert_same_bits("state", a, c)
        assert_same_bits("state of a row", b, c[1:2])


# --- Bits -------------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize(
    "shape", [(50, 7, 20, 33), (1, 64, 70, 70), (400, 1, 40, 24), (20, 65, 31, 80), (300, 3, 9, 144), (7, 2, 9, 167)], ids=str
)
@ONE_CELL
def test_any_thread_count(cell, shape, tokens, dtype, threads):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    dots = tangents_of(problem)
    _, _, tape = problem.forward(fastbptt)
    threads(1)
    expected = run(fastbptt, problem, tape, dots)
    for n in (1, 2, 3, 5, 16):
        threads(n)
        for a, b in zip(run(fastbptt, problem, tape, dots), expected, strict=True):
            assert_same_bits(f"{n} threads", a, b)


@EACH_DTYPE
@pytest.mark.parametrize("sizes", [(11, 5, 13), (6, 40, 65), (40, 9, 150)], ids=str)
@EACH_CELL
def test_a_row_in_any_batch(cell, sizes, dtype, threads):
    T, I, H = sizes
    problem = random_problem(cell, T, 33, I, H, dtype=dtype)
    dots = tangents_of(problem)
    for n in (1, 2):
        threads(n)
        whole = tangents(problem, dots)
        for rows in ([0], [31], [3, 5], list(range(7)), list(range(32, 10, -1))):
            part = dots | {"x": np.ascontiguousarray(dots["x"][:, rows]), "state": tuple(s[rows] for s in dots["state"])}
            got = tangents(problem.rows(rows), part)
            assert_same_bits(f"out of {rows}", got[0], whole[0][:, rows])
            for a, b in zip(got[1:], whole[1:], strict=True):
                assert_same_bits(f"state of {rows}", a, b[rows])


@EACH_DTYPE
@ONE_CELL
def test_dirty_memory(cell, dtype):
    """What memory held before is not looked at."""
    for shape in ((5, 3, 4, 7), (300, 2, 5, 130), (20, 33, 5, 40)):
        problem = random_problem(cell, *shape, dtype=dtype)
        for only in (None, *arguments(problem)):
            dots = tangents_of(problem, only=only)
            expected = tangents(problem, dots)
            for block in [memory.Block(1 << exponent) for exponent in range(12, 24)]:
                np.frombuffer(block, np.uint8).fill(0xFF)
            del block
            for a, b in zip(tangents(problem, dots), expected, strict=True):
                assert_same_bits(str(only), a, b)


# --- The layout of time -----------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("ragged", RAGGED.values(), ids=RAGGED)
@ONE_CELL
def test_rows_of_different_lengths(cell, ragged, dtype, threads):
    """In the kernel, as `time.pxi` lays them out: each row has the bits that it has alone."""
    problem = Ragged(cell, *ragged, dtype)
    p, (T, B), H = problem.problem, problem.there.shape, problem.problem.w_hh.shape[1]
    dots = tangents_of(p)
    _, _, tape = p.forward(fastbptt)
    numbers, (w_ih, w_hh, leak, h, c, gates, m) = kernel_arguments(tape)
    packed = {"x": problem.packed(p.x)[:, None], "x_dot": problem.packed(dots["x"])[:, None]}

    def steps(array):
        return None if array is None else problem.packed(array)[:, None]

    def history(array):
        return None if array is None else np.concatenate([array[0], problem.packed(array[1:])])[:, None]

    expected = {}
    for b in {0, B // 2, B - 1}:
        if problem.lengths[b]:
            part = {"x": dots["x"][: problem.lengths[b], [b]].copy(), "state": tuple(s[[b]] for s in dots["state"])}
            expected[b] = tangents(problem.alone([b]), dots | part)
    for n in (1, 2, 3):
        threads(n)
        h_dot = np.concatenate([dots["state"][0], np.full((problem.first[-1], H), np.nan, dtype)])[:, None]
        c_dot = dots["state"][1].copy() if c is not None else None
        before = (packed["x"], None, w_ih, w_hh, leak, history(h), history(c), steps(gates), steps(m), packed["x_dot"])
        kernels[np.dtype(dtype)].jvp(*numbers, *before, *(dots[name] for name in WEIGHTS), h_dot, c_dot, problem.first)
        got = np.zeros((T, B, H), dtype)
        got[problem.there] = h_dot[B:, 0]
        for b, (out_dot, *state_dot) in expected.items():
            assert_same_bits(f"row {b}, {n} threads", got[: problem.lengths[b], b], np.ascontiguousarray(out_dot[:, 0]))
            if c_dot is not None:
                assert_same_bits(f"c_dot of row {b}, {n} threads", c_dot[b], state_dot[1][0])
        if c_dot is not None and not problem.lengths[-1]:
            assert_same_bits("c_dot of an empty row", c_dot[-1], dots["state"][1][-1])


# --- NaN and inf ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "state"])
@pytest.mark.parametrize("shape", [(6, 9, 4, 7), (40, 20, 30, 33)], ids=str)
@EACH_DTYPE
@EACH_CELL
def test_a_nonfinite_tangent_stays_in_its_row(cell, dtype, shape, where, bad):
    problem = random_problem(cell, *shape, dtype=dtype)
    dots = tangents_of(problem)
    expected = tangents(problem, dots)
    dirty = copy.deepcopy(dots)
    (dirty["state"][0][5] if where == "state" else dirty["x"][3, 5])[1] = bad
    got = tangents(problem, dirty)
    others = np.arange(shape[1]) != 5
    assert_same_bits("out", got[0][:, others], expected[0][:, others])
    assert not np.isfinite(got[0][:, 5]).all()
    if where == "x":
        assert_same_bits("out before", got[0][:3], expected[0][:3])


@EACH_DTYPE
@EACH_CELL
def test_what_is_not_finite_is_as_in_the_reference(cell, dtype):
    problem = copy.deepcopy(random_problem(cell, dtype=dtype))
    dots = copy.deepcopy(tangents_of(problem))
    problem.x[1, 0, 2], dots["x"][2, 1, 0], dots["x"][1, 2, 3] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        wide = problem.astype(float)
        expected = run(fastbptt.reference, wide, wide.forward(fastbptt.reference)[2], in_dtype(dots, float))
    for a, b in zip(tangents(problem, dots), expected, strict=True):
        if CELLS[cell].options.get("nonlinearity") == "relu":  # a unit at rest lets nothing through; in the reference, 0 times inf
            a, b = np.where(np.isnan(b), 0, a), np.where(np.isnan(b), 0, b)
        np.testing.assert_allclose(a, b, rtol=1000 * np.finfo(dtype).eps, atol=1000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", WEIGHTS)
@EACH_DTYPE
@EACH_CELL
def test_nonfinite_tangents_of_weights_come_through(cell, name, dtype):
    problem = random_problem(cell, 40, 20, 30, 33, dtype=dtype)
    dots = tangents_of(problem)
    dots[name].flat[0] = np.nan
    got = tangents(problem, dots)[0]
    if CELLS[cell].options.get("nonlinearity") != "relu":  # a unit at rest lets nothing through, NaN neither
        assert np.isnan(got[-1]).all()


# --- Bad input --------------------------------------------------------------------------------------------------------


def named(cell, key):
    """What errors call an argument."""
    return key if isinstance(key, str) else f"state[{key[1]}]" if CELLS[cell].states == 2 else "state"


def with_tangent(problem, key, value):
    if isinstance(key, str):
        return {key: value}
    return {"state": tuple(value if i == key[1] else None for i in range(problem.cell.states))}


@pytest.mark.parametrize(("cell", "key"), [(cell, key) for cell in ONE_OF_EACH for key in arguments(random_problem(cell))], ids=str)
def test_each_argument_is_looked_at(cell, key):
    problem = random_problem(cell)
    _, _, tape = problem.forward(fastbptt)
    good = dict(tangents_of(problem))
    dot = good[key] if isinstance(key, str) else good["state"][key[1]]
    name = re.escape(named(cell, key))
    for wrong in (np.zeros((*dot.shape, 1)), np.zeros(dot.shape[:-1]), np.zeros((dot.shape[0] + 1, *dot.shape[1:])), np.zeros(0)):
        with pytest.raises(ValueError, match=rf"^{name}: expected shape {re.escape(str(dot.shape))}, got {re.escape(str(wrong.shape))}$"):
            run(fastbptt, problem, tape, with_tangent(problem, key, wrong))
    for wrong in (np.float32, np.float16, np.int64, complex, object):
        with pytest.raises(TypeError, match=rf"^{name}: expected dtype float64 like the other arrays of this call, got {np.dtype(wrong)}$"):
            run(fastbptt, problem, tape, with_tangent(problem, key, dot.astype(wrong)))
    for wrong in (dot.tolist(), 1.0, "x"):
        with pytest.raises(TypeError, match=rf"^{name}: expected a NumPy array, got "):
            run(fastbptt, problem, tape, with_tangent(problem, key, wrong))
    strided = np.repeat(dot, 2, axis=-1)[..., ::2]  # another layout is none of these
    for a, b in zip(*(run(fastbptt, problem, tape, with_tangent(problem, key, value)) for value in (strided, dot)), strict=True):
        assert_same_bits(str(key), a, b)


@ONE_CELL
def test_there_is_nothing_that_it_could_be_the_tangent_of(cell):
    problem = random_problem(cell, tokens=True, biases=(False, False))
    _, _, tape = problem.forward(fastbptt)
    jvp = getattr(fastbptt, f"{problem.cell.prefix}_jvp")
    with pytest.raises(ValueError, match=r"^x: expected None, as tokens have no tangent, got ndarray of shape \(5, 3, 4\)"):
        jvp(tape, x=np.ones((5, 3, 4)))
    for name in ("b_ih", "b_hh"):
        with pytest.raises(ValueError, match=rf"^{name}: expected None, as the forward pass had no such bias, got ndarray of shape"):
            jvp(tape, **{name: np.ones(len(problem.w_hh))})


def test_the_state_of_an_lstm_is_a_pair():
    _, _, tape = random_problem("lstm").forward(fastbptt)
    for wrong in (np.ones((2, 3, 7)), (np.ones((3, 7)),), 3):
        with pytest.raises(TypeError, match=r"^state: expected a pair of arrays or None, got "):
            fastbptt.lstm_jvp(tape, state=wrong)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_tape_of_another_cell(cell):
    jvp, other = getattr(fastbptt, f"{cell}_jvp"), "gru" if cell == "rnn" else "rnn-tanh"
    _, _, tape = random_problem(other).forward(fastbptt)
    with pytest.raises(ValueError, match=rf"^tape: expected the tape of {cell}_forward, got that of {other[:3]}_forward$"):
        jvp(tape)
    for wrong in (None, 3, fastbptt.Tape(), random_problem(other).forward(fastbptt.reference)[2]):
        with pytest.raises(TypeError, match=rf"^tape: expected the tape of {cell}_forward, got "):
            jvp(wrong)


def test_an_array_resized_since_the_forward_pass():
    problem = copy.deepcopy(random_problem("gru"))
    _, _, tape = problem.forward(fastbptt)
    problem.w_ih.resize((20, 4), refcheck=False)
    with pytest.raises(RuntimeError, match=r"^tape: an array of the forward pass was reshaped or resized"):
        fastbptt.gru_jvp(tape)


def test_results_are_arrays_of_their_own():
    problem = random_problem("lstm")
    _, _, tape = problem.forward(fastbptt)
    dots = tangents_of(problem)
    before = copy.deepcopy(dots)
    out_dot, h_dot, c_dot = run(fastbptt, problem, tape, dots)
    out_dot[...], h_dot[...], c_dot[...] = 1, 2, 3
    assert (out_dot == 1).all() and not np.shares_memory(h_dot, out_dot)
    for a, b in zip((*dots.pop("state"), *dots.values()), (*before.pop("state"), *before.values()), strict=True):
        np.testing.assert_array_equal(a, b)
