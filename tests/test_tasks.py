"""The classic tasks: targets follow from inputs, positions and symbols are distributed as published, and baselines are right."""

import math

import numpy as np
import pytest
from tolerances import DTYPES

import fastbptt
from fastbptt.tasks import TASKS, adding, copy_memory, multiplication, noiseless_memorisation, random_permutation, temporal_order

LENGTH = 40
MANY = 20_000  # sequences: a share of them is known to half a per cent
EVERY_TASK = pytest.mark.parametrize("name", TASKS)


def drawn(task, B=MANY, seed=0):
    return task.batch(np.random.default_rng(seed), B)


def assert_uniform(values, expected):
    """All of ``expected``, and nothing else, equally often to within 5 standard deviations."""
    found, counts = np.unique(values, return_counts=True)
    assert found.tolist() == list(expected)
    share = 1 / len(found)
    assert np.abs(counts / values.size - share).max() <= 5 * math.sqrt(share * (1 - share) / values.size)


# --- The right answer, told from the sequence alone, one row at a time --------------------------------------------------


def order_of(symbols):
    def solve(tokens):
        shown = [token for token in tokens if token in (0, 1)]
        assert len(shown) == symbols and set(tokens) <= set(range(6))
        return [int("".join(map(str, reversed(shown))), base=2)]

    return solve


def marked(combine, mark):
    def solve(rows):
        numbers = [row[1 - mark] for row in rows if row[mark] == 1]
        assert len(numbers) == 2 and all(row[mark] in (0, 1) and 0 <= row[1 - mark] < 1 for row in rows)
        return [[combine(*numbers)]]

    return solve


def first_symbol(tokens):
    assert tokens[0] in (0, 1) and all(2 <= token < 100 for token in tokens[1:])
    return [tokens[0]]


def memorised(tokens):
    pattern, rest = tokens[:10], tokens[10:]
    assert rest == [5] * LENGTH + [6] + [5] * 9 and set(pattern) <= set(range(5))
    return [5] * (len(tokens) - 10) + pattern


def copied(tokens):
    pattern, rest = tokens[:10], tokens[10:]
    assert rest == [0] * (LENGTH - 1) + [9] + [0] * 10 and set(pattern) <= set(range(1, 9))
    return [0] * (len(tokens) - 10) + pattern


SOLUTIONS = {
    "temporal-order": order_of(2),
    "temporal-order-3": order_of(3),
    "adding": marked(lambda a, b: (a + b) / 2, mark=0),
    "adding-arjovsky": marked(lambda a, b: a + b, mark=1),
    "multiplication": marked(lambda a, b: a * b, mark=0),
    "random-permutation": first_symbol,
    "noiseless-memorisation": memorised,
    "copy-memory": copied,
}


@EVERY_TASK
def test_the_answer_follows_from_the_sequence(name):
    task = TASKS[name](LENGTH)
    x, targets = drawn(task, 200)
    for row in range(200):
        assert SOLUTIONS[name](x[:, row].tolist()) == targets[:, row].tolist()


# --- Where, and what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 19, 20, 50, 97])
@pytest.mark.parametrize(("symbols", "starts"), [(2, (0.1, 0.5)), (3, (0.1, 0.3, 0.6))])
def test_where_the_symbols_of_temporal_order_are(length, symbols, starts):
    x, targets = drawn(temporal_order(length, symbols=symbols))
    places = np.argsort(x >= 2, axis=0, kind="stable")[:symbols]
    for place, start in zip(places, starts, strict=True):
        assert_uniform(place, range(int(start * length), int(start * length) + int(0.1 * length)))
    assert_uniform(targets, range(2**symbols))
    assert_uniform(x[x >= 2], range(2, 6))


@pytest.mark.parametrize("name", ["adding", "multiplication"])
@pytest.mark.parametrize("length", [10, 25, 50])
def test_where_the_marks_are(name, length):
    rng, steps = np.random.default_rng(0), {}
    for _ in range(60):
        x, _ = TASKS[name](length).batch(rng, 2000)
        steps.setdefault(len(x), []).append(x)
    assert sorted(steps) == list(range(length, length + int(0.1 * length)))
    for T, xs in steps.items():
        marks, numbers = np.concatenate(xs, axis=1).transpose(2, 0, 1)
        first, second = np.argsort(marks == 0, axis=0, kind="stable")[:2]
        assert_uniform(first, range(int(0.1 * T)))
        assert_uniform(second, range(int(0.1 * T), int(0.1 * T) + int(0.4 * T)))
        assert numbers.mean() == pytest.approx(0.5, abs=0.01) and numbers.var() == pytest.approx(1 / 12, abs=0.003)


