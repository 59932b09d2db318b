"""The table of cells; and what a new cell gets by its row: the minimal gated unit (Zhou et al. 2016), with the reset after the product.

f = sigmoid(W_if x + b_if + W_hf h + b_hf),  n = tanh(W_in x + b_in + f (W_hn h + b_hn)),  h = (1 - f) h + f n
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import problems
import pytest
import test_jvp
from problems import random_problem
from processes import run_python
from test_reference import complex_step, differentiable, gradient_of
from tolerances import bound

import fastbptt
from fastbptt import cells, forward_mode, functional, layers, reference
from fastbptt._kernels import kernels
from fastbptt.app import cli
from fastbptt.app.flow.described import DescribedNet
from fastbptt.app.train.settings import TaskSettings, TextSettings
from fastbptt.cells import Cell, Gate
from fastbptt.gradients.flow import gradient_flow
from fastbptt.gradients.linearised import linearise, slopes_by_gate
from fastbptt.side_by_side import alone
from fastbptt.tape import Tape


def test_rows_agree_with_themselves_and_with_what_bears_their_names():
    assert list(layers.LAYERS) == list(cells.CELLS)
    assert [cell.number for cell in cells.CELLS.values()] == list(range(len(cells.CELLS)))
    assert [f.number for f in cells.NONLINEARITIES.values()] == list(range(len(cells.NONLINEARITIES)))
    for name, cell in cells.CELLS.items():
        letters = [gate.letter for gate in cell.gates]
        assert cell.name == name and len(set(letters)) == len(letters)
        assert cell.gated == (cell.keeper is not None) == all(gate.nonlinearity in cells.NONLINEARITIES for gate in cell.gates)
        for half in ("forward", "backward", "jvp"):
            assert callable(getattr(fastbptt, f"{name}_{half}")) and callable(getattr(reference, f"{name}_{half}"))
        assert layers.LAYERS[name] is getattr(fastbptt, name.upper())


# --- A new cell -------------------------------------------------------------------------------------------------------


def derivatives(tape, a_x, a_h):
    (a_f, a_n), (m_f, m) = np.split(a_x, 2, axis=-1), np.split(a_h, 2, axis=-1)
    f, d_f = cells.sigmoid(a_f + m_f)
    n, d_n = np.tanh(a_n + f * m), cells.tanh_slope(a_n + f * m)
    slopes = np.concatenate([(n - tape.h[:-1] + f * d_n * m) * d_f, f * d_n * f], axis=-1)
    return 1 - f, slopes, None, np.concatenate([d_f, d_n], axis=-1)


def reference_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, lengths=None, resets=None):
    bias_x, bias_h = reference.zero_if_none(b_ih), reference.zero_if_none(b_hh)
    rows = reference.Rows(x, lengths, resets)
    state = reference.initial_state(h0, x, w_hh)
    h, gates, recurrent = [state], [], []
    for t, x_t in enumerate(reference.one_hot(rows.inputs, w_ih)):
        before = rows.enter(t, state)
        (a_f, a_n), (m_f, m_n) = np.split(x_t @ w_ih.T + bias_x, 2, axis=1), np.split(before @ w_hh.T + bias_h, 2, axis=1)
        f = reference.sigmoid(a_f + m_f)
        n = np.tanh(a_n + f * m_n)
        after = (1 - f) * before + f * n
        state = rows.leave(t, after, state)
        h.append(rows.leave(t, after, 0))
        gates.append(rows.leave(t, np.hstack([f, n]), 0))
        recurrent.append(rows.leave(t, m_n, 0))
    h = np.array(h)
    return h[1:], state, reference.Tape(rows, w_ih, w_hh, b_ih, b_hh, h=h, gates=gates, m=recurrent)


def reference_backward(tape, d_out, d_state=None, *, need_dx=True, clip_step=None, carry=None):
    h, rows, grads = tape.h, tape.rows, reference.Sums(tape)
    d_end = np.zeros_like(h[0]) if d_state is None else d_state
    for t in reversed(range(len(h) - 1)):
        before, dh = rows.enter(t, h[t]), d_end if d_out is None else d_end + d_out[t]
        (dh,) = reference.clipped(clip_step, dh)
        f, n = np.split(tape.gates[t], 2, axis=1)
        # h_t = (1 - f) h_{t-1} + f n
        da_n = dh * f * (1 - n**2)
        # n = tanh(a_n + f m_n)
        da_f = (dh * (n - before) + da_n * tape.m[t]) * f * (1 - f)
        da_x, da_h = (rows.leave(t, np.hstack([da_f, half]), 0) for half in (da_n, da_n * f))
        (dh,) = reference.handed_on(carry, t, dh * (1 - f) + da_h @ tape.w_hh)
        d_end = rows.back(t, dh, d_end)
        grads.add(t, da_x, da_h, before)
    return grads.result(d_end, need_dx)


def reference_jvp(tape, *, x=None, state=None, w_ih=None, w_hh=None, b_ih=None, b_hh=None):
    rows, h_dot, out_dot = tape.rows, reference.zeros_if_none(state, tape.h[0]), np.zeros_like(tape.h[1:])
    for t in range(len(out_dot)):
        f, n = np.split(tape.gates[t], 2, axis=1)
        h, before = rows.enter(t, tape.h[t]), rows.enter(t, h_dot)
        halves = reference.tangents_of_halves(tape, t, before, x, w_ih, w_hh, b_ih, b_hh)
        (f_x, n_x), (f_h, m_dot) = (np.split(half, 2, axis=1) for half in halves)
        f_dot = f * (1 - f) * (f_x + f_h)
        n_dot = (1 - n**2) * (n_x + f_dot * tape.m[t] + f * m_dot)
        after = (1 - f) * before + f_dot * (n - h) + f * n_dot
        h_dot, out_dot[t] = rows.leave(t, after, h_dot), rows.leave(t, after, 0)
    return out_dot, h_dot


def forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, lengths=None, resets=None, memory_budget=None, tape=True, last_only=False):
    kept = memory_budget, tape, last_only
    return alone(*functional.forward_pass("mgu", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, lengths, resets, kept))


def backward(tape, d_out, d_state=None, *, need_dx=True, clip_step=None, carry=None):
    return alone(*functional.backward_pass("mgu", tape, d_out, {"d_state": d_state}, need_dx, clip_step, carry))


def jvp(tape, *, x=None, state=None, w_ih=None, w_hh=None, b_ih=None, b_hh=None):
    return forward_mode._jvp("mgu", tape, x, state, w_ih, w_hh, b_ih, b_hh)


class MGU(layers.Recurrent):
    """A layer."""

    _cell = "mgu"


def step(a, m, h):
    f = problems.sigmoid(a[0] + m[0])
    return [(1 - f) * h + f * np.tanh(a[1] + f * m[1])]


ROW = Cell(
    "mgu",
    number=len(cells.CELLS),
    gates=(Gate("f", "forget", "sigmoid", keeps=-1), Gate("n", "new", "tanh")),
    states=("h",),
    derivatives=derivatives,
    rate=2.0,
    reset_after=True,
)
ROWS = [(cells.CELLS, ROW), (layers.LAYERS, MGU), (problems.CELLS, problems.Cell("mgu", step, {}, None))]
FUNCTIONS = [(module, forward, backward) for module in (fastbptt, functional)] + [(reference, reference_forward, reference_backward)]


def add(monkeypatch):
    for table, row in ROWS:
        monkeypatch.setitem(table, "mgu", row)
    for module, *both in FUNCTIONS:
        for half, function in zip(("forward", "backward"), both):
            monkeypatch.setattr(module, f"mgu_{half}", function, raising=False)
    for module, function in ((fastbptt, jvp), (reference, reference_jvp)):
        monkeypatch.setattr(module, "mgu_jvp", function, raising=False)


@pytest.fixture
def mgu(monkeypatch):
    add(monkeypatch)


def tape_of(problem):
    """The fast functions' tape, as the reference fills it."""
    out, state, tape = problem.forward(reference)
    made_of = (getattr(tape, name) for name in ("x", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "nonlinearity", "h", "c", "gates", "m"))
    return Tape("mgu", *made_of, (len(out), *state.shape))


