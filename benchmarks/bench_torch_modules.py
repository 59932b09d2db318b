"""`fastbptt.torch` beside PyTorch's modules and our own functions: ``python benchmarks/bench_torch_modules.py``, and by pytest-benchmark.

The command has the three take turns, forward + backward, and prints ratios: how many times as long PyTorch's module takes as ours, and
which part of our module's time the bare functions take. ``--overhead`` prints what a call costs beyond them, at a size where that is all.
"""

import argparse
import time

import numpy as np
import peers
import pytest
from grid import BATCHES, CELLS, DTYPES, STEPS, WIDTHS, Case
from timing import alternate, enough_repeats, median, median_ratio

torch = pytest.importorskip("torch")

import fastbptt  # noqa: E402
import fastbptt.torch  # noqa: E402

SHOWN = [Case(cell, dtype, 100, 16, 128, 128) for cell in CELLS for dtype in DTYPES]


def module_call(modules, case):
    """Forward and backward of a module, as a call without arguments that returns what `peers.Contestant.forward_backward` does."""
    return peers.build_torch(case, case.arrays(), modules).forward_backward


def forward_calls(case):
    """Forward alone, in inference mode; ours also where it would yield to PyTorch."""
    contestants = {
        name: peers.build_torch(case, case.arrays(), modules) for name, modules in (("ours", fastbptt.torch), ("PyTorch", torch.nn))
    }
    return {name: contestant.forward for name, contestant in contestants.items()}


def calls(case):
    return {
        "ours": module_call(fastbptt.torch, case),
        "PyTorch": module_call(torch.nn, case),
        "functions": peers.build_fastbptt(case, case.arrays()).forward_backward,
    }


@pytest.mark.parametrize("name", ["ours", "PyTorch", "functions"])
@pytest.mark.parametrize("case", SHOWN, ids=str)
def test_modules(benchmark, case, name):
    benchmark.group = f"{case}, PyTorch's modules"
    result = benchmark(calls(case)[name])
    assert peers.disagreement(result, peers.agreed(case)) <= peers.TOLERANCE[case.dtype]


def packed_calls(case):
    """Both modules on a PackedSequence whose lengths are drawn from 1 to T."""
    arrays, lengths = case.arrays(), np.random.default_rng(0).integers(1, case.T + 1, case.B)
    lengths[0] = case.T
    d_out = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(arrays.d_out), lengths, enforce_sorted=False).data

    def call(module):
        x = torch.from_numpy(arrays.x).requires_grad_()
        inputs = [x, *module.parameters()]

        def forward_backward():
            out, _ = module(torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
            return torch.autograd.grad(out.data, inputs, d_out)

        return forward_backward

    return {name: call(peers.torch_module(modules, case, arrays)) for name, modules in (("ours", fastbptt.torch), ("PyTorch", torch.nn))}


def bare_calls(case):
    """Forward and backward, by name, and nothing done with the results; all inputs and weights have gradients.

    An empty Function is one around our functions, on arrays that are prepared: what no module of them could do without.
    """
    arrays = case.arrays()

    def call(modules):
        module = peers.torch_module(modules, case, arrays)
        x, *states = (torch.from_numpy(a.copy()).requires_grad_() for a in (arrays.x, *(state[None] for state in arrays.state)))
        inputs, d_out, state = [x, *states, *module.parameters()], torch.from_numpy(arrays.d_out), case.traits.state(states)
        return lambda: torch.autograd.grad(module(x, state)[0], inputs, d_out)

    functions = peers.build_fastbptt(case, arrays).forward_backward
    return {"functions": functions, "ours": call(fastbptt.torch), "PyTorch": call(torch.nn), "empty": empty_function(case)}


def empty_function(case):
    arrays, name = case.arrays(), case.family
    forward, backward = getattr(fastbptt, f"{name}_forward"), getattr(fastbptt, f"{name}_backward")
    options = {} if case.traits.gated else {"nonlinearity": case.cell}
    inputs = [torch.from_numpy(a.copy()).requires_grad_() for a in (arrays.x, *arrays.state, *arrays.weights)]
    grads, d_out = [np.zeros_like(each.detach().numpy()) for each in inputs], torch.from_numpy(arrays.d_out)

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *_):
            ctx.set_materialize_grads(False)
            *_, ctx.tape = forward(arrays.x, case.traits.state(arrays.state), *arrays.weights, **options)
            return tuple(map(torch.from_numpy, (arrays.d_out, *arrays.state)))

        @staticmethod
        def backward(ctx, *_):
            backward(ctx.tape, arrays.d_out)
            return tuple(map(torch.from_numpy, grads))

    return lambda: torch.autograd.grad(Empty.apply(*inputs)[0], inputs, d_out)


def overhead(contestants, rounds):
    """By name, seconds of process time a call, in turn: short samples, whose differences waiting for a processor does not enter."""
    samples = {name: [] for name in contestants}
    for call in contestants.values():
        call()  # PyTorch's first takes a quarter of a second
    repeats = {name: enough_repeats(call, 0.02) for name, call in contestants.items()}
    for _ in range(3 * rounds):
        for name, call in contestants.items():
            call()
            start = time.process_time()
            for _ in range(repeats[name]):
                call()
            samples[name].append((time.process_time() - start) / repeats[name])
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--packed", action="store_true", help="PackedSequences, of lengths from 1 to the number of steps")
    parser.add_argument("--forward", action="store_true", help="forward alone")
    parser.add_argument(
        "--overhead",
        nargs="*",
        type=int,
        metavar="SIZE",
        help="microseconds of a call beyond the bare functions', one thread; unless T, B and H are given, of 1, 1 and 4",
    )
    options = parser.parse_args()
    cases = [(cell, dtype, B, H) for cell in options.cells for dtype in options.dtypes for B in options.batches for H in options.widths]
    if options.overhead is not None:
        T, B, H = options.overhead or (1, 1, 4)
        options.overhead = T, B, H, H
        peers.THREADS = 1
        for cell in options.cells:
            case = Case(cell, "float32", *options.overhead)
            samples = overhead(bare_calls(case), options.rounds)
            more = {name: 1e6 * median(a - b for a, b in zip(samples[name], samples["functions"])) for name in samples}
            took = ", ".join(f"{name} {1e6 * min(each):.0f} us" for name, each in samples.items())
            shown = f"beyond the functions, ours {more['ours']:.0f} us, an empty Function around them {more['empty']:.0f} us"
            print(f"{case}: {shown}; at the least, {took}", flush=True)
        return
    fastbptt.torch.RNN.yields = fastbptt.torch.GRU.yields = fastbptt.torch.LSTM.yields = False
    contestants = packed_calls if options.packed else forward_calls if options.forward else calls
    for cell, dtype, B, H in cases:
        case = Case(cell, dtype, options.steps, B, H, H)
        samples = alternate(contestants(case), options.rounds)
        ratios = {name: median_ratio(samples[name], samples["ours"]) for name in samples if name != "ours"}
        print(f"{case}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
