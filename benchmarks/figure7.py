"""How often is the temporal-order task solved, by length, start and cure? Figure 7 of Pascanu, Mikolov and Bengio (ICML 2013), run again.

    python benchmarks/figure7.py                                                             # the whole figure
    python benchmarks/figure7.py --lengths 50 --starts basic-tanh --cures clip+omega         # one point of it

Fifty units, batches of 20, gradient descent at 0.01 without momentum; clipping of the norm to 1, Omega with the weight 4; five seeds.
A run is solved when less than 1 % of 10,000 fresh sequences are answered wrongly. Every finished run is added to a JSON file: stop the
script whenever you like, and start it again to go on. Runs that are in the file are not made again, whichever were asked for.

What differs from the paper: a run has at most --updates updates, not 5 million, so that some that count as failures here may have been
successes there; fewer lengths; evaluations every 500 updates, on 1000 sequences first and on 10,000 others if less than 1 % of those are wrong;
float64; each unit has two biases, as in PyTorch, which learn the same, so that the bias learns twice as fast; a run whose gradient is not
finite has failed, where the authors' program shrinks W_hh and goes on; "smart tanh" has 15 weights going out of each unit, as the program
does, and not coming in, as the paper says.
"""

import argparse
import json
import math
import signal
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import fastbptt
from fastbptt._figures import BLACK, BLUE, VERMILION, new_figure, save
from fastbptt._files import write_atomically
from fastbptt.app.train.loop import Training
from fastbptt.app.train.settings import TaskSettings
from fastbptt.app.train.task_objective import TaskObjective

LENGTHS = (20, 50, 100, 150, 200)
STARTS = {"sigmoid": "sigmoid", "basic-tanh": "basic tanh", "smart-tanh": "smart tanh"}
CURES = {"none": (math.inf, 0.0), "clip": (1.0, 0.0), "clip+omega": (1.0, 4.0)}
LABELS = {"none": "neither", "clip": "clipping", "clip+omega": "clipping and $\\Omega$"}
LOOKS = {
    "none": {"color": BLACK, "marker": "x", "linestyle": ":"},
    "clip": {"color": BLUE, "marker": "s", "linestyle": "--"},
    "clip+omega": {"color": VERMILION, "marker": "o", "linestyle": "-"},
}


def settings_of(length, start, cure, seed, updates):
    clip, omega = CURES[cure]
    return TaskSettings(task="temporal-order", length=length, init=start, clip=clip, omega=omega, seed=seed, updates=updates)


def description(settings):
    """What a run is, beside the most updates that it may have."""
    return {name: str(value) for name, value in asdict(settings).items() if name != "updates"}