def test_the_reference(mgu):
    problem = random_problem("mgu", T=1, B=1, I=1, H=1)
    a, m = problem.w_ih[:, 0] * problem.x.item() + problem.b_ih, problem.w_hh[:, 0] * problem.state[0].item() + problem.b_hh
    np.testing.assert_allclose(problem.forward(reference)[1], [step(a, m, problem.state[0].item())], rtol=1e-14)
    problem = random_problem("mgu")
    grads = problem.backward(reference, problem.forward(reference)[2])
    for key in differentiable(problem):
        np.testing.assert_allclose(gradient_of(grads, key), complex_step(problem, key), rtol=1e-12, atol=1e-13, err_msg=str(key))
    dots = test_jvp.tangents_of(problem)
    out, _, _ = test_jvp.moved(problem, dots).forward(reference)
    out_dot = test_jvp.run(reference, problem, problem.forward(reference)[2], dots)[0]
    np.testing.assert_allclose(out_dot, out.imag / test_jvp.STEP, rtol=1e-12, atol=1e-13)


def test_the_linearisation(mgu):
    """The Jacobian of each step by complex steps of the reference."""
    problem = random_problem("mgu")
    tape = tape_of(problem)
    steps = linearise(tape)
    for t in range(len(tape)):
        for j in range(7):
            moved = tape.h[t].astype(complex)
            moved[:, j] += 1e-30j
            after = problem.steps(t, t + 1, state=(moved,)).forward(reference)[1]
            np.testing.assert_allclose(steps.jacobian(t)[:, :, j], after.imag / 1e-30, rtol=1e-12, atol=1e-15)
    slopes = {gate.name: slope for gate, slope in slopes_by_gate(tape, steps)}
    f, n = np.split(tape.gates, 2, axis=-1)
    np.testing.assert_allclose(slopes["forget"], 4 * f * (1 - f), rtol=1e-12)
    np.testing.assert_allclose(slopes["new"], 1 - n**2, rtol=1e-12)


