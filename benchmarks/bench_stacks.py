"""Stacked and bidirectional layers beside PyTorch's, by pytest-benchmark: ``python -m pytest benchmarks/bench_stacks.py``.

Forward and backward of the whole stack, with fresh gradients at each call, as a training loop has them. A group for every case; the result
of what was timed is then held against the other's. ``python benchmarks/bench_stacks.py`` times them in turns and prints the ratios;
with ``--cores``, of all threads to one, for single rows and without PyTorch. A word after that is looked for in the cases' names.
"""

import sys
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from peers import THREADS, TOLERANCE, disagreement
from timing import alternate, medians

import fastbptt
from fastbptt.layers import LAYERS

T, I = 100, 32
CELLS, DTYPES = tuple(LAYERS), ("float32", "float64")
STACKS = {"2 layers": (2, False), "bidirectional": (1, True), "2 layers, bidirectional": (2, True)}
SIZES = ((1, 128), (16, 64), (32, 128))


class Case(NamedTuple):
    cell: str
    dtype: str
    stack: str
    B: int
    H: int

    def __str__(self):
        return f"{self.cell} {self.dtype}, {self.stack}, B={self.B}, H={self.H}"

    def arrays(self):
        """x and d_out."""
        rng, (_, both) = np.random.default_rng(0), STACKS[self.stack]
        return [rng.standard_normal((T, self.B, W)).astype(self.dtype) for W in (I, self.H * (2 if both else 1))]

    def layer(self):
        layers, both = STACKS[self.stack]
        return LAYERS[self.cell](I, self.H, layers, bidirectional=both, dtype=self.dtype, rng=0)


def build_fastbptt(case):
    """A call without arguments, which returns out, dx and the parameters' gradients."""
    fastbptt.set_num_threads(THREADS)
    layer, (x, d_out) = case.layer(), case.arrays()

    def call():
        layer.zero_grad()
        out, _ = layer(x)
        dx, _ = layer.backward(d_out)
        return [out, dx, *layer.grads.values()]

    return call


def build_torch(case):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(THREADS)
    layers, both = STACKS[case.stack]
    module = getattr(torch.nn, case.cell.upper())(I, case.H, layers, bidirectional=both, dtype=getattr(torch, case.dtype))
    module.load_state_dict({name: torch.from_numpy(p) for name, p in case.layer().state_dict().items()})
    x, d_out = map(torch.from_numpy, case.arrays())
    x.requires_grad_()
    inputs = [x, *module.parameters()]

    def call():
        out, _ = module(x)
        return [out.detach(), *torch.autograd.grad(out, inputs, d_out)]

    return call


CONTESTANTS = {"fastbptt": build_fastbptt, "torch": build_torch}


def cases():
    return [Case(cell, dtype, stack, *size) for cell, dtype, stack, size in product(CELLS, DTYPES, STACKS, SIZES)]


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_forward_backward(benchmark, case, contestant):
    benchmark.group = f"{case}, forward + backward"
    result = benchmark(CONTESTANTS[contestant](case))
    other = next(name for name in CONTESTANTS if name != contestant)
    assert disagreement(result, CONTESTANTS[other](case)()) <= TOLERANCE[case.dtype]


def on_all_cores(case):
    """How many times as fast all threads are as one."""
    call = build_fastbptt(case)

    def with_threads(n):
        fastbptt.set_num_threads(n)
        call()

    one, every = medians(alternate({n: partial(with_threads, n) for n in (1, THREADS)}, rounds=9)).values()
    print(f"{case}: {THREADS} threads are {one / every:.2f} times as fast as one ({1e3 * every:.2f} ms)", flush=True)


def main():
    cores = sys.argv[1:2] == ["--cores"]
    wanted = " ".join(sys.argv[2 if cores else 1 :])
    if cores:
        for case in cases():
            if case.B == 1 and wanted in str(case):
                on_all_cores(case)
        return
    for case in cases():
        if wanted in str(case):
            calls = {name: build(case) for name, build in CONTESTANTS.items()}
            assert disagreement(calls["fastbptt"](), calls["torch"]()) <= TOLERANCE[case.dtype]
            ours, theirs = medians(alternate(calls, rounds=5)).values()
            print(f"{case}: {theirs / ours:.2f} times as fast as PyTorch ({1e3 * ours:.2f} ms)", flush=True)


if __name__ == "__main__":
    main()
