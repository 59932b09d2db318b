"""The kernels' outputs and gradients, all of them, against the reference and against PyTorch.

FASTBPTT_TEST_SHAPES is the number of random shapes for each cell and precision, 200 unless set.
"""

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from problems import (
    CELLS,
    GATED,
    ONE_OF_EACH,
    PLAIN,
    WEIGHTS,
    arrays_of,
    assert_results_close,
    assert_results_same_bits,
    cells_and_shapes,
    histories,
    random_problem,
)
from remembered import remembered
from tolerances import DTYPES, TOLERANCES, assert_close, bound

import fastbptt
import fastbptt.reference

# T, B, I, H: ones, sizes one past every vector and tile width, more rows than a tile, enough work for threads, several blocks of time.
AWKWARD = [
    (1, 1, 1, 1),
    (1, 3, 4, 7),
    (5, 1, 4, 7),
    (5, 3, 1, 7),
    (5, 3, 4, 1),
    (5, 3, 4, 7),
    (2, 2, 2, 2),
    (3, 2, 3, 3),
    (4, 5, 5, 5),
    (3, 9, 9, 9),
    (2, 4, 16, 16),
    (4, 17, 17, 17),
    (2, 13, 25, 33),
    (3, 6, 31, 65),
    (2, 25, 80, 79),
    (7, 33, 3, 24),
    (3, 64, 8, 8),
    (2, 65, 7, 49),
    (300, 7, 5, 6),
    (600, 1, 3, 11),
    (1100, 1, 2, 4),
    (60, 20, 30, 65),
    (90, 11, 70, 41),
    (2, 300, 5, 9),
    (1, 520, 3, 5),
    (3, 2, 600, 5),
    (2, 2, 5, 140),
]


def random_shapes(count, seed=0):
    """Mostly small, for speed; each size is drawn with small values likely and large ones possible."""
    rng = np.random.default_rng(seed)
    largest = np.array([30, 40, 60, 80])
    return [tuple(int(n) for n in np.ceil(largest * rng.random(4) ** 2.5)) for _ in range(count)]


RANDOM = random_shapes(int(os.environ.get("FASTBPTT_TEST_SHAPES", 200)))
AT_A_TIME = 20
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@remembered
def oracle(problem, **options):
    """What the reference says, in a wider type."""
    return problem.astype(TOLERANCES[problem.w_ih.dtype].oracle).results(fastbptt.reference, **options)


def assert_right(problem, got, **options):
    T = max(1, len(problem.x))
    assert_results_close(got, oracle(problem, **options), bound(problem.w_ih.dtype, problem.K, T))


@EACH_DTYPE
@pytest.mark.parametrize(("cell", "shape"), cells_and_shapes(AWKWARD), ids=str)
def test_against_reference(cell, shape, dtype):
    problem = random_problem(cell, *shape, dtype=dtype)
    got = problem.results(fastbptt)
    assert {array.dtype for array in got.values()} == {dtype}
    assert_right(problem, got)


@EACH_DTYPE
@pytest.mark.parametrize("start", range(0, len(RANDOM), AT_A_TIME))
@pytest.mark.parametrize("cell", CELLS)
def test_random_shapes_against_reference(cell, start, dtype):
    for seed, shape in enumerate(RANDOM[start : start + AT_A_TIME]):
        problem = random_problem(cell, *shape, dtype=dtype, seed=seed)
        try:
            assert_right(problem, problem.results(fastbptt))
        except AssertionError as error:
            raise AssertionError(f"T, B, I, H = {shape}, seed={seed}: {error}") from error


