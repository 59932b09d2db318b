"""Make the guide, gradients.md, and its pictures, from gradients.template.md and what is measured here.

    python docs/make_guide.py             # measure what is not in gradients.json yet (some minutes for all of it), draw and write
    python docs/make_guide.py --again     # measure all of it anew
    python docs/make_guide.py --write     # only write gradients.md, from gradients.json

Everything that is measured is seeded, so that another run gives the same numbers, but for the last bits on another processor.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import by_hand
import numpy as np

import fastbptt
from fastbptt._figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, new_figure
from fastbptt._notation import format_log10
from fastbptt.app.train.loop import Training
from fastbptt.app.train.monitor import take_look
from fastbptt.app.train.saved_run import resume
from fastbptt.app.train.settings import TaskSettings
from fastbptt.app.train.task_objective import TaskObjective

HERE = Path(__file__).parent
RESULTS, FIGURE7 = HERE / "gradients.json", HERE / "figure7.json"

FIGURE7_UPDATES = 50_000  # the most that a run counts with
TASK = "--task temporal-order --length 50 --updates 10000"
CURES = {  # what is added to it, and how it is called
    "nothing": ("--clip inf", "nothing"),
    "norm": ("", "clipping"),
    "omega": ("--omega 4", "clipping, Omega"),
    "orthogonal": ("--init orthogonal", "clipping, orthogonal start"),
    "identity-unclipped": ("--init identity --clip inf", "ReLU and identity start"),
    "identity": ("--init identity", "clipping, ReLU and identity start"),
    "rmsprop": ("--optimiser rmsprop", "clipping, RMSprop"),
    "orthogonal-rmsprop": ("--init orthogonal --optimiser rmsprop", "clipping, RMSprop, orthogonal start"),
    "gru": ("--cell gru --optimiser rmsprop", "clipping, RMSprop, GRU"),
    "lstm": ("--cell lstm --optimiser rmsprop", "clipping, RMSprop, LSTM"),
    "gru-sgd": ("--cell gru", "clipping, GRU"),
}
SEEDS = (0, 1, 2)
CLIPS = {
    "none": ("`lambda net: None`", lambda net: None),
    "norm": ("`lambda net: clip_grad_norm_(net, 1)`", lambda net: fastbptt.clip_grad_norm_(net, 1.0)),
    "value 1": ("`lambda net: clip_grad_value_(net, 1)`", lambda net: fastbptt.clip_grad_value_(net, 1.0)),
    "value 0.1": ("`lambda net: clip_grad_value_(net, 0.1)`", lambda net: fastbptt.clip_grad_value_(net, 0.1)),
}
REACHES = (5, 10, 20, 30)
WINDOWS, CHARACTERS = (5, 10, 25, 50, 100), 1_600_000
STARTS = {  # nets before they learn: start, gain of the recurrent weights, cell, colour, dashes
    "ReLU, 1.1 x identity": ("identity", 1.1, "rnn", VERMILION, "--"),
    "ReLU, identity": ("identity", 1.0, "rnn", ORANGE, "-"),
    "tanh, orthogonal": ("orthogonal", 1.0, "rnn", GREEN, "-"),
    "tanh, N(0, 0.1²)": ("basic-tanh", 1.0, "rnn", BLUE, "-"),
    "LSTM": ("default", 1.0, "lstm", PURPLE, "-."),
    "GRU": ("default", 1.0, "gru", SKY, "--"),
    "sigmoid, N(0, 0.01²)": ("sigmoid", 1.0, "rnn", BLACK, ":"),
}
DESCENT = {  # ways down the cliff: name, colour, marker
    "none": ("no clipping", VERMILION, "x"),
    "norm": ("norm clipped to 1", BLUE, "o"),
    "value": ("values clipped to 1", GREEN, "^"),
}
RATE, DESCENT_STEPS = 0.5, 100


# --- Measured ---------------------------------------------------------------------------------------------------------


def measure(results):
    """Add to the results what they lack; they are saved after each."""
    fastbptt.set_num_threads(1)
    for name, how in measurements().items():
        if name not in results:
            print(name, flush=True)
            results[name] = how()
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measurements():
    """Functions by what they measure."""
    runs = {
        f"{cure}, seed {seed}": lambda cure=cure, seed=seed: run(f"{command_of(cure)} --seed {seed}")
        for seed in SEEDS
        for cure in CURES
        if seed == 0 or cure != "gru-sgd"
    }
    return {
        "starts": starts,
        "descents": lambda: {clip: descend(clip) for clip in DESCENT},
        "clip by hand": lambda: {name: by_hand.learn(clip) for name, (_, clip) in CLIPS.items()},
        "reach": lambda: {str(reach): by_hand.learn(CLIPS["norm"][1], reach=reach) for reach in REACHES},
        "windows": lambda: {str(steps): perplexity(steps) for steps in WINDOWS},
        **runs,
    }


def command_of(cure):
    return " ".join(filter(None, ("fastbptt train", TASK, CURES[cure][0])))


def execute(command, directory):
    """Run a command of the guide; what it printed."""
    arguments = [*shlex.split(command)[1:], "--quiet", "--no-plot", "--out", directory]
    return subprocess.run([sys.executable, "-m", "fastbptt", *arguments], capture_output=True, text=True)


def run(command):
    """A training run on a task: how it ended, and how far gradients reached before and after."""
    with tempfile.TemporaryDirectory() as directory:
        result = execute(command, directory)
        if result.returncode:
            return {"failure": result.stderr.strip()}
        training = resume(Path(directory) / "checkpoint.safetensors")
    evaluation = training.last_evaluation()
    before, after = (look_at(net) for net in (Training(TaskObjective(training.settings)), training))
    return {
        "solved": training.solved,
        "updates": training.updates,
        "wrong": evaluation.error,
        "exams": [(evaluation.update, evaluation.error) for evaluation in training.evaluations],
        "largest norm": max(training.norms),
        "clipped": training.clipped / training.updates,
        "half-life before": before.half_life,
        "half-life after": after.half_life,
        "left before": before.log10_decay[-1],
        "left after": after.log10_decay[-1],
    }


def look_at(training):
    """How far the gradient reaches in a fresh batch."""
    inputs, targets, _ = training.objective.window(0, np.random.default_rng(1))
    out, _ = training.model.rnn(inputs)
    _, d_last = training.model.loss(training.objective.loss, out, targets)
    return take_look(0, training.model.rnn.take_tape(), *training._gradients(out, d_last))


def starts():
    """The gradient that is left by lag in nets that have not learned anything, over 100 steps."""
    found = {}
    for name, (init, gain, cell, *_) in STARTS.items():
        training = Training(TaskObjective(TaskSettings(task="temporal-order", length=100, cell=cell, init=init)))
        training.model.rnn.params["weight_hh_l0"] *= gain
        seen = look_at(training)
        found[name] = {"verdict": seen.verdict, "half-life": seen.half_life, "log10 left": seen.log10_decay.tolist()}
    return found


def perplexity(steps):
    with tempfile.TemporaryDirectory() as directory:
        result = execute(window_command(steps), directory)
    return float(result.stdout.split("perplexity ")[1].split()[0])


def window_command(steps):
    return f"fastbptt train --cell rnn --hidden 100 --sample 0 --seq-len {steps} --updates {CHARACTERS // (16 * steps)}"


def one_unit(w, b):
    """The loss (h_50 - 0.7)^2 of a sigmoid unit h_t = f(w h_{t-1} + b) with h_0 = f(0.5); and its gradient."""
    h0, x = np.full((1, 1), 1 / (1 + np.exp(-0.5))), np.zeros((50, 1, 1))
    weights = np.zeros((1, 1)), np.full((1, 1), w), np.zeros(1), np.full(1, b)
    _, h_n, tape = fastbptt.rnn_forward(x, h0, *weights, nonlinearity="sigmoid")
    grads = fastbptt.rnn_backward(tape, None, 2 * (h_n - 0.7))
    return (h_n.item() - 0.7) ** 2, np.array([grads.w_hh.item(), grads.b_hh.item()])


def descend(clip, at=(5.5, -2.0)):
    """Gradient descent on it: the places, and the gradients' norms."""
    at, places, norms, losses = np.array(at), [], [], []
    for _ in range(DESCENT_STEPS):
        loss, gradient = one_unit(*at)
        places.append(at.tolist())
        losses.append(loss)
        norms.append(float(np.linalg.norm(gradient)))
        if clip == "norm":
            fastbptt.clip_grad_norm_(gradient, 1.0)
        elif clip == "value":
            fastbptt.clip_grad_value_(gradient, 1.0)
        at = at - RATE * gradient
    return {"places": places, "norms": norms, "losses": losses}


