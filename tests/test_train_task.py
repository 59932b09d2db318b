"""`fastbptt train --task`: the updates are the textbook's; it ends when the task is solved; it can be interrupted and resumed."""

import os
import re
import shlex
import signal
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_fails, command, started

from fastbptt import reference
from fastbptt._checks import DTYPES
from fastbptt.app.train import task_objective
from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint
from fastbptt.app.train.loop import WARM_UP, Training
from fastbptt.app.train.objective import Evaluation
from fastbptt.app.train.saved_run import resume, save
from fastbptt.app.train.settings import OPTIMISERS, TaskSettings
from fastbptt.app.train.task_objective import TaskObjective
from fastbptt.app.train.text_objective import TextObjective
from fastbptt.cells import CELLS
from fastbptt.init import MATRICES, STARTS
from fastbptt.tasks import TASKS

SMALL = TaskSettings(task="temporal-order", length=10, hidden=7, batch=3, updates=40, seed=5, check_every=15)
OPTIONS = ["--task", "temporal-order", "--length", 10, "--hidden", 7, "--batch", 3, "--seed", 5, "--no-plot"]


def training_on(**changes):
    return Training(TaskObjective(replace(SMALL, **changes)))


def finished(training):
    while not training.done:
        training.update()
    return training


@pytest.fixture
def short_exams(monkeypatch):
    """Evaluations that take no time."""
    monkeypatch.setattr(task_objective, "SEQUENCES", 200)
    monkeypatch.setattr(task_objective, "FIRST_SEQUENCES", 50)


# --- It learns --------------------------------------------------------------------------------------------------------


def textbook_updates(settings, weights, count):
    """Losses and gradient norms of the first updates with gradient descent, from `reference` and NumPy alone."""
    forward, backward = (getattr(reference, f"{settings.cell}_{way}") for way in ("forward", "backward"))
    how = {"nonlinearity": settings.nonlinearity} if settings.cell == "rnn" else {}
    task, rng = TASKS[settings.task](settings.length), np.random.default_rng(settings.seed)
    draw_start(settings, task, rng)
    losses, norms, omegas = [], [], []
    for _ in range(count):
        w_ih, w_hh, b_ih, b_hh, w, b = weights
        x, targets = task.batch(rng, settings.batch)
        out, _, tape = forward(x, None, w_ih, w_hh, b_ih, b_hh, **how)
        asked = slice(len(out) - len(targets), None)
        y = out[asked] @ w.T + b
        if targets.ndim == 3:
            losses.append(np.mean((y - targets) ** 2))
            d_y = 2 * (y - targets) / y.size
        else:
            p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
            right = np.eye(task.outputs)[targets]
            losses.append(-np.log((p * right).sum(-1)).mean())
            d_y = (p - right) / targets.size
        d_out = np.zeros_like(out)
        d_out[asked] = d_y @ w
        g = backward(tape, d_out)
        if settings.omega:
            value, d_w_hh = textbook_omega(out, w_hh, d_out, settings.nonlinearity)
            omegas.append(value)
            g = g._replace(w_hh=g.w_hh + settings.omega * d_w_hh)
        grads = [g.w_ih, g.w_hh, g.b_ih, g.b_hh, np.einsum("tbv,tbh->vh", d_y, out[asked]), d_y.sum((0, 1))]
        norms.append(np.sqrt(sum((g**2).sum() for g in grads)))
        for weight, g in zip(weights, grads, strict=True):
            weight -= settings.lr * min(1, settings.clip / norms[-1]) * g
    return losses, norms, omegas


def textbook_omega(h, w_hh, d_out, nonlinearity):
    """The penalty and its immediate derivative, as the program of Pascanu et al. has them, one step and one row at a time."""
    slope = {"tanh": lambda h: 1 - h**2, "sigmoid": lambda h: h * (1 - h)}[nonlinearity]
    total, n, d_w, d = 0.0, 0, np.zeros_like(w_hh), np.zeros_like(h[0])
    for h_t, d_out_t in zip(h[::-1], d_out[::-1]):
        d = d + d_out_t
        for v, d_row in zip(d * slope(h_t), d):
            if d_row @ d_row >= 1e-20:
                z = v @ w_hh
                q = (z @ z) / (d_row @ d_row)
                total, n = total + (q - 1) ** 2, n + 1
                d_w += 4 * (q - 1) / (d_row @ d_row) * np.outer(v, z)
        d = (d * slope(h_t)) @ w_hh
    return total / n, d_w / n


