"""`fastbptt train --live`: warnings come where they should and nowhere else; watching changes no result and costs little."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_fails, command, shown_in_terminal

import fastbptt
from fastbptt.app.train import monitor as monitoring
from fastbptt.app.train.display import BAR, Lines, Meter, bars, curve, gradients_drawn, scale
from fastbptt.app.train.loop import Training
from fastbptt.app.train.monitor import Look, Monitor, take_look, troubles
from fastbptt.app.train.settings import TaskSettings, TextSettings
from fastbptt.app.train.task_objective import TaskObjective
from fastbptt.app.train.text import Corpus
from fastbptt.app.train.text_objective import TextObjective
from fastbptt.cells import CELLS

SMALL = TaskSettings(task="temporal-order", length=30, hidden=9, batch=3, updates=8, seed=5)
OPTIONS = ["--task", "temporal-order", "--length", 20, "--hidden", 7, "--batch", 3, "--updates", 30, "--no-plot"]
rng = np.random.default_rng(0)


def kinds(*history):
    return [trouble.kind for trouble in troubles(*history)]


def looked(decay, verdict="stable"):
    slope = decay[-1] / (len(decay) - 1)
    return Look(1, np.asarray(decay, float), math.log10(0.5) / slope if slope < 0 else math.inf, verdict, "the finding")


# --- The rules, on made-up histories ----------------------------------------------------------------------------------

STEADY = np.full(300, 0.3)
NOISY = 1.4 + 0.1 * rng.standard_normal(300)
LEARNING = np.geomspace(1.4, 0.01, 300) * rng.lognormal(0, 0.15, 300)


@pytest.mark.parametrize(
    "losses", [NOISY, LEARNING, np.full(300, 1.4), np.geomspace(4.5, 1.2, 300)], ids=["noisy", "fast", "flat", "smooth"]
)
@pytest.mark.parametrize("n", [0, 1, 2, 50, 99, 100, 300])
def test_nothing_is_wrong(losses, n):
    assert kinds(losses[:n], 0.3 * losses[:n]) == []
    assert kinds(losses[:n], 0.3 * losses[:n], looked(np.zeros(11))) == []


def test_one_leap_is_no_jagged_loss_but_three_are():
    for teeth in range(6):
        losses = NOISY.copy()
        losses[210 : 210 + 15 * teeth : 15] += 1.5
        assert kinds(losses, STEADY) == (["jagged loss"] if teeth >= 3 else [])
    assert f"leapt up {teeth} times" in troubles(losses, STEADY)[0].finding


def test_old_leaps_are_forgotten():
    losses = NOISY.copy()
    losses[100:190:15] += 1.5
    assert kinds(losses[:195], STEADY[:195]) == ["jagged loss"] and kinds(losses, STEADY) == []


def test_ups_and_downs_all_the_time_are_jagged():
    assert kinds([0.2, 2.0] * 100, STEADY[:200]) == ["jagged loss"]


def test_leaps_of_a_loss_that_is_nearly_gone_are_not():
    assert kinds(np.concatenate([LEARNING[:100], 0.02 * rng.lognormal(0, 2, 200).clip(0, 5)]), STEADY) == []


def test_a_norm_that_leaps():
    norms = STEADY.copy()
    norms[250] = 29
    assert kinds(NOISY, norms) == []
    norms[250] = 31
    assert kinds(NOISY, norms) == ["exploding"]
    assert "31 at update 251, 1e+02 times the usual 0.3" in troubles(NOISY, norms)[0].finding
    norms[250], norms[200:] = 0.1, norms[200:] * 1e-4  # large for a net that has learned, but not for one that has not
    assert kinds(LEARNING, norms) == []


def test_a_norm_that_is_gone():
    gone = np.concatenate([STEADY[:150], STEADY[150:] * 1e-7])
    assert kinds(NOISY, gone) == ["vanishing"]
    assert kinds(LEARNING, gone) == []  # nothing is left to learn
    assert kinds(NOISY[:150], gone[:150]) == []


def test_a_gradient_that_does_not_reach():
    lags = np.arange(41)
    assert kinds(NOISY, STEADY, looked(-lags / 5, "vanishing")) == ["vanishing"]
    assert "after 10 of 40 steps back (half-life 1.5)" in troubles(NOISY, STEADY, looked(-lags / 5, "vanishing"))[0].finding
    assert kinds(NOISY, STEADY, looked(-lags / 15, "vanishing")) == []  # it reaches 30 steps
    nothing = np.concatenate([[0.0], np.full(40, -np.inf)])
    assert "after 0 of 40" in troubles(NOISY, STEADY, looked(nothing, "vanishing"))[0].finding


def test_a_gradient_that_grows():
    assert kinds(NOISY, STEADY, looked(np.arange(41) / 5, "exploding")) == ["exploding"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_all_that_counts(value):
    losses, norms = NOISY.copy(), STEADY.copy()
    norms[280] = 1e6
    losses[290] = value
    assert kinds(losses, norms) == ["not finite"]
    assert troubles(losses, norms)[0].finding == f"the loss is {value} at update 291"
    assert troubles(NOISY, losses)[0].finding == f"the gradient norm is {value} at update 291"
    seen = Look(1, np.full(5, np.nan), math.nan, "nonfinite", "h[3, 0, 1] is nan")
    assert [str(trouble) for trouble in troubles([], [], seen)] == ["not finite: h[3, 0, 1] is nan; lower --lr or --clip"]


def test_several_things_at_once():
    losses, norms = NOISY.copy(), STEADY.copy()
    losses[210:290:15] += 1.5
    norms[210:290:15] = 1e3
    assert kinds(losses, norms, looked(np.arange(41) / -5, "vanishing")) == ["exploding", "vanishing", "jagged loss"]


# --- On real nets -----------------------------------------------------------------------------------------------------


def watched(settings, gain=1.0, objective=TaskObjective):
    """A run that is looked at in every update."""
    training = Training(objective(settings))
    training.model.rnn.params["weight_hh_l0"] *= gain
    monitor = Monitor(training)
    while not training.done:
        monitor._next = 0.0
        training.update()
    return monitor


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task", ["temporal-order", "adding", "copy-memory"])
def test_a_net_made_to_vanish(cell, task):
    monitor = watched(replace(SMALL, task=task, cell=cell, init=None, nonlinearity=None), gain=0.1)
    assert monitor.look.verdict == "vanishing" and [trouble.kind for trouble in monitor.troubles()] == ["vanishing"]


@pytest.mark.parametrize("task", ["temporal-order", "copy-memory"])
def test_a_net_made_to_explode(task):
    monitor = watched(replace(SMALL, task=task, init="identity", nonlinearity="identity"), gain=1.5)
    assert monitor.look.verdict == "exploding" and monitor.troubles()[0].kind == "exploding"
    assert monitor.look.log10_decay[-1] == pytest.approx(monitor.look.steps * math.log10(1.5), rel=0.1)


def test_a_net_that_keeps_its_gradient():
    monitor = watched(replace(SMALL, init="orthogonal", nonlinearity="identity"))
    assert monitor.look.verdict == "stable" and monitor.look.reach == monitor.look.steps and monitor.troubles() == []


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_net_made_to_end_in_nan(dtype):
    training = Training(TaskObjective(replace(SMALL, init="identity", nonlinearity="identity", clip=math.inf, dtype=dtype)))
    training.model.rnn.params["weight_hh_l0"] *= 1e30 if dtype == "float64" else 1e4
    monitor = Monitor(training)
    with pytest.raises(FloatingPointError, match="update 1"):
        training.update()
    assert monitor.look.verdict == "nonfinite" and monitor.troubles()[0].kind == "not finite"
    assert monitor.look.finding.startswith("h[")


def test_what_is_looked_at_is_the_last_loss():
    out, _, tape = fastbptt.rnn_forward(rng.random((12, 2, 3)), None, rng.random((4, 3)), 0.3 * rng.standard_normal((4, 4)))
    d_out = rng.standard_normal(out.shape)
    last = np.zeros_like(out)
    last[-1] = d_out[-1]
    for whole, d in ((False, last), (True, d_out)):
        seen, flow = take_look(7, tape, d_out, whole=whole), fastbptt.gradient_flow(tape, d)
        assert np.array_equal(seen.log10_decay, flow.log10_decay) and seen.verdict == flow.verdict
        assert str(flow).startswith(f"{seen.verdict}: {seen.finding}\n")
    assert take_look(7, tape, np.zeros_like(out)).lags() == []


@pytest.mark.parametrize("cell", CELLS)
def test_a_text(cell):
    tokens = rng.integers(5, size=3000)
    corpus = Corpus("made up", np.arange(97, 102, dtype=np.uint32), tokens, "0")
    settings = TextSettings(cell=cell, hidden=8, seq_len=20, batch=4, updates=5)
    monitor = watched(settings, objective=lambda settings: TextObjective(settings, corpus))
    assert monitor.look.steps in (19, 20) and monitor.look.update == 5 and len(monitor.look.lags()) == 5


def test_looking_changes_nothing():
    plain = Training(TaskObjective(SMALL))
    while not plain.done:
        plain.update()
    monitor = watched(SMALL)
    assert monitor.training.losses == plain.losses and monitor.training.norms == plain.norms
    assert np.array_equal(monitor.training.model.rnn.flat_params, plain.model.rnn.flat_params)


def test_looking_is_rationed(monkeypatch):
    """On a clock where each look takes a second: after the first, looks take at most 3 % of the time."""
    now = [100.0]
    monkeypatch.setattr(monitoring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(monitoring, "take_look", lambda *_, **__: now.__setitem__(0, now[0] + 1.0))
    monitor = Monitor(SimpleNamespace(seconds=0.0, updates=0))
    for _ in range(10_000):
        monitor(None, None, None)
        now[0] += 0.1
        monitor.training.seconds += 0.1
    assert monitor.seconds == 30 and monitor.share == pytest.approx(0.03, rel=0.1)


# --- The display ------------------------------------------------------------------------------------------------------


def test_bars():
    seen = looked(-np.arange(101) / 10, "vanishing")
    assert seen.lags() == [1, 2, 5, 10, 20, 50, 100] and seen.reach == 20
    drawn = {lag: bar for lag, bar, _ in bars(seen, seen.lags(), plain=True)}
    assert {lag: len(bar) for lag, bar in drawn.items()} == {lag: round(BAR * max(0, 1 - lag / 80)) for lag in seen.lags()}
    assert scale(seen, seen.lags()).index("|") == BAR - 1
    grown = looked(np.arange(101) / 25, "exploding")
    drawn = {lag: bar for lag, bar, _ in bars(grown, grown.lags(), plain=True)}
    assert len(drawn[100]) == BAR and len(drawn[1]) == scale(grown, grown.lags()).index("|") + 1 == 32
    assert scale(grown, grown.lags()).endswith("1e+04")
    for _, bar, _ in bars(seen, seen.lags()):
        assert len(bar) <= BAR and set(bar) <= set("▏▎▍▌▋▊▉█")
    assert [bar for _, bar, _ in bars(looked([0, -np.inf]), [1])] == [""]


def test_curves():
    assert curve([1.0, 10.0, 100.0], plain=True) == "_-#"
    assert curve([0.0, 1.0, math.inf, math.nan, 100.0], plain=True) == "__###"
    assert len(curve(np.arange(1, 101))) == 50 and len(set(curve(np.full(99, 1.4)))) == 1
    assert curve([math.nan]) == "█" and curve([1.0]) == "▁"


@pytest.mark.parametrize("plain", [False, True])
def test_what_is_drawn(plain):
    pytest.importorskip("rich")
    monitor = watched(replace(SMALL, clip=1e-3))
    text = "\n".join(line.plain for line in gradients_drawn(monitor, plain))
    assert " 1 " in text and "30 " in text and "clipped to 0.001" in text and "! vanishing" in text
    assert text.isascii() == plain
    assert gradients_drawn(Monitor(Training(TaskObjective(SMALL)))) == []


def test_plain_lines_warn_once(capsys):
    monitor = watched(SMALL)
    lines = Lines(Meter(monitor.training), monitor)
    for _ in range(3):
        lines.update()
    shown = capsys.readouterr().out
    assert shown.count("gradient left, by steps back  1: ") == 3 and shown.count("warning: vanishing") == 1


def test_plain_output(tmp_path):
    result = command("train", *OPTIONS, "--live", "--out", tmp_path / "a")
    assert result.returncode == 0, result.stderr
    assert "gradient left" in result.stdout and "\ngradients   " in result.stdout and "\x1b" not in result.stdout
    assert command("train", *OPTIONS, "--quiet", "--out", tmp_path / "b").returncode == 0
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == (tmp_path / "b" / "checkpoint.safetensors").read_bytes()


def test_live_and_quiet_contradict_each_other(run, tmp_path):
    result = run("train", *OPTIONS, "--live", "--quiet", "--out", tmp_path / "out")
    assert result.status == 2 and "not allowed with" in result.err and not (tmp_path / "out").exists()


def test_the_error_says_where_nan_came_from(run, tmp_path):
    linear = ["--init", "identity", "--nonlinearity", "identity", "--clip", "inf", "--lr", 1e3]
    result = run("train", *OPTIONS, *linear, "--live", "--out", tmp_path)
    assert_fails(1, r"update \d+: the loss is nan; h\[\d+, 0, \d\] is -?(inf|nan), the state after step .*", result)


def test_in_a_terminal(tmp_path):
    pytest.importorskip("rich")
    shown = shown_in_terminal("train", *OPTIONS, "--live", "--out", tmp_path, COLUMNS=140, LINES=40, PYTHONIOENCODING="utf-8")
    assert "█".encode() in shown and b"! vanishing" in shown and b"norm" in shown and b"held-out" in shown
