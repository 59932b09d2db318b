"""Rows that end early, and rows whose state is set to zero on their way: `lengths` and `resets`, against the reference and by what they mean."""

from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, assert_results_close, assert_results_same_bits, cells_and_shapes, histories, random_problem
from test_gradients import oracle
from test_jvp import oracle as oracle_of_tangents
from test_jvp import run, tangents_of
from tolerances import DTYPES, assert_close, assert_same_bits, bound

import fastbptt
import fastbptt.reference

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", CELLS)

# T, B, I, H: a few numbers; nothing; one row; several blocks of time; more rows than a thread's; units shared by threads.
SHAPES = [(6, 4, 3, 7), (0, 3, 2, 5), (1, 1, 1, 1), (9, 1, 4, 17), (700, 3, 2, 9), (40, 37, 5, 16), (30, 5, 4, 150), (90, 16, 6, 12)]
EACH_CELL_AND_SHAPE = pytest.mark.parametrize(("cell", "shape"), cells_and_shapes(SHAPES), ids=str)


def ragged(cell, T, B, I, H, *, what="both", seed=0, often=0.2, **options):
    """A random problem with lengths from 0 to T in no order, resets, or both."""
    rng = np.random.default_rng([seed, T, B])
    given = {"lengths": rng.integers(0, T + 1, B), "resets": rng.random((T, B)) < often}
    if what != "both":
        given = {what: given[what]}
    return replace(random_problem(cell, T, B, I, H, seed=seed, **options), options=given)


@EACH_DTYPE
@pytest.mark.parametrize("what", ["lengths", "resets", "both"])
@EACH_CELL_AND_SHAPE
def test_against_the_reference(cell, shape, what, dtype, threads):
    problem = ragged(cell, *shape, what=what, dtype=dtype)
    first = None
    for n in (1, 2, 3):
        threads(n)
        got = problem.results(fastbptt)
        first = first or got
        assert_results_same_bits(got, first)
    with np.errstate(over="ignore"):
        assert_results_close(first, oracle(problem), bound(dtype, problem.K, shape[0]))