def test_the_layer(mgu):
    layer = MGU(4, 7, rng=0)
    assert {name: p.shape for name, p in layer.params.items()} == {
        "weight_ih_l0": (14, 4),
        "weight_hh_l0": (14, 7),
        "bias_ih_l0": (14,),
        "bias_hh_l0": (14,),
    }
    with pytest.raises(ValueError, match=r"^w_hh: expected shape \(2\*H, H\) with H >= 1, got \(21, 7\)"):
        fastbptt.mgu_forward(np.ones((5, 3, 4)), None, np.ones((21, 4)), np.ones((21, 7)))
    fastbptt.init.orthogonal(layer, rng=0)
    with pytest.raises(TypeError, match=r"^rnn: expected an RNN, got MGU"):
        fastbptt.init.identity(layer, rng=0)


@pytest.mark.parametrize("name", [name for name, cell in cells.CELLS.items() if cell.gated])
def test_gates_are_what_their_rows_say(name):
    """Their slopes are those of their nonlinearities, in the order of their letters; and the one that keeps the past does."""
    row, problem = cells.CELLS[name], random_problem(name, gain=0.3)
    slopes = {"sigmoid": lambda value: value * (1 - value), "tanh": lambda value: 1 - value**2}
    _, _, tape = problem.forward(fastbptt)
    values = np.split(tape.gates, len(row.gates), axis=-1)
    for (gate, got), value in zip(slopes_by_gate(tape, linearise(tape)), values, strict=True):
        steepest = cells.NONLINEARITIES[gate.nonlinearity].steepest
        np.testing.assert_allclose(got, slopes[gate.nonlinearity](value) / steepest, atol=1e-14, err_msg=gate.letter)
    problem.b_ih.reshape(len(row.gates), -1)[row.gates.index(row.keeper)] = 40 * row.keeper.keeps
    if len(row.states) == 2:  # what is kept is c, and nothing is to be added to it
        problem.b_ih.reshape(len(row.gates), -1)[0] = -40
    _, _, tape = problem.forward(fastbptt)
    kept = tape.h if tape.c is None else tape.c
    np.testing.assert_allclose(kept[-1], kept[0], atol=1e-12)


def test_a_cell_that_the_kernels_do_not_have():
    h, x, w_ih, w_hh = (np.zeros(shape) for shape in ((3, 2, 4), (2, 2, 3), (4, 3), (4, 4)))
    with pytest.raises(ValueError, match=r"^cell: there is none with number 99 in these kernels; after a change to their source"):
        kernels[h.dtype].forward(99, 0, x, None, w_ih, w_hh, None, None, None, h, None, None, None)