@pytest.mark.parametrize("length", [2, 3, 30])
def test_where_the_marks_of_the_other_adding_are(length):
    x, _ = drawn(adding(length, version="arjovsky2016"))
    assert x.shape == (length, MANY, 2)
    first, second = np.argsort(x[..., 1] == 0, axis=0, kind="stable")[:2]
    assert_uniform(first, range(length // 2))
    assert_uniform(second, range(length // 2, length // 2 * 2))
    assert x[..., 0].mean() == pytest.approx(0.5, abs=0.01)


def test_what_the_other_tasks_show():
    x, targets = drawn(random_permutation(5))
    assert_uniform(targets, (0, 1))
    assert_uniform(x[1:], range(2, 100))
    for task, pattern in ((copy_memory(3), range(1, 9)), (noiseless_memorisation(3), range(5))):
        x, _ = drawn(task)
        for step in range(10):
            assert_uniform(x[step], pattern)
        assert np.abs(np.corrcoef(x[:10]) - np.eye(10)).max() < 0.05


@pytest.mark.parametrize(("values", "positions", "length"), [(2, 5, 1), (3, 1, 4), (7, 2, 6)])
def test_other_sizes_of_noiseless_memorisation(values, positions, length):
    task = noiseless_memorisation(length, values=values, positions=positions)
    x, targets = drawn(task, 50)
    assert (task.inputs, task.outputs, x.shape) == (values + 2, values + 1, (length + 2 * positions, 50))
    assert (x == values + 1).nonzero()[0].tolist() == [length + positions] * 50
    assert (targets[: length + positions] == values).all() and (targets[length + positions :] == x[:positions]).all()
    assert set(x[:positions].flat) == set(range(values))


@EVERY_TASK
def test_ranges_of_lengths(name):
    task = TASKS[name]((20, 23))
    rng = np.random.default_rng(0)
    steps = {len(task.batch(rng, 1)[0]) for _ in range(100)}
    assert task.lengths == range(20, 23)
    alone = {len(TASKS[name](length).batch(seed, 1)[0]) for length in (20, 21, 22) for seed in range(20)}
    assert steps == alone and max(steps) == task.longest


# --- Batches ------------------------------------------------------------------------------------------------------------


@EVERY_TASK
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_is_what_a_net_takes(name, dtype):
    task = TASKS[name](LENGTH)
    x, targets = task.batch(1, 3, dtype)
    assert x.shape == ((len(x), 3) if task.tokens else (len(x), 3, task.inputs)) and len(x) <= task.longest
    assert len(targets) in (1, len(x)) and targets.shape[1:] == ((3,) if task.tolerance is None else (3, task.outputs))
    assert x.dtype == (np.int64 if task.tokens else dtype) and targets.dtype == (np.int64 if task.tolerance is None else dtype)
    layer, readout = fastbptt.RNN(task.inputs, 4, dtype=dtype, rng=0), fastbptt.Linear(4, task.outputs, dtype=dtype, rng=0)
    out, _ = layer(x)
    outputs = readout(out[-len(targets) :])
    loss, d_outputs = task.loss(outputs, targets)
    assert loss > 0 and d_outputs.shape == outputs.shape and d_outputs.dtype == dtype
    assert 0 <= task.wrong(outputs, targets) <= 3


@EVERY_TASK
def test_seeds(name):
    task = TASKS[name]((20, 30))

    def batches(rng, dtype=np.float64):
        rng = np.random.default_rng(rng)
        return [array for _ in range(3) for array in task.batch(rng, 4, dtype)]

    one, same, other, rough = batches(7), batches(7), batches(8), batches(7, np.float32)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(np.array_equal(a.astype(b.dtype), b) for a, b in zip(one, rough, strict=True))
    assert not np.array_equal(one[0][0], one[2][0])


def test_a_seed_will_do_for_a_generator():
    for a, b in zip(copy_memory(5).batch(3, 2), copy_memory(5).batch(np.random.default_rng(3), 2), strict=True):
        assert np.array_equal(a, b)


# --- Right and wrong ----------------------------------------------------------------------------------------------------


def one_hot(classes, n):
    return np.eye(n)[classes]


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith(("adding", "multi"))])
def test_classes_are_told_by_the_highest_score(name):
    task = TASKS[name](LENGTH)
    _, targets = task.batch(0, 7)
    outputs = one_hot(targets, task.outputs)
    assert task.wrong(outputs, targets) == 0
    outputs[-1, 2] = np.roll(outputs[-1, 2], 1)
    outputs[0, 2] = np.roll(outputs[0, 2], 1)
    outputs[0, 5] = np.roll(outputs[0, 5], 1)
    assert task.wrong(outputs, targets) == 2
    outputs[-1, 4, 0], outputs[0, 6, -1] = np.nan, np.inf
    assert task.wrong(outputs, targets) == 4


@pytest.mark.parametrize(("name", "tolerance"), [("adding", 0.2), ("multiplication", 0.2), ("adding-arjovsky", 0.4)])
def test_numbers_are_told_within_a_tolerance(name, tolerance):
    task = TASKS[name](LENGTH)
    _, targets = task.batch(0, 6)
    off = np.array([0, 0.99, -0.99, 1.01, -1.01, np.nan]).reshape(1, 6, 1)
    assert task.wrong(targets + off * tolerance, targets) == 3
    assert task.wrong(np.full_like(targets, 1e200), targets) == 6


@EVERY_TASK
def test_losses_are_means_over_sequences_and_steps(name):
    task = TASKS[name](LENGTH)
    _, targets = task.batch(0, 5)
    outputs = np.random.default_rng(0).standard_normal((*targets.shape[:2], task.outputs))
    loss, d_outputs = task.loss(outputs, targets)
    if task.tolerance is None:
        p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        right = one_hot(targets, task.outputs)
        assert loss == pytest.approx(-np.log((p * right).sum(-1)).mean(), rel=1e-12)
        assert np.allclose(d_outputs, (p - right) / targets.size, rtol=1e-12, atol=1e-15)
    else:
        assert loss == pytest.approx(((outputs - targets) ** 2).mean(), rel=1e-12)
        assert np.allclose(d_outputs, 2 * (outputs - targets) / targets.size, rtol=1e-12)


# --- Chance -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        temporal_order(10),
        temporal_order(10, symbols=3),
        random_permutation(3),
        copy_memory(7),
        noiseless_memorisation(2),
        noiseless_memorisation(2, values=2, positions=3),
    ],
    ids=lambda task: f"{task.name}-{task.inputs}",
)
def test_the_baseline_of_classes(task):
    """The best answer that looks at the step alone gives each class its frequency there, and bets on the likeliest."""
    _, targets = drawn(task)
    shares = np.stack([(targets == c).mean(1) for c in range(task.outputs)])
    entropies = -(shares * np.log(np.maximum(shares, 1e-300))).sum(0)
    assert task.baseline.loss == pytest.approx(entropies.mean(), rel=0.005)
    assert np.log1p(-task.baseline.error) == pytest.approx(np.log(shares.max(0)).sum(), rel=0.03)
    outputs = np.broadcast_to(np.log(np.maximum(shares, 1e-300)).T[:, None], (*targets.shape, task.outputs))
    assert task.loss(outputs.copy(), targets)[0] == pytest.approx(task.baseline.loss, rel=0.005)
    assert task.wrong(outputs, targets) / MANY == pytest.approx(task.baseline.error, abs=0.01)