@EACH_DTYPE
@pytest.mark.parametrize("leak", ["one", "per unit"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
def test_a_leak_with_each_nonlinearity(nonlinearity, leak, dtype):
    for seed, shape in enumerate([(5, 3, 4, 7), (300, 2, 5, 6), (20, 17, 9, 33)]):
        problem = random_problem(f"rnn-{nonlinearity}", *shape, dtype=dtype)
        a = 1 - np.random.default_rng(seed).random(shape[3]).astype(dtype)
        problem = replace(problem, leak=float(a[0]) if leak == "one" else a)
        assert_right(problem, problem.results(fastbptt))


@EACH_DTYPE
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
def test_a_leak_of_one_is_no_leak(nonlinearity, dtype):
    problem = random_problem(f"rnn-{nonlinearity}", 20, 9, 5, 17, dtype=dtype)
    expected = problem.results(fastbptt)
    for leak in (1, 1.0, np.float32(1), np.ones(17, dtype)):
        for name, array in replace(problem, leak=leak).results(fastbptt).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


@EACH_DTYPE
def test_one_leak_is_that_leak_for_each_unit(dtype):
    problem = random_problem("leaky-tanh", dtype=dtype)
    each = np.full(7, problem.leak, dtype)
    assert_results_same_bits(replace(problem, leak=each).results(fastbptt), problem.results(fastbptt))
    assert_results_same_bits(replace(problem, leak=np.float64(problem.leak)).results(fastbptt), problem.results(fastbptt))


@pytest.mark.one_level
@pytest.mark.parametrize(("cell", "T"), [("rnn-tanh", 100_000), ("leaky-relu-units", 10_000), ("gru", 10_000), ("lstm", 10_000)])
def test_a_long_sequence_of_one_unit(cell, T):
    """Both sides sum so many terms one by one that rounding differs: the sums are compared less strictly."""
    problem = random_problem(cell, T=T, B=1, I=1, H=1)
    assert_results_close(problem.results(fastbptt), problem.results(fastbptt.reference), 1e-12)


@pytest.mark.one_level
@EACH_DTYPE
@pytest.mark.parametrize("spread", [0.0, 0.02])
@pytest.mark.parametrize("shape", [(100, 64, 1, 1), (2000, 64, 3, 5), (20_000, 8, 2, 40), (3000, 2, 40, 160), (1, 5000, 3, 5)], ids=str)
def test_long_sums_of_one_sign(shape, spread, dtype):
    """Rounding errors of one sign must not accumulate. The sums are known, since the net is linear."""
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    x, d_out = ((0.1 + spread * rng.random(size)).astype(dtype) for size in ((T, B, I), (T, B, H)))
    w_ih, b = np.full((H, I), 1 / I, dtype), np.zeros(H, dtype)
    _, _, tape = fastbptt.rnn_forward(x, None, w_ih, np.zeros((H, H), dtype), b, nonlinearity="identity")
    grads = fastbptt.rnn_backward(tape, d_out)
    oracle = TOLERANCES[dtype].oracle
    expected = {
        "b_ih": d_out.sum((0, 1), dtype=oracle),
        "w_ih": sum_of_products(d_out, x, oracle),
        "w_hh": sum_of_products(d_out, tape.h[:-1], oracle),
    }
    for name, array in expected.items():
        assert_close(name, getattr(grads, name), array, bound(dtype, H, T))


def sum_of_products(a, b, dtype):
    """Over time and rows, in pieces: NumPy's product of long doubles is slow, and slower still for many small arrays."""
    a, b = (array.reshape(-1, array.shape[-1]) for array in (a, b))
    pieces = range(0, len(a), 4096)
    return sum(a[i : i + 4096].T.astype(dtype) @ b[i : i + 4096].astype(dtype) for i in pieces)


# --- The tape ---------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (1, 1, 1, 1), (40, 17, 9, 33), (30, 1, 6, 150), (600, 1, 3, 11)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_tape_is_that_of_the_reference(cell, shape, tokens, dtype):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    _, _, tape = problem.forward(fastbptt)
    _, _, expected = problem.astype(TOLERANCES[dtype].oracle).forward(fastbptt.reference)
    plain = problem.cell.prefix == "rnn" and problem.leak is None
    if plain:
        np.testing.assert_array_equal(expected.gates, expected.h[1:])
    for name in ("h", "c", "m") if plain else ("h", "c", "gates", "m"):
        assert_close(name, getattr(tape, name), getattr(expected, name), bound(dtype, problem.K, shape[0]))
    assert (tape.c is None) == (problem.cell.states == 1) and (tape.m is None) == (expected.m is None)
    assert tape.gates is None if plain else tape.gates.dtype == dtype
    assert tape.h.dtype == dtype
    for name in ("x", *WEIGHTS, "leak"):
        assert (getattr(tape, name) is None) == (getattr(expected, name) is None), name


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (1, 1, 1, 1), (40, 17, 9, 33), (300, 7, 5, 6), (2, 3, 200, 5)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_tokens_against_one_hot_rows(cell, shape, dtype):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=True)
    got = problem.results(fastbptt)
    assert got["d_x"] is None
    assert_right(problem, got)
    one_hot = problem.with_array("x", np.eye(problem.w_ih.shape[1], dtype=dtype)[problem.x]).results(fastbptt)
    assert one_hot.pop("d_x").shape == (*problem.x.shape, problem.w_ih.shape[1])
    del got["d_x"]
    assert_results_close(got, one_hot, bound(dtype, problem.K, shape[0]))


@EACH_DTYPE
@pytest.mark.parametrize("cell", PLAIN)
def test_a_large_vocabulary(cell, dtype):
    """The tokens that occur are a small one of its own, whose results have the same bits."""
    problem = random_problem(cell, 6, 4, 9000, 40, dtype=dtype, tokens=True)
    used, renamed = np.unique(problem.x, return_inverse=True)
    small = replace(problem, x=renamed.reshape(problem.x.shape), w_ih=problem.w_ih[:, used])
    got, expected = problem.results(fastbptt), small.results(fastbptt)
    d_w_ih = got["d_w_ih"]
    got["d_w_ih"] = d_w_ih[:, used]
    assert_results_same_bits(got, expected)
    assert not np.delete(d_w_ih, used, axis=1).any()


@pytest.mark.parametrize("integer", [np.int8, np.uint16, np.int32, np.uint64, ">i4"])
@pytest.mark.parametrize("cell", ["rnn-tanh", "gru"])
def test_tokens_of_any_integer_type(cell, integer):
    problem = random_problem(cell, tokens=True)
    assert_results_same_bits(problem.with_array("x", problem.x.astype(integer)).results(fastbptt), problem.results(fastbptt))


@pytest.mark.one_level
@pytest.mark.parametrize("cell", [name for name in CELLS if CELLS[name].torch])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 4, 7), (20, 17, 9, 33), (300, 7, 5, 6), (60, 20, 30, 65)], ids=str)
@EACH_DTYPE
def test_against_torch(cell, shape, dtype, torch):
    problem = random_problem(cell, *shape, dtype=dtype)
    name, options = problem.cell.torch
    module = getattr(torch.nn, name)(shape[2], shape[3], dtype=getattr(torch, dtype.name), **options)
    weights = {
        f"{kind}_l0": getattr(problem, short)
        for kind, short in [("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh")]
    }
    module.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    x = torch.from_numpy(problem.x).requires_grad_()
    start = [torch.from_numpy(s[None]).requires_grad_() for s in problem.state]
    out, end = module(x, start[0] if len(start) == 1 else tuple(start))
    end = (end,) if isinstance(end, torch.Tensor) else end
    ends = [torch.from_numpy(d[None]) for d in problem.d_state]
    torch.autograd.backward([out, *end], [torch.from_numpy(problem.d_out), *ends])
    expected = {"out": out} | {f"final state {i}": s[0] for i, s in enumerate(end)} | {"d_x": x.grad}
    expected |= {f"d_{short}": getattr(module, key).grad for key, short in zip(weights, ("w_ih", "w_hh", "b_ih", "b_hh"))}
    expected |= {f"d_initial_state {i}": s.grad[0] for i, s in enumerate(start)}
    expected = {key: value.detach().numpy() for key, value in expected.items()}
    assert_results_close(problem.results(fastbptt), expected, TOLERANCES[dtype].torch, TOLERANCES[dtype].torch_relative)


