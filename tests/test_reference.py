"""The reference itself, against derivatives taken another way."""

from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, WEIGHTS, arrays_of, random_problem

import fastbptt.reference

STEP = 1e-30  # of the complex step: f(x + i s) = f(x) + i s f'(x) up to s^2, and nothing is subtracted (Squire and Trapp 1998)


def loss(problem):
    """A scalar whose gradients at out and at the final state are the problem's cotangents."""
    out, state, _ = problem.forward(fastbptt.reference)
    return (out * problem.d_out).sum() + sum((s * d).sum() for s, d in zip(arrays_of(state), problem.d_state))


def complex_step(problem, key):
    array = dict(problem.arrays())[key]
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        moved = array.astype(complex)
        moved[index] += 1j * STEP
        gradient[index] = loss(problem.with_array(key, moved)).imag / STEP
    return gradient


def central_difference(problem, key, step=1e-6):
    array = dict(problem.arrays())[key]
    gradient = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (loss(problem.with_array(key, up)) - loss(problem.with_array(key, down))) / (2 * step)
    return gradient


def gradient_of(grads, key):
    return getattr(grads, key) if isinstance(key, str) else arrays_of(grads.state)[key[1]]


def differentiable(problem):
    """The keys of everything that backward gives a gradient of."""
    return [key for key, array in problem.arrays() if array.dtype.kind == "f" and key not in ("d_out", "leak") and key[0] != "d_state"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (1, 2, 3, 2), (3, 1, 1, 1), (2, 2, 5, 4)], ids=str)
def test_every_gradient_against_the_complex_step(cell, shape):
    problem = random_problem(cell, *shape, seed=1)
    _, _, tape = problem.forward(fastbptt.reference)
    grads = problem.backward(fastbptt.reference, tape)
    assert {"x", *WEIGHTS, *(("state", i) for i in range(problem.cell.states))} == set(differentiable(problem))
    for key in differentiable(problem):
        np.testing.assert_allclose(gradient_of(grads, key), complex_step(problem, key), rtol=1e-12, atol=1e-13, err_msg=str(key))


@pytest.mark.parametrize("cell", CELLS)
def test_every_gradient_against_central_differences(cell):
    problem = random_problem(cell, 4, 2, 3, 5, seed=2)
    _, _, tape = problem.forward(fastbptt.reference)
    grads = problem.backward(fastbptt.reference, tape)
    for key in differentiable(problem):
        np.testing.assert_allclose(gradient_of(grads, key), central_difference(problem, key), rtol=1e-5, atol=1e-7, err_msg=str(key))


@pytest.mark.parametrize("leak", ["one", "per unit"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "identity"])
def test_leaky_gradients_against_the_complex_step(nonlinearity, leak):
    a = 1 - np.random.default_rng(0).random(7)
    problem = replace(random_problem(f"rnn-{nonlinearity}", seed=1), leak=0.3 if leak == "one" else a)
    grads = problem.backward(fastbptt.reference, problem.forward(fastbptt.reference)[2])
    for key in differentiable(problem):
        np.testing.assert_allclose(gradient_of(grads, key), complex_step(problem, key), rtol=1e-12, atol=1e-13, err_msg=str(key))


@pytest.mark.parametrize(("cell", "key"), [(cell, key) for cell in CELLS for key in differentiable(random_problem(cell))], ids=str)
def test_the_complex_step_notices_a_flipped_sign(cell, key):
    problem = random_problem(cell, T=2, seed=3)
    _, _, tape = problem.forward(fastbptt.reference)
    wrong = -gradient_of(problem.backward(fastbptt.reference, tape), key)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong, complex_step(problem, key), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_by_the_formula(cell):
    problem = random_problem(cell, T=1, B=1, I=1, H=1, seed=4)
    out, state, _ = problem.forward(fastbptt.reference)
    a, m = problem.w_ih[:, 0] * problem.x.item() + problem.b_ih, problem.w_hh[:, 0] * problem.state[0].item() + problem.b_hh
    by_formula = problem.cell.step(a, m, *(part.item() for part in problem.state), **problem.all_options())
    for got, expected in zip(arrays_of(state), by_formula, strict=True):
        np.testing.assert_allclose(got.item(), np.asarray(expected).item(), rtol=1e-14)
    np.testing.assert_array_equal(arrays_of(state)[0], out[-1])


