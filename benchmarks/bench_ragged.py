"""Batches whose rows end early or begin anew: ``python benchmarks/bench_ragged.py``, and by pytest-benchmark, ``python -m pytest benchmarks/``.

The command has the contestants take turns, forward + backward, and prints how many times as long as the first each other one takes:
padded, the whole rectangle; trivial, all lengths given, and none of them shorter; uniform, lengths drawn from 1 to T; resets, at 3 % of all
(step, row) pairs. Where PyTorch is installed, ``torch`` is its module on a PackedSequence of the same lengths, and ``torch, resets`` a loop
that ends the module's call wherever a row of the batch begins anew.
"""

import argparse
from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import peers
import pytest
from grid import Case
from timing import alternate, medians, processor

import fastbptt
import fastbptt.reference

CELLS = ("tanh", "gru", "lstm")
SIZES = [("float32", 128, 128, 256), ("float64", 100, 16, 64), ("float32", 100, 32, 128), ("float32", 128, 16, 256)]
CASES = [Case(cell, dtype, T, B, H, H) for dtype, T, B, H in SIZES for cell in CELLS]
SHARE_OF_RESETS = 0.03


def ragged(case):
    """The options of each contestant of ours, by name."""
    rng = np.random.default_rng(0)
    return {
        "padded": {},
        "trivial": {"lengths": np.full(case.B, case.T)},
        "uniform": {"lengths": rng.integers(1, case.T + 1, case.B)},
        "resets": {"resets": rng.random((case.T, case.B)) < SHARE_OF_RESETS},
    }


def call(module, case, arrays, options):
    """Forward and backward of the functions, returning what `peers.Contestant.forward_backward` does."""
    run, run_back = (getattr(module, f"{case.family}_{way}") for way in ("forward", "backward"))
    options = options | ({} if case.traits.gated else {"nonlinearity": case.cell})
    out, _, tape = run(arrays.x, case.traits.state(arrays.state), *arrays.weights, **options)
    dx, d_state, *d_weights = run_back(tape, arrays.d_out)
    return [out, dx, *(d_state if isinstance(d_state, tuple) else (d_state,)), *(d for d in d_weights if d is not None)]


def torch_packed(case, arrays, lengths):
    """The module on a PackedSequence."""
    import torch

    rnn, module = torch.nn.utils.rnn, peers.torch_module(torch.nn, case, arrays)
    x, d_out = torch.from_numpy(arrays.x).requires_grad_(), torch.from_numpy(arrays.d_out)
    d_packed = rnn.pack_padded_sequence(d_out, torch.from_numpy(lengths), enforce_sorted=False).data

    def run():
        out, _ = module(rnn.pack_padded_sequence(x, torch.from_numpy(lengths), enforce_sorted=False))
        return torch.autograd.grad(out.data, [x, *module.parameters()], d_packed)

    return run


def torch_resets(case, arrays, resets):
    """The module from one step with a reset to the next, the state of the rows that begin anew set to zero."""
    import torch

    module = peers.torch_module(torch.nn, case, arrays)
    x, d_out = torch.from_numpy(arrays.x).requires_grad_(), torch.from_numpy(arrays.d_out)
    cuts = [0, *(t for t in range(1, case.T) if resets[t].any()), case.T]
    keep = torch.from_numpy((~resets).astype(case.dtype))[..., None]

    def run():
        state, outs = tuple(torch.from_numpy(s)[None] for s in arrays.state), []
        for start, stop in pairwise(cuts):
            state = tuple(part * keep[start] for part in state)
            out, state = module(x[start:stop], case.traits.state(state))
            state = state if isinstance(state, tuple) else (state,)
            outs.append(out)
        return torch.autograd.grad(torch.cat(outs), [x, *module.parameters()], d_out)

    return run


def contestants(case):
    arrays, options = case.arrays(), ragged(case)
    calls = {name: partial(call, fastbptt, case, arrays, given) for name, given in options.items()}
    if find_spec("torch"):
        calls["torch"] = torch_packed(case, arrays, options["uniform"]["lengths"])
        calls["torch, resets"] = torch_resets(case, arrays, options["resets"]["resets"])
    return calls


@pytest.mark.parametrize("name", ["padded", "uniform", "resets"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ragged(benchmark, case, name):
    benchmark.group = f"{case}, {name}"
    fastbptt.set_num_threads(peers.THREADS)
    arrays, options = case.arrays(), ragged(case)[name]
    got = benchmark(partial(call, fastbptt, case, arrays, options))
    expected = call(fastbptt.reference, case, arrays.astype(np.float64), options)
    assert peers.disagreement(got, expected) <= peers.TOLERANCE[case.dtype]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=peers.THREADS)
    options = parser.parse_args()
    fastbptt.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, medians of {options.rounds} rounds")
    for case in CASES:
        calls = contestants(case)
        if find_spec("torch"):
            import torch

            torch.set_num_threads(options.threads)
        times = medians(alternate(calls, options.rounds, pause=0))
        ratios = {name: time / times["padded"] for name, time in times.items() if not name.startswith("torch")}
        shown = [f"padded / uniform {1 / ratios['uniform']:.2f}", f"trivial {ratios['trivial']:.3f}", f"resets {ratios['resets']:.3f}"]
        if "torch" in times:
            shown.append(f"torch / uniform {times['torch'] / times['uniform']:.1f}")
            shown.append(f"torch / ours with resets {times['torch, resets'] / times['resets']:.1f}")
        print(f"{case!s:32} {1e3 * times['padded']:8.2f} ms   {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
