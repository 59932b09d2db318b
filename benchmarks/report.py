"""Turn a run of compare.py, or several, into the table and chart of RESULTS.md, and the README's sentence and summary. They were made by

python benchmarks/compare.py --pass both --rounds 5 --json both.json
python benchmarks/compare.py --pass forward --rounds 3 --json forward.json
python benchmarks/report.py both.json forward.json
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from grid import PASSES
from timing import geometric_mean

HERE = Path(__file__).resolve().parent
NAMES = {"torch": "PyTorch", "jax": "JAX", "numpy": "NumPy", "onnxruntime": "ONNX Runtime"}

# Colour-blind-safe (Okabe and Ito), and told apart by shape as well.
MARKS = {
    "torch": {"color": "#0072B2", "marker": "o"},
    "jax": {"color": "#D55E00", "marker": "s"},
    "onnxruntime": {"color": "#009E73", "marker": "^"},
}


def merged(runs):
    """Runs of different points on one machine as one; rounds are those of the first run, with what is different in the others."""
    whole, rounds = runs[0] | {"points": [], "peak": {}}, {}
    for run in runs:
        if run["machine"] != whole["machine"]:
            raise SystemExit(f"expected runs on one machine, got {whole['machine']} and {run['machine']}")
        whole["points"] += run["points"]
        for dtype, rates in run["peak"].items():
            best = whole["peak"].setdefault(dtype, rates)
            whole["peak"][dtype] = {name: max(rate, best[name]) for name, rate in rates.items()}
        rounds |= {PASSES[point["pass"]]: run["rounds"] for point in run["points"]}
    usual = runs[0]["rounds"]
    others = ", ".join(f"{name} alone: {number}" for name, number in rounds.items() if number != usual)
    return whole | {"rounds": f"{usual} ({others})" if others else usual, "date": runs[-1]["date"]}


def groups(points):
    """Points that a peer took part in, by (pass, dtype, cell, kind of case), in the order of the run."""
    found = {}
    for point in (point for point in points if "ratio" in point):
        found.setdefault((point["pass"], point["dtype"], point["cell"], point.get("kind", "")), []).append(point)
    return found


# --- The tables -----------------------------------------------------------------------------------------------------------


def headline(run):
    """All of it in one sentence, losses included."""
    ratios, machine = [point["ratio"] for point in run["points"] if "ratio" in point], run["machine"]
    return (
        f"**{geometric_mean(ratios):.1f} times as fast as {best_of(run)}**: the geometric mean of {len(ratios)} points, from "
        f"{min(ratios):.2f} to {max(ratios):.1f} times; slower at {sum(map(is_lost, ratios))} of them. {machine['threads']} threads, "
        f"{machine['processor']}."
    )


def best_of(run):
    """Whom a ratio is taken to, at each point."""
    *others, last = (NAMES[name] for name in rivals(run))
    return f"the {'best' if len(others) > 1 else 'better'} of {', '.join(others)} and {last}" if others else last


def summary(run):
    """A row for every layer."""
    return table(
        ["times faster than the best peer", "points", "geometric mean", "least", "most"],
        [[title(*layer), str(len(group)), *map(times, spread(group))] for layer, group in groups(run["points"]).items()],
    )


def every_point(run):
    """Every point with what it lost or won, and how it was measured."""
    names = rivals(run)
    points = table(
        ["milliseconds", "B", "H", "fastbptt", *(NAMES[name] for name in names), "times faster than the best", "share of peak"],
        [
            [
                title(*layer),
                str(p["B"]),
                str(p["H"]),
                *(milliseconds(p["seconds"].get(name)) for name in ("fastbptt", *names)),
                times(p["ratio"]),
                f"{p['share']:.0%}",
            ]
            for layer, group in groups(run["points"]).items()
            for p in group
        ],
    )
    return f"{points}\n\n{footnote(run)}"


def rivals(run):
    return [name for name in MARKS if any(name in point["seconds"] for point in run["points"])]


def title(which, dtype, cell, kind):
    return ", ".join(part for part in (cell, kind, dtype, PASSES[which]) if part)


def spread(group):
    ratios = [point["ratio"] for point in group]
    return geometric_mean(ratios), min(ratios), max(ratios)


def table(head, rows):
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def is_lost(ratio):
    """By what is shown of it."""
    return round(ratio, 2) < 1


def times(ratio):
    """A ratio; a loss stands out."""
    return f"**{ratio:.2f}x (slower)**" if is_lost(ratio) else f"{ratio:.2f}x"


def milliseconds(seconds):
    return "-" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def footnote(run):
    machine = run["machine"]
    versions = ", ".join(f"{NAMES.get(name, name)} {version}" for name, version in machine["versions"].items())
    peak = "; ".join(f"{max(rates.values()):.0f} GFLOP/s in {dtype}" for dtype, rates in run["peak"].items())
    steps = ", ".join(str(T) for T in sorted({point["T"] for point in run["points"]}))
    return (
        f"T = {steps}, I = H; medians of {run['rounds']} rounds in which the contestants take turns. {machine['processor']}, kernels for "
        f"{machine['isa']}, {machine['threads']} threads each; {versions}; {run['date']}. Peak is the best matrix product of the same run, "
        f"BLAS's or ours: {peak}."
    )


def insert(page, name, text):
    """Put the text between the marks of that name."""
    begin, end = f"<!-- benchmark {name}: begin -->", f"<!-- benchmark {name}: end -->"
    old = page.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise SystemExit(f"{page}: expected the lines {begin!r} and {end!r}, once each")
    page.write_text(re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL))


# --- The chart ------------------------------------------------------------------------------------------------------------


def draw(run, path):
    """How many times faster than each peer: a panel for every layer, points by batch and width."""
    panels = groups(run["points"])
    columns = list(dict.fromkeys(layer[2:] for layer in panels))
    lines = list(dict.fromkeys(layer[:2] for layer in panels))
    figure, axes = plt.subplots(
        len(lines),
        len(columns),
        squeeze=False,
        sharey=True,
        layout="constrained",
        figsize=(1.6 + 4.4 * len(columns), 0.8 + 2.9 * len(lines)),
    )
    for layer, group in panels.items():
        axis = axes[lines.index(layer[:2]), columns.index(layer[2:])]
        draw_panel(axis, group, rivals(run))
        axis.set_title(title(*layer), fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("peer's time / fastbptt's")
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(rivals(run)), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_panel(axis, group, names):
    group = sorted(group, key=lambda p: (p["B"], p["H"]))
    places = range(len(group))
    axis.axhline(1, color="black", linewidth=1)
    for place, point in zip(places, group, strict=True):
        axis.annotate(
            f"{point['ratio']:.1f}",
            (place, point["ratio"]),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"color": "white", "pad": 0.5},
        )
    for name in names:
        ratios = [point["seconds"].get(name, float("nan")) / point["seconds"]["fastbptt"] for point in group]
        axis.plot(places, ratios, linestyle="none", markersize=6, label=f"vs {NAMES[name]}", **MARKS[name])
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axis.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.margins(y=0.15)
    axis.set_xticks(places, [f"H {p['H']}\nB {p['B']}" for p in group], fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="JSON written by compare.py")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--chart", type=Path, default=HERE / "speed.png")
    options = parser.parse_args()
    run = merged([json.loads(path.read_text()) for path in options.runs])
    insert(options.readme, "headline", headline(run))
    insert(options.readme, "summary", summary(run))
    insert(options.results, "table", every_point(run))
    draw(run, options.chart)
    print(f"{options.results}: table of {len(run['points'])} points; {options.readme}: summary; {options.chart}: chart")


if __name__ == "__main__":
    main()