@pytest.mark.parametrize("cell", ["leaky-tanh", "leaky-relu-units", "gru", "lstm"])
def test_gates_are_what_the_state_is_made_of(cell):
    problem = random_problem(cell)
    _, _, tape = problem.forward(fastbptt.reference)
    for t in range(5):
        gates = tape.gates[t]
        if cell == "gru":
            _, z, n = np.split(gates, 3, axis=1)
            np.testing.assert_allclose(tape.h[t + 1], n + z * (tape.h[t] - n), rtol=1e-12)
        elif cell == "lstm":
            i, f, g, o = np.split(gates, 4, axis=1)
            np.testing.assert_allclose(tape.c[t + 1], f * tape.c[t] + i * g, rtol=1e-12)
            np.testing.assert_allclose(tape.h[t + 1], o * np.tanh(tape.c[t + 1]), rtol=1e-12)
        else:
            np.testing.assert_allclose(tape.h[t + 1], tape.h[t] + problem.leak * (gates - tape.h[t]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["state", "d_state"])
@pytest.mark.parametrize("half", [0, 1])
def test_half_a_state_is_zero_in_the_other(half, name):
    problem = random_problem("lstm")
    missing = tuple(None if i == half else array for i, array in enumerate(getattr(problem, name)))
    zero = tuple(np.zeros_like(array) if i == half else array for i, array in enumerate(getattr(problem, name)))
    got = replace(problem, **{name: missing}).results(fastbptt.reference)
    for result, value in replace(problem, **{name: zero}).results(fastbptt.reference).items():
        np.testing.assert_array_equal(got[result], value, err_msg=result)


@pytest.mark.parametrize("cell", CELLS)
def test_the_precision_is_that_of_the_arguments(cell):
    """Which is what makes long double an oracle for float64."""
    for dtype in (np.float32, np.float64, np.longdouble):
        problem = random_problem(cell).astype(dtype)
        _, _, tape = problem.forward(fastbptt.reference)
        assert {history.dtype for history in histories_of(tape)} == {np.dtype(dtype)}
        assert {array.dtype for array in problem.results(fastbptt.reference).values()} == {np.dtype(dtype)}


def histories_of(tape):
    return [getattr(tape, name) for name in ("h", "c") if getattr(tape, name, None) is not None]


@pytest.mark.parametrize("cell", CELLS)
def test_tokens_are_one_hot_rows(cell):
    problem = random_problem(cell, I=6, tokens=True, seed=5)
    explicit = problem.with_array("x", np.eye(6)[problem.x])
    got, expected = problem.results(fastbptt.reference), explicit.results(fastbptt.reference)
    assert got.pop("d_x") is None
    assert expected.pop("d_x") is not None
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    grads = problem.backward(fastbptt.reference, problem.forward(fastbptt.reference)[2])
    np.testing.assert_allclose(grads.w_ih, complex_step(problem, "w_ih"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_where_there_is_nothing(cell):
    problem = random_problem(cell, biases=(True, False))
    full = problem.results(fastbptt.reference)
    without_dx = problem.results(fastbptt.reference, need_dx=False)
    assert full["d_b_hh"] is None and full["d_b_ih"] is not None and full["d_x"] is not None
    assert without_dx.pop("d_x") is None
    for name, value in without_dx.items():
        np.testing.assert_array_equal(value, full[name])


@pytest.mark.parametrize("cell", CELLS)
def test_missing_states_and_cotangents_are_zeros(cell):
    problem = random_problem(cell)
    zeros = tuple(np.zeros_like(s) for s in problem.state)
    for name, missing, explicit in [
        ("state", None, zeros),
        ("d_state", None, zeros),
        ("d_out", None, np.zeros_like(problem.d_out)),
        ("b_ih", None, np.zeros_like(problem.b_ih)),
    ]:
        got = problem.with_array(name, missing).results(fastbptt.reference)
        expected = problem.with_array(name, explicit).results(fastbptt.reference)
        for result in got:
            if got[result] is not None:
                np.testing.assert_array_equal(got[result], expected[result], err_msg=f"{name}: {result}")