def draw_start(settings, task, rng):
    """Leave the generator where a new net leaves it."""
    from fastbptt.app.train.model import Model

    Model(task.inputs, settings.hidden, task.outputs, cell=settings.cell, init=settings.init, rng=rng)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task", TASKS)
def test_updates_are_those_of_the_textbook(task, cell):
    training = training_on(task=task, cell=cell, nonlinearity=None, init=None, length=(10, 13), lr=0.1, clip=0.3, updates=12)
    weights = [p for layer in training.model.layers for p in layer.state_dict().values()]
    finished(training)
    losses, norms, _ = textbook_updates(training.settings, weights, 12)
    assert np.allclose(training.losses, losses, rtol=1e-9, atol=0)
    assert np.allclose(training.norms, norms, rtol=1e-8, atol=0)
    assert training.clipped == sum(norm > 0.3 for norm in norms)


@pytest.mark.parametrize("nonlinearity", ["tanh", "sigmoid"])
@pytest.mark.parametrize("task", ["temporal-order", "copy-memory", "adding"])
def test_updates_with_omega(task, nonlinearity):
    training = training_on(task=task, nonlinearity=nonlinearity, lr=0.1, clip=0.3, omega=4.0, updates=12)
    weights = [p for layer in training.model.layers for p in layer.state_dict().values()]
    finished(training)
    losses, norms, omegas = textbook_updates(training.settings, weights, 12)
    assert np.allclose(training.losses, losses, rtol=1e-9, atol=0)
    assert np.allclose(training.norms, norms, rtol=1e-8, atol=0)
    assert np.allclose(training.omegas, omegas, rtol=1e-8, atol=0)
    assert finished(training_on(task=task)).omegas == []


def test_omega_makes_gradients_reach_further():
    settings = TaskSettings(task="temporal-order", length=30, updates=150)
    with_omega, without = (finished(Training(TaskObjective(replace(settings, omega=omega)))) for omega in (4.0, 1e-9))
    assert np.mean(with_omega.omegas[-20:]) < 0.3 * np.mean(without.omegas[-20:])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_optimiser_is_the_one_asked_for(optimiser):
    training = training_on(optimiser=optimiser)
    assert type(training.optimiser) is OPTIMISERS[optimiser]
    rates = []
    while not training.done:
        rates.append(training.learning_rate)
        training.update()
    warm = [1.0] * 40 if optimiser == "sgd" else [update / WARM_UP for update in range(40)]
    assert rates == pytest.approx([training.settings.lr * share for share in warm])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("task", "changes"), [
    ("temporal-order", {}),
    ("random-permutation", {"lr": 0.1}),
    ("multiplication", {"cell": "gru", "optimiser": "adam", "lr": 0.003}),
    ("adding", {"cell": "lstm", "optimiser": "rmsprop", "lr": 0.003}),
])  # fmt: skip
def test_it_solves_what_is_short(task, changes, dtype):
    settings = TaskSettings(task=task, length=10, dtype=dtype, updates=8000, check_every=250, **changes)
    training = finished(Training(TaskObjective(settings)))
    assert training.solved, training.evaluations[-1]
    evaluation = training.evaluations[-1]
    assert training.updates == evaluation.update < 8000 and evaluation.sequences == 10_000 and evaluation.wrong < 100
    assert all(earlier.wrong >= 0.01 * earlier.sequences for earlier in training.evaluations[:-1])
    assert training.last_evaluation() is evaluation


