"""A GRU that foretells noisy waves, trained by several processes, each on its own rows of every batch:

torchrun --standalone --nproc-per-node 2 docs/train_ddp.py
"""

import argparse
import gc
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_sequence

import fastbptt.torch


class Forecaster(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(1, 32)
        self.readout = torch.nn.Linear(32, 1)

    def forward(self, packed):
        out, _ = self.gru(packed)
        return self.readout(out.data)


def new_model():
    torch.manual_seed(0)
    model = Forecaster().double()
    fastbptt.torch.accelerate(model)
    return model


def batch(update):
    """13 noisy waves of different lengths, each (steps, 1); every process draws the same ones."""
    rng = np.random.default_rng(update)
    for steps in rng.integers(20, 60, 13):
        wave = np.sin(rng.uniform(0.2, 1.0) * np.arange(steps) + rng.uniform(0, 2 * np.pi))
        yield torch.from_numpy(wave + 0.1 * rng.standard_normal(steps))[:, None]


def squared_error(model, waves):
    """The sum over all steps, and how many there are."""
    packed = pack_sequence([wave[:-1] for wave in waves], enforce_sorted=False)
    target = pack_sequence([wave[1:] for wave in waves], enforce_sorted=False).data
    return (model(packed) - target).square().sum(), len(target)


def train(model, updates):
    """The loss of each update, and its gradients before they are clipped, of the whole batch both."""
    rank, world = dist.get_rank(), dist.get_world_size()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for update in range(updates):
        error, steps = squared_error(parallel, list(batch(update))[rank::world])
        totals = torch.tensor([error.item(), steps], dtype=torch.float64)
        dist.all_reduce(totals)
        optimiser.zero_grad()
        (error * world / totals[1]).backward()  # DDP divides by `world`: what comes out is the mean over the steps of all processes
        yield (totals[0] / totals[1]).item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimiser.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for another process before it is taken for lost")
    parser.add_argument("--out", help="an .npz file for losses and gradients")
    options = parser.parse_args()
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    losses, gradients = [], []
    for loss, gradient in train(new_model(), options.updates):
        losses.append(loss)
        if options.out:
            gradients.append(gradient)
        if dist.get_rank() == 0 and len(losses) % 20 == 0:
            print(f"update {len(losses)}: {loss:.4f}", flush=True)
    if options.out and dist.get_rank() == 0:
        np.savez(options.out, losses=losses, gradients=torch.stack(gradients))
    gc.collect()  # DDP is part of a cycle; where it is left for the end of Python, PyTorch (2.13, 2.14) aborts now and then
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