# --- Drawn ------------------------------------------------------------------------------------------------------------


def draw(results):
    draw_starts(results)
    draw_cliff(results)
    draw_cures(results)


def save(figure, name):
    figure.savefig(HERE / f"{name}.png", dpi=110)


def draw_starts(results):
    """How much of the gradient is left by lag, in nets that have not learned anything."""
    figure = new_figure(8, 4.2)
    axes = figure.subplots()
    for name, (*_, colour, dashes) in STARTS.items():
        axes.plot(results["starts"][name]["log10 left"], color=colour, linestyle=dashes, linewidth=2, label=name)
    axes.set_ylim(-50, 7)
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")
    axes.set_xlabel("steps back")
    axes.set_ylabel("share of the gradient that is left")
    axes.grid(color="0.9", linewidth=0.6)
    figure.legend(loc="outside right center", frameon=False, title="50 units, before learning")
    save(figure, "starts")


def loss_surface(w, b):
    """The loss of `one_unit` for all w (n,) and b (m,), (m, n): as n units that do not see each other, and m rows."""
    n, m = len(w), len(b)
    x = np.repeat(b[None, :, None], 50, axis=0)
    h0 = np.full((m, n), 1 / (1 + np.exp(-0.5)))
    _, h_n, _ = fastbptt.rnn_forward(x, h0, np.ones((n, 1)), np.diag(w), nonlinearity="sigmoid")
    return (h_n - 0.7) ** 2


