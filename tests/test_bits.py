"""Results have the same bits at any thread count, on rerun, for a row in any batch, and whatever memory held before."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, GATED, ONE_OF_EACH, PLAIN, assert_results_same_bits, random_problem
from tolerances import DTYPES, assert_same_bits

import fastbptt
from fastbptt._kernels import kernels, pool

THREADS = [1, 2, 3, 4]

# Work for several threads in every phase; few rows and many steps, so that steps are shared out instead; several blocks of time;
# rows in groups.
SHAPES = [(50, 7, 20, 33), (1, 64, 70, 70), (400, 1, 40, 24), (200, 7, 19, 40), (20, 65, 31, 80), (3, 5, 300, 17), (150, 21, 6, 19)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_any_thread_count(cell, shape, tokens, dtype, threads):
    problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
    threads(1)
    expected = problem.results(fastbptt)
    for n in THREADS:
        threads(n)
        for _ in range(3 if cell == "rnn-tanh" else 1):
            assert_results_same_bits(problem.results(fastbptt), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "H"), [(1, 130), (1, 200), (2, 167), (3, 144), (4, 193), (5, 130), (6, 151), (7, 200)])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_few_rows_and_many_units(cell, B, H, dtype, threads):
    """Threads share the units of each step here; where T * B > 512, block by block of time."""
    for T, tokens in ((3, False), (520 // B + 5, True)):
        problem = random_problem(cell, T, B, 9, H, dtype=dtype, tokens=tokens)
        threads(1)
        expected = problem.results(fastbptt)
        for n in (2, 5):
            threads(n)
            assert_results_same_bits(problem.results(fastbptt), expected)
        if not tokens and B > 1:
            whole = problem.rows([0]).results(fastbptt)
            assert_same_bits("out of row 0", whole["out"][:, 0], expected["out"][:, 0])
            assert_same_bits("d_x of row 0", whole["d_x"][:, 0], expected["d_x"][:, 0])


@pytest.fixture
def step_cost():
    """`pool.assume_step_cost`, undone after the test."""
    before = pool.assume_step_cost(0)
    yield pool.assume_step_cost
    pool.assume_step_cost(before)


@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_whatever_it_costs_to_meet(cell, step_cost, threads):
    """Which decides whether threads share the units of each step."""
    problem = random_problem(cell, 200, 2, 9, 130)
    threads(1)
    expected = problem.results(fastbptt)
    threads(2)
    for cost in (1, 1e9, 0):
        step_cost(cost)
        assert_results_same_bits(problem.results(fastbptt), expected)


@pytest.mark.parametrize("parts", [1, 2, 16])
def test_what_it_costs_to_meet_is_measured(parts, step_cost):
    assert 0 < pool.measured_step_cost(parts) <= 1e6  # nanoseconds


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", GATED)
def test_a_thread_for_each_vector_of_units(cell, dtype, threads):
    problem = random_problem(cell, 60, 7, 5, 32, dtype=dtype)
    threads(1)
    expected = problem.results(fastbptt)
    threads(16)
    assert_results_same_bits(problem.results(fastbptt), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_sums_of_groups_that_threads_add_up(cell, dtype, threads):
    """As many groups of rows, and as many weights in each, as there can be: adding them up is work for several threads, too."""
    problem = random_problem(cell, 33, 64, 80, 80, dtype=dtype)
    threads(1)
    expected = problem.results(fastbptt)
    for n in (2, 3):
        threads(n)
        assert_results_same_bits(problem.results(fastbptt), expected)


@pytest.mark.one_level
@pytest.mark.parametrize("n", [16, 17, 40, 256])
@pytest.mark.parametrize("shape", [(6, 1, 30, 512), (2, 3, 20, 700), (4, 300, 17, 40)], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_many_threads(cell, shape, n, threads):
    problem = random_problem(cell, *shape, dtype=np.float64 if n % 2 else np.float32)
    threads(1)
    expected = problem.results(fastbptt)
    threads(n)
    assert_results_same_bits(problem.results(fastbptt), expected)


SHARED_BOTH_WAYS = [(40, 16, 24, 128), (20, 64, 16, 160), (60, 9, 16, 256), (30, 33, 20, 200)]  # T, B, I, H


@pytest.mark.one_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHARED_BOTH_WAYS, ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_patches_of_rows_and_units(cell, shape, dtype, threads):
    """Threads that share the rows of a step, and its units too; and the rows of dW, and its columns."""
    T, B, _, H = shape
    problem = random_problem(cell, *shape, dtype=dtype)
    ragged = replace(problem, options={"lengths": np.random.default_rng(0).integers(0, T + 1, B)})
    threads(1)
    expected, both_ways = [each.results(fastbptt) for each in (problem, ragged)], 0
    for n in (4, 8, 16, 32, 64):
        by_rows, by_units = kernels[np.dtype(dtype)].patches(len(problem.w_hh), H, T, B, n)
        assert by_rows * by_units <= n
        both_ways += by_rows > 1 < by_units
        threads(n)
        for each, right in zip((problem, ragged), expected):
            assert_results_same_bits(each.results(fastbptt), right)
    assert both_ways >= 2


@pytest.mark.one_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patches_of_a_projected_lstm_and_in_forward_mode(dtype, threads):
    rng = np.random.default_rng(0)
    T, B, I, H, P = 30, 16, 10, 160, 96
    x, w_ih, w_hh, w_hr, b = (
        rng.standard_normal(shape).astype(dtype) / 4 for shape in ((T, B, I), (4 * H, I), (4 * H, P), (P, H), (4 * H,))
    )
    x_dot, w_dot = rng.standard_normal(x.shape).astype(dtype), rng.standard_normal(w_hh.shape).astype(dtype)

    def results():
        out, states, tape = fastbptt.lstm_forward(x, None, w_ih, w_hh, b, b, w_hr=w_hr)
        grads = fastbptt.lstm_backward(tape, np.ones_like(out))
        out_dot, states_dot = fastbptt.lstm_jvp(tape, x=x_dot, w_hh=w_dot)
        return [out, *states, grads.x, *grads.state, grads.w_ih, grads.w_hh, grads.w_hr, out_dot, *states_dot]

    threads(1)
    expected = results()
    for n in (8, 16, 64):
        threads(n)
        for got, right in zip(results(), expected, strict=True):
            assert_same_bits("result", got, right)


def test_how_steps_are_cut(step_cost):
    """By units as far as that makes a step, with meeting after it, shorter; by rows, too, where threads and rows are many."""
    patches = kernels[np.dtype(np.float32)].patches
    if kernels[np.dtype(np.float32)].lanes() != 16:
        pytest.skip("of vectors of 16 numbers")
    step_cost(50)
    assert [patches(128, 128, 100, B, 2) for B in (1, 4, 8, 64)] == [(1, 2), (1, 1), (1, 1), (1, 1)]
    assert [patches(512, 128, 100, B, 2) for B in (1, 2, 3, 4)] == [(1, 2), (1, 2), (1, 2), (1, 1)]
    assert [patches(2048, 512, 100, B, 2) for B in (1, 16, 128)] == [(1, 2), (1, 2), (1, 1)]
    assert [patches(2048, 512, 100, 64, n) for n in (8, 16, 32, 64)] == [(1, 8), (2, 8), (4, 8), (8, 8)]
    assert [patches(512, 128, 100, 16, n) for n in (4, 8, 16, 64)] == [(1, 1), (1, 1), (4, 4), (4, 8)]
    step_cost(300)
    assert [patches(512, 128, 100, B, 2) for B in (1, 2, 3, 4)] == [(1, 1), (1, 1), (1, 1), (1, 1)]
    assert patches(2048, 512, 100, 1, 2) == (1, 2)
    step_cost(1e4)
    assert patches(2048, 512, 100, 1, 16) == (1, 8)
    step_cost(1e9)
    assert {patches(2048, 512, 100, B, n) for B in (1, 16, 64) for n in (2, 64)} == {(1, 1)}


@pytest.mark.one_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_many_reruns(cell, n, dtype, threads):
    problem = random_problem(cell, 60, 9, 20, 40, dtype=dtype)
    threads(n)
    expected = problem.results(fastbptt)
    for _ in range(50 if cell == "rnn-tanh" else 12):
        assert_results_same_bits(problem.results(fastbptt), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("sizes", [(11, 5, 13), (6, 40, 65), (4, 64, 32)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_in_any_batch(cell, sizes, tokens, dtype, threads):
    """Single rows and odd sub-batches of 64, taken apart and out of order, with one thread and with two."""
    T, I, H = sizes
    batch = random_problem(cell, T, 64, I, H, dtype=dtype, tokens=tokens)
    rows = [[b] for b in range(0, 64, 7)] + [list(range(n)) for n in (2, 3, 5, 7, 9, 13, 17, 33)] + [[63, 0, 31], list(range(63, 20, -1))]
    by_row = ["out", "d_x"] + [f"{name} {i}" for name in ("final state", "d_initial_state") for i in range(batch.cell.states)]
    for n in (1, 2):
        threads(n)
        whole = batch.results(fastbptt)
        for index in rows if cell in ONE_OF_EACH else rows[::4]:
            part = batch.rows(index).results(fastbptt)
            for name in by_row:
                expected = whole[name]
                if expected is not None:
                    expected = expected[:, index] if expected.ndim == 3 else expected[index]
                assert_same_bits(f"{name} of rows {index}", part[name], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_a_linear_layer_in_any_batch(dtype, threads):
    layer = fastbptt.Linear(37, 29, dtype=dtype, rng=0)
    x = np.random.default_rng(0).standard_normal((64, 37)).astype(dtype)
    d_out = np.random.default_rng(1).standard_normal((64, 29)).astype(dtype)
    for n in (1, 4):
        threads(n)
        y, dx = layer(x), layer.backward(d_out)
        for index in ([5], [0, 1, 2], list(range(33))):
            assert_same_bits(f"y of rows {index}", layer(x[index]), y[index])
            assert_same_bits(f"dx of rows {index}", layer.backward(d_out[index]), dx[index])


@pytest.mark.one_level
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_python_threads_sharing_weights(cell, n, threads):
    """In both precisions at once."""
    threads(n)
    problems = []
    for dtype in DTYPES:
        shared = random_problem(cell, 40, 9, 20, 33, dtype=dtype)
        own = [random_problem(cell, 40, 9, 20, 33, seed=seed, dtype=dtype) for seed in range(4)]
        problems += [replace(problem, w_ih=shared.w_ih, w_hh=shared.w_hh) for problem in own]
    expected = [problem.results(fastbptt) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda problem: problem.results(fastbptt), problems), expected):
                assert_results_same_bits(got, want)


@pytest.mark.one_level
@pytest.mark.parametrize("cell", ["rnn-tanh", "gru"])
def test_python_threads_sharing_a_tape(cell, threads):
    threads(2)
    problem = random_problem(cell, 40, 9, 20, 33)
    _, _, tape = problem.forward(fastbptt)
    expected = problem.backward(fastbptt, tape)
    with ThreadPoolExecutor(4) as pool:
        for grads in pool.map(lambda _: problem.backward(fastbptt, tape), range(40)):
            for name, a, b in zip(grads._fields, grads, expected):
                assert_same_bits(name, a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [10, 100_003, 1_000_000])
def test_norm_and_clipping_at_any_thread_count(size, dtype, threads):
    values = np.random.default_rng(0).standard_normal(size).astype(dtype)
    results = []
    for n in THREADS:
        threads(n)
        clipped = [values[: size // 3].copy(), values[size // 3 :].copy()]
        norm = fastbptt.clip_grad_norm_(clipped, 0.5)
        results.append((np.array([norm, fastbptt.total_norm(values, 3), fastbptt.total_norm(values, 1)]), np.concatenate(clipped)))
    for norms, clipped in results:
        assert_same_bits("norms", norms, results[0][0])
        assert_same_bits("clipped", clipped, results[0][1])


OPTIMISERS = [
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), OPTIMISERS, ids=str)
def test_optimisers_at_any_thread_count(name, options, dtype, threads):
    """And whether a parameter is one array or several."""
    values, *grads = np.random.default_rng(0).standard_normal((4, 230_003)).astype(dtype)
    results = []
    for n in THREADS:
        for cuts in ([], [5, 100_000]):
            threads(n)
            params = np.split(values.copy(), cuts)
            optimiser = getattr(fastbptt, name)(params, **options)
            for g in grads:
                optimiser.step(np.split(g, cuts))
            results.append(np.concatenate(params))
    for result in results:
        assert_same_bits("parameters", result, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_linear_at_any_thread_count(dtype, threads):
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((50, 7, 60)).astype(dtype), rng.integers(0, 90, (50, 7))
    results = []
    for n in THREADS:
        threads(n)
        layer = fastbptt.Linear(60, 90, dtype=dtype, rng=0)
        loss, d_logits = fastbptt.softmax_cross_entropy(layer(x), targets)
        results.append((np.array(loss), d_logits, layer.backward(d_logits), layer.flat_grads))
    for got in results:
        for name, a, b in zip(("loss", "d_logits", "dx", "grads"), got, results[0]):
            assert_same_bits(name, a, b)


# --- Memory that was used before --------------------------------------------------------------------------------------


def ragged(problem):
    """Lengths, a row without steps among them, and resets."""
    T, B = problem.x.shape[:2]
    lengths = np.random.default_rng(T).integers(0, T + 1, B)
    lengths[-1] = 0
    return {"lengths": lengths, "resets": np.random.default_rng(B).random((T, B)) < 0.1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_on_dirty_memory(cell, tokens, dtype, dirty_memory, threads):
    problems = [random_problem(cell, *shape, dtype=dtype, tokens=tokens) for shape in [(5, 3, 4, 7), *SHAPES]]
    problems += [replace(problem, d_out=problem.d_out * (np.arange(len(problem.x)) > 40)[:, None, None]) for problem in problems[-1:]]
    problems += [
        replace(problem, w_hh=problem.w_hh * 0, d_out=None, leak=None if problem.leak is None else 1.0) for problem in problems[1:3]
    ]
    problems += [replace(problem, state=None, options=ragged(problem)) for problem in problems[:3]]
    expected = [problem.results(fastbptt) for problem in problems]
    for problem, want in zip(problems, expected):
        dirty_memory()
        assert_results_same_bits(problem.results(fastbptt), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_linear_on_dirty_memory(dtype, dirty_memory):
    rng = np.random.default_rng(0)
    x, targets, counts = rng.standard_normal((50, 7, 60)).astype(dtype), rng.integers(0, 90, (50, 7)), rng.random((50, 7)) < 0.6

    def results():
        layer = fastbptt.Linear(60, 90, dtype=dtype, rng=0)
        loss, d_logits = fastbptt.softmax_cross_entropy(layer(x), targets, mask=counts)
        return np.array(loss), d_logits, layer.backward(d_logits), layer.flat_grads

    expected = results()
    dirty_memory()
    for name, got, want in zip(("loss", "d_logits", "dx", "grads"), results(), expected):
        assert_same_bits(name, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_what_looks_at_gradients_on_dirty_memory(cell, dtype, dirty_memory):
    problem = random_problem(cell, 30, 2, 4, 21, dtype=dtype)
    _, _, tape = problem.forward(fastbptt)

    def results():
        flow = fastbptt.gradient_flow(tape, problem.d_out)
        return (
            flow.log10_state_norm,
            fastbptt.lyapunov_spectrum(tape, 20),
            fastbptt.log_singular_values(tape),
            fastbptt.total_norm(problem.w_hh, 3),
        )

    expected = results()
    dirty_memory()
    for name, got, want in zip(("flow", "spectrum", "singular values", "norm"), results(), expected):
        assert_same_bits(name, np.asarray(got), np.asarray(want))
