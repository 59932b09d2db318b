"""`tape=False` and `last_only`: the same bits, and nothing that is not wanted."""

import re
from dataclasses import replace

import numpy as np
import pytest
from peaks import peak_of
from problems import CELLS, arrays_of, random_problem
from test_projection import projected
from test_ragged import ragged
from tolerances import DTYPES, assert_same_bits

import fastbptt
import fastbptt.reference
from fastbptt import segments


@pytest.fixture(params=[1 << 12, segments.GATES], ids=["segments", "one piece"])
def gates(request, monkeypatch):
    """How many bytes of gates there are at a time: as few as a test can have, or as many as there are."""
    monkeypatch.setattr(segments, "GATES", request.param)


def with_options(problem, **options):
    return replace(problem, options=problem.options | options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("what", [None, "lengths", "resets", "both"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_the_ordinary_call(cell, what, tokens, dtype, gates, threads):
    for shape in ((0, 3, 2, 5), (4, 0, 2, 5), (1, 1, 1, 1), (90, 1, 3, 40), (150, 9, 4, 7)):
        options = {"dtype": dtype, "tokens": tokens}
        problem = random_problem(cell, *shape, **options) if what is None else ragged(cell, *shape, what=what, **options)
        out, state, tape = problem.forward(fastbptt)
        for n in (1, 2, 3):
            threads(n)
            for last_only in (False, True):
                for keep in (False, True):
                    got, last, kept = with_options(problem, tape=keep, last_only=last_only).forward(fastbptt)
                    assert got is None if last_only else (got.flags.writeable or keep)
                    assert (kept is not None) == keep
                    if not last_only:
                        assert_same_bits("out", got, out)
                    for i, (a, b) in enumerate(zip(arrays_of(last), arrays_of(state), strict=True)):
                        assert_same_bits(f"state {i}", a, b)
    assert tape is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", [{}, {"lengths": True}, {"resets": True}], ids=["rectangle", "lengths", "resets"])
def test_a_projection(what, dtype, gates, threads):
    """Forward; and back from the last state alone."""
    for shape in ((0, 3, 2, 5, 4), (4, 0, 2, 5, 2), (1, 1, 1, 2, 1), (90, 1, 3, 40, 24), (150, 9, 4, 7, 3)):
        problem = projected(*shape, dtype=dtype.type, **what)
        out, state, _ = problem.forward(fastbptt)
        for n in (1, 2, 3):
            threads(n)
            for last_only in (False, True):
                got, last, kept = with_options(problem, tape=False, last_only=last_only).forward(fastbptt)
                assert kept is None and (got is None if last_only else got.flags.writeable)
                if not last_only:
                    assert_same_bits("out", got, out)
                for i, (a, b) in enumerate(zip(last, state, strict=True)):
                    assert_same_bits(f"state {i}", a, b)
        back = replace(problem, d_out=None)
        expected, got = back.results(fastbptt), with_options(back, last_only=True).results(fastbptt)
        for name in expected.keys() - {"out"}:
            assert_same_bits(name, got[name], expected[name])


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradients_of_the_last_state(cell):
    problem = replace(random_problem(cell), d_out=None)
    expected = problem.backward(fastbptt, problem.forward(fastbptt)[2])
    got = with_options(problem, last_only=True)
    tape = got.forward(fastbptt)[2]
    for name in ("x", "w_ih", "w_hh", "b_ih", "b_hh"):
        assert_same_bits(name, getattr(got.backward(fastbptt, tape), name), getattr(expected, name))
    assert tape.h.shape == (6, 3, 7)
    with pytest.raises(ValueError, match="d_out: expected None, as the forward pass had last_only=True, got ndarray of shape"):
        random_problem(cell).backward(fastbptt, tape)


@pytest.mark.parametrize("what", [None, "lengths"])
@pytest.mark.parametrize("cell", ["rnn-tanh", "leaky-tanh", "gru", "lstm"])
def test_memory_does_not_grow_with_time(cell, what):
    """Beyond the outputs; of a ragged batch, and three numbers for each row of each step, which say where it stands."""
    peaks = []
    for T in (40_000, 160_000):
        problem = random_problem(cell, T, 2, 3, 24, dtype=np.dtype(np.float32))
        if what:
            problem = replace(problem, options={"lengths": np.array([T, T // 2])})
        for last_only in (False, True):
            call = with_options(problem, tape=False, last_only=last_only)
            (out, _, _), peak = peak_of(lambda call=call: call.forward(fastbptt))
            peaks.append(peak - (0 if out is None else out.nbytes))
    limit = 3 * segments.GATES + (0 if what is None else 8 * 8 * 2 * 160_000)
    assert max(peaks) < limit
    assert what is not None or abs(peaks[2] - peaks[0]) < 100_000 > abs(peaks[3] - peaks[1])


def test_the_bar():
    """LSTM, float32, T=20000, B=8, H=64: at most 1.2 times the outputs."""
    problem = random_problem("lstm", 20_000, 8, 64, 64, dtype=np.dtype(np.float32))
    (out, _, _), peak = peak_of(lambda: with_options(problem, tape=False).forward(fastbptt))
    assert peak <= 1.2 * out.nbytes


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference(cell):
    problem = random_problem(cell)
    for options in ({"tape": False}, {"last_only": True}, {"tape": False, "last_only": True}):
        (out, state, tape), (got, last, kept) = (
            with_options(problem, **options).forward(module) for module in (fastbptt, fastbptt.reference)
        )
        assert (got is None, kept is None) == (out is None, tape is None)
        for a, b in zip(arrays_of(state), arrays_of(last), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tape": None}, TypeError, "tape: expected True or False, got NoneType"),
        ({"last_only": "yes"}, TypeError, "last_only: expected True or False, got 'yes'"),
        (
            {"tape": False, "memory_budget": 10**9},
            ValueError,
            "memory_budget: expected None with tape=False, which keeps nothing, got 1000000000",
        ),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        with_options(random_problem({"rnn": "rnn-tanh"}.get(name, name)), **options).forward(fastbptt)


def test_no_tape_and_then_back():
    problem = with_options(random_problem("lstm"), tape=False)
    _, _, tape = problem.forward(fastbptt)
    with pytest.raises(TypeError, match="tape: expected the tape of lstm_forward, got NoneType"):
        problem.backward(fastbptt, tape)
