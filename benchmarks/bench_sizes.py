"""Sizes that are no multiple of anything: time per multiply-add, against the next multiple of 32 hidden units. A ratio of 1 is no cliff.

python benchmarks/bench_sizes.py
"""

import argparse
from itertools import product

import numpy as np
from grid import LAYERS, Case
from peers import build
from timing import alternate, medians

WIDTHS = (50, 96, 100, 200, 300)
BATCHES = (3, 7, 20)
LENGTHS = (37, 500)


def cases(cell, dtype, T, B, H):
    """The odd size, and the round one above it."""
    return {"odd": Case(cell, dtype, T, B, H, H), "round": Case(cell, dtype, T, B, -(-H // 32) * 32, -(-H // 32) * 32)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=LAYERS, default=["tanh", "gru", "lstm"])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    worst = 0.0
    for cell, dtype, T, B in product(options.cells, options.dtypes, LENGTHS, BATCHES):
        ratios = []
        for H in WIDTHS:
            pair = cases(cell, dtype, T, B, H)
            calls = {name: build("fastbptt", case).forward_backward for name, case in pair.items()}
            seconds = medians(alternate(calls, options.rounds, least=0.01, pause=0))
            ratios.append(seconds["odd"] / pair["odd"].flops(True) / (seconds["round"] / pair["round"].flops(True)))
        worst = max(worst, *ratios)
        print(f"{cell:5} {dtype} T={T:3} B={B:2}  " + "  ".join(f"H={H}: {r:.2f}" for H, r in zip(WIDTHS, ratios)), flush=True)
    print(f"\nworst {worst:.2f}, geometric mean of the last row {np.exp(np.mean(np.log(ratios))):.2f}")


if __name__ == "__main__":
    main()