# --- What may be left out ---------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("missing", ["state", "d_state", "d_out", "b_ih", "b_hh", "b_ih b_hh", "state d_state d_out b_ih b_hh"])
def test_without(cell, missing, dtype):
    problem = replace(random_problem(cell, dtype=dtype), **dict.fromkeys(missing.split()))
    got = problem.results(fastbptt)
    assert (got["d_b_ih"] is None, got["d_b_hh"] is None) == ("b_ih" in missing, "b_hh" in missing)
    assert_right(problem, got)


@EACH_DTYPE
@pytest.mark.parametrize("name", ["state", "d_state"])
@pytest.mark.parametrize("half", [0, 1])
def test_without_half_a_state(half, name, dtype):
    problem = random_problem("lstm", dtype=dtype)
    given = tuple(None if i == half else array for i, array in enumerate(getattr(problem, name)))
    zero = tuple(np.zeros_like(array) if i == half else array for i, array in enumerate(getattr(problem, name)))
    got = replace(problem, **{name: given}).results(fastbptt)
    assert_results_same_bits(got, replace(problem, **{name: zero}).results(fastbptt))
    assert_results_same_bits(got, replace(problem, **{name: list(given)}).results(fastbptt))
    assert_right(replace(problem, **{name: given}), got)


@EACH_DTYPE
@pytest.mark.parametrize("cell", CELLS)
def test_without_dx_the_rest_is_the_same(cell, dtype):
    problem = random_problem(cell, 30, 9, 20, 33, dtype=dtype)
    full, got = problem.results(fastbptt), problem.results(fastbptt, need_dx=False)
    assert got["d_x"] is None and full["d_x"] is not None
    assert_results_same_bits(got, full | {"d_x": None})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 7), (5, 0, 4, 7), (0, 0, 4, 7)], ids=str)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@EACH_DTYPE
