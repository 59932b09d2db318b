"""`memory_budget`: the bits of the full tape, from checkpoints, in the memory that was granted."""

import copy
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from peaks import peak_of
from problems import CELLS, ONE_OF_EACH, assert_results_same_bits, random_problem, results_by_name
from test_projection import projected
from test_ragged import ragged
from tolerances import DTYPES

import fastbptt
import fastbptt.reference
from fastbptt import checkpointing
from fastbptt.checkpointing import advances, schedule

# notes of the paper's authors, and pyrevolve's `numforw`: t(l, s)
TABLE = {
    (1000, 1): 499500,
    (1000, 2): 28820,
    (1000, 3): 12155,
    (1000, 5): 6284,
    (1000, 10): 3636,
    (1000, 20): 2747,
    (1000, 32): 2405,
    (1000, 50): 1948,
    (1000, 100): 1898,
    (100, 1): 4950,
    (100, 2): 845,
    (100, 3): 490,
    (100, 5): 316,
    (100, 10): 222,
    (100, 20): 178,
    (100, 50): 148,
    (14, 3): 27,
}


@pytest.mark.one_level
@pytest.mark.parametrize(("sizes", "expected"), TABLE.items(), ids=str)
def test_revolve_by_the_published_numbers(sizes, expected):
    assert advances(*sizes) == expected
    assert sum(to - at for what, at, to in schedule(*sizes, [0]) if what == "advance") == expected


@cache
def fewest(segments, checkpoints):
    """By trying all places for the next checkpoint."""
    if segments == 1:
        return 0
    if checkpoints == 1:
        return segments * (segments - 1) // 2
    return min(m + fewest(segments - m, checkpoints - 1) + fewest(m, checkpoints) for m in range(1, segments))


@pytest.mark.one_level
@pytest.mark.parametrize("checkpoints", range(1, 12))
def test_a_schedule_can_be_followed_and_is_the_shortest(checkpoints):
    """It starts only from states that are kept or at hand, and keeps no more than it may."""
    for segments in range(1, 40):
        kept, at_hand, end, count = {0}, 0, segments, 0
        for what, at, to in schedule(segments, checkpoints, [0]):
            assert at in kept | {at_hand}
            if what == "advance":
                count, at_hand = count + to - at, to
            elif what == "keep":
                kept.add(at)
            else:
                end -= 1
                assert at == end
                kept, at_hand = {k for k in kept if k < max(end, 1)}, None
            assert len(kept) <= checkpoints
        assert end == 0
        assert count == fewest(segments, checkpoints) == advances(segments, checkpoints)


def least(problem):
    """Bytes."""
    try:
        within(problem, 1).forward(fastbptt)
    except ValueError as error:
        return int(re.fullmatch(r"memory_budget: expected at least (\d+) bytes for arrays of these sizes, got 1", str(error))[1])
    return 1


def within(problem, budget):
    return replace(problem, options=problem.options | {"memory_budget": budget})


def last_only(problem):
    return replace(problem, d_out=None, options=problem.options | {"last_only": True})


def results(problem, times=1, **options):
    """All results, of the last of so many backward passes, and the plan."""
    out, state, tape = problem.forward(fastbptt)
    for _ in range(times):
        grads = problem.backward(fastbptt, tape, **options)
    named = results_by_name(out, state, grads)
    if out is None:
        del named["out"]
    return named, tape.plan


def assert_bits_within(problem, budget, **options):
    expected, _ = results(problem, **options)
    for times in (1, 2):
        got, plan = results(within(problem, budget), times, **options)
        assert_results_same_bits(got, expected)
        assert plan.bytes <= budget
    return plan


