"""An LSTM that foretells noisy waves, trained by the ranks of MPI, each on its own rows of every batch:

mpiexec -n 2 python -m mpi4py docs/train_mpi.py
"""

import argparse

import numpy as np
from mpi4py import MPI

from fastbptt import LSTM, Adam, clip_grad_norm_


def batch(update):
    """13 noisy waves (T, 13, 1) of different lengths, and these; every rank draws the same ones."""
    rng = np.random.default_rng(update)
    steps = np.arange(60)[:, None]
    waves = np.sin(rng.uniform(0.2, 1.0, 13) * steps + rng.uniform(0, 2 * np.pi, 13)) + 0.1 * rng.standard_normal((60, 13))
    return waves[..., None], rng.integers(20, 60, 13)


def add_gradients(layer, waves, lengths, comm):
    """The mean squared error over the steps of all ranks, whose gradients are in `layer.grads` afterwards, on every rank the same."""
    out, _ = layer(waves[:-1], lengths=lengths - 1)
    inside = np.arange(len(out))[:, None, None] < lengths[:, None] - 1
    error = np.where(inside, out - waves[1:], 0)
    totals = np.array([np.square(error).sum(), inside.sum()])
    comm.Allreduce(MPI.IN_PLACE, totals)
    layer.backward(2 * error / totals[1], need_dx=False)
    comm.Allreduce(MPI.IN_PLACE, layer.flat_grads)
    return totals[0] / totals[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--out", help="an .npz file for losses and gradients, one for each rank: a * in its name becomes the rank")
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    layer = LSTM(1, 32, proj_size=1, rng=0)  # the state's projection is the forecast, so that one layer has all parameters
    optimiser = Adam(layer, lr=0.01)
    losses, gradients = [], []
    for update in range(options.updates):
        waves, lengths = batch(update)
        optimiser.zero_grad()
        losses.append(add_gradients(layer, waves[:, comm.rank :: comm.size], lengths[comm.rank :: comm.size], comm))
        if options.out:
            gradients.append(layer.flat_grads.copy())
        clip_grad_norm_(layer, max_norm=1.0)
        optimiser.step()
        if comm.rank == 0 and update % 20 == 19:
            print(f"update {update + 1}: {losses[-1]:.4f}", flush=True)
    if options.out:
        np.savez(options.out.replace("*", str(comm.rank)), losses=losses, gradients=gradients)


if __name__ == "__main__":
    main()