def test_no_steps_or_no_rows(cell, shape, tokens, dtype):
    T, B, I, H = shape
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    got = problem.results(fastbptt)
    assert got["out"].shape == (T, B, H)
    for i, (state, d_state) in enumerate(zip(problem.state, problem.d_state)):
        np.testing.assert_array_equal(got[f"final state {i}"], state)
        np.testing.assert_array_equal(got[f"d_initial_state {i}"], d_state)
    assert got["d_x"] is None if tokens else got["d_x"].shape == (T, B, I)
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        np.testing.assert_array_equal(got[f"d_{name}"], np.zeros_like(getattr(problem, name)))


# --- Pieces of a sequence ---------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("cuts", [(0, 1, 23), (0, 10, 20, 23), tuple(range(24))], ids=str)
def test_pieces_with_a_carried_state_make_the_whole(cell, cuts, dtype):
    whole = random_problem(cell, 23, 3, 4, 7, dtype=dtype)
    expected = whole.results(fastbptt)
    limit = bound(dtype, whole.K, 23)

    state, pieces = whole.state, []
    for start, stop in itertools.pairwise(cuts):
        piece = whole.steps(start, stop, state=state)
        out, end, tape = piece.forward(fastbptt)
        assert_close(f"out {start}:{stop}", out, expected["out"][start:stop], limit)
        state = arrays_of(end)
        pieces.append((piece, tape, start, stop))

    d_state, sums = whole.d_state, dict.fromkeys(("w_ih", "w_hh", "b_ih", "b_hh"), 0)
    for piece, tape, start, stop in reversed(pieces):
        grads = replace(piece, d_state=d_state).backward(fastbptt, tape)
        assert_close(f"d_x {start}:{stop}", grads.x, expected["d_x"][start:stop], limit)
        d_state = arrays_of(grads.state)
        sums = {name: total + getattr(grads, name) for name, total in sums.items()}
    for name, total in sums.items():
        assert_close(f"d_{name}", total, expected[f"d_{name}"], limit)
    for i, array in enumerate(d_state):
        assert_close(f"d_initial_state {i}", array, expected[f"d_initial_state {i}"], limit)