# T, B, I, H: blocks of time that do not fill it; groups of rows, all of one size or not; units shared by threads; no groups.
SHAPES = [(1500, 1, 3, 17), (900, 9, 4, 8), (700, 16, 3, 5), (520, 19, 2, 7), (600, 2, 5, 130)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_the_bits_of_the_full_tape(cell, shape, dtype, threads):
    rng = np.random.default_rng(shape)
    problem = random_problem(cell, *shape, dtype=dtype, tokens=bool(rng.integers(2)))
    for n in (1, 2, 3):
        threads(n)
        for some in (problem, last_only(problem)):
            smallest = least(some)
            plan = assert_bits_within(some, smallest + rng.integers(0, 200_000))
            assert plan.bytes >= smallest or smallest == 1


@pytest.mark.parametrize("trial", range(60))
def test_random_configurations(trial, threads):
    """Ragged batches, tokens and vectors, clipping and factors too."""
    rng = np.random.default_rng(trial)
    cell, dtype = list(CELLS)[trial % len(CELLS)], DTYPES[rng.integers(2)]
    T, B, I, H = rng.integers(1, 900), rng.integers(1, 20), rng.integers(1, 9), rng.integers(1, 20)
    options = {"dtype": dtype, "tokens": bool(rng.integers(2)), "seed": trial}
    problem = random_problem(cell, T, B, I, H, **options)
    if trial % 3:
        problem = ragged(cell, T, B, I, H, what=["lengths", "resets", "both"][rng.integers(3)], often=0.02, **options)
    if rng.integers(2):
        problem = last_only(problem)
    given = [{}, {"clip_step": ("norm", 0.5)}, {"carry": rng.integers(0, 3, (T, B)).astype(dtype) / 2}, {"need_dx": False}][rng.integers(4)]
    threads(int(rng.integers(1, 4)))
    assert_bits_within(problem, int(least(problem) * rng.choice([1, 1.1, 2])), **given)


# T, B, I, H, P: of the same kinds as SHAPES.
PROJECTED = [(1500, 1, 3, 17, 4), (900, 9, 4, 8, 7), (520, 19, 2, 7, 1), (600, 2, 5, 130, 70)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", [{}, {"lengths": True, "resets": True}], ids=["rectangle", "ragged"])
@pytest.mark.parametrize("shape", PROJECTED, ids=str)
def test_a_projection(shape, what, dtype, threads):
    rng = np.random.default_rng(shape)
    problem = projected(*shape, dtype=dtype.type, tokens=bool(rng.integers(2)), **what)
    given = [{}, {"clip_step": ("norm", 0.5)}, {"carry": rng.integers(0, 3, shape[:2]).astype(dtype) / 2}][rng.integers(3)]
    for n in (1, 2, 3):
        threads(n)
        for some in (problem, last_only(problem)):
            assert_bits_within(some, least(some) + int(rng.integers(0, 100_000)), **given)


def test_the_peak_with_a_projection(threads):
    """The states that checkpoints keep are of P and of H numbers."""
    threads(2)
    problem = projected(20_000, 1, 16, 64, 16)
    for some in (problem, last_only(problem)):
        budget = int(1.05 * least(some))

        def passes(some=some, budget=budget):
            out, _, tape = within(some, budget).forward(fastbptt)
            return out, some.backward(fastbptt, tape)

        (out, grads), peak = peak_of(passes)
        made = sum(array.nbytes for array in (out, grads.x, grads.w_ih, grads.w_hh, grads.w_hr) if array is not None)
        assert peak - made <= 1.05 * budget


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (4, 0, 2, 5), (1, 1, 1, 1)], ids=str)
def test_next_to_nothing(cell, shape):
    problem = random_problem(cell, *shape)
    assert_bits_within(problem, 10**9)
    assert_bits_within(replace(problem, options={"lengths": np.zeros(shape[1], int)}), 10**9)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