def test_the_defaults_are_the_papers():
    settings = TaskSettings(task="temporal-order")
    assert (settings.hidden, settings.batch, settings.lr, settings.clip, settings.optimiser) == (50, 20, 0.01, 1.0, "sgd")
    assert (settings.cell, settings.nonlinearity, settings.init, settings.schedule) == ("rnn", "tanh", "basic-tanh", "constant")
    assert TaskSettings(task="adding", init="sigmoid").nonlinearity == "sigmoid"
    assert TaskSettings(task="adding", init="identity").nonlinearity == "relu"
    assert TaskSettings(task="adding", init="sigmoid", nonlinearity="tanh").nonlinearity == "tanh"
    assert (TaskSettings(task="adding", cell="gru").init, TaskSettings(task="adding", cell="gru").nonlinearity) == ("default", None)


@pytest.mark.parametrize("init", MATRICES)
def test_the_start_is_the_one_asked_for(init):
    training = training_on(init=init, nonlinearity=None)
    other = training_on(init=init, nonlinearity=None, seed=6)
    assert training.model.rnn.nonlinearity == STARTS[init].nonlinearity
    w, w_other = (t.model.rnn.params["weight_hh_l0"] for t in (training, other))
    assert np.array_equal(w, w_other) == (init == "identity")
    assert np.array_equal(w, np.eye(7)) == (init == "identity")


# --- Evaluations ------------------------------------------------------------------------------------------------------


