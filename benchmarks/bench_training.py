"""Characters per second of a training loop: a character-level net in fastbptt and in PyTorch, in the same precision.

One update is what `fastbptt train` does in its inner loop: forward through a window of tokens, linear readout, softmax cross-entropy,
backward, clipping by the global norm, RMSprop; the state is carried to the next window. The contestants start from the same weights,
see the same windows and must reach the same losses before they are timed. PyTorch runs in two ways, of which the faster counts:
its module on one-hot rows, and a loop that gathers the columns of W_ih.
"""

import argparse
from itertools import cycle, product

import numpy as np
import torch
from peers import THREADS
from timing import alternate, medians, processor
from torch.nn import functional as F

import fastbptt
from fastbptt.layers import LAYERS

CLIP, LEARNING_RATE = 1.0, 1e-3
CHECKED_UPDATES = 20
TOLERANCE = {"float64": 1e-4, "float32": 1e-3}  # PyTorch adds 1e-6 to the norm before it clips


def windows(T, B):
    """Pairs of inputs and targets (T, B), and the vocabulary: B streams through the English inside CPython."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    letters, tokens = np.unique(np.array(list(text)), return_inverse=True)
    length = (len(tokens) - 1) // B // T * T
    inputs, targets = (tokens[i : i + B * length].reshape(B, length).T for i in (0, 1))
    return [tuple(np.ascontiguousarray(a[t : t + T]) for a in (inputs, targets)) for t in range(0, length, T)], len(letters)


def train_fastbptt(rnn, readout, batches):
    optimiser = fastbptt.RMSprop([rnn, readout], lr=LEARNING_RATE)
    batches, state = cycle(batches), None

    def update():
        nonlocal state
        tokens, targets = next(batches)
        out, state = rnn(tokens, state)
        loss, d_logits = fastbptt.softmax_cross_entropy(readout(out), targets)
        rnn.zero_grad()
        readout.zero_grad()
        rnn.backward(readout.backward(d_logits))
        fastbptt.clip_grad_norm_([rnn, readout], CLIP)
        optimiser.step()
        return loss

    return update


def train_torch(rnn, readout, batches, one_hot):
    H, V = readout.params["weight"].shape[::-1]
    name, dtype = type(rnn).__name__, getattr(torch, rnn.dtype.name)
    their_rnn, their_readout = getattr(torch.nn, name)(V, H, dtype=dtype), torch.nn.Linear(H, V, dtype=dtype)
    for module, layer in ((their_rnn, rnn), (their_readout, readout)):
        module.load_state_dict({name: torch.tensor(value) for name, value in layer.params.items()})
    parameters = [*their_rnn.parameters(), *their_readout.parameters()]
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE)
    B = batches[0][0].shape[1]
    batches = cycle([tuple(map(torch.from_numpy, batch)) for batch in batches])
    state = tuple(torch.zeros(1, B, H, dtype=dtype) for _ in range(2 if name == "LSTM" else 1))

    def run_module(tokens, state):
        out, state = their_rnn(F.one_hot(tokens, V).to(dtype), state if name == "LSTM" else state[0])
        return out, state if name == "LSTM" else (state,)

    def run_gathered(tokens, state):
        w_hh = their_rnn.weight_hh_l0.T
        a = F.embedding(tokens, their_rnn.weight_ih_l0.T) + (their_rnn.bias_ih_l0 + their_rnn.bias_hh_l0)
        state, out = [part[0] for part in state], []
        for a_t in a.unbind():
            a_t = torch.addmm(a_t, state[0], w_hh)
            if name == "LSTM":
                i, f, g, o = a_t.chunk(4, dim=1)
                c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
                state = torch.sigmoid(o) * torch.tanh(c), c
            else:
                state = (torch.tanh(a_t),)
            out.append(state[0])
        return torch.stack(out), tuple(part[None] for part in state)

    run = run_module if one_hot else run_gathered

    def update():
        nonlocal state
        tokens, targets = next(batches)
        out, state = run(tokens, state)
        state = tuple(part.detach() for part in state)
        loss = F.cross_entropy(their_readout(out).flatten(0, 1), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        return loss.detach()

    return update


def require_same_losses(updates, tolerance):
    losses = {name: [float(update()) for _ in range(CHECKED_UPDATES)] for name, update in updates.items()}
    for name, values in losses.items():
        if not np.allclose(values, losses["fastbptt"], rtol=tolerance, atol=0):
            raise SystemExit(f"the losses of {name} are not fastbptt's: {values[-1]:.6f}, {losses['fastbptt'][-1]:.6f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=["rnn", "lstm"], default=["rnn", "lstm"])
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--steps", type=int, default=64, metavar="T", help="characters in a window (default: 64)")
    parser.add_argument("--batch", type=int, default=32, metavar="B", help="streams (default: 32)")
    parser.add_argument("--hidden", type=int, default=128, metavar="H", help="units (default: 128)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    T, B, H = options.steps, options.batch, options.hidden
    fastbptt.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    batches, V = windows(T, B)
    print(f"{processor()}, T={T} B={B} H={H}, vocabulary {V}, {THREADS} threads; milliseconds an update, medians of {options.rounds}")
    print("| net | fastbptt | characters/s | torch, one-hot | torch, gathered | fastbptt is |\n| :-- | --: | --: | --: | --: | --: |")
    for cell, dtype in product(options.cells, options.dtypes):
        rng = np.random.default_rng(0)
        layers = LAYERS[cell](V, H, dtype=dtype, rng=rng), fastbptt.Linear(H, V, dtype=dtype, rng=rng)
        updates = {"one-hot": train_torch(*layers, batches, one_hot=True), "gathered": train_torch(*layers, batches, one_hot=False)}
        updates["fastbptt"] = train_fastbptt(*layers, batches)
        require_same_losses(updates, TOLERANCE[dtype])
        seconds = medians(alternate(updates, options.rounds, least=0.1))
        ours, one_hot, gathered = (seconds[name] for name in ("fastbptt", "one-hot", "gathered"))
        times = f"{ours * 1e3:.2f} | {T * B / ours:,.0f} | {one_hot * 1e3:.2f} | {gathered * 1e3:.2f}"
        print(f"| {cell}, {dtype} | {times} | {min(one_hot, gathered) / ours:.2f}x as fast |", flush=True)


if __name__ == "__main__":
    main()