def leave_interrupts_alone():
    """Ctrl-C is for the parent, which then ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train(settings):
    """One run; how it ended."""
    fastbptt.set_num_threads(1)
    training, failure = Training(TaskObjective(settings)), None
    try:
        while not training.done:
            training.update()
    except FloatingPointError as error:
        failure = str(error)
    last = training.evaluations[-1] if training.evaluations else None
    return {
        "run": description(settings),
        "most_updates": settings.updates,
        "updates": training.updates,
        "solved": training.solved,
        "wrong": last and last.error,
        "failure": failure,
    }


class Results:
    """The finished runs in a JSON file.

    Parameters
    ----------
    path : path
        It is read if it is there.
    """

    def __init__(self, path):
        self.path = path
        self.runs = json.loads(path.read_text()) if path.exists() else []

    def add(self, run):
        self.runs.append(run)
        write_atomically(self.path, json.dumps(self.runs, indent=1).encode())

    def find(self, settings):
        """How such a run ended, if one was made that tells: it was solved, failed, or had as many updates."""
        for run in self.runs:
            if run["run"] == description(settings):
                if run["solved"] or run["failure"]:
                    ended = run["updates"] <= settings.updates
                    return run if ended else run | {"solved": False, "failure": None}
                if run["most_updates"] >= settings.updates:
                    return run
        return None


def report(results, options):
    """A line for each point of the figure."""
    print(f"\n{'length':>6}  {'start':10}  {'cure':10}  solved   updates until then: least, median, most")
    for length in options.lengths:
        for start in options.starts:
            for cure in options.cures:
                runs = runs_of(results, options, length, start, cure)
                solved = sorted(run["updates"] for run in runs if run["solved"])
                spread = f"{solved[0]:,}, {median(solved):,.0f}, {solved[-1]:,}" if solved else "-"
                print(f"{length:6}  {start:10}  {cure:10}  {len(solved)} of {len(runs)}   {spread}")


def runs_of(results, options, length, start, cure):
    every = (results.find(settings_of(length, start, cure, seed, options.updates)) for seed in range(options.seeds))
    return [run for run in every if run is not None]


def draw(results, options):
    """Success rate, and updates until success, by length: a column for each start."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    figure = new_figure(1.6 + 3.1 * len(options.starts), 5.6)
    width = max(options.lengths) - min(options.lengths) or 1
    rates, times = figure.subplots(2, len(options.starts), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2))
    for i, start in enumerate(options.starts):
        for j, cure in enumerate(options.cures):
            points = [(length, runs_of(results, options, length, start, cure)) for length in options.lengths]
            points = [(length, runs) for length, runs in points if runs]
            share = [100 * sum(run["solved"] for run in runs) / len(runs) for _, runs in points]
            hollow = {"markerfacecolor": "none", "markersize": 9} if cure == "clip" else {"markersize": 6}
            rates[i].plot([length for length, _ in points], share, label=LABELS[cure], **LOOKS[cure], **hollow)
            solved = [(length, run["updates"]) for length, runs in points for run in runs if run["solved"]]
            aside = 0.03 * width * (j - (len(options.cures) - 1) / 2)
            look = {name: LOOKS[cure][name] for name in ("color", "marker")}
            times[i].plot(
                [x + aside for x, _ in solved], [y for _, y in solved], linestyle="none", alpha=0.7, **look, **hollow | {"markersize": 5}
            )
        rates[i].set_title(STARTS[start])
        rates[i].set_xlim(min(options.lengths) - 0.1 * width, max(options.lengths) + 0.1 * width)
        rates[i].set_ylim(-6, 106)
        times[i].set_yscale("log")
        times[i].set_ylim(300, options.updates * 1.5)
        times[i].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        times[i].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        times[i].yaxis.set_minor_locator(NullLocator())
        times[i].set_xlabel("length of the sequence (steps)")
        times[i].xaxis.set_major_locator(FixedLocator(options.lengths))
        times[i].xaxis.set_minor_locator(NullLocator())
        for axes in (rates[i], times[i]):
            axes.grid(color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
    rates[0].set_ylabel(f"solved, of {options.seeds} runs (%)")
    times[0].set_ylabel("updates until solved")
    figure.legend(*rates[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(options.cures), frameon=False)
    save(figure, options.picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="L", help=f"(default: {' '.join(map(str, LENGTHS))})")
    parser.add_argument(
        "--starts", nargs="+", choices=STARTS, default=list(STARTS), metavar="S", help=f"of {', '.join(STARTS)} (default: all)"
    )
    help = f"of {', '.join(CURES)} (default: the latter two)"
    parser.add_argument("--cures", nargs="+", choices=CURES, default=["clip", "clip+omega"], metavar="C", help=help)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs for each point (default: 5)")
    parser.add_argument("--updates", type=int, default=100_000, metavar="N", help="most updates of a run (default: 100000)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, each on one thread (default: 1)")
    parser.add_argument("--json", type=Path, default=Path("figure7.json"), metavar="FILE", help="the results (default: figure7.json)")
    parser.add_argument("--picture", type=Path, default=Path("figure7.png"), metavar="FILE", help="(default: figure7.png)")
    options = parser.parse_args()

    results = Results(options.json)
    points = [(length, start, cure) for length in sorted(options.lengths) for start in options.starts for cure in options.cures]
    try:
        every = [settings_of(*point, seed, options.updates) for point in points for seed in range(options.seeds)]
    except ValueError as error:
        parser.error(str(error))
    missing = [settings for settings in every if results.find(settings) is None]
    print(f"{len(every)} runs, {len(missing)} of them to be made", flush=True)
    with get_context("spawn").Pool(options.jobs, leave_interrupts_alone) as pool:
        try:
            for run in pool.imap_unordered(train, missing):
                results.add(run)
                made, end = run["run"], run["failure"] or ("solved" if run["solved"] else f"{run['wrong']:.1%} wrong")
                about = f"length {made['length']:>3}  {made['init']:10}  clip {made['clip']:>3}  Omega {made['omega']}  seed {made['seed']}"
                print(f"{about}: {end} after {run['updates']:,} updates", flush=True)
        except KeyboardInterrupt:
            raise SystemExit(f"stopped; what is finished is in {options.json}") from None
    report(results, options)
    draw(results, options)
    print(f"\n{options.picture}")


if __name__ == "__main__":
    main()