@pytest.mark.one_level
@pytest.mark.parametrize("trial", range(25))
@EACH_CELL
def test_random_configurations(cell, trial):
    rng = np.random.default_rng(trial)
    T, B, I, H = rng.integers(0, 12), rng.integers(0, 7), rng.integers(1, 6), rng.integers(1, 20)
    what = ["lengths", "resets", "both"][trial % 3]
    problem = ragged(cell, T, B, I, H, what=what, seed=trial, often=rng.random(), tokens=bool(trial % 2), biases=(True, trial % 4 < 2))
    assert_results_close(problem.results(fastbptt), problem.results(fastbptt.reference), 1e-12)
    _, _, tape = problem.forward(fastbptt)
    _, _, expected = problem.forward(fastbptt.reference)
    for name in ("h", "c", "gates", "m", "x"):
        array = getattr(tape, name)
        if array is not None:
            np.testing.assert_allclose(array, getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
            assert not array.flags.writeable


@EACH_CELL
def test_lengths_and_resets_that_are_none(cell):
    """All rows of T steps and no reset: the bits, and the tape, of a call without."""
    problem = random_problem(cell, 8, 3, 4, 9)
    given = {"lengths": np.full(3, 8), "resets": np.zeros((8, 3), bool)}
    for options in ({name: given[name]} for name in given):
        some = replace(problem, options=options)
        assert_results_same_bits(some.results(fastbptt), problem.results(fastbptt))
        assert not some.forward(fastbptt)[2].ragged


@EACH_DTYPE
@EACH_CELL
def test_a_row_alone(cell, dtype):
    """A row's bits are those of its own steps by themselves, whatever else is in the batch and however long the others are."""
    check_rows_alone(ragged(cell, 60, 9, 5, 33, what="lengths", dtype=dtype))


@pytest.mark.parametrize("I", [700, 90_000, 170_000])
def test_wide_inputs(I):
    """A block's gradients of the inputs do not fit into the kernels' scratch memory: more rows than one do, one, and none."""
    check_rows_alone(ragged("lstm", 7, 5, I, 2, what="lengths"))


def check_rows_alone(problem):
    got, lengths = problem.results(fastbptt), problem.options["lengths"]
    for b, length in enumerate(lengths):
        alone = replace(problem.rows([b]), options={})
        alone = alone.steps(0, length, alone.state, alone.d_state).results(fastbptt)
        assert_same_bits("out", got["out"][:length, b], alone["out"][:, 0])
        assert_same_bits("dx", got["d_x"][:length, b], alone["d_x"][:, 0])
        for name in (name for name in got if "state" in name):
            assert_same_bits(name, got[name][b], alone[name][0])
        assert not got["out"][length:, b].any() and not got["d_x"][length:, b].any()


@EACH_DTYPE
@EACH_CELL
def test_a_reset_cuts_the_row(cell, dtype):
    """The steps up to a reset, and those from it on, from a state of zero: the same bits of states and dx, and dW is their sum."""
    problem = replace(random_problem(cell, 30, 4, 3, 9, dtype=dtype), d_state=None)
    resets = np.zeros((30, 4), bool)
    resets[11] = True
    whole = replace(problem, options={"resets": resets}).results(fastbptt)
    early = problem.steps(0, 11, problem.state).results(fastbptt)
    late = problem.steps(11, 30).results(fastbptt)
    for name in ("out", "d_x"):
        assert_same_bits(name, whole[name], np.concatenate([early[name], late[name]]))
    for name in (name for name in whole if name.startswith("final")):
        assert_same_bits(name, whole[name], late[name])
    for name in (name for name in whole if name.startswith("d_initial")):
        assert_same_bits(name, whole[name], early[name])
    for name in ("d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh"):
        np.testing.assert_allclose(whole[name], early[name] + late[name], rtol=0, atol=30 * np.finfo(dtype).eps * np.abs(whole[name]).max())


def test_any_byte_but_0_is_a_reset():
    """As for NumPy: arrays of bool that were made by a view, or by other programs, hold others than 1."""
    problem = ragged("gru", 9, 4, 3, 5, what="resets")
    resets = problem.options["resets"]
    assert resets[1:].any()
    other = replace(problem, options={"resets": (resets * np.uint8(255)).view(bool)})
    assert_results_same_bits(other.results(fastbptt), problem.results(fastbptt))


@EACH_CELL
def test_a_reset_at_the_first_step(cell):
    """The given state is not looked at, and its gradient is 0."""
    problem = random_problem(cell, 7, 3, 2, 5)
    resets = np.zeros((7, 3), bool)
    resets[0, 1] = True
    state = tuple(part.copy() for part in problem.state)
    for part in state:
        part[1] = np.nan
    got = replace(problem, state=state, options={"resets": resets}).results(fastbptt)
    zeros = tuple(part.copy() for part in problem.state)
    for part in zeros:
        part[1] = 0
    expected = replace(problem, state=zeros).results(fastbptt)
    for name, array in got.items():
        if name.startswith("d_initial"):
            assert not array[1].any()
            array, expected[name] = array[[0, 2]], expected[name][[0, 2]]
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-14, err_msg=name)


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True])
@EACH_CELL
def test_what_stands_behind_a_rows_end_is_never_looked_at(cell, tokens, dtype):
    problem = ragged(cell, 20, 6, 4, 9, dtype=dtype, tokens=tokens)
    expected = problem.results(fastbptt)
    behind = np.arange(20)[:, None] >= problem.options["lengths"]
    assert behind.any()
    x, d_out, resets = problem.x.copy(), problem.d_out.copy(), problem.options["resets"].copy()
    x[behind], d_out[behind], resets[behind] = -7 if tokens else np.nan, np.nan, True
    got = replace(problem, x=x, d_out=d_out, options=problem.options | {"resets": resets}).results(fastbptt)
    assert_results_same_bits(got, expected)
    for module in (fastbptt, fastbptt.reference):
        padded = replace(problem, x=x, d_out=d_out).results(module)
        assert all(array is None or np.isfinite(array).all() for array in padded.values())