BEST_CONSTANTS = {"adding": (0.5, 0.5), "adding-arjovsky": (1, 1), "multiplication": (0.25, 0.2)}  # for the loss, for the error


@pytest.mark.parametrize("task", [adding(20), adding(20, version="arjovsky2016"), multiplication(20)], ids=lambda task: task.name)
def test_the_baseline_of_numbers(task):
    """No constant does better, and one does as well."""
    _, targets = drawn(task, 10 * MANY)
    constants = np.linspace(0, 2, 201)
    losses = [((targets - constant) ** 2).mean() for constant in constants]
    errors = [task.wrong(np.full_like(targets, constant), targets) / targets.size for constant in constants]
    assert task.baseline.loss == pytest.approx(min(losses), rel=0.01)
    assert task.baseline.error == pytest.approx(min(errors), abs=0.005)
    assert constants[[np.argmin(losses), np.argmin(errors)]] == pytest.approx(BEST_CONSTANTS[task.name], abs=0.04)


def test_the_published_baselines():
    """10 ln 8 / (T + 20), ln 4, 1/6: numbers that papers quote."""
    assert [round(copy_memory(T).baseline.loss, 5) for T in (100, 200, 300, 500, 1000)] == [0.17329, 0.09452, 0.06498, 0.03999, 0.02039]
    assert temporal_order().baseline[:2] == (math.log(4), 0.75)
    assert temporal_order(symbols=3).baseline[:2] == (math.log(8), 0.875)
    assert adding(version="arjovsky2016").baseline.loss == 1 / 6
    two = [copy_memory(T).baseline.loss for T in (100, 101)]
    assert copy_memory((100, 102)).baseline.loss == pytest.approx(np.mean(two), rel=1e-15)


