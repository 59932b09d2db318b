"""A backward pass stops where all that remains is exactly zero, and its results have the same bits as without the stop.

A loss of -0.0 at the first step is a loss, so the pass goes all the way; and as it adds nothing to any sum, every bit of every result must
be what it is with the stop, but for the sign of zeros in the gradients of that one row's first input and initial state. That is `full`
below. A number that is not zero, in a row of its own that has no inputs and no state, is the other way to switch the stop off.
"""

import time
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, PLAIN, WEIGHTS, assert_results_close, assert_results_same_bits, random_problem
from remembered import remembered
from test_gradients import oracle
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits, bound

import fastbptt
import fastbptt.reference
from fastbptt import cells, layers
from fastbptt.gradients.linearised import linearise

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", ONE_OF_EACH)

# One block of time; several of them; many rows, for threads by rows; few rows and many units, for threads by units, with several blocks.
SHAPES = [
    (12, 3, 4, 7),
    (350, 3, 2, 9),
    (1030, 1, 3, 5),
    (34, 33, 5, 40),
    (20, 64, 3, 24),
    (530, 1, 3, 130),
    (180, 3, 2, 136),
    (180, 17, 3, 9),
]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def backward(problem, tape):
    return problem.backward(fastbptt, tape)


def named(grads):
    state = grads.state if isinstance(grads.state, tuple) else (grads.state,)
    arrays = grads._replace(state=None)._asdict() | {f"state {i}": array for i, array in enumerate(state)}
    return {name: array for name, array in arrays.items() if array is not None}


def without_the_stop(problem):
    """The same problem with a loss of -0.0 at the first step of the last row."""
    B, H = problem.state[0].shape
    d_out = np.zeros((len(problem.x), B, H), problem.w_hh.dtype) if problem.d_out is None else problem.d_out.copy()
    if not d_out[0, -1, -1]:
        d_out[0, -1, -1] = -0.0
    return replace(problem, d_out=d_out)


def assert_same_as_full(problem, tape):
    """With and without the stop, and the gradients that they give."""
    got, full = named(backward(problem, tape)), named(backward(without_the_stop(problem), tape))
    for name, array in got.items():
        expected = full[name]
        if name == "x" or name.startswith("state"):
            np.testing.assert_array_equal(array, expected, err_msg=name)
            array, expected = (array[0, :-1], expected[0, :-1]) if name == "x" else (array[:-1], expected[:-1])
        assert_same_bits(name, array, expected)
        if name == "x":
            assert_same_bits(name, got[name][1:], full[name][1:])
    return got


def only_at(problem, *steps, rows=None):
    """The same problem with a loss at these steps alone, of these rows alone, and none at the last state."""
    d_out = np.zeros_like(problem.d_out)
    for t in steps:
        d_out[t, rows] = problem.d_out[t, rows]
    return replace(problem, d_out=d_out, d_state=None)


# --- Nets that forget -------------------------------------------------------------------------------------------------
#
# In each the gradient of the state becomes exactly zero after some steps back.


def tiny_weights(problem):
    """Each step back shrinks the gradient by many orders of magnitude, through the subnormal numbers to 0."""
    dtype = problem.w_hh.dtype
    problem = replace(problem, w_hh=problem.w_hh * dtype.type(1e-70 if dtype == np.float64 else 1e-9))
    if problem.cell.leak:
        return replace(problem, leak=1.0)
    return shut(problem) if problem.cell.gates > 1 else problem


def no_recurrence(problem):
    """It is zero after the first step back."""
    if problem.cell.leak:
        problem = replace(problem, leak=1.0)
    problem = replace(problem, w_hh=np.zeros_like(problem.w_hh))
    return shut(problem) if problem.cell.gates > 1 else problem


def shut(problem):
    """The gate that keeps the state does not, z of a GRU, f of an LSTM: gradients pass through the weights only."""
    row, b_ih = problem.cell.row, problem.b_ih.copy()
    b_ih.reshape(problem.cell.gates, -1)[row.gates.index(row.keeper)] -= row.keeper.keeps * (800 if b_ih.dtype == np.float64 else 120)
    return replace(problem, b_ih=b_ih)