@EACH_CELL
def test_rows_without_a_step(cell):
    """The last state is the initial one, and its gradient goes back unchanged."""
    problem = replace(random_problem(cell, 5, 3, 2, 4), options={"lengths": np.array([0, 5, 0])})
    got = problem.results(fastbptt)
    for i, (part, d_part) in enumerate(zip(problem.state, problem.d_state)):
        assert_same_bits("state", got[f"final state {i}"][[0, 2]], part[[0, 2]])
        assert_same_bits("gradient", got[f"d_initial_state {i}"][[0, 2]], d_part[[0, 2]])
    empty = replace(problem, options={"lengths": np.zeros(3, int)}).results(fastbptt)
    assert not any(empty[f"d_{name}"].any() for name in ("w_ih", "w_hh", "b_ih", "b_hh", "x")) and not empty["out"].any()


@EACH_CELL
def test_parts_of_a_tape(cell):
    """The last steps, and single rows: their gradients are those of the problem cut in the same way."""
    problem = ragged(cell, 25, 5, 3, 8)
    _, _, tape = problem.forward(fastbptt)
    options = problem.options
    late = problem.steps(15, 25, tuple(array[15] for array in histories(tape)), problem.d_state)
    late = replace(late, options={"lengths": np.maximum(options["lengths"] - 15, 0), "resets": options["resets"][15:]})
    assert_results_close(
        {"a": late.backward(fastbptt, tape.last(10)).w_hh}, {"a": late.backward(fastbptt, late.forward(fastbptt)[2]).w_hh}, 1e-14
    )
    for b, length in enumerate(options["lengths"]):
        row, alone = tape.row(b), problem.rows([b])
        assert row.shape == (length, 1, 8)
        alone = replace(alone.steps(0, length, alone.state, alone.d_state), options={"resets": options["resets"][:length, [b]]})
        _, _, expected = alone.forward(fastbptt)
        assert row.ragged == alone.options["resets"].any()
        assert_same_bits("dx", alone.backward(fastbptt, row).x, alone.backward(fastbptt, expected).x)
    with pytest.raises(ValueError, match=r"tape: expected rows of one length.*tape\.row\(b\)"):
        fastbptt.gradient_flow(tape, problem.d_out)


@pytest.mark.parametrize(
    "look",
    [
        lambda tape: fastbptt.gradient_flow(tape, np.ones((9, 3, 4))),
        lambda tape: fastbptt.omega(tape, np.ones((9, 3, 4))),
        fastbptt.gradient_flossing,
        fastbptt.lyapunov_spectrum,
        lambda tape: fastbptt.log_singular_values(tape, 0, 2),
        lambda tape: fastbptt.jacobian_product_norms(tape),
    ],
)
def test_what_looks_at_rectangles_says_so(look):
    problem = replace(random_problem("rnn-tanh", 9, 3, 2, 4), options={"lengths": np.array([9, 3, 0])})
    with pytest.raises(ValueError, match=r"^tape: expected rows of one length that were never reset; tape\.row\(b\) is the tape of row b"):
        look(problem.forward(fastbptt)[2])