def test_what_the_commands_offer(mgu, run):
    for command in ("train", "flow"):
        assert ", ".join(cells.CELLS) in " ".join(run(command, "--help").out.split())
    assert TextSettings(cell="mgu", hidden=250).lr == 2.0 / 250 and TextSettings(cell="mgu").net == "MGU, float32"
    assert TaskSettings(task="adding", cell="mgu").init == "default"
    with pytest.raises(ValueError, match=r"^init: only the cell rnn has the start identity; this is mgu$"):
        TaskSettings(task="adding", cell="mgu", init="identity")
    gated = " and ".join(name for name, cell in cells.CELLS.items() if cell.gated)
    assert str(DescribedNet(cell="mgu", gate_bias=2.0)).endswith("bias -2 of the f gate")
    with pytest.raises(ValueError, match=rf"^gate-bias: an rnn has no gates; only {gated} have$"):
        DescribedNet(gate_bias=2.0)


def test_the_page_offers_it(mgu):
    pytest.importorskip("werkzeug")
    pytest.importorskip("plotly")
    from werkzeug.test import Client

    from fastbptt.app.flow.serve import App

    client = Client(App(DescribedNet(cell="mgu", hidden=8)))
    start = client.get("/start", headers={"Host": "127.0.0.1"}, environ_overrides={"REMOTE_ADDR": "127.0.0.1"}).json
    gated = [name for name, cell in cells.CELLS.items() if cell.gated]
    assert list(start["nets"]) == [*cells.NONLINEARITIES, *gated] and start["values"]["net"] == "mgu" == gated[-1]
    assert [cell for cell, nonlinearity in start["nets"].values() if nonlinearity is None] == gated


# What is added to `_kernels/cells.pxi`: a branch in `choose_steps`, and the equations.
BRANCH = f"""
    if cell == {ROW.number}:
        problem.forward, problem.backward, problem.tangent = mgu_forward_row, mgu_backward_row, mgu_tangent_row
"""
EQUATIONS = """
cdef inlined mgu_forward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef real *a = s.a + i
    cdef vec f = vector_sigmoid(get(whole, a, k))
    cdef vec n = vector_tanh(get(whole, a + s.H, k) + f * get(whole, s.m + i, k))
    put(whole, a, k, f)
    put(whole, a + s.H, k, n)
    put(whole, s.h + i, k, (1 - f) * get(whole, s.h_prev + i, k) + f * n)


cdef inlined mgu_backward_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec f = get(whole, s.a + i, k), n = get(whole, s.a + i + s.H, k), dh = get(whole, s.dh + i, k)
    # reverse of: h_t = (1 - f) h_{t-1} + f n
    cdef vec da_n = through_tanh(n, dh * f)
    put(whole, s.dh + i, k, dh * (1 - f) + get(whole, s.d_prev + i, k))
    # reverse of: n = tanh(a_n + f m)
    cdef vec da_f = through_sigmoid(f, dh * (n - get(whole, s.h_prev + i, k)) + da_n * get(whole, s.m + i, k))
    put(whole, s.da + i, k, da_f)
    put(whole, s.da + i + s.H, k, da_n)
    put(whole, s.da_h + i, k, da_f)
    put(whole, s.da_h + i + s.H, k, da_n * f)


cdef inlined mgu_tangent_units(const int kind, const bint whole, const Span *s, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef vec f = get(whole, s.a + i, k), n = get(whole, s.a + i + s.H, k)
    cdef vec f_dot = through_sigmoid(f, get(whole, s.a_dot + i, k))
    cdef vec of_m = f_dot * get(whole, s.m + i, k) + f * get(whole, s.m_dot + i, k)
    cdef vec n_dot = through_tanh(n, get(whole, s.a_dot + i + s.H, k) + of_m)
    cdef vec past = (1 - f) * get(whole, s.h_dot_prev + i, k) + f_dot * (n - get(whole, s.h_prev + i, k))
    put(whole, s.h_dot + i, k, past + f * n_dot)


cdef void mgu_forward_row(const Span *s) noexcept nogil:
    along_row(<Units>mgu_forward_units, 0, s)


cdef void mgu_backward_row(const Span *s) noexcept nogil:
    along_row(<Units>mgu_backward_units, 0, s)


cdef void mgu_tangent_row(const Span *s) noexcept nogil:
    along_row(<Units>mgu_tangent_units, 0, s)
"""
FLAGS = ["-shared", "-fPIC", "-O1", "-fno-math-errno", "-ffp-contract=fast", "-I", sysconfig.get_paths()["include"]]
CHILD = """
import sys
from pytest import MonkeyPatch
import fastbptt, test_cells

assert fastbptt.__file__.startswith(sys.argv[1]) and fastbptt.show_config(mode="dicts")["isa"] == sys.argv[2]
test_cells.add(MonkeyPatch())
test_cells.check_the_kernels(sys.argv[1])
"""