@pytest.mark.parametrize("lengths", [None, [2900, 60, 3000, 3000, 1500, 8, 2999, 700, 1, 2000, 2100]], ids=["rectangle", "ragged"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_pass_ends_where_zeros_are_left(cell, lengths, value, monkeypatch):
    """The gradient of the last state dies out; but 0 times inf or NaN, among the first inputs, is NaN."""
    problem = random_problem(cell, 3000, 11, 2, 5, dtype=np.dtype(np.float32), gain=0.1)
    problem = replace(problem, d_out=None, options={} if lengths is None else {"lengths": np.array(lengths)})
    problem.x[0] = value
    went, back_through = [], checkpointing._back_through
    monkeypatch.setattr(checkpointing, "_back_through", lambda *args: (went.append(1), back_through(*args)))
    for some in (problem, last_only(problem)):
        went.clear()
        plan = assert_bits_within(some, int(least(some) * 1.05))
        assert plan.segments > 5
        if lengths is None:
            assert (len(went) < plan.segments) == (value == 0)  # in three passes


def test_a_plan_says_what_is_done():
    """More memory, fewer steps once more; and with all of it, none."""
    problem = last_only(random_problem("lstm", 6000, 1, 8, 16))
    smallest = least(problem)
    plans = [results(within(problem, smallest + more))[1] for more in (0, 1000, 5000, 100_000, 10**7)]
    assert plans[0].checkpoints == 1 and plans[0].recomputed_steps > 6000
    again = [plan.recomputed_steps for plan in plans]
    assert again == sorted(again, reverse=True) and again[-1] == 0 and plans[-1].segments == 1
    assert all(plan.segments >= plan.checkpoints for plan in plans)
    with pytest.raises(
        ValueError, match=f"memory_budget: expected at least {smallest} bytes for arrays of these sizes, got {smallest - 1}"
    ):
        within(problem, smallest - 1).forward(fastbptt)
    assert random_problem("lstm").forward(fastbptt)[2].plan is None


@pytest.mark.parametrize("cell", ["rnn-tanh", "gru", "lstm"])
@pytest.mark.parametrize("what", ["rectangle", "last_only", "lengths", "resets"])
def test_the_peak(cell, what, threads):
    """Of what Python and the kernels allocate, beyond arguments and results."""
    threads(2)
    problem = random_problem(cell, 20_000, 1, 16, 32)
    if what == "last_only":
        problem = last_only(problem)
    elif what == "lengths":
        problem = replace(problem, x=problem.x.repeat(3, 1)[:9000], d_out=problem.d_out.repeat(3, 1)[:9000])
        problem = replace(problem, state=None, d_state=None, options={"lengths": np.array([8000, 9000, 300])})
    elif what == "resets":  # segments of many sizes
        problem = replace(problem, options={"resets": np.random.default_rng(0).random((20_000, 1)) < 0.01})
    budget = 5_000_000 if what != "resets" else int(1.05 * least(problem))
    assert least(problem) < budget

    def passes():
        out, _, tape = within(problem, budget).forward(fastbptt)
        return out, problem.backward(fastbptt, tape)

    (out, grads), peak = peak_of(passes)
    made = sum(array.nbytes for array in (out, grads.x, grads.w_ih, grads.w_hh) if array is not None)
    assert peak - made <= 1.05 * budget


def test_a_tape_without_states():
    problem = within(random_problem("lstm", 700, 2, 3, 5), 10**7)
    out, _, tape = problem.forward(fastbptt)
    assert not out.flags.writeable
    for name in ("h", "c", "gates", "m"):
        assert not hasattr(tape, name)
        with pytest.raises(AttributeError, match=f"{name}: a tape with a memory budget keeps checkpoints alone"):
            getattr(tape, name)
    assert tape.x is problem.x and tape.shape == (700, 2, 5) and len(tape) == 700
    refusal = pytest.raises(ValueError, match="tape: expected one with all states, got one with a memory budget")
    for look in (
        lambda: fastbptt.gradient_flow(tape, problem.d_out),
        lambda: fastbptt.lyapunov_spectrum(tape),
        lambda: fastbptt.log_singular_values(tape, 0, 5),
        lambda: fastbptt.omega(tape, problem.d_out),
        lambda: fastbptt.lstm_jvp(tape, x=problem.x),
        lambda: tape.row(0),
        lambda: tape.last(5),
    ):
        with refusal:
            look()


def test_copies_and_threads_have_room_of_their_own():
    problem = within(random_problem("lstm", 3000, 1, 8, 16), 3_500_000)
    _, _, tape = problem.forward(fastbptt)
    assert tape.plan.segments > 1
    expected = problem.backward(fastbptt, tape).w_hh
    twin = copy.deepcopy(tape)
    tape._checkpoints.left.clear()  # as if another thread had taken it
    for each in (tape, twin, copy.copy(tape)):
        np.testing.assert_array_equal(problem.backward(fastbptt, each).w_hh, expected)


def test_the_reference_takes_it_too():
    problem = last_only(within(random_problem("gru"), 10**8))
    out, _, tape = problem.forward(fastbptt.reference)
    assert out is None
    np.testing.assert_allclose(problem.backward(fastbptt.reference, tape).x, results(problem)[0]["d_x"], atol=1e-12)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (0, ValueError, "memory_budget: expected an integer of at least 1, got 0"),
        (-5, ValueError, "memory_budget: expected an integer of at least 1, got -5"),
        (1e6, TypeError, "memory_budget: expected an integer, got 1000000.0"),
        ("64 MB", TypeError, "memory_budget: expected an integer, got '64 MB'"),
        (True, TypeError, "memory_budget: expected an integer, got True"),
    ],
)
def test_bad_budgets(name, budget, error, message):
    cell = {"rnn": "rnn-tanh"}.get(name, name)
    with pytest.raises(error, match=re.escape(message)):
        within(random_problem(cell), budget).forward(fastbptt)
