"""Is this checkout as fast as another one, and has it the same bits? Both built on this machine, for this Python.

    git worktree add ../before HEAD~1 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/against.py ../before --bits
    python benchmarks/against.py ../before --rounds 15 --json ratios.json

Both are loaded into one process and take turns. With ``--bits`` a fixed set of calls of all cells, in both precisions, on rectangles and
ragged batches, and at 1, 2 and 3 threads, is compared element by element, by their bits.
"""

import argparse
import importlib
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from grid import BATCHES, CELLS, DTYPES, LAYERS, PASSES, WIDTHS, Case, grid
from timing import alternate, geometric_mean, median_ratio

ROOT = Path(__file__).resolve().parents[1]
BITS_SHAPES = [(1, 1, 3, 8), (7, 3, 5, 13), (40, 9, 6, 33), (300, 4, 2, 16), (70, 65, 20, 40), (30, 2, 7, 300), (520, 1, 3, 24)]
OPTIONS = [{"nonlinearity": name} for name in ("relu", "sigmoid", "identity")] + [{"leak": 0.3}]  # of a vanilla RNN


def load(checkout):
    """The package of a checkout; neither sees the other's modules."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fastbptt"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try:
        package = importlib.import_module("fastbptt")
    finally:
        sys.path.remove(str(checkout))
    if Path(package.__file__).resolve().parents[1] != checkout.resolve():
        raise SystemExit(f"{checkout}: no fastbptt there; {package.__file__} was imported")
    return package


def calls(package, case, arrays, options):
    """The two passes of one layer, by the functions: a dict of callables without arguments."""
    forward, backward = (getattr(package, f"{case.family}_{way}") for way in ("forward", "backward"))
    state = case.traits.state(arrays.state)

    def both():
        _, _, tape = forward(arrays.x, state, *arrays.weights, **options)
        return backward(tape, arrays.d_out)

    return {"forward": lambda: forward(arrays.x, state, *arrays.weights, **options), "both": both}


def flat(result):
    """The arrays of a result, in their order."""
    if isinstance(result, np.ndarray):
        return [result]
    return [array for part in result for array in flat(part)] if isinstance(result, tuple) else []


def compare_bits(packages):
    """The number of results, after a line for each case in which any of them differs."""
    count, differing = 0, 0
    for dtype in DTYPES:
        for cell, options in [(cell, {}) for cell in LAYERS] + [("tanh", options) for options in OPTIONS]:
            options = {"nonlinearity": cell, **options} if LAYERS[cell] == "rnn" else options
            for T, B, I, H in BITS_SHAPES:
                case = Case(cell, dtype, T, B, I, H)
                arrays = case.arrays()
                tokens = arrays._replace(x=np.random.default_rng(1).integers(0, I, (T, B)))
                ragged = replace(case, lengths="uniform", resets=0.1).ragged()
                for inputs, more, threads in product((arrays, tokens), ({}, ragged), (1, 2, 3)):
                    results = []
                    for package in packages:
                        package.set_num_threads(threads)
                        results.append([a for call in calls(package, case, inputs, options | more).values() for a in flat(call())])
                    same = [a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True)]
                    count += len(same)
                    if not all(same):
                        differing += same.count(False)
                        worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*results))
                        what = f"{case} {options or ''} {', '.join(more)}, {threads} threads"
                        print(f"{what}: {same.count(False)} differ, by {worst:.1e} of the largest")
    print(f"{count} arrays compared, {differing} differ")
    return differing


def compare_speed(packages, threads, rounds, least, cases):
    """For every point, the other's seconds over ours: above 1, ours is faster."""
    ratios = {}
    for package in packages:
        package.set_num_threads(threads)
    for case in cases:
        options = ({"nonlinearity": case.cell} if case.family == "rnn" else {}) | case.ragged()
        built = [calls(package, case, case.arrays(), options) for package in packages]
        for which, title in PASSES.items():
            samples = alternate({"ours": built[0][which], "theirs": built[1][which]}, rounds, least, pause=0)
            ratio = median_ratio(samples["theirs"], samples["ours"])
            ratios.setdefault(f"{title}, {case.dtype}", {})[str(case)] = ratio
            print(f"{case}, {title}: {ratio:.3f}", flush=True)
    for title, group in ratios.items():
        print(f"{title}: geometric mean {geometric_mean(list(group.values())):.3f}, least {min(group.values()):.3f}")
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--bits", action="store_true", help="compare results, not times; status 1 if any differ")
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=CELLS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lengths", choices=["full", "uniform"], help="as of `compare.py`")
    parser.add_argument("--resets", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (default: 15)")
    parser.add_argument("--least", type=float, default=0.02, help="seconds that a sample lasts, at least (default: 0.02)")
    parser.add_argument("--json", type=Path, help="where the ratios are kept")
    options = parser.parse_args()
    packages = load(ROOT), load(options.other)
    if options.bits:
        sys.exit(compare_bits(packages) > 0)
    cases = grid(options.cells, options.dtypes, options.batches, options.widths, options.steps)
    cases = [replace(case, lengths=options.lengths, resets=options.resets) for case in cases]
    ratios = compare_speed(packages, options.threads, options.rounds, options.least, cases)
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