@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_a_tape_stands_alone(cell, tokens):
    whole = random_problem(cell, 6, 3, 4, 7, tokens=tokens)
    alone = whole.rows([1])
    row = whole.forward(fastbptt)[2].row(1)
    got, expected = alone.backward(fastbptt, row), alone.backward(fastbptt, alone.forward(fastbptt)[2])
    assert_results_same_bits(got._replace(state=None)._asdict(), expected._replace(state=None)._asdict())
    assert len(row) == 6 and not row.h.flags.writeable


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_last_steps_of_a_tape_stand_alone(cell, tokens, dtype):
    whole = random_problem(cell, 23, 3, 4, 7, dtype=dtype, tokens=tokens)
    _, _, tape = whole.forward(fastbptt)
    tail = whole.steps(14, 23, state=tuple(history[14].copy() for history in histories(tape)), d_state=whole.d_state)
    _, _, own = tail.forward(fastbptt)
    got, expected = tail.backward(fastbptt, tape.last(9)), tail.backward(fastbptt, own)
    for i, (a, b) in enumerate(zip(arrays_of(got.state), arrays_of(expected.state))):
        assert_results_same_bits({f"state {i}": a}, {f"state {i}": b})
    assert_results_same_bits(got._replace(state=None)._asdict(), expected._replace(state=None)._asdict())
    assert tape.last(23) is tape and tape.last(99) is tape and len(tape.last(9)) == 9
    for name in ("h", "c", "gates", "m"):
        array, part = getattr(tape, name), getattr(tape.last(9), name)
        assert (array is None and part is None) or np.shares_memory(array, part)


# --- Memory layouts ---------------------------------------------------------------------------------------------------


def every_other(array):
    room = np.full((*array.shape[:-1], 2 * array.shape[-1]), -77).astype(array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


def half(array):
    return np.concatenate([array, np.full_like(array, 7)], axis=-1)[..., : array.shape[-1]]


def backwards(array):
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


def unaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def field_of_packed_records(array):
    records = np.empty(array.shape, np.dtype([("flag", np.int8), ("value", array.dtype)]))
    records["value"] = array
    return records["value"]


def locked(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def as_subclass(array):
    return array.view(type("Subclass", (np.ndarray,), {}))


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": every_other,
    "with gaps": half,
    "reversed": backwards,
    "unaligned": unaligned,
    "packed": field_of_packed_records,
    "read-only": locked,
    "subclass": as_subclass,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
@EACH_DTYPE
def test_any_layout_of_any_argument(cell, tokens, layout, dtype):
    plain = random_problem(cell, tokens=tokens, dtype=dtype)
    expected = plain.results(fastbptt)
    everything = plain
    for key, array in plain.arrays():
        laid_out = LAYOUTS[layout](array)
        np.testing.assert_array_equal(laid_out, array)
        assert_results_same_bits(plain.with_array(key, laid_out).results(fastbptt), expected)
        everything = everything.with_array(key, laid_out)
    assert_results_same_bits(everything.results(fastbptt), expected)


@EACH_DTYPE
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_a_broadcast_gradient(cell, dtype):
    problem = random_problem(cell, dtype=dtype)
    ones = np.broadcast_to(np.ones((), dtype), problem.d_out.shape)
    assert_results_same_bits(
        problem.with_array("d_out", ones).results(fastbptt), problem.with_array("d_out", ones.copy()).results(fastbptt)
    )


def test_np_matrix_weights_are_plain_arrays():
    problem = random_problem("rnn-tanh")
    got = replace(problem, w_ih=problem.w_ih.view(np.matrix), w_hh=problem.w_hh.view(np.matrix)).results(fastbptt)
    assert_results_same_bits(got, problem.results(fastbptt))
    assert all(type(array) is np.ndarray for array in got.values())


# --- What belongs to whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (60, 20, 30, 65)], ids=str)
def test_inputs_are_not_modified(cell, shape):
    problem = random_problem(cell, *shape)
    before = {key: array.copy() for key, array in problem.arrays()}
    problem.results(fastbptt)
    for key, array in problem.arrays():
        np.testing.assert_array_equal(array, before[key], err_msg=str(key))


@pytest.mark.parametrize("cell", CELLS)
def test_out_is_a_read_only_view_of_the_tape(cell):
    problem = random_problem(cell)
    out, state, tape = problem.forward(fastbptt)
    assert np.shares_memory(out, tape.h) and not out.flags.writeable
    np.testing.assert_array_equal(tape.h[1:], out)
    with pytest.raises(ValueError, match="read-only"):
        out[0] = 0
    for array in (tape.h, tape.c, tape.gates, tape.m):
        assert array is None or not array.flags.writeable
    assert len(arrays_of(state)) == problem.cell.states
    for history, initial, final in zip(histories(tape), problem.state, arrays_of(state)):
        np.testing.assert_array_equal(history[0], initial)
        np.testing.assert_array_equal(history[-1], final)
        assert final.flags.writeable and not np.shares_memory(final, history)


@pytest.mark.parametrize("cell", CELLS)
def test_results_share_no_memory(cell):
    problem = random_problem(cell)
    got = problem.results(fastbptt)
    arrays = list(got.values()) + [array for _, array in problem.arrays()]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])
    for name, array in got.items():
        assert array.flags.writeable or name == "out", name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (60, 20, 30, 65)], ids=str)