def test_an_exam_is_over_fresh_sequences(monkeypatch, threads):
    """Recomputed with `reference`; the same at any number of threads, and however many are evaluated at once."""
    training = finished(training_on(task="copy-memory", length=3, updates=15, check_every=100))
    task, params = training.objective.task, training.model.rnn.params
    readout = training.model.readout.params
    seen = []
    monkeypatch.setattr(type(task), "wrong", lambda _, outputs, targets: seen.append((outputs.copy(), targets)) or 1)
    for n in (1, 2):
        threads(n)
        assert training.last_evaluation() == training.last_evaluation()
    outputs, targets = seen[0]
    x = targets[-10:]
    x = np.concatenate([x, np.zeros((2, x.shape[1]), int), np.full((1, x.shape[1]), 9), np.zeros((10, x.shape[1]), int)])
    out, _, _ = reference.rnn_forward(x, None, *params.values())
    assert np.allclose(outputs, out @ readout["weight"].T + readout["bias"], rtol=1e-10, atol=1e-12)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(seen, seen[len(seen) // 4 :]))
    assert not np.array_equal(seen[0][1], seen[1][1])


def test_exams_leave_the_training_alone(short_exams):
    often, never = (finished(training_on(check_every=n)) for n in (1, 1000))
    assert often.losses == never.losses and len(often.evaluations) == 40 and not never.evaluations
    assert [evaluation.update for evaluation in often.evaluations] == list(range(1, 41))


def test_few_sequences_decide_that_a_net_is_poor_but_not_that_it_is_good(monkeypatch):
    objective = TaskObjective(SMALL)
    model = training_on().model
    shares = iter([0.01, 0.009, 0.5, 0.0, 0.0099])
    monkeypatch.setattr(objective, "_evaluate", lambda model, updates, rng, n: Evaluation(updates, 1.0, n, int(next(shares) * n)))
    assert objective.evaluate(model, 10) == Evaluation(10, 1.0, 1000, 10)
    assert objective.evaluate(model, 20) == (second := Evaluation(20, 1.0, 10_000, 5000)) and not objective.is_solved(second)
    assert objective.evaluate(model, 30) == (third := Evaluation(30, 1.0, 10_000, 99)) and objective.is_solved(third)
    assert not objective.is_solved(Evaluation(30, 1.0, 1000, 0)) and not objective.is_solved(Evaluation(30, 1.0, 10_000, 100))


def test_the_memory_of_an_exam_is_bounded(monkeypatch):
    sizes = []
    training = training_on(task="noiseless-memorisation", length=1000)
    draw = training.objective.task.batch
    monkeypatch.setattr(training.objective, "task", type("Spy", (), {
        "batch": lambda _, rng, size, dtype: sizes.append(size) or draw(rng, size, dtype),
        "loss": lambda *_: (0.0, None), "wrong": lambda *_: 0,
    })())  # fmt: skip
    monkeypatch.setattr(task_objective, "STATES_AT_ONCE", 7 * 1020 * 30)
    training.objective.evaluate(training.model, 1)
    assert sizes[0] == max(sizes) == 30 and sum(sizes) == 1000 + 10_000


# --- The same every time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [0, 1, 14, 15, 40])
@pytest.mark.parametrize(("task", "cell", "optimiser", "omega"), [
    ("temporal-order", "rnn", "sgd", 4.0), ("adding", "lstm", "rmsprop", 0.0), ("copy-memory", "gru", "adam", 0.5)])  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one(short_exams, tmp_path, task, cell, optimiser, omega, updates):
    changes = {"task": task, "cell": cell, "optimiser": optimiser, "omega": omega, "init": None, "nonlinearity": None}
    changes |= {"length": (10, 20), "lr": None}
    whole = finished(training_on(**changes))
    part = training_on(**changes)
    while part.updates < updates:
        part.update()
    save(part, tmp_path / "part")
    resumed = resume(tmp_path / "part", task=task, length=(10, 20), check_every=15)
    assert resumed.updates == updates and resumed.settings == whole.settings
    save(finished(resumed), tmp_path / "resumed")
    save(whole, tmp_path / "whole")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert resumed.evaluations == whole.evaluations and [evaluation.update for evaluation in whole.evaluations] == [15, 30]
    assert resumed.last_evaluation() == whole.last_evaluation()


def test_a_solved_run_has_nothing_left_to_do(tmp_path):
    settings = TaskSettings(task="random-permutation", length=2, lr=0.5, updates=4000, check_every=100)
    solved = finished(Training(TaskObjective(settings)))
    save(solved, tmp_path / "checkpoint")
    again = resume(tmp_path / "checkpoint", updates=100_000)
    assert solved.solved and again.done and again.last_evaluation() == solved.evaluations[-1]


# --- The command ------------------------------------------------------------------------------------------------------

READINGS = r"^update 20/20  sequences/s [\d,]+  loss \d\.\d+  wrong \d+\.\d%  gradient norm [\d.]+  clipped [\d.]+%$"


def test_the_main_job(run, tmp_path):
    pytest.importorskip("matplotlib")
    results = [run("train", *OPTIONS[:-1], "--updates", 20, "--check-every", 10, "--out", tmp_path / name) for name in ("one", "two")]
    one, two = (re.sub(r"sequences/s [\d,]+|[\d,]+ sequences/s", "", result.out).replace("/two/", "/one/") for result in results)
    assert [result.status for result in results] == [0, 0] and one == two
    for line in (
        r"task        temporal-order, length 10: 6 symbols in, one of 4 classes out; by chance loss 1\.386, 75\.0% wrong \(ln 4 and 3/4\)",
        r"model       RNN, tanh, float64, 6-7-4: 137 parameters",
        r"training    20 updates on batches of 3 fresh sequences; start basic-tanh; SGD, lr 0\.01 constant, clip 1, seed 5",
        r"held-out    \d\d\.\d\d% wrong of 10,000 fresh sequences, loss 1\.\d+: not solved, which takes less than 1%",
    ):
        assert re.search(f"^{line}$", one, re.MULTILINE), one
    assert re.search(READINGS, results[0].out, re.MULTILINE)
    for name in ("checkpoint.safetensors", "training.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "one")) == ["checkpoint.safetensors", "training.png"]


def test_it_ends_when_the_task_is_solved(run, tmp_path):
    options = ["--task", "random-permutation", "--length", 2, "--lr", 0.5, "--check-every", 100, "--no-plot", "--out", tmp_path]
    result = run("train", *options)
    verdict = re.search(r"held-out +0\.\d\d% wrong of 10,000 fresh sequences, loss [\d.e-]+: solved after ([\d,]+) updates\n", result.out)
    assert result.status == 0 and verdict, result.out
    updates = int(verdict[1].replace(",", ""))
    assert f"update {updates:,}/100,000" in result.out
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")[0]["training.losses"].size == updates
    assert verdict[0] in run("train", "--resume", tmp_path, "--no-plot").out


@pytest.mark.parametrize("task", TASKS)
def test_every_task_by_its_name(run, short_exams, tmp_path, task):
    result = run("train", "--task", task, "--length", "10:12", "--updates", 2, "--hidden", 5, "--no-plot", "--out", tmp_path)
    assert result.status == 0 and re.search(rf"^task +{task}, length 10 to 11: ", result.out, re.MULTILINE), result.err


def test_omega_is_shown(run, short_exams, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", lambda path, *curves, **_: drawn.append(curves))
    result = run("train", *OPTIONS[:-1], "--updates", 20, "--omega", 4, "--out", tmp_path)
    assert ", clip 1, Omega 4, seed 5\n" in result.out and re.search(r"  Omega \d\.\d+  gradient norm ", result.out)
    assert [len(curve) for curve in drawn[0]] == [20, 20, 20]


def test_the_task_is_named_in_the_picture(run, short_exams, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", lambda *_, **options: drawn.append(options))
    assert run("train", *OPTIONS[:-1], "--updates", 20, "--check-every", 10, "--out", tmp_path).status == 0
    assert drawn[0]["title"] == "temporal-order, length 10; RNN, tanh, float64, 7 units: 20 updates"
    assert [update for update, _ in drawn[0]["errors"]] == [10, 20, 20] and drawn[0]["level"][1] == "by chance: 1.386"


def test_interrupted_and_resumed(run, short_exams, tmp_path):
    """It would take hours to its end, so it is interrupted before, whenever the signal comes."""
    options = [*OPTIONS[:-1], "--lr", 1e-6, "--check-every", 5000]
    process = started(*options, "--updates", 10**8, "--out", tmp_path / "part", "--save-every", 0.1, "--no-plot")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    line = out.splitlines()[-1]
    reached = load_checkpoint(tmp_path / "part" / "checkpoint.safetensors")[0]["training.losses"].size
    assert line.startswith(f"interrupted at update {reached:,}; everything is saved; to resume: fastbptt train --resume ")
    resumed = command(*shlex.split(line.split("to resume: fastbptt ")[1]), "--no-plot", "--updates", reached + 200)
    whole = command("train", *options, "--no-plot", "--out", tmp_path / "whole", "--updates", reached + 200)
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    assert f"resumed     after update {reached:,}" in resumed.stdout
    assert resumed.stdout.splitlines()[-3] == whole.stdout.splitlines()[-3] and "held-out" in whole.stdout.splitlines()[-3]
    part, whole = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("part", "whole"))
    assert part == whole


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "--task cube": "argument --task: invalid choice: 'cube' .*",
    "--length 9": "length: expected an integer of at least 10, got 9",
    "--length 5:30": r"length\[0\]: expected an integer of at least 10, got 5",
    "--length 30:20": "length: expected a range, its end above its beginning, got 30 to 20",
    "--length 1:2:3": "length: expected a number, or two, got 3",
    "--length 99999999999": "length: expected at most 10000000, got 99999999999",
    "--length 2.5": "argument --length: invalid length value: '2.5' .*",
    "--length 50-200": "argument --length: invalid length value: '50-200' .*",
    "--check-every 0": "check-every: expected an integer of at least 1, got 0",
    "--hidden 0": "hidden: expected an integer of at least 1, got 0",
    "--batch 0": "batch: expected an integer of at least 1, got 0",
    "--lr nan": "lr: expected a number above 0 .*, got nan",
    "--omega -1": "omega: expected a number at least 0 .*, got -1.0",
    "--omega nan": "omega: expected a number at least 0 .*, got nan",
    "--omega inf": "omega: expected a number at least 0 .*, got inf",
    "--omega much": "argument --omega: invalid float value: 'much' .*",
    "--init cube": "argument --init: invalid choice: 'cube' .*",
    "--init smart-tanh --cell lstm": "init: only the cell rnn has the start smart-tanh; this is lstm",
    "--optimiser newton": "argument --optimiser: invalid choice: 'newton' .*",
    "--seq-len 5": "seq-len: a task has no such setting",
    "--sample 5": "sample: a task has no such setting",
    "--temperature 0.5": "temperature: a task has no such setting",
    "some.txt": "some.txt: expected a text or a task to learn, got both",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(run, tmp_path, options):
    result = run("train", *OPTIONS, "--out", tmp_path / "out", *options.split())
    assert_fails(2, BAD_OPTIONS[options], result)
    assert result.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--length 50", "--check-every 10"])
def test_what_only_tasks_have(run, tmp_path, option):
    complaint = f"{option.split()[0][2:]}: a text has no such setting"
    assert_fails(2, complaint, run("train", "--out", tmp_path / "out", *option.split()))


@pytest.fixture
def checkpoint(short_exams, tmp_path):
    """A finished run's."""
    save(finished(training_on()), tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


CONTRADICTIONS = {
    "--task adding": "task: .* was made with temporal-order, which adding contradicts",
    "--length 20": "length: .* was made with 10, which 20 contradicts",
    "--init sigmoid": "init: .* was made with basic-tanh, which sigmoid contradicts",
    "--omega 2": "omega: .* was made with 0.0, which 2.0 contradicts",
    "--optimiser adam": "optimiser: .* was made with sgd, which adam contradicts",
    "--check-every 10": "check-every: .* was made with 15, which 10 contradicts",
    "--seq-len 10": "seq-len: .* was trained on a task, which has no such setting",
    "--sample 10": "sample: a task has no such setting",
    "--updates 39": "updates: .* has made 40 already, more than 39",
    "some.txt": "some.txt: .* was trained on the task temporal-order, not on a text",
}


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_options_that_contradict_the_checkpoint(run, checkpoint, options):
    before = checkpoint.read_bytes()
    assert_fails(2, CONTRADICTIONS[options], run("train", "--resume", checkpoint, *options.split()))
    assert checkpoint.read_bytes() == before


def test_a_texts_checkpoint_is_not_a_tasks(run, tmp_path):
    options = ["--hidden", 5, "--updates", 2, "--no-plot", "--sample", 0, "--out", tmp_path]
    assert run("train", *options).status == 0
    complaint = r"task: .*/checkpoint.safetensors was trained on a text, which has no such setting"
    assert_fails(2, complaint, run("train", "--task", "adding", "--resume", tmp_path))


def setting(name, value):
    return lambda arrays, metadata: metadata["settings"].update({name: value})


DAMAGE = {
    "another task": setting("task", "adding"),
    "an unknown task": setting("task", "cube"),
    "no task": lambda arrays, metadata: metadata["settings"].pop("task"),
    "a length that is too short": setting("length", 3),
    "a length in words": setting("length", "ten"),
    "an unknown start": setting("init", "cube"),
    "an unknown optimiser": setting("optimiser", "newton"),
    "another optimiser": setting("optimiser", "adam"),
    "a penalty without a history": setting("omega", 4.0),
    "another kind": lambda arrays, metadata: metadata.update(kind="text"),
    "no description": lambda arrays, metadata: metadata.pop("description"),
    "a vocabulary": lambda arrays, metadata: arrays.update(vocabulary=np.arange(3, dtype=np.uint32)),
    "an evaluation too many": lambda arrays, metadata: arrays.update({"training.exams": np.array([[99.0, 1, 50, 3]])}),
    "an impossible evaluation": lambda arrays, metadata: arrays.update({"training.exams": np.array([[15.0, 1, 50, 51]])}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_whose_content_is_wrong(run, checkpoint, damage):
    arrays, metadata = load_checkpoint(checkpoint)
    DAMAGE[damage](arrays, metadata)
    save_checkpoint(checkpoint, arrays, metadata)
    assert_fails(2, f"{checkpoint}: damaged checkpoint: .+", run("train", "--resume", checkpoint, "--updates", 50))


def test_a_loss_that_explodes(run, tmp_path):
    options = ["--init", "default", "--nonlinearity", "identity", "--lr", 1e6, "--clip", "inf", "--updates", 500]
    result = run("train", *OPTIONS, *options, "--out", tmp_path, "--save-every", 0)
    assert_fails(1, r"update \d+: the (loss|gradient norm) is (inf|nan); .*a smaller --lr or --clip may help", result)


def test_lessons_are_told_apart():
    assert (TaskObjective.kind, TextObjective.kind) == ("task", "text")
    assert TaskObjective.settings_type is TaskSettings