def test_the_early_stop_of_ragged_rows(threads):
    """A gradient that dies early ends the pass with the same results."""
    problem = ragged("rnn-tanh", 900, 3, 2, 9, what="lengths")
    problem = replace(problem, w_hh=problem.w_hh * 1e-70, options={"lengths": np.array([900, 700, 5])}, d_state=None)
    d_out = np.zeros_like(problem.d_out)
    d_out[-1], d_out[699, 1] = 1, 1
    problem = replace(problem, d_out=d_out)
    for n in (1, 2):
        threads(n)
        assert_results_close(problem.results(fastbptt), problem.results(fastbptt.reference), 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_layers(make, batch_first):
    layer, rng = make(3, 7, batch_first=batch_first, rng=0), np.random.default_rng(0)
    x, lengths, resets = rng.standard_normal((9, 4, 3)), np.array([3, 9, 0, 5]), rng.random((9, 4)) < 0.3

    def laid_out(array):
        return array.swapaxes(0, 1) if batch_first else array

    forward, backward = (getattr(fastbptt, f"{make.__name__.lower()}_{way}") for way in ("forward", "backward"))
    expected, state, tape = forward(x, None, *layer.params.values(), lengths=lengths, resets=resets)
    d = rng.standard_normal(expected.shape)
    grads = backward(tape, d)
    out, last = layer(laid_out(x), lengths=lengths, resets=laid_out(resets))
    dx, _ = layer.backward(laid_out(d))
    assert_same_bits("out", laid_out(out), expected)
    assert_same_bits("state", np.squeeze(last), np.squeeze(state))
    assert_same_bits("dx", laid_out(dx), grads.x)
    assert_same_bits("dw_hh", layer.grads["weight_hh_l0"], grads.w_hh)
    if batch_first:
        with pytest.raises(ValueError, match=r"resets: expected shape \(4, 9\), got \(9, 4\)"):
            layer(laid_out(x), resets=resets)


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
@pytest.mark.parametrize("lengths", [[9, 4, 2], [0, 9, 0], None], ids=str)
def test_gradients_that_are_not_finite(make, lengths):
    """They are added, and the clip names what was not finite first; what stands behind a row's end is not to blame."""
    layer, x, d = make(3, 40, rng=0), np.ones((9, 3, 3)), np.ones((9, 3, 40))
    given = {"resets": np.ones((9, 3), bool)} if lengths is None else {"lengths": np.array(lengths)}
    d[1, 1, 5] = np.inf
    if lengths:
        d[np.arange(9)[:, None] >= lengths] = np.nan
    layer(x, **given)
    layer.backward(d)
    assert not np.isfinite(layer.flat_grads).all()
    with pytest.raises(FloatingPointError, match=r"^grads: the norm is (nan|inf); the first culprit is grads\['weight_ih_l0'\]") as error:
        fastbptt.clip_grad_norm_(layer, 1.0)
    state_reached = lengths is not None  # with a reset at every step, nothing comes back to the initial state, and nobody looks
    assert str(error.value).endswith("; d_out[1, 1, 5] is inf") == state_reached


def test_windows_of_truncated_bptt():
    """Rows that end in the second window: two windows of h = T are the whole sequence."""
    layer, rng = fastbptt.GRU(3, 6, rng=0), np.random.default_rng(0)
    x, d, lengths, resets = rng.standard_normal((8, 3, 3)), rng.standard_normal((8, 3, 6)), np.array([8, 5, 4]), np.zeros((8, 3), bool)
    resets[2, 0] = resets[6, 1] = True
    d[:4] = 0
    out, _ = layer(x, lengths=lengths, resets=resets)
    layer.backward(d)
    expected = layer.flat_grads.copy()
    layer.zero_grad()
    reader = fastbptt.TruncatedBPTT(layer, 8, 4)
    pieces = [reader.forward(x[t : t + 4], lengths=np.clip(lengths - t, 0, 4), resets=resets[t : t + 4]) for t in (0, 4)]
    reader.backward(d[4:])
    assert_same_bits("out", np.concatenate(pieces), out)
    np.testing.assert_allclose(layer.flat_grads, expected, rtol=0, atol=1e-14)


WRONG = {
    "lengths": {
        "a list": ([3, 2], TypeError, r"lengths: expected a NumPy array, got list"),
        "floats": (np.array([3.0, 2.0]), TypeError, r"lengths: expected integers, got dtype float64"),
        "bools": (np.array([True, True]), TypeError, r"lengths: expected integers, got dtype bool"),
        "too many": (np.array([3, 2, 1]), ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
        "two axes": (np.array([[3, 2]]), ValueError, r"lengths: expected shape \(2,\), got \(1, 2\)"),
        "negative": (np.array([3, -1]), ValueError, r"lengths: expected numbers of steps from 0 to 4, got -1"),
        "beyond the end": (np.array([3, 5]), ValueError, r"lengths: expected numbers of steps from 0 to 4, got 5"),
        "far beyond": (np.array([3, 2**64 - 1], np.uint64), ValueError, r"lengths: .* from 0 to 4, got 18446744073709551615"),
    },
    "resets": {
        "a list": ([[True, False]], TypeError, r"resets: expected a NumPy array, got list"),
        "integers": (np.zeros((4, 2), int), TypeError, r"resets: expected dtype bool, got int64"),
        "batch first": (np.zeros((2, 4), bool), ValueError, r"resets: expected shape \(4, 2\), got \(2, 4\)"),
        "one axis": (np.zeros(4, bool), ValueError, r"resets: expected shape \(4, 2\), got \(4,\)"),
    },
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name in WRONG for what in WRONG[name]])
@EACH_CELL
def test_bad_input(cell, name, what):
    value, error, message = WRONG[name][what]
    problem = random_problem(cell, 4, 2, 3, 5)
    with pytest.raises(error, match=message):
        replace(problem, options={name: value}).forward(fastbptt)


def test_too_many_steps():
    """Of rows that take no memory themselves: the error names the argument."""
    T, zeros = 2**60, np.zeros((3, 1))
    tokens = np.broadcast_to(np.zeros((1, 1), np.int8), (T, 2))
    for options in ({"lengths": np.array([1, 2])}, {"resets": np.broadcast_to(True, (T, 2))}):
        for tape in (True, False):
            with pytest.raises(MemoryError, match=f"^x: no memory for {2 * T} numbers$"):
                fastbptt.gru_forward(tokens, None, zeros, zeros, **options, tape=tape)


def test_arguments_are_not_kept():
    """What the caller does to lengths and resets after the forward pass changes nothing."""
    problem = ragged("gru", 9, 4, 3, 5)
    expected = problem.results(fastbptt)
    _, _, tape = problem.forward(fastbptt)
    problem.options["lengths"][...], problem.options["resets"][...], problem.x[...] = 0, True, np.nan
    assert_same_bits("dw_hh", problem.backward(fastbptt, tape).w_hh, expected["d_w_hh"])


@EACH_DTYPE
@pytest.mark.parametrize("clip_step", [("value", 0.3), ("norm", 0.5)], ids=str)
@EACH_CELL
def test_clip_step(cell, clip_step, dtype, threads):
    """Each row is clipped for itself at the steps that it has."""
    for shape in [(30, 5, 3, 9), (30, 4, 3, 140), (60, 17, 3, 8)]:
        problem = ragged(cell, *shape, dtype=dtype)
        expected = problem.astype(np.float64).results(fastbptt.reference, clip_step=clip_step)
        for n in (1, 3):
            threads(n)
            got = problem.results(fastbptt, clip_step=clip_step)
            assert_results_close(got, expected, 4 * bound(dtype, problem.K, shape[0]))


@EACH_DTYPE
@pytest.mark.parametrize("what", ["lengths", "resets", "both"])
@EACH_CELL_AND_SHAPE
def test_forward_mode(cell, shape, what, dtype, threads):
    """Tangents of ragged batches: the reference's, and nothing behind a row's end is looked at."""
    problem = ragged(cell, *shape, what=what, dtype=dtype)
    dots = tangents_of(problem)
    (expected,) = oracle_of_tangents(problem, [dots])
    _, _, tape = problem.forward(fastbptt)
    if "lengths" in problem.options:
        dots["x"][np.arange(shape[0])[:, None] >= problem.options["lengths"]] = np.nan
    for n in (1, 3):
        threads(n)
        got = run(fastbptt, problem, tape, dots)
        for i, (array, right) in enumerate(zip(got, expected, strict=True)):
            assert_close(str(i), array, right, 4 * bound(dtype, problem.K, shape[0]), max(1, np.abs(right).max(initial=0)))