def check_the_kernels(folder):
    for shape in [(5, 3, 4, 7), (1, 1, 1, 1), (9, 20, 5, 33), (60, 2, 3, 130)]:
        for tokens in (False, True):
            problem = random_problem("mgu", *shape, tokens=tokens)
            expected = problem.astype(np.longdouble).results(reference)
            problems.assert_results_close(problem.results(fastbptt), expected, bound("float64", problem.K, shape[0]))
            test_jvp.assert_right(problem, [test_jvp.tangents_of(problem)], fastbptt.set_num_threads)
    problem = random_problem("mgu")
    _, _, tape = problem.forward(fastbptt)
    grads = problem.backward(fastbptt, tape)
    layer = MGU(4, 7)
    layer.load_state_dict(dict(zip(layer.params, (problem.w_ih, problem.w_hh, problem.b_ih, problem.b_hh))))
    layer(problem.x, problem.state[0][None])
    dx, d_state = layer.backward(problem.d_out, problem.d_state[0])
    for got, expected in zip((dx, d_state[0], *layer.grads.values()), grads):
        np.testing.assert_array_equal(got, expected)
    flow = gradient_flow(tape, problem.d_out, problem.d_state[0])
    np.testing.assert_allclose(flow.log10_state_norm[0], np.log10(np.linalg.norm(grads.state, axis=-1)), rtol=1e-10)
    assert "MGU: 5 steps" in str(flow) and list(flow.saturated_gates) == ["f", "n"]
    assert np.isfinite(fastbptt.lyapunov_spectrum(tape).exponents).all()
    train = ["train", "--task", "adding", "--length", "20", "--cell", "mgu", "--updates", "2", "--hidden", "5", "--out", f"{folder}/run"]
    described = ["flow", "--cell", "mgu", "--hidden", "5", "--steps", "9", "--out", f"{folder}/flow.png"]
    saved = ["flow", f"{folder}/run/checkpoint.safetensors", "--no-picture"]
    for arguments in (train, described, saved):
        assert cli.main(arguments) == 0, arguments


@pytest.mark.one_level
@pytest.mark.skipif(not (find_spec("Cython") and shutil.which("gcc")), reason="compiles a kernel")
def test_the_kernels(tmp_path):
    """In a copy of the package, with kernels of one precision and level: right gradients, and all that is made of them."""
    for module in ("matplotlib", "rich"):
        pytest.importorskip(module)
    package, kernels = tmp_path / "fastbptt", tmp_path / "fastbptt" / "_kernels"
    shutil.copytree(Path(fastbptt.__file__).parent, package, ignore=shutil.ignore_patterns("_*_float*", "*.c", "__pycache__"))
    insert(kernels / "cells.pxi", '"""The cell\'s element-wise half of a step, in all passes; False if there is no such cell."""', BRANCH)
    with (kernels / "cells.pxi").open("a") as file:
        file.write(EQUATIONS)
    insert(kernels / "__init__.py", "DTYPES = (np.dtype(np.float64),", ")  #")
    levels = fastbptt.show_config(mode="dicts")["isa_levels"]
    level = next(name for name in ("baseline", "neon") if name in levels)  # built with no flags of its own
    source = kernels / f"_{level}_float64.pyx"
    source.write_text('include "kernels.pxi"\n')
    subprocess.run([sys.executable, "-m", "cython", "-3", "-X", "cdivision=True", source], cwd=tmp_path, check=True)
    target = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    subprocess.run(["gcc", *FLAGS, source.with_suffix(".c"), "-o", target], check=True)
    run_python(CHILD, tmp_path, level, PYTHONPATH=f"{tmp_path}:{Path(__file__).parent}", FASTBPTT_ISA=level)


def insert(path, after, text):
    before, found, rest = path.read_text().partition(after)
    assert found, f"{path.name}: no {after!r}"
    path.write_text(before + after + text + rest)
