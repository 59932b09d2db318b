"""`fastbptt train`: it learns, the same way every time; it can be interrupted, killed and resumed; it says what is wrong."""

import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_fails, command, shown_in_terminal, started
from processes import run_python

import fastbptt
from fastbptt import reference
from fastbptt._checks import DTYPES
from fastbptt.app.train.checkpoint import load_checkpoint, save_checkpoint
from fastbptt.app.train.loop import WARM_UP, Training
from fastbptt.app.train.model import Model
from fastbptt.app.train.saved_run import resume, save
from fastbptt.app.train.settings import SCHEDULES
from fastbptt.app.train.settings import TextSettings as Settings
from fastbptt.app.train.text import corpus_of, read_corpus
from fastbptt.app.train.text_objective import TextObjective, generate, mean_loss
from fastbptt.cells import CELLS

SMALL = Settings(cell="rnn", dtype="float64", hidden=7, batch=3, seq_len=10, updates=40, seed=5)
NETS = [(cell, dtype) for cell in CELLS for dtype in DTYPES]
READINGS = r"^update 30/30  characters/s [\d,]+  loss \d\.\d+  perplexity [\d.]+  gradient norm [\d.]+  clipped [\d.]+%$"
OPTIONS = ["--hidden", "7", "--batch", "3", "--seq-len", "10", "--seed", "5", "--no-plot", "--sample", "0"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The name of a file with 700 characters: 22 windows in a pass of 3 streams of 10."""
    path = tmp_path_factory.mktemp("text") / "some.txt"
    corpus = read_corpus()
    path.write_bytes("".join(map(chr, corpus.vocabulary[corpus.tokens[:700]])).encode())
    return str(path)


def training_on(settings, corpus):
    return Training(TextObjective(settings, corpus))


def finished(training):
    while not training.done:
        training.update()
    return training


def bytes_of(training, path):
    save(training, path)
    return path.read_bytes()


# --- It learns --------------------------------------------------------------------------------------------------------


def textbook_updates(settings, corpus, weights, count):
    """Losses and gradient norms of the first updates, from `reference` and NumPy alone."""
    forward, backward = (getattr(reference, f"{settings.cell}_{way}") for way in ("forward", "backward"))
    V, B, T = len(corpus.vocabulary), settings.batch, settings.seq_len
    squares = [np.zeros_like(w) for w in weights]
    length = (len(corpus.training) - 1) // B
    inputs, targets = (corpus.training[i : i + B * length].reshape(B, length) for i in (0, 1))
    windows = -(-length // T)
    losses, norms = [], []
    for update in range(count):
        w_ih, w_hh, b_ih, b_hh, w, b = weights
        window = update % windows
        if window == 0:
            state = None
        steps = slice(length * window // windows, length * (window + 1) // windows)
        out, state, tape = forward(inputs[:, steps].T, state, w_ih, w_hh, b_ih, b_hh)
        logits = out @ w.T + b
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        right = np.eye(V)[targets[:, steps].T]
        losses.append(-np.log((p * right).sum(-1)).mean())
        d_logits = (p - right) / right[..., 0].size
        g = backward(tape, d_logits @ w)
        grads = [g.w_ih, g.w_hh, g.b_ih, g.b_hh, np.einsum("tbv,tbh->vh", d_logits, out), d_logits.sum((0, 1))]
        norms.append(np.sqrt(sum((g**2).sum() for g in grads)))
        lr = settings.lr * min(1, update / WARM_UP) * SCHEDULES[settings.schedule](update / settings.updates)
        for weight, square, g in zip(weights, squares, grads, strict=True):
            g *= min(1, settings.clip / norms[-1])
            square += 0.01 * (g**2 - square)
            weight -= lr * g / (np.sqrt(square) + 1e-8)
    return losses, norms


@pytest.mark.parametrize("cell", CELLS)
def test_updates_are_those_of_the_textbook(text, cell):
    corpus = read_corpus(text)
    settings = Settings(
        cell=cell, dtype="float64", hidden=7, batch=3, seq_len=10, lr=0.01, updates=40, seed=5, clip=0.35, schedule="linear"
    )
    training = training_on(settings, corpus)
    weights = [p for layer in training.model.layers for p in layer.state_dict().values()]
    finished(training)
    losses, norms = textbook_updates(settings, corpus, weights, settings.updates)
    assert np.allclose(training.losses, losses, rtol=1e-9, atol=0)
    assert np.allclose(training.norms, norms, rtol=1e-8, atol=0)
    assert 0 < training.clipped < settings.updates
    assert training.clipped == sum(norm > 0.35 for norm in norms)


@pytest.mark.parametrize("cell", CELLS)
def test_omega_on_a_text(text, cell):
    """It is computed window by window, with no gradient beyond its start."""
    settings = replace(SMALL, cell=cell, nonlinearity=None, omega=2.0, clip=float("inf"), optimiser="sgd", updates=1)
    training, plain = (training_on(replace(settings, omega=omega), read_corpus(text)) for omega in (2.0, 0.0))
    before = training.model.rnn.state_dict()
    rnn, readout = plain.model.rnn, plain.model.readout
    window = plain.objective.window(0, None)
    out, _ = rnn(window.inputs)
    _, d_logits = fastbptt.softmax_cross_entropy(readout(out), window.targets)
    value, d_w_hh = fastbptt.omega(rnn.take_tape(), readout.backward(d_logits))
    for run in (training, plain):
        run.update()
    assert training.omegas == [value] and plain.omegas == []
    change = {
        name: (run.model.rnn.params["weight_hh_l0"] - before["weight_hh_l0"]) for name, run in (("with", training), ("without", plain))
    }
    assert np.allclose(change["with"] - change["without"], -settings.lr * 2.0 * d_w_hh, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("cell", CELLS)
def test_both_precisions_learn_the_same(text, cell):
    one, two = (finished(training_on(replace(SMALL, cell=cell, nonlinearity=None, dtype=dtype), read_corpus(text))) for dtype in DTYPES)
    assert {layer.flat_grads.dtype.name for net in (one.model, two.model) for layer in net.layers} == set(DTYPES)
    assert 0 < np.abs(np.subtract(one.losses, two.losses)).max() < 1e-4


@pytest.mark.parametrize(("cell", "dtype"), NETS)
def test_it_learns_what_can_be_known(cell, dtype):
    settings = Settings(cell=cell, dtype=dtype, hidden=16, batch=4, seq_len=20, updates=400)
    training = finished(training_on(settings, corpus_of("to be or not to be, " * 200, "")))
    assert fastbptt.perplexity(training.last_evaluation().loss) < 1.1
    assert "to be or not to be, to be" in training.sample(100, temperature=0.5)


def test_the_held_out_loss_is_over_the_whole_text_in_order(monkeypatch):
    corpus = corpus_of("".join(map(chr, np.random.default_rng(0).integers(97, 104, 1003))), "")
    model = Model(7, 5, 7, rng=0)
    tokens = corpus.held_out
    out, _, _ = reference.rnn_forward(tokens[:-1, None].astype(int), None, *model.rnn.params.values())
    logits = out[:, 0] @ model.readout.params["weight"].T + model.readout.params["bias"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()
    for steps in (7, 10**6):
        monkeypatch.setattr("fastbptt.app.train.text_objective.EVALUATION_STEPS", steps)
        assert mean_loss(model, tokens) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_follow_the_predicted_probabilities(dtype):
    model = Model(4, 3, 4, dtype=dtype, rng=0)
    for layer in model.layers:
        layer.flat_params.fill(0)
    model.readout.params["bias"][...] = np.log([1, 2, 3, 4])
    for temperature, weights in ((1, [1, 2, 3, 4]), (0.5, [1, 4, 9, 16]), (1e9, [1, 1, 1, 1])):
        counts = np.bincount(generate(model, 0, 4000, temperature=temperature, rng=0), minlength=4)
        assert np.allclose(counts / 4000, np.divide(weights, np.sum(weights)), atol=0.03)
    for temperature in (0, 1e-300):
        assert (generate(model, 0, 50, temperature=temperature, rng=0) == 3).all()


# --- The same every time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "dtype"), NETS)
def test_the_same_seed_gives_the_same_bits(text, tmp_path, threads, cell, dtype):
    settings = Settings(cell=cell, dtype=dtype, hidden=100, batch=12, seq_len=10, updates=20, seed=5)
    results = set()
    for n in (1, 2, 4):
        threads(n)
        training = finished(training_on(settings, read_corpus(text)))
        results.add((bytes_of(training, tmp_path / "checkpoint"), training.last_evaluation().loss, training.sample(50, 1.0)))
    assert len(results) == 1
    other = finished(training_on(replace(settings, seed=6), read_corpus(text)))
    assert other.last_evaluation().loss != results.pop()[1]


@pytest.mark.parametrize("updates", [0, 1, 21, 22, 23, 39, 40])
@pytest.mark.parametrize(("cell", "dtype"), NETS)
def test_a_resumed_run_is_the_uninterrupted_one(text, tmp_path, cell, dtype, updates):
    clip = float("inf") if updates == 23 else 0.4
    whole = finished(training_on(replace(SMALL, cell=cell, nonlinearity=None, dtype=dtype, clip=clip), read_corpus(text)))
    part = training_on(whole.settings, read_corpus(text))
    while part.updates < updates:
        part.update()
    save(part, tmp_path / "part")
    resumed = resume(tmp_path / "part", hidden=7, cell=cell, dtype=dtype)
    assert resumed.updates == updates and resumed.losses == whole.losses[:updates]
    finished(resumed)
    assert bytes_of(resumed, tmp_path / "resumed") == bytes_of(whole, tmp_path / "whole")
    assert resumed.last_evaluation().loss == whole.last_evaluation().loss
    assert resumed.sample(80, 0.7) == whole.sample(80, 0.7)
    assert (resumed.clipped, resumed.recent_loss) == (whole.clipped, whole.recent_loss)


@pytest.mark.parametrize("cell", CELLS)
def test_a_resumed_stack_drops_what_the_uninterrupted_one_does(text, tmp_path, cell):
    whole = finished(training_on(replace(SMALL, cell=cell, nonlinearity=None, layers=3, dropout=0.3), read_corpus(text)))
    part = training_on(whole.settings, read_corpus(text))
    while part.updates < 21:
        part.update()
    save(part, tmp_path / "part")
    resumed = finished(resume(tmp_path / "part", layers=3, dropout=0.3))
    assert bytes_of(resumed, tmp_path / "resumed") == bytes_of(whole, tmp_path / "whole")
    assert resumed.last_evaluation() == whole.last_evaluation() == whole.last_evaluation()
    assert resumed.sample(80, 0.7) == whole.sample(80, 0.7)
    plain = finished(training_on(replace(whole.settings, dropout=0.0), read_corpus(text)))
    assert plain.losses[:10] != whole.losses[:10] and plain.model.parameters == whole.model.parameters


def test_a_stack_is_trained_watched_and_looked_at(run, text, tmp_path):
    stack = "--layers", 2, "--dropout", 0.1, "--no-plot"
    result = run("train", text, *OPTIONS, *stack, "--updates", 5, "--live", "--out", tmp_path)
    assert result.status == 0 and "GRU, 2 layers, dropout 0.1, float32" in result.out and "\ngradients " in result.out
    assert run("train", "--resume", tmp_path, "--updates", 9, "--no-plot").status == 0
    seen = run("flow", tmp_path / "checkpoint.safetensors", "--no-picture", "--steps", 5)
    assert seen.status == 0 and "the last of 2 layers of 7 units" in seen.out
    assert run("flow", tmp_path / "checkpoint.safetensors", "--no-picture", "--steps", 5).out == seen.out
    task = "train", "--task", "adding", "--length", 20, "--hidden", 5, "--updates", 4, "--check-every", 2, *stack, "--quiet"
    for cell in ("rnn", "lstm"):
        folder = tmp_path / cell
        assert run(*task, "--cell", cell, "--out", folder).status == 0
        assert run("train", "--resume", folder, "--updates", 6, "--no-plot", "--live").status == 0
        assert run("flow", folder / "checkpoint.safetensors", "--no-picture").status == 0


def test_a_finished_run_can_be_extended(text, tmp_path):
    save(finished(training_on(SMALL, read_corpus(text))), tmp_path / "checkpoint")
    assert resume(tmp_path / "checkpoint").done
    assert finished(resume(tmp_path / "checkpoint", updates=50)).updates == 50
    timed = resume(tmp_path / "checkpoint", minutes=1e-4)
    assert not timed.done
    assert finished(timed).updates > 40


def test_a_timed_run_goes_on_for_what_is_left(text, tmp_path):
    training = training_on(Settings(hidden=7, batch=3, seq_len=10, minutes=0.01), read_corpus(text))
    while training.progress < 0.5:
        training.update()
    save(training, tmp_path / "checkpoint")
    rest = resume(tmp_path / "checkpoint")
    assert 0.5 <= rest.progress == training.progress < 0.7
    assert finished(rest).seconds < 1.2


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_main_job(text, tmp_path):
    pytest.importorskip("matplotlib")
    results = [command("train", text, *OPTIONS[:8], "--updates", 30, "--out", tmp_path / name) for name in ("one", "two")]
    for result in results:
        assert (result.returncode, result.stderr) == (0, "")
        assert re.search(r"^held-out +perplexity \d+\.\d+ per character", result.stdout, re.MULTILINE)
        assert re.search(READINGS, result.stdout, re.MULTILINE)
    one, two = (re.sub(r"characters/s [\d,]+|[\d,]+ characters/s", "", result.stdout).replace("/two/", "/one/") for result in results)
    assert one == two
    assert f"checkpoint  {tmp_path}/one/checkpoint.safetensors" in one and f"picture     {tmp_path}/one/training.png" in one
    for name in ("checkpoint.safetensors", "training.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path / "one")) == ["checkpoint.safetensors", "sample.txt", "training.png"]
    sample = (tmp_path / "one" / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 500
    assert f"; also in {tmp_path}/one/sample.txt\n\n{sample}\n\n" in one


def test_a_finished_run_samples_again(run, text, tmp_path):
    first = run("train", text, *OPTIONS[:9], "--updates", 10, "--out", tmp_path, "--sample", 200)
    again = run("train", "--resume", tmp_path, "--no-plot", "--sample", 200, "--quiet")
    sample = first.out[first.out.index("sample") : first.out.index("checkpoint  ")]
    assert len(sample) > 200 and sample in again.out
    other = run("train", "--resume", tmp_path, "--no-plot", "--sample", 200, "--temperature", 0.1)
    assert sample not in other.out


def test_samples_cannot_steer_the_terminal(run, tmp_path):
    (tmp_path / "text").write_text("\x1b[31m\x07\n" * 100)
    result = run("train", tmp_path / "text", "--batch", 2, "--seq-len", 5, "--hidden", 4, "--updates", 3, "--out", tmp_path, "--no-plot")
    assert result.status == 0
    assert not set(result.out) & {"\x1b", "\x07"}


def test_a_text_of_one_character(run, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "text").write_text("a" * 500)
    result = run("train", tmp_path / "text", "--batch", 2, "--seq-len", 5, "--hidden", 4, "--updates", 3, "--out", tmp_path, "--sample", 5)
    assert result.status == 0
    assert "perplexity 1.0000 per character" in result.out and "aaaaa" in result.out


@pytest.mark.parametrize(
    ("options", "net"),
    [
        ("", "GRU, float32"),
        ("--cell lstm --dtype float64", "LSTM, float64"),
        ("--layers 2 --dropout 0.25", "GRU, 2 layers, dropout 0.25, float32"),
        ("--cell rnn --nonlinearity relu --dtype float32", "RNN, relu, float32"),
    ],
)
def test_the_net_is_named(run, text, tmp_path, monkeypatch, options, net):
    titles = []
    monkeypatch.setattr("fastbptt.app.train.run.plot_training", lambda *_, title, **__: titles.append(title))
    result = run("train", text, *OPTIONS[:8], "--sample", 0, "--updates", 2, "--out", tmp_path, *options.split())
    assert re.search(rf"^model       {net}, \d+-7-\d+: [\d,]+ parameters$", result.out, re.MULTILINE), result.out
    assert titles == [f"{net}, 7 units: 2 updates"]


def test_a_live_display_in_a_terminal(text, tmp_path):
    pytest.importorskip("rich")
    shown = shown_in_terminal("train", text, *OPTIONS, "--updates", "3000", "--out", tmp_path, COLUMNS=140)
    assert b"\x1b[" in shown and b"update 3,000/3,000" in shown and b"characters/s" in shown and b"held-out" in shown


def test_help_shows_the_defaults():
    result = command("train", "--help", COLUMNS=200)
    assert result.returncode == 0
    for default in ("gru", "tanh", "float32", "256", "50", "16", "2 / hidden", "5000", "cosine", "fastbptt-run", "0.8"):
        assert f"(default: {default}" in result.stdout


def test_info_and_version(run):
    assert "isa" in run("info").out
    assert run("--version").out == f"fastbptt {fastbptt.__version__}\n"


def test_importing_the_package_imports_none_of_the_extras():
    run_python("import sys, fastbptt\nassert not {'rich', 'matplotlib', 'safetensors', 'argparse'} & set(sys.modules)")


@pytest.mark.parametrize(("name", "options"), [("matplotlib", []), ("matplotlib", ["--quiet"])])
def test_a_missing_extra(run, text, tmp_path, monkeypatch, name, options):
    monkeypatch.setitem(sys.modules, name, None)
    result = run("train", text, "--out", tmp_path / "out", *options)
    assert_fails(2, rf'{name} missing: pip install "fastbptt\[train\]"', result)
    assert not (tmp_path / "out").exists()


def test_matplotlib_is_not_needed_without_a_picture(run, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("train", text, *OPTIONS, "--updates", 2, "--out", tmp_path).status == 0


def test_a_net_that_does_not_fit_the_memory(run, text, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 7.28 TiB")

    asked = ["train", text, *OPTIONS, "--updates", 2, "--out", tmp_path / "out"]
    sizes = "--hidden 7, --seq-len 10, --batch 3, --sample 0"
    for status, where in ((1, "fastbptt.app.train.loop.Training.update"), (2, "fastbptt.app.train.settings.Model")):
        with monkeypatch.context() as patch:
            patch.setattr(where, fail)
            assert_fails(status, f"not enough memory: Unable to allocate 7.28 TiB; with {sizes}", run(*asked))


# --- Interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_and_resumed(run, text, tmp_path, number, status):
    """It would take hours to its end, so it is interrupted before, whenever the signal comes."""
    pytest.importorskip("matplotlib")
    options = [text, *OPTIONS[:8], "--schedule", "constant", "--sample", 0]
    process = started(*options, "--updates", 10**8, "--out", tmp_path / "part", "--save-every", 0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (status, "")
    line = out.splitlines()[-1]
    assert re.match(r"interrupted at update [\d,]+; everything is saved; to resume: fastbptt train --resume ", line)
    assert sorted(os.listdir(tmp_path / "part")) == ["checkpoint.safetensors", "training.png"]

    reached = load_checkpoint(tmp_path / "part" / "checkpoint.safetensors")[0]["training.losses"].size
    assert f"update {reached:,};" in line and reached > 0
    length = ["--updates", reached + 500, "--no-plot"]
    resumed = run(*shlex.split(line.split("to resume: fastbptt ")[1]), *length, "--sample", 0)
    whole = run("train", *options, *length, "--out", tmp_path / "whole")
    assert (resumed.status, whole.status) == (0, 0)
    assert f"resumed     after update {reached:,}" in resumed.out
    part, whole = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("part", "whole"))
    assert part == whole


def test_killed_and_resumed(run, text, tmp_path):
    """It saves after every update; whenever it is killed, there is a checkpoint to go on from."""
    out = tmp_path / "part"
    process = started(text, *OPTIONS, "--updates", 10**8, "--out", out, "--save-every", 0)
    for _ in range(4):
        time.sleep(np.random.default_rng().uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert load_checkpoint(out / "checkpoint.safetensors")[0]["training.losses"].size > 0
        process = started("--resume", out, "--no-plot", "--out", out, "--save-every", 0)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "--hidden 0": "hidden: expected an integer of at least 1, got 0",
    "--hidden -3": "hidden: expected an integer of at least 1, got -3",
    "--hidden 2.5": "argument --hidden: invalid int value: '2.5' .*",
    "--hidden 1000001": "hidden: expected a number at least 1 and at most 1e.06, got 1000001",
    "--seq-len 0": "seq-len: expected an integer of at least 1, got 0",
    "--seq-len 1000": "some.txt: 700 characters are too few for 3 streams of 1000; at least 3158 are needed, or a smaller batch or seq-len",
    "--batch 0": "batch: expected an integer of at least 1, got 0",
    "--batch 700": "some.txt: 700 characters are too few for 700 streams of 10; .*",
    "--lr 0": "lr: expected a number above 0 and at most 1e.06, got 0.0",
    "--lr nan": "lr: expected a number above 0 .*, got nan",
    "--lr -0.1": "lr: expected a number above 0 .*, got -0.1",
    "--lr inf": "lr: expected a number above 0 .*, got inf",
    "--lr fast": "argument --lr: invalid float value: 'fast' .*",
    "--clip 0": "clip: expected a number above 0, got 0.0",
    "--clip nan": "clip: expected a number above 0, got nan",
    "--seed -1": "seed: expected an integer of at least 0, got -1",
    "--updates 0": "updates: expected an integer of at least 1, got 0",
    "--minutes 0": "minutes: expected a number above 0 .*, got 0.0",
    "--minutes nan": "minutes: expected a number above 0 .*, got nan",
    "--minutes 1 --updates 5": "argument --updates: not allowed with argument --minutes .*",
    "--cell cube": "argument --cell: invalid choice: 'cube' .*",
    "--cell rnn --nonlinearity cube": "argument --nonlinearity: invalid choice: 'cube' .*",
    "--cell gru --nonlinearity tanh": "nonlinearity: only the cell rnn has a choice of it; this is gru",
    "--cell lstm --nonlinearity relu": "nonlinearity: only the cell rnn has a choice of it; this is lstm",
    "--dtype float16": "argument --dtype: invalid choice: 'float16' .*",
    "--schedule never": "argument --schedule: invalid choice: 'never' .*",
    "--layers 0": "layers: expected an integer of at least 1, got 0",
    "--layers 2 --dropout 1": "dropout: expected a number of at least 0 and below 1, got 1.0",
    "--layers 2 --dropout nan": "dropout: expected a number of at least 0 and below 1, got nan",
    "--dropout 0.5": "dropout: it is between layers, of which this net has one; ask for more of them, too",
    "--layers 2 --omega 1": "omega: it is for nets of one layer",
    "--threads 0": "threads: expected a number from 1 to 256, got 0",
    "--threads 99999999999999999999": "threads: expected a number from 1 to 256, got 99999999999999999999",
    "--temperature -1": "temperature: expected a number at least 0 .*, got -1.0",
    "--temperature nan": "temperature: expected a number at least 0 .*, got nan",
    "--sample -1": "sample: expected an integer of at least 0, got -1",
    "--sample 99999999999": "sample: expected a number at least 0 and at most 1e.06, got 99999999999",
    "--sample 99999999999999999999": "sample: expected a number at least 0 and at most 1e.06, got 99999999999999999999",
    "--save-every -1": "save-every: expected a number at least 0, got -1.0",
    "--hid 3": "unrecognized arguments: --hid .*",
    "another.txt": "unrecognized arguments: another.txt .*",
    "--resume missing": "missing: No such file or directory",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(run, text, tmp_path, monkeypatch, options):
    monkeypatch.chdir(os.path.dirname(text))
    result = run("train", "some.txt", *OPTIONS, "--out", tmp_path / "out", *options.split())
    assert_fails(2, BAD_OPTIONS[options], result)
    assert result.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (b"word\0", "not a text file in UTF-8: character 4 is NUL; --encoding takes another"),
        (b"\xff", "not a text file in UTF-8: byte 0 is 0xff; --encoding takes another"),
        (b"short", "5 characters are too few for 3 streams of 10; at least 33 are needed, or a smaller batch or seq-len"),
    ],
    ids=["missing", "empty", "binary", "latin", "short"],
)
def test_bad_texts(tmp_path, content, complaint):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    result = command("train", path, *OPTIONS, "--out", tmp_path / "out")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"fastbptt: error: {path}: {complaint}\n")
    assert not (tmp_path / "out").exists()


def test_a_directory_for_a_text(run, tmp_path):
    assert_fails(2, f"{tmp_path}: expected a text file, got a directory", run("train", tmp_path))


def test_no_command():
    result = command()
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch("fastbptt: error: .*required: command .*\n", result.stderr)


@pytest.mark.parametrize("out", ["file", "file/below", "closed/below"])
def test_an_unwritable_directory(run, text, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    if out.startswith("closed") and os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    assert_fails(2, f"{out}: .*(directory|denied).*", run("train", text, *OPTIONS, "--out", out))
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that is there and cannot be read")
def test_a_read_that_fails_names_its_file(run, checkpoint):
    for arguments in (["train"], ["train", "--resume"], ["train", "--resume", checkpoint], ["flow"], ["flow", checkpoint, "--text"]):
        assert_fails(2, "/proc/self/mem: Input/output error", run(*arguments, "/proc/self/mem"))


@pytest.fixture
def checkpoint(text, tmp_path):
    """A finished run's."""
    save(finished(training_on(SMALL, read_corpus(text))), tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


CONTRADICTIONS = {
    "--hidden 8": "hidden: .* was made with 7, which 8 contradicts",
    "--seq-len 11": "seq-len: .* was made with 10, which 11 contradicts",
    "--lr 0.5": "lr: .* was made with 0.01, which 0.5 contradicts",
    "--nonlinearity relu": "nonlinearity: .* was made with tanh, which relu contradicts",
    "--layers 2": "layers: .* was made with 1, which 2 contradicts",
    "--cell lstm": "cell: .* was made with rnn, which lstm contradicts",
    "--dtype float32": "dtype: .* was made with float64, which float32 contradicts",
    "--updates 39": "updates: .* has made 40 already, more than 39",
    "--updates 0": "updates: expected an integer of at least 1, got 0",
}


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_options_that_contradict_the_checkpoint(run, checkpoint, options):
    before = checkpoint.read_bytes()
    assert_fails(2, CONTRADICTIONS[options], run("train", "--resume", checkpoint, *options.split()))
    assert checkpoint.read_bytes() == before


def test_another_text_than_the_checkpoints(run, text, tmp_path, checkpoint):
    (tmp_path / "other").write_text("another text, with another vocabulary " * 20)
    complaint = r".*/other: not the text that .* was trained on: 760 characters, 18 different; expected 700, \d+ different"
    assert_fails(2, complaint, run("train", tmp_path / "other", "--resume", checkpoint))


def test_a_text_that_has_moved(run, text, tmp_path):
    moving = shutil.copy(text, tmp_path / "before")
    assert run("train", moving, *OPTIONS, "--updates", 5, "--out", tmp_path).status == 0
    os.rename(moving, tmp_path / "after")
    again = "train", "--resume", tmp_path, "--no-plot", "--updates", 6
    assert_fails(2, ".*/before: .* was trained on this text, which cannot be read; say where it is now", run(*again))
    assert run(*again, tmp_path / "after").status == 0


def test_a_text_in_another_encoding(run, text, tmp_path):
    """The checkpoint tells how it is read; it is the same text in UTF-8."""
    with open(text, encoding="utf-8") as file, open(tmp_path / "wide", "w", encoding="utf-16") as wide:
        wide.write(file.read())
    options = *OPTIONS, "--updates", 5, "--quiet"
    assert_fails(2, ".*/wide: not a text file in UTF-8: .*: --encoding utf-16", run("train", tmp_path / "wide", *options))
    wide = run("train", tmp_path / "wide", *options, "--encoding", "utf-16", "--out", tmp_path / "one")
    assert wide.status == 0 and wide.out.splitlines()[:1] == run("train", text, *options, "--out", tmp_path / "two").out.splitlines()[:1]
    again = "train", "--resume", tmp_path / "one", "--no-plot", "--sample", 0, "--quiet"
    assert run(*again, "--updates", 6).status == 0
    assert_fails(2, ".*/some.txt: not the text that .*", run(*again, "--updates", 7, text))
    assert run(*again, "--updates", 7, text, "--encoding", "utf-8").status == 0
    assert run(*again, "--updates", 8).status == 0
    assert_fails(2, "encoding: a task has no such setting", run("train", "--task", "adding", "--encoding", "utf-8"))
    assert_fails(2, r"encoding: pydoc_data\.topics is not read from a file", run("train", "--encoding", "utf-8"))


def test_a_checkpoint_from_before_there_were_encodings(run, text, tmp_path):
    """It was trained on UTF-8, with the line ends that the file has."""
    with open(text, encoding="utf-8") as file, open(tmp_path / "crlf", "w", encoding="utf-8", newline="\r\n") as crlf:
        crlf.write(file.read())
    corpus = read_corpus(tmp_path / "crlf", newline="")
    assert ord("\r") in corpus.vocabulary
    path = tmp_path / "checkpoint.safetensors"
    save(finished(training_on(replace(SMALL, seq_len=9), corpus)), path)
    arrays, metadata = load_checkpoint(path)
    for name in ("encoding", "newline"):
        del metadata["description"][name]
    save_checkpoint(path, arrays, metadata)
    for updates in (41, 42):
        assert run("train", "--resume", path, "--no-plot", "--sample", 0, "--updates", updates).status == 0
    assert run("flow", path, "--no-picture").status == 0


@pytest.mark.parametrize("length", [0, 5, 100, 3000, -1])
def test_a_truncated_checkpoint(run, checkpoint, length):
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    assert_fails(2, f"{checkpoint}: (not a checkpoint of fastbptt|damaged checkpoint: .*)", run("train", "--resume", checkpoint))


def without(name):
    return lambda arrays, metadata: arrays.pop(name)


def changed(name, value):
    return lambda arrays, metadata: arrays.update({name: value})


def setting(name, value):
    return lambda arrays, metadata: metadata["settings"].update({name: value})


def entry(name, value):
    return lambda arrays, metadata: metadata.update({name: value})


def described(name, value):
    return lambda arrays, metadata: metadata["description"].update({name: value})


DAMAGE = {
    "another format": entry("format", "fastbptt train 2"),
    "no settings": entry("settings", None),
    "settings of another kind": entry("settings", [1, 2]),
    "an unknown setting": setting("cube", 3),
    "another cell": setting("cell", "lstm"),
    "an unknown cell": setting("cell", "cube"),
    "another dtype": setting("dtype", "float32"),
    "an unknown dtype": setting("dtype", "float16"),
    "another size": setting("hidden", 8),
    "a smaller size": setting("hidden", 6),
    "an enormous size": setting("hidden", 999_999),
    "more layers": setting("layers", 2),
    "an enormous number of layers": setting("layers", 65536),
    "layers in words": setting("layers", "two"),
    "dropout in one layer": setting("dropout", 0.5),
    "a size in words": setting("hidden", "seven"),
    "another batch": setting("batch", 4),
    "an impossible window": setting("seq_len", 10_000),
    "no text": entry("description", {}),
    "a text without a name": described("source", ""),
    "a text of another kind": described("source", ["a"]),
    "an unknown encoding": described("encoding", "klingon"),
    "an encoding of no text": described("encoding", "hex"),
    "an encoding with a NUL": described("encoding", "a\0"),
    "a text in words": entry("description", "the one from last week"),
    "an encoding that is none": described("encoding", 8),
    "line ends that are none": described("newline", "\r"),
    "another kind": entry("kind", "task"),
    "an unknown kind": entry("kind", "cube"),
    "no kind": entry("kind", None),
    "no generator": entry("rng", None),
    "another generator": entry("rng", {"bit_generator": "MT19937"}),
    "an impossible generator": entry(
        "rng", {"bit_generator": "PCG64", "state": {"state": -1, "inc": 2**200}, "has_uint32": 0, "uinteger": 0}
    ),
    "negative seconds": entry("seconds", -1),
    "a missing array": without("readout.bias"),
    "an array too many": changed("rnn.weight", np.zeros(3)),
    "an array of another shape": changed("readout.bias", np.zeros(3)),
    "an array of another dtype": changed("rnn.bias_hh_l0", np.zeros(7, np.float32)),
    "a weight that is not finite": changed("rnn.bias_hh_l0", np.full(7, np.nan)),
    "another vocabulary": changed("vocabulary", np.arange(3, dtype=np.uint32)),
    "histories of unequal length": changed("training.norms", np.zeros(3)),
    "evaluations of another shape": changed("training.exams", np.ones((2, 3))),
    "an evaluation of the future": changed("training.exams", np.array([[41.0, 1.0, 10.0, 5.0]])),
    "half an evaluation": changed("training.exams", np.array([[10.0, 1.0, 10.0, 0.5]])),
    "a history in a matrix": changed("training.losses", np.zeros((40, 1))),
    "another count": changed("optimiser.steps", np.array(3)),
    "no state": without("training.h"),
    "another cell's state": changed("training.c", np.zeros((1, 3, 7))),
    "a vector for a matrix": changed("rnn.weight_hh_l0", np.zeros(49)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_whose_content_is_wrong(run, checkpoint, damage):
    arrays, metadata = load_checkpoint(checkpoint)
    DAMAGE[damage](arrays, metadata)
    save_checkpoint(checkpoint, arrays, metadata)
    assert_fails(2, f"{checkpoint}: damaged checkpoint: .+", run("train", "--resume", checkpoint, "--updates", 50))


# --- Runs that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_that_explodes(run, text, tmp_path, dtype):
    """The run ends at once; the checkpoint is that of the last update that was all right."""
    options = ["train", text, *OPTIONS, "--cell", "rnn", "--dtype", dtype, "--nonlinearity", "identity", "--lr", 1e6, "--updates", 500]
    result = run(*options, "--out", tmp_path / "out", "--save-every", 0)
    found = re.search(r"update (\d+): the (loss|gradient norm) is (inf|nan)", result.err)
    assert found, result.err
    kept = rf"the checkpoint of update {int(found[1]) - 1} is kept in .*/checkpoint.safetensors; a smaller --lr or --clip may help"
    assert_fails(1, re.escape(found[0]) + "; " + kept, result)
    arrays, _ = load_checkpoint(tmp_path / "out" / "checkpoint.safetensors")
    assert arrays["training.losses"].size == int(found[1]) - 1
    assert all(np.isfinite(array).all() for array in arrays.values())

    result = run(*options, "--out", tmp_path / "none")
    assert_fails(1, re.escape(found[0]) + "; this run has saved no checkpoint yet; a smaller --lr or --clip may help", result)
    assert os.listdir(tmp_path / "none") == []


def test_parameters_that_overflow_are_not_saved(text, tmp_path):
    training = training_on(SMALL, read_corpus(text))
    save(training, tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    training.model.readout.params["bias"][0] = np.inf
    with pytest.raises(FloatingPointError, match=r"^update 0: readout.bias is not finite$"):
        save(training, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == before


def test_a_disk_that_fills_up(run, text, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    complaint = f"{tmp_path}/checkpoint.safetensors: No space left on device; this run has saved no checkpoint yet"
    assert_fails(1, complaint, run("train", text, *OPTIONS, "--updates", 3, "--out", tmp_path))
    assert os.listdir(tmp_path) == []
