"""One step at a time: ``layer.stream()`` beside torch.nn's cells and plain NumPy, one thread each.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/bench_streaming.py

Batches of one; every contestant is given the same weights and carries its state along, and the states must agree. Without PyTorch its
column is left out.
"""

import argparse
from importlib.util import find_spec

import numpy as np
from timing import alternate, medians, processor

import fastbptt

SIZES = [(8, "float32"), (64, "float32"), (256, "float32"), (256, "float64"), (512, "float32"), (512, "float64")]
LAYERS = {"lstm": fastbptt.LSTM, "gru": fastbptt.GRU}
STEPS = 50  # a contestant takes these inputs in turn


def ours(layer, xs):
    stream, number = layer.stream(), iter(range(1 << 62))

    def step():
        return stream.step(xs[next(number) % STEPS])

    return step


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(layer, xs):
    """As one would write it: one product for all gates of x and h where the cell allows it."""
    H, number = layer.hidden_size, iter(range(1 << 62))
    w_ih, w_hh, b_ih, b_hh = (layer.params[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    both, b = np.ascontiguousarray(np.hstack([w_ih, w_hh]).T), b_ih + b_hh
    w_ih, w_hh = np.ascontiguousarray(w_ih.T), np.ascontiguousarray(w_hh.T)
    h, c = np.zeros((1, H), layer.dtype), np.zeros((1, H), layer.dtype)

    def lstm():
        nonlocal h, c
        i, f, g, o = np.split(np.hstack([xs[next(number) % STEPS], h]) @ both + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h

    def gru():
        nonlocal h
        a, m = xs[next(number) % STEPS] @ w_ih + b_ih, h @ w_hh + b_hh
        r, z = np.split(sigmoid(a[:, : 2 * H] + m[:, : 2 * H]), 2, axis=1)
        n = np.tanh(a[:, 2 * H :] + r * m[:, 2 * H :])
        h = (1 - z) * n + z * h
        return h

    return lstm if layer._cell == "lstm" else gru


def torchs(layer, xs):
    import torch

    torch.set_num_threads(1)
    H, number = layer.hidden_size, iter(range(1 << 62))
    cell = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[layer._cell](H, H, dtype=getattr(torch, layer.dtype.name))
    cell.load_state_dict({name.removesuffix("_l0"): torch.tensor(p) for name, p in layer.params.items()})
    xs, state = [torch.from_numpy(x) for x in xs], None

    def step():
        nonlocal state
        with torch.inference_mode():
            state = cell(xs[next(number) % STEPS], state)
        return (state[0] if isinstance(state, tuple) else state).numpy()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    fastbptt.set_num_threads(1)
    contestants = {"fastbptt": ours, "NumPy": plain} | ({"torch": torchs} if find_spec("torch") else {})
    print(f"{processor()}, one thread, B = 1, medians of {options.rounds} rounds")
    print(f"| microseconds a step | {' | '.join(contestants)} |\n| :-- |{' --: |' * len(contestants)}")
    for name, make in LAYERS.items():
        for H, dtype in SIZES:
            layer = make(H, H, dtype=dtype, rng=0)
            xs = np.random.default_rng(0).standard_normal((STEPS, 1, H)).astype(dtype)
            for other in [contestant(layer, xs) for who, contestant in contestants.items() if who != "fastbptt"]:
                own = ours(layer, xs)
                for _ in range(STEPS):
                    np.testing.assert_allclose(own(), other(), atol=1e-5 if dtype == "float32" else 1e-12)
            calls = {who: contestant(layer, xs) for who, contestant in contestants.items()}
            times = medians(alternate(calls, options.rounds, least=0.01, pause=0))
            print(f"| {name.upper()} H = {H}, {dtype} | {' | '.join(f'{1e6 * t:.2f}' for t in times.values())} |", flush=True)


if __name__ == "__main__":
    main()