def saturated(problem):
    """Halfway through, inputs so large that every derivative is 0: the gradients of all units vanish at once.

    Such an input shuts the gate that keeps the state, and its negative opens it.
    """
    row, x = problem.cell.row, problem.x.copy()
    x[len(x) // 2] = 1e6
    w_ih = np.abs(problem.w_ih) * (-1 if problem.cell.options.get("nonlinearity") == "relu" else 1)
    if row.keeper:
        problem = shut(problem)
        w_ih.reshape(len(row.gates), -1)[row.gates.index(row.keeper)] *= -row.keeper.keeps
    problem = replace(problem, x=x, w_ih=w_ih)
    return replace(problem, leak=1.0) if problem.cell.leak else problem


def rows_die_one_by_one(problem):
    """As before, but at a different step for each row, and for some at none; a gate is opened for a step, too, and keeps the gradient."""
    x = problem.x.copy()
    T, B = x.shape[:2]
    for b in range(B):
        if b % 5 != 4:
            x[(7 * b + T // 3) % T, b] = -1e6 if b % 5 == 3 and problem.cell.row.keeper else 1e6
    problem = saturated(problem)
    return replace(problem, x=x)


NETS = [tiny_weights, no_recurrence, saturated, rows_die_one_by_one]
EACH_NET = pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)


@EACH_DTYPE
@EACH_NET
@EACH_SHAPE
@EACH_CELL
def test_a_loss_at_the_end_alone(cell, shape, net, dtype, threads):
    problem = only_at(net(random_problem(cell, *shape, dtype=dtype)), -1)
    _, _, tape = problem.forward(fastbptt)
    first = None
    for n in (1, 3):
        threads(n)
        got = assert_same_as_full(problem, tape)
        first = first or got
        for name, array in got.items():
            assert_same_bits(f"{name}, {n} threads", array, first[name])
    if net in (tiny_weights, no_recurrence):
        assert not got["x"][: shape[0] // 2].any() and not any(got[name].any() for name in got if name.startswith("state"))
        assert got["x"].any() or cell == "leaky-relu-units"


def carried_errors(problem, limit):
    """How far rounding can take the gradient of the initial state, element by element, to first order.

    d_{t-1} = keep_t d_t + W_hh^T da_t, to within ``limit`` at each step, that of the sums. The factors of da_t are derivatives: 1 - n^2, or
    z (1 - z), made of a value y that is itself off by some eps. Near |y| = 1 that is a relative error of eps / (1 - |y|); rho_t is the sum
    of these for each unit. What is off at step t, the product P_t = J_t ... J_1 takes back to the start, so that the gradient there is off
    by at most the sum over t of |P_t|^T limit |d_t| + |P_{t-1}|^T |W_hh|^T rho_t |da_t|.
    """
    _, _, tape = problem.forward(fastbptt)
    steps, eps = linearise(tape), TOLERANCES[problem.w_ih.dtype].eps
    T, B, H = tape.shape
    values = [tape.h[1:] if tape.gates is None else tape.gates] + ([] if tape.c is None else [np.tanh(tape.c[1:])])
    rho = sum(4 * eps / (1 - np.abs(y.astype(float)) + eps) for whole in values for y in np.split(whole, whole.shape[-1] // H, axis=-1))
    d, off = np.zeros((T + 1, B, steps.N)), np.zeros((T + 1, B, steps.N))
    for t in reversed(range(T)):
        d[t + 1, :, :H] += problem.d_out[t]
        d[t], da = steps.vjp(t, d[t + 1])
        off[t, :, :H] = np.tile(rho[t], problem.cell.gates) * np.abs(da) @ np.abs(problem.w_hh)
    off += limit * np.abs(d)
    P, e = np.eye(steps.N), off[0]
    for t in range(T):
        P = steps.jacobian(t) @ P
        e = e + np.einsum("bij,bi->bj", np.abs(P), off[t + 1])
    return np.split(e, steps.N // H, axis=-1)


@EACH_DTYPE
@EACH_NET
@pytest.mark.parametrize("shape", [(12, 3, 4, 7), (300, 4, 2, 9), (34, 33, 5, 40)], ids=str)
@EACH_CELL
def test_against_the_reference(cell, shape, net, dtype):
    for seed in (0, 3, 7) if shape[0] == 300 else (0,):
        problem = only_at(net(random_problem(cell, *shape, dtype=dtype, seed=seed)), -1, -2)
        got = problem.results(fastbptt)
        with np.errstate(all="ignore"):
            expected = oracle(problem)
        limit = bound(dtype, problem.K, shape[0])
        carried = carried_errors(problem, limit) if net is rows_die_one_by_one and problem.cell.row.keeper else None
        for name, array in expected.items():
            kept = np.abs(array) > 1e3 * float(np.finfo(dtype).tiny)  # smaller numbers are zero in one precision and not in the other
            scale = np.abs(array).max(initial=0)
            if not (scale and kept.any()):
                assert np.abs(got[name]).max() <= 1e3 * np.finfo(dtype).tiny
            elif carried and name.startswith("d_initial_state"):
                error = np.abs(got[name] - array) * kept
                assert (error <= carried[int(name[-1])]).all(), f"{name}, seed {seed}: off by {error.max():.3g}"
            else:
                assert_close(name, np.where(kept, got[name], 0), np.where(kept, array, 0), limit, scale)


@pytest.mark.one_level
@EACH_DTYPE
@EACH_NET
@EACH_CELL
def test_losses_here_and_there(cell, net, dtype, threads):
    """The pass may not stop before it has come to the first loss, even where the gradient is zero in between; then at once."""
    problem = net(random_problem(cell, 900, 2, 3, 10, dtype=dtype))
    for steps in [(899, 898), (899, 500, 3), (899, 1), (510, 512), (256,), (1,), (0,), (0, 899)]:
        some = only_at(problem, *steps)
        _, _, tape = some.forward(fastbptt)
        for n in (1, 2):
            threads(n)
            got = assert_same_as_full(some, tape)
        for t in steps:
            # W_ih's gradient is what each step leaves in dx; the step of a loss may itself be saturated
            alone = named(backward(only_at(some, t), tape))
            np.testing.assert_array_equal(alone["x"][t + 1 :], 0)
        assert not got["x"][max(steps) + 1 :].any()


@pytest.mark.one_level
@EACH_DTYPE
@EACH_NET
@pytest.mark.parametrize("shape", [(34, 33, 5, 40), (350, 3, 2, 9), (180, 3, 2, 136), (180, 17, 3, 9)], ids=str)
@EACH_CELL
def test_rows_with_a_loss_and_rows_without(cell, shape, net, dtype, threads):
    """A row without a loss has a gradient of zero throughout, on whichever thread; the other rows must not be affected."""
    problem = net(random_problem(cell, *shape, dtype=dtype))
    T, B = shape[:2]
    for rows in ([0], list(range(0, B, 2)), list(range(B // 2, B))):
        some = only_at(problem, T - 1, T // 2, rows=rows)
        _, _, tape = some.forward(fastbptt)
        others = [b for b in range(B) if b not in rows]
        for n in (1, 2, 17):
            threads(n)
            got = assert_same_as_full(some, tape)
            assert not got["x"][:, others].any() and not got["state 0"][others].any()


@pytest.mark.one_level
@EACH_DTYPE
@EACH_SHAPE
@EACH_CELL
def test_a_loss_at_the_state_alone(cell, shape, dtype, threads):
    for net in (tiny_weights, no_recurrence):
        problem = net(random_problem(cell, *shape, dtype=dtype))
        problem = replace(problem, d_out=None)
        _, _, tape = problem.forward(fastbptt)
        zeros = replace(problem, d_out=np.zeros_like(tape.h[1:]))
        for n in (1, 2):
            threads(n)
            got = assert_same_as_full(problem, tape)
            for name, array in named(backward(zeros, tape)).items():
                assert_same_bits(name, array, got[name])


@EACH_DTYPE
@EACH_SHAPE
@pytest.mark.parametrize("cell", CELLS)
def test_no_loss_at_all(cell, shape, dtype):
    problem = random_problem(cell, *shape, dtype=dtype)
    for d_out in (None, np.zeros_like(problem.d_out)):
        for d_state in (None, tuple(np.zeros_like(s) for s in problem.state)):
            got = named(backward(replace(problem, d_out=d_out, d_state=d_state), problem.forward(fastbptt)[2]))
            for name, array in got.items():
                assert_same_bits(name, array, np.zeros_like(array))


@EACH_DTYPE
@EACH_SHAPE
@pytest.mark.parametrize("cell", CELLS)
def test_nets_that_do_not_forget(cell, shape, dtype, threads):
    """No gradient is zero here, and the pass must not stop."""
    problem = only_at(random_problem(cell, *shape, dtype=dtype), -1)
    _, _, tape = problem.forward(fastbptt)
    for n in (1, 2):
        threads(n)
        assert_same_as_full(problem, tape)


@EACH_DTYPE
@EACH_NET
@EACH_CELL
def test_tokens(cell, net, dtype, threads):
    problem = random_problem(cell, 300, 5, 6, 33, dtype=dtype, tokens=True)
    if net in (saturated, rows_die_one_by_one):
        w_ih = problem.w_ih.copy()
        w_ih[:, 2] = -1e6 if problem.cell.options.get("nonlinearity") == "relu" else 1e6
        problem = replace(problem, w_ih=w_ih, leak=1.0 if problem.cell.leak else None)
    else:
        problem = net(problem)
    problem = only_at(problem, -1, -3)
    _, _, tape = problem.forward(fastbptt)
    for n in (1, 2):
        threads(n)
        assert_same_as_full(problem, tape)


@EACH_DTYPE
@EACH_NET
@EACH_CELL
def test_without_dx(cell, net, dtype):
    problem = only_at(net(random_problem(cell, 700, 3, 2, 9, dtype=dtype)), -1)
    _, _, tape = problem.forward(fastbptt)
    full = named(backward(problem, tape))
    for name, array in named(problem.backward(fastbptt, tape, need_dx=False)).items():
        assert_same_bits(name, array, full[name])


# --- A real loss in a row of its own ----------------------------------------------------------------------------------


@pytest.mark.one_level
@EACH_DTYPE
@EACH_NET
@pytest.mark.parametrize("shape", [(12, 3, 4, 7), (350, 3, 2, 9), (34, 33, 5, 40), (180, 3, 2, 136), (180, 17, 3, 9)], ids=str)
@EACH_CELL
def test_a_tiny_loss_at_the_first_step_of_another_row(cell, shape, net, dtype, threads):
    """The last row has no inputs and no state, so its gradient of 1e-30 at the first step adds zeros to dW_ih and dW_hh."""
    problem = only_at(net(random_problem(cell, *shape, dtype=dtype)), -1, rows=list(range(shape[1] - 1)))
    x, state = problem.x.copy(), tuple(s.copy() for s in problem.state)
    x[0, -1] = 0
    for part in state:
        part[-1] = 0
    problem = replace(problem, x=x, state=state)
    d_out = problem.d_out.copy()
    d_out[0, -1, 0] = 1e-30
    other = replace(problem, d_out=d_out)
    _, _, tape = problem.forward(fastbptt)
    for n in (1, 2):
        threads(n)
        got, full = named(backward(problem, tape)), named(backward(other, tape))
        for name in ("w_ih", "w_hh"):
            assert_same_bits(name, got[name], full[name])
        assert_same_bits("x", got["x"][:, :-1], full["x"][:, :-1])
        assert_same_bits("x", got["x"][1:], full["x"][1:])
        for i in range(problem.cell.states):
            assert_same_bits(f"state {i}", got[f"state {i}"][:-1], full[f"state {i}"][:-1])
        for name in ("b_ih", "b_hh"):
            np.testing.assert_allclose(got[name], full[name], rtol=TOLERANCES[dtype].eps, atol=2e-30)


@EACH_DTYPE
@EACH_NET
@EACH_CELL
def test_a_tape_in_two_halves(cell, net, dtype):
    """The later half, then the earlier one with the gradient that it hands on: the sums of both are those of the whole."""
    problem = only_at(net(random_problem(cell, 40, 5, 3, 10, dtype=dtype)), -1, 25)
    _, _, tape = problem.forward(fastbptt)
    whole = named(backward(problem, tape))
    later = tape.last(20)
    grads = getattr(fastbptt, f"{problem.cell.prefix}_backward")(later, problem.d_out[20:])
    first = replace(problem.steps(0, 20, state=problem.state), d_out=problem.d_out[:20])
    _, _, own = first.forward(fastbptt)
    before = getattr(fastbptt, f"{problem.cell.prefix}_backward")(own, first.d_out, grads.state)
    limit = bound(dtype, problem.K, 40)
    assert_close("x", np.concatenate([before.x, grads.x]), whole["x"], limit)
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        assert_close(name, getattr(before, name) + getattr(grads, name), whole[name], limit)


# --- Gradients that wander --------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("H", [9, 40, 150, 200])
def test_one_unit_at_a_time(H, B, dtype, threads):
    """Each unit passes its gradient to the next, the last one to none: all is zero after H steps back, and not before.

    Nearly all units are zero at every step; a thread whose units all are must not stop while another's are not.
    """
    T = 3 * H
    w_hh = np.eye(H, k=-1, dtype=dtype)  # h_t[i] = h_{t-1}[i-1]: gradients go from unit i to unit i-1
    x = np.random.default_rng(0).standard_normal((T, B, 2)).astype(dtype)
    w_ih = np.random.default_rng(1).standard_normal((H, 2)).astype(dtype)
    _, _, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh, nonlinearity="identity")
    for last in (H - 1, H // 2, 0):
        d_state = np.zeros((B, H), dtype)
        d_state[:, last] = 2
        expected = np.zeros((T, B, 2), dtype)
        for k in range(last + 1):
            expected[T - 1 - k] = 2 * w_ih[last - k]
        for n in (1, 3):
            threads(n)
            grads = fastbptt.rnn_backward(tape, None, d_state)
            np.testing.assert_array_equal(grads.x, expected)
            assert not grads.state.any()
            assert_close("w_ih", grads.w_ih[last], 2 * x[T - 1].sum(axis=0), 4 * TOLERANCES[dtype].eps)
            assert (grads.w_ih[: last + 1].any(axis=1)).all() and not grads.w_ih[last + 1 :].any()


@EACH_DTYPE
@pytest.mark.parametrize("H", [40, 150])
def test_a_ring_never_dies(H, dtype, threads):
    w_hh = np.roll(np.eye(H, dtype=dtype), 1, axis=0)
    x = np.zeros((3 * H + 5, 1, 1), dtype)
    _, _, tape = fastbptt.rnn_forward(x, None, np.ones((H, 1), dtype), w_hh, nonlinearity="identity")
    d_state = np.zeros((1, H), dtype)
    d_state[0, 7] = 1
    for n in (1, 2, 3):
        threads(n)
        grads = fastbptt.rnn_backward(tape, None, d_state)
        np.testing.assert_array_equal(grads.state[0], np.roll(d_state[0], -(3 * H + 5)))
        np.testing.assert_array_equal(grads.x, 1)


@EACH_DTYPE
@pytest.mark.parametrize("H", [24, 150])
def test_units_die_at_different_times(H, dtype, threads):
    """h_t = w h_{t-1} with a different w for each unit: some vanish in a few steps, some never."""
    w = np.exp2(-np.round(np.linspace(0, 200, H))).astype(dtype)
    for slowest in (w, w[::-1]):
        for alive in (True, False):
            slow = slowest if alive else np.minimum(slowest, dtype.type(2.0**-20))
            problem = random_problem("rnn-identity", 900, 1, 1, H, dtype=dtype)
            problem = replace(problem, d_out=None, d_state=(np.ones((1, H), dtype),), w_hh=np.diag(slow))
            _, _, tape = problem.forward(fastbptt)
            for n in (1, 2):
                threads(n)
                got = assert_same_as_full(problem, tape)
                np.testing.assert_array_equal(got["state 0"][0], (slow.astype(np.float64) ** 900).astype(dtype))


def test_a_chain_of_gates_in_an_lstm(threads):
    """dc alone may be non-zero where dh is zero: the forget gate is open and the output gate closed."""
    H, T = 130, 600
    cell = CELLS["lstm"]
    for dtype in DTYPES:
        b = np.zeros((4, H), dtype)
        b[1], b[3] = 1e4, -1e4  # f = 1, o = 0
        problem = random_problem(cell, T, 2, 3, H, dtype=dtype)
        zeros = np.zeros_like(problem.w_hh)
        problem = replace(problem, w_ih=problem.w_ih * 0, w_hh=zeros, b_ih=b.reshape(-1), b_hh=None, d_out=None)
        problem = replace(problem, d_state=(np.zeros((2, H), dtype), problem.d_state[1]))
        _, _, tape = problem.forward(fastbptt)
        for n in (1, 2):
            threads(n)
            got = assert_same_as_full(problem, tape)
            np.testing.assert_array_equal(got["state 1"], problem.d_state[1])
            assert not got["state 0"].any() and got["b_ih"].any()


# --- Negative zeros ---------------------------------------------------------------------------------------------------


@pytest.mark.one_level
@EACH_DTYPE
@EACH_CELL
def test_negative_zeros_in_the_gradients(cell, dtype, threads):
    """A -0.0 among the cotangents changes no number, wherever it stands."""
    problem = only_at(no_recurrence(random_problem(cell, 600, 2, 3, 130, dtype=dtype)), -1)
    _, _, tape = problem.forward(fastbptt)
    expected = named(backward(problem, tape))
    for t in (0, 1, 300, 598):
        d_out = problem.d_out.copy()
        d_out[t] = -0.0
        some = replace(problem, d_out=d_out)
        for n in (1, 2):
            threads(n)
            got = named(backward(some, tape))
            for name, array in got.items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)
            assert_same_as_full(some, tape)
    negative = replace(problem, d_out=-np.zeros_like(problem.d_out), d_state=tuple(-np.zeros_like(s) for s in problem.state))
    for name, array in named(backward(negative, tape)).items():
        assert not array.any(), name
    assert_same_as_full(replace(negative, d_out=None), tape)


# --- What is not finite -----------------------------------------------------------------------------------------------


@remembered
def gradients_of_the_reference(problem):
    with np.errstate(all="ignore"):
        wide = problem.astype(np.float64)
        return named(wide.backward(fastbptt.reference, wide.forward(fastbptt.reference)[2]))


def assert_nan_where_the_reference_has_it(problem, threads=None):
    """Where zeros meet inf or NaN on the way back the result is NaN, as if there were no stop, with dx and without; at one thread and at two."""
    expected = gradients_of_the_reference(problem)
    for n in (1, 2) if threads else (None,):
        if threads:
            threads(n)
        _, _, tape = problem.forward(fastbptt)
        for need_dx in (False, True):
            got = named(problem.backward(fastbptt, tape, need_dx=need_dx))
            full = named(without_the_stop(problem).backward(fastbptt, tape, need_dx=need_dx))
            assert got.keys() == expected.keys() - (set() if need_dx else {"x"})
            for name, array in got.items():
                np.testing.assert_array_equal(np.isnan(array), np.isnan(full[name]), err_msg=name)
                np.testing.assert_array_equal(np.isnan(array), np.isnan(expected[name]), err_msg=f"{name} of the reference")
    return got


@EACH_DTYPE
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(12, 3, 4, 7), (300, 2, 2, 9), (30, 3, 2, 136)], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_nonfinite_inputs_before_the_stop(cell, shape, bad, dtype, threads):
    """An infinite input saturates its step, and the states after it are finite; its gradient, zero times inf, is NaN nevertheless."""
    problem = only_at(no_recurrence(random_problem(cell, *shape, dtype=dtype)), -1)
    x = problem.x.copy()
    x[2, 1, 0] = bad
    got = assert_nan_where_the_reference_has_it(replace(problem, x=x), threads)
    assert np.isnan(got["w_ih"][:, 0]).all()


@EACH_DTYPE
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(12, 3, 4, 7), (300, 2, 2, 9), (30, 3, 2, 136)], ids=str)
@pytest.mark.parametrize(("cell", "part"), [("rnn-tanh", 0), ("gru", 0), ("lstm", 0), ("lstm", 1)])
def test_nonfinite_states_before_the_stop(cell, part, shape, bad, dtype, threads):
    problem = only_at(tiny_weights(random_problem(cell, *shape, dtype=dtype)), -1)
    state = tuple(s.copy() for s in problem.state)
    state[part][1, 3] = bad
    got = assert_nan_where_the_reference_has_it(replace(problem, state=state), threads)
    assert np.isnan(got["w_hh"]).any()


@EACH_DTYPE
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh"])
@pytest.mark.parametrize("shape", [(300, 3, 2, 9), (180, 17, 2, 9)], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_nonfinite_weights(cell, shape, name, bad, dtype):
    """Rows that go together, and groups of rows."""
    problem = only_at(no_recurrence(random_problem(cell, *shape, dtype=dtype)), -1)
    array = getattr(problem, name).copy()
    array.flat[0] = bad
    assert_nan_where_the_reference_has_it(replace(problem, **{name: array}))


def finite_but(what, dtype):
    """A net of one unit and one step, without a loss, whose gradients are NaN for one reason alone."""
    problem = random_problem("gru" if what == "m" else "rnn-tanh", 1, 1, 2, 1, dtype=dtype)
    zeros = {name: np.zeros_like(getattr(problem, name)) for name in ("x", *WEIGHTS, "d_out")}
    problem = replace(problem, state=(np.ones((1, 1), dtype),), d_state=None, **zeros)
    if what == "x":
        problem.w_ih[...], problem.x[...] = 1, np.inf  # h = tanh(inf) = 1
    elif what == "h":
        problem.w_ih[...] = np.inf  # a = 0 * inf
    elif what == "m":
        problem.b_hh[2] = np.inf  # n = tanh(inf) = 1
    elif what == "w_hh":
        problem.w_hh[...] = np.inf  # h = tanh(inf) = 1
    return problem


@EACH_DTYPE
@pytest.mark.parametrize("what", ["x", "h", "m", "w_hh"])
def test_zeros_that_meet_the_nonfinite_at_the_last_step(what, dtype):
    """Without a loss all gradients are 0, and 0 times inf is NaN: every array must be searched for inf and NaN, to its end."""
    problem = finite_but(what, dtype)
    _, _, tape = problem.forward(fastbptt)
    arrays = {"x": problem.x, "h": tape.h, "w_hh": problem.w_hh} | ({} if tape.m is None else {"m": tape.m})
    assert [name for name, array in arrays.items() if not np.isfinite(array).all()] == [what]
    got = assert_nan_where_the_reference_has_it(problem)
    assert any(np.isnan(array).any() for name, array in got.items() if name != "x")


@EACH_DTYPE
def test_an_overflow_long_before_the_stop(dtype):
    """A state is infinite for one step, between inputs and weights that are finite: the gradient of W_hh is NaN, from 0 times inf."""
    problem = random_problem("rnn-relu", 1500, 1, 2, 1, dtype=dtype)
    zeros = {name: np.zeros_like(getattr(problem, name)) for name in ("x", *WEIGHTS, "d_out")}
    problem = replace(problem, d_state=None, **zeros)
    large = np.sqrt(np.finfo(dtype).max) * 2
    problem.w_ih[...], problem.w_hh[...], problem.x[3] = large, -1, large
    _, _, tape = problem.forward(fastbptt)
    assert np.flatnonzero(np.isinf(tape.h)).tolist() == [4]
    for some in (problem, without_the_stop(problem)):
        assert np.isnan(backward(some, tape).w_hh).all()


@EACH_DTYPE
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_arrays_changed_after_the_forward_pass(bad, dtype):
    """The tape refers to the inputs: what they hold when the gradients are taken counts."""
    problem = only_at(no_recurrence(random_problem("rnn-tanh", 600, 2, 3, 5, dtype=dtype)), -1)
    x = problem.x.copy()
    problem = replace(problem, x=x)
    _, _, tape = problem.forward(fastbptt)
    x[4, 0, 1] = bad
    got = named(backward(problem, tape))
    assert np.isnan(got["w_ih"][:, 1]).all() and not np.isnan(got["w_ih"][:, 0]).any()


@EACH_DTYPE
@pytest.mark.parametrize("cell", PLAIN)
def test_a_nonfinite_loss_spreads_as_ever(cell, dtype):
    """inf and NaN are no zeros, and a row that has them does not stop."""
    problem = only_at(no_recurrence(random_problem(cell, 300, 3, 2, 9, dtype=dtype)), -1)
    for bad in (np.nan, np.inf):
        d_out = problem.d_out.copy()
        d_out[-1, 1, 2] = bad
        assert_nan_where_the_reference_has_it(replace(problem, d_out=d_out))


# --- What it is for ---------------------------------------------------------------------------------------------------


def processor_time(call, times_over):
    times = []
    for _ in range(times_over):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.one_level
@EACH_DTYPE
@pytest.mark.parametrize("before", ["nothing", "a call with NaN"])
@pytest.mark.parametrize("cell", PLAIN)
def test_the_steps_that_are_left_cost_nothing(cell, before, dtype, threads):
    """Apart from the block of time in which the gradient died, and a search of the arrays; whatever an earlier call has left in memory."""
    threads(1)
    problem = only_at(no_recurrence(random_problem(cell, 1000, 8, 16, 256, dtype=dtype)), -1)
    _, _, tape = problem.forward(fastbptt)
    if before == "a call with NaN":
        dirty = random_problem(cell, 20, 8, 200, 200, dtype=dtype)
        replace(dirty, w_ih=dirty.w_ih * np.nan, w_hh=dirty.w_hh * np.nan).results(fastbptt)
    full = without_the_stop(problem)
    stopped = processor_time(lambda: problem.backward(fastbptt, tape), 5)
    all_the_way = processor_time(lambda: full.backward(fastbptt, tape), 2)
    assert stopped < all_the_way / 3


def test_the_reader_of_windows_may_stop_too():
    """Truncated BPTT whose gradient dies within the newest window: the older ones add nothing."""
    for make in layers.LAYERS.values():
        layer = make(3, 6, rng=0)
        layer.params["weight_hh_l0"][...] = 0
        row = cells.CELLS[layer._cell]
        if row.keeper:
            layer.params["bias_ih_l0"].reshape(-1, 6)[row.gates.index(row.keeper)] = -800 * row.keeper.keeps
        x, d = np.random.default_rng(0).standard_normal((16, 2, 3)), np.random.default_rng(1).standard_normal((4, 2, 6))
        reader, total = fastbptt.TruncatedBPTT(layer, 12, 4), {}
        for start in range(0, 16, 4):
            reader.forward(x[start : start + 4])
            layer.zero_grad()
            reader.backward(d)
            total = {name: g.copy() for name, g in layer.grads.items()}
        layer.zero_grad()
        out, _ = layer(x)
        d_out = np.zeros_like(out)
        d_out[12:] = d
        layer.backward(d_out)
        for name, g in layer.grads.items():
            assert_close(name, total[name], g, 1e-13)


def test_the_helpers_here_can_fail():
    problem = only_at(random_problem("rnn-tanh", 30, 3, 2, 9), -1)
    got = problem.results(fastbptt)
    wrong = got | {"d_w_hh": np.nextafter(got["d_w_hh"], 9)}
    with pytest.raises(AssertionError, match="d_w_hh"):
        assert_results_same_bits(wrong, got)
    with pytest.raises(AssertionError, match="d_w_hh"):
        assert_results_close(got | {"d_w_hh": -got["d_w_hh"]}, got, 1e-12)