def test_backward_twice_on_one_tape(cell, shape):
    problem = random_problem(cell, *shape)
    _, _, tape = problem.forward(fastbptt)
    first, second = problem.backward(fastbptt, tape), problem.backward(fastbptt, tape)
    for name, a, b in zip(first._fields, first, second):
        for one, other in zip(arrays_of(a), arrays_of(b)):
            np.testing.assert_array_equal(one, other, err_msg=name)
            assert not np.shares_memory(one, other)


@EACH_DTYPE
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_the_tape_says_what_it_is(cell, dtype):
    problem = random_problem(cell, dtype=dtype)
    _, _, tape = problem.forward(fastbptt)
    assert len(tape) == 5 and tape.cell == problem.cell.prefix
    assert repr(tape) == f"<{tape.cell} tape: 5 steps, 3 rows, 7 units, {dtype}>"


def test_a_tape_that_no_forward_pass_made():
    tape = fastbptt.Tape()
    assert repr(tape) == "<tape of no forward pass>" and len(tape) == 0 and tape.last(3) is tape and tape.h is None
    with pytest.raises(IndexError, match=r"^b: expected a row, of which there is none, got 0$"):
        tape.row(0)


# --- The tests can fail -----------------------------------------------------------------------------------------------


def one_element(array):
    wrong = array.copy()
    wrong.flat[wrong.size // 2] += 1e5 * np.finfo(array.dtype).eps * np.abs(array).max()
    return wrong


def one_rounding_too_coarse(array):
    return array * (1 + 1000 * np.finfo(array.dtype).eps)


MUTATIONS = {
    "sign": np.negative,
    "one element": one_element,
    "scale": one_rounding_too_coarse,
    "missing": lambda array: None,
    "transposed": lambda array: array.T,
    "nan": lambda array: array * np.nan,
}


@EACH_DTYPE
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_gradient_is_noticed(cell, mutation, dtype):
    problem = random_problem(cell, dtype=dtype)
    right = problem.results(fastbptt)
    assert_right(problem, right)
    for name, array in right.items():
        if mutation == "transposed" and array.ndim == 1:
            continue
        with pytest.raises(AssertionError, match=name):
            assert_right(problem, right | {name: MUTATIONS[mutation](array)})


@EACH_DTYPE
@pytest.mark.parametrize("cell", CELLS)
def test_a_wrong_sum_over_time_is_noticed(cell, dtype):
    """Gradients that pair da_t with h_t instead of h_{t-1}: of the right shape, and wrong."""
    problem = random_problem(cell, dtype=dtype)
    right = problem.results(fastbptt)
    later = tuple(history[1] for history in histories(problem.forward(fastbptt)[2]))
    shifted = replace(problem, state=later, x=np.roll(problem.x, -1, axis=0))
    with pytest.raises(AssertionError, match="d_w_hh"):
        assert_right(problem, right | {"d_w_hh": shifted.results(fastbptt)["d_w_hh"]})


@EACH_DTYPE
@pytest.mark.parametrize("cell", GATED)
def test_gates_in_another_order_are_noticed(cell, dtype):
    problem = random_problem(cell, dtype=dtype)
    right = problem.results(fastbptt)
    for name in WEIGHTS:
        for order in itertools.permutations(range(problem.cell.gates)):
            if list(order) == sorted(order):
                continue
            swapped = np.concatenate([np.split(right[f"d_{name}"], problem.cell.gates)[gate] for gate in order])
            with pytest.raises(AssertionError, match=f"d_{name}"):
                assert_right(problem, right | {f"d_{name}": swapped})