def draw_cliff(results):
    """The loss of a single unit, and ways down."""
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    w, b = np.linspace(3.6, 6.4, 300), np.linspace(-3.2, -1.2, 300)
    surface = axes.pcolormesh(w, b, loss_surface(w, b), cmap="Greys", vmin=0, vmax=0.5, shading="nearest", rasterized=True)
    figure.colorbar(surface, label="loss")
    for clip, (name, colour, marker) in reversed(DESCENT.items()):
        places = np.array(results["descents"][clip]["places"])
        axes.plot(*places.T, color=colour, marker=marker, markersize=5, linewidth=1, label=name, clip_on=True)
    axes.plot(*places[0], color="black", marker="*", markersize=14, linestyle="none", label="start")
    axes.set_xlim(w[0], w[-1])
    axes.set_ylim(b[0], b[-1])
    axes.set_xlabel("weight w")
    axes.set_ylabel("bias b")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    save(figure, "cliff")


def draw_cures(results):
    """When each run on the task was solved, or what it still got wrong."""
    figure = new_figure(8, 5.4)
    axes = figure.subplots()
    for row, cure in enumerate(CURES):
        failed = []
        for seed, marker in zip(SEEDS, "os^"):
            found = results.get(f"{cure}, seed {seed}")
            if found is None:
                continue
            y = row + 0.27 * (seed - 1)
            if found.get("solved"):
                axes.plot(found["updates"], y, color=BLUE, marker=marker, markersize=6)
            else:
                failed.append("NaN" if "failure" in found else f"{100 * found['wrong']:.0f}")
                axes.plot(10_350 + 250 * len(failed), row, color=VERMILION, marker=marker, markersize=6, markerfacecolor="none")
        if failed:
            axes.text(11_400, row, f"{', '.join(failed)} % wrong", fontsize=8, va="center", color="#9C4400")
    for seed, marker in zip(SEEDS, "os^"):
        axes.plot([], [], color="0.4", marker=marker, linestyle="none", label=f"seed {seed}")
    figure.legend(loc="outside upper right", ncols=len(SEEDS), frameon=False)
    axes.axvline(10_250, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(CURES)), [name for _, name in CURES.values()])
    axes.set_ylim(len(CURES) - 0.4, -0.6)
    axes.set_xlim(0, 14_700)
    axes.set_xticks(range(0, 10_001, 2000), [f"{n:,}" for n in range(0, 10_001, 2000)])
    axes.set_xlabel("updates until solved (filled)          |          not solved after 10,000 (hollow)")
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    save(figure, "cures")


# --- Written ----------------------------------------------------------------------------------------------------------


def guide(results):
    """The text of the guide: the template with what was measured."""
    text = (HERE / "gradients.template.md").read_text()
    for name, value in facts(results).items():
        text = text.replace(f"{{{{{name}}}}}", value)
    assert "{{" not in text, text[text.index("{{") :][:40]
    return text