# --- Bad arguments --------------------------------------------------------------------------------------------------------

LEAST = {"random-permutation": 1, "noiseless-memorisation": 1, "copy-memory": 1, "adding-arjovsky": 2}


@EVERY_TASK
def test_bad_lengths(name):
    least = LEAST.get(name, 10)
    assert TASKS[name](least).batch(0, 2)[0].shape[1] == 2
    for value, complaint in {
        least - 1: rf"length: expected an integer of at least {least}, got {least - 1}",
        -5: r"length: expected an integer of at least \d+, got -5",
        10**9: r"length: expected at most 10000000, got 1000000000",
        (): r"length: expected a number, or two, got 0",
        (20, 30, 40): r"length: expected a number, or two, got 3",
        (30, 30): r"length: expected a range, its end above its beginning, got 30 to 30",
        (least - 1, 30): rf"length\[0\]: expected an integer of at least {least}, got {least - 1}",
    }.items():
        with pytest.raises(ValueError, match=f"^{complaint}$"):
            TASKS[name](value)
    for value in (None, 2.5, "50", True, (20, 30.0), np.array(20.0)):
        with pytest.raises(TypeError, match=r"^length(\[1\])?: expected an integer, got"):
            TASKS[name](value)


def test_other_bad_arguments():
    for symbols in (1, 4):
        with pytest.raises(ValueError, match=rf"^symbols: expected 2 or 3, got {symbols}$"):
            temporal_order(symbols=symbols)
    with pytest.raises(TypeError, match=r"^symbols: expected an integer, got 2\.5$"):
        temporal_order(symbols=2.5)
    with pytest.raises(ValueError, match=r"^version: expected one of 'pascanu2013', 'arjovsky2016', got 'mine'$"):
        adding(version="mine")
    with pytest.raises(ValueError, match=r"^values: expected an integer of at least 2, got 1$"):
        noiseless_memorisation(values=1)
    with pytest.raises(ValueError, match=r"^positions: expected an integer of at least 1, got 0$"):
        noiseless_memorisation(positions=0)
    task = temporal_order(10)
    for size in (0, -1):
        with pytest.raises(ValueError, match=rf"^size: expected an integer of at least 1, got {size}$"):
            task.batch(0, size)
    with pytest.raises(TypeError, match=r"^size: expected an integer, got 2\.0$"):
        task.batch(0, 2.0)
    with pytest.raises(TypeError, match=r"^dtype: expected float64 or float32, got float16$"):
        adding(20).batch(0, 2, np.float16)
    with pytest.raises(TypeError, match=r"^dtype: expected float64 or float32, got int64$"):
        task.batch(0, 2, np.int64)


def test_the_names_are_those_of_the_command_line():
    for name, make in TASKS.items():
        assert make(20).name == name
    sizes = {name: (make(20).inputs, make(20).outputs) for name, make in TASKS.items()}
    assert list(sizes.values()) == [(6, 4), (6, 8), (2, 1), (2, 1), (2, 1), (100, 100), (7, 6), (10, 9)]
