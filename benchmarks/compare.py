"""Measure the speed of the layers against the best of their peers, at every point of the grid.

Contestants take turns, medians count, and the machine's best matrix-product rate is measured in the same run. Before a point is
timed, its contestants must agree on every gradient.

    python benchmarks/compare.py --json run.json
    python benchmarks/report.py run.json
"""

import argparse
import json
import time
from importlib import import_module

import numpy as np
import peers
from grid import BATCHES, CELLS, DTYPES, LAYERS, PASSES, STEPS, WIDTHS, grid
from timing import alternate, describe_machine, geometric_mean, medians, sample

CONTESTANTS = ("fastbptt", "torch", "jax", "onnxruntime")
PRODUCT_SIZES = (1024, 1536, 2048)
LARGE_BATCH, LARGE_WIDTH = 16, 128  # from here on the share of peak is summed up


class Peak:
    """The best rate of matrix products seen in this run, GFLOP/s by dtype and by whose product it is."""

    def __init__(self):
        self.rates = {}

    def measure(self, dtype):
        best = self.rates.setdefault(dtype, {"blas": 0.0, "fastbptt": 0.0})
        for size in PRODUCT_SIZES:
            for name, (call, flops) in self.products(dtype, size).items():
                call()
                best[name] = max(best[name], flops / min(sample(call, 1) for _ in range(2)) / 1e9)
                time.sleep(0.2)

    @staticmethod
    def products(dtype, size):
        """BLAS's product of two square matrices, and fastbptt's two in one step of a linear recurrence."""
        rng = np.random.default_rng(0)
        a, b = (rng.uniform(-1, 1, (size, size)).astype(dtype) / size for _ in range(2))
        c = np.empty_like(a)
        run = import_module("fastbptt").rnn_forward
        return {
            "blas": (lambda: np.dot(a, b, out=c), 2 * size**3),
            "fastbptt": (lambda: run(a[None], a, b, b, nonlinearity="identity"), 4 * size**3),
        }

    def __getitem__(self, dtype):
        return max(self.rates[dtype].values())


def measure(case, which, rounds, least):
    """One point: every contestant's seconds, the ratio to the best peer, the rate; None where fastbptt has no such layer."""
    built = {name: peers.build(name, case) for name in CONTESTANTS}
    built = {name: contestant for name, contestant in built.items() if contestant is not None}
    if "fastbptt" not in built:
        return None
    require_agreement(case, built)
    calls = {name: contestant.forward_backward if which == "both" else contestant.forward for name, contestant in built.items()}
    calls = {name: call for name, call in calls.items() if call is not None}
    samples = alternate(calls, rounds, least)
    seconds = medians(samples)
    point = {
        "cell": case.cell,
        "dtype": case.dtype,
        "T": case.T,
        "B": case.B,
        "I": case.I,
        "H": case.H,
        "case": str(case),
        "kind": case.kind,
        "pass": which,
        "seconds": seconds,
        "samples": samples,
        "gflops": case.flops(which == "both") / seconds["fastbptt"] / 1e9,
    }
    rivals = {name: s for name, s in seconds.items() if name != "fastbptt"}
    if rivals:
        point["best_peer"] = min(rivals, key=rivals.get)
        point["ratio"] = min(rivals.values()) / seconds["fastbptt"]
    return point


def require_agreement(case, built):
    expected = built["fastbptt"].forward_backward()
    for name, contestant in built.items():
        if contestant.forward_backward is None:
            error = peers.disagreement([contestant.forward()], expected[:1])
        else:
            error = peers.disagreement(contestant.forward_backward(), expected)
        if not error <= peers.TOLERANCE[case.dtype]:
            raise SystemExit(f"{case}: results of {name} and fastbptt differ by {error:.1e}")


HEADINGS = f"{'point':36} {'pass':19}" + "".join(f"{name:>12}" for name in CONTESTANTS) + f"{'best peer':>13} {'ratio':>7}{'GFLOP/s':>9}"


def row(case, point):
    seconds = "".join(f"{point['seconds'][name] * 1e3:12.3f}" if name in point["seconds"] else f"{'-':>12}" for name in CONTESTANTS)
    ratio = f"{point['best_peer']:>13} {point['ratio']:6.2f}x" if "ratio" in point else f"{'-':>13} {'-':>7}"
    return f"{case!s:36} {PASSES[point['pass']]:19}{seconds}{ratio}{point['gflops']:9.1f}"


def summary(points, peak):
    """For each pass and dtype: mean and least ratio, and shares of the machine's peak, lines of text."""
    for which, dtype in dict.fromkeys((p["pass"], p["dtype"]) for p in points):
        group = [p for p in points if (p["pass"], p["dtype"]) == (which, dtype)]
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in peak.rates[dtype].items())
        yield f"\n{PASSES[which]}, {dtype}"
        raced = [p for p in group if "ratio" in p]
        if raced:
            mean = geometric_mean([p["ratio"] for p in raced])
            yield f"  best peer / fastbptt: geometric mean {mean:.2f}x, " + least(raced, "ratio", "{:.2f}x")
        yield f"  best matrix product: {rates} GFLOP/s"
        large = [p for p in group if p["B"] >= LARGE_BATCH and p["H"] >= LARGE_WIDTH]
        if large:
            yield f"  share of it at B >= {LARGE_BATCH}, H >= {LARGE_WIDTH}: " + least(large, "share", "{:.0%}")
        yield "  all shares: " + ", ".join(f"{p['cell']} B={p['B']} H={p['H']} {p['share']:.0%}" for p in group)


def least(points, key, form):
    lowest = min(points, key=lambda p: p[key])
    return f"least {form.format(lowest[key])} ({lowest['cell']} B={lowest['B']} H={lowest['H']})"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=CELLS)
    parser.add_argument("--dtypes", nargs="+", choices=peers.TOLERANCE, default=DTYPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="B")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="H")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="T")
    parser.add_argument("--lengths", choices=("full", "uniform"), help="the steps of each row: said to be all, or drawn from 1 to T")
    parser.add_argument("--resets", type=float, default=0.0, metavar="SHARE", help="of the steps, before which a row begins anew")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--pass", dest="passes", nargs="+", choices=PASSES, default=["both"])
    parser.add_argument("--rounds", type=int, default=9, help="samples of each contestant (default: 9)")
    parser.add_argument("--least", type=float, default=0.02, help="seconds that a sample lasts, at least (default: 0.02)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements to this file")
    return parser.parse_args()


def main():
    options = parse_arguments()
    machine = describe_machine(peers.THREADS)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, kernels for {machine['isa']}, {machine['threads']} threads; {versions}")
    print(f"milliseconds, medians of {options.rounds} rounds\n")
    print(HEADINGS)
    points, peak = [], Peak()
    others = {name: getattr(options, name) for name in ("lengths", "resets", "layers", "bidirectional")}
    for case in grid(options.cells, options.dtypes, options.batches, options.widths, options.steps, **others):
        peak.measure(case.dtype)
        for which in options.passes:
            point = measure(case, which, options.rounds, options.least)
            if point is None:
                print(f"{case!s:36} fastbptt has no such layer")
                continue
            points.append(point)
            print(row(case, point), flush=True)
    for point in points:
        point["share"] = point["gflops"] / peak[point["dtype"]]
    print(*summary(points, peak), sep="\n")
    if options.json:
        run = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "rounds": options.rounds, "peak": peak.rates, "points": points}
        with open(options.json, "w") as file:
            json.dump(run, file, indent=1)


if __name__ == "__main__":
    main()