def facts(results):
    """What stands for each name in the template."""
    descents, reach, windows = results["descents"], results["reach"], results["windows"]
    free = descents["none"]
    top = int(np.argmax(free["norms"]))
    landed = free["places"][top + 1]
    return {
        "by_hand.py": (HERE / "by_hand.py").read_text().strip(),
        "starts": table(
            ("net, before learning", "verdict", "half-life (steps)", "left after 100 steps"),
            [
                (name, found["verdict"], number(found["half-life"]), format_log10(found["log10 left"][-1]))
                for name, found in results["starts"].items()
            ],
        ),
        "cliff.norm": f"{free['norms'][top]:.0f}",
        "cliff.update": f"{top + 1}",
        "cliff.place": f"w = {landed[0]:.0f}, b = {landed[1]:.0f}",
        **{f"cliff.end.{clip}": f"{descents[clip]['losses'][-1]:.2g}" for clip in DESCENT},
        "clips": table(("`clip`", "wrong"), [(CLIPS[name][0], percent(wrong)) for name, wrong in results["clip by hand"].items()]),
        "reach": table(("steps back", "wrong"), [(steps, percent(wrong)) for steps, wrong in reach.items()]),
        "windows": table(
            ("steps in a window", "updates", "held-out perplexity"),
            [(steps, f"{CHARACTERS // (16 * int(steps)):,}", f"{found:.3f}") for steps, found in windows.items()],
        ),
        "window.command": window_command(25),
        "characters": f"{CHARACTERS:,}",
        "cures": table(
            ("cure", "options", *(f"seed {seed}" for seed in SEEDS), "half-life before → after"),
            [
                (
                    name,
                    f"`{options}`" if options else "",
                    *(outcome(results.get(f"{cure}, seed {seed}")) for seed in SEEDS),
                    lives(results, cure),
                )
                for cure, (options, name) in CURES.items()
            ],
        ),
        "task": f"fastbptt train {TASK}",
        **{f"command.{cure}": f"{command_of(cure)} --seed 0" for cure in CURES},
        **{f"outcome.{cure}": outcome(results[f"{cure}, seed 0"], words=True) for cure in CURES},
        **{f"seeds.{cure}": ", ".join(outcome(results.get(f"{cure}, seed {seed}"), words=True) for seed in SEEDS) for cure in CURES},
        **{f"norm.{cure}": number(results[f"{cure}, seed 0"]["largest norm"]) for cure in CURES},
        **{f"before.{cure}": number(results[f"{cure}, seed 0"]["half-life before"]) for cure in CURES},
        **{f"after.{cure}": number(results[f"{cure}, seed 0"]["half-life after"]) for cure in CURES},
        **figure7(),
    }


def figure7():
    """What was run for Figure 7, and how it ended."""
    runs = json.loads(FIGURE7.read_text())
    points = {}
    for run in runs:
        made = run["run"]
        cure = "clipping and Omega" if float(made["omega"]) else "clipping"
        points.setdefault((made["init"], cure), {}).setdefault(int(made["length"]), []).append(
            run["solved"] and run["updates"] <= FIGURE7_UPDATES
        )
    lengths = sorted({length for point in points.values() for length in point})
    rows = [
        (start, cure, *(solved(point[length]) if length in point else "not run" for length in lengths))
        for (start, cure), point in sorted(points.items())
    ]
    return {
        "figure7.clip50": solved(points["basic-tanh", "clipping"][50]),
        "figure7.omega50": solved(points["basic-tanh", "clipping and Omega"][50]),
        "figure7": table(("start", "cure", *(f"{length} steps" for length in lengths)), rows),
        "figure7.runs": f"{len(runs)}",
        "figure7.updates": f"{FIGURE7_UPDATES:,}",
        "figure7.option": str(FIGURE7_UPDATES),
        "figure7.lengths": " ".join(map(str, lengths)),
    }


def solved(runs):
    return f"{sum(runs)} of {len(runs)}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def outcome(found, words=False):
    if found is None:
        return "not run"
    if "failure" in found:
        return "NaN"
    if found["solved"]:
        return f"solved after {found['updates']:,}" if words else f"**{found['updates']:,}**"
    return f"{percent(found['wrong'])} wrong"


def lives(results, cure):
    found = results[f"{cure}, seed 0"]
    return f"{number(found['half-life before'])} → {number(found['half-life after'])}"


def percent(share):
    return f"{100 * share:.1f} %"


def number(value):
    return "∞" if value == float("inf") or value > 1e4 else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure all of it anew")
    parser.add_argument("--write", action="store_true", help="measure and draw nothing")
    options = parser.parse_args()
    results = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text())
    if not options.write:
        measure(results)
        draw(results)
    (HERE / "gradients.md").write_text(guide(results))


if __name__ == "__main__":
    main()
