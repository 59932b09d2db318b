"""Three starts for the net of each of 165 agents, 495 nets in all, over the workers of a Dask cluster:

python docs/fit_dask.py --workers 2
python docs/fit_dask.py --scheduler tcp://192.168.0.1:8786
"""

import argparse

import bandits
import numpy as np
from dask.distributed import Client

import fastbptt

STARTS, PARTS = 3, 8
FITTED = bandits.SESSIONS // 2


def fit(part, choices, rewards, updates):
    """Each net's loss on sessions that it was not fitted to, and the nets.

    ``part`` is the nets as they start, with their agents' numbers.
    """
    agents, start = part
    fastbptt.set_num_threads(1)  # the other cores are the other workers'
    net = {name: array.copy() for name, array in start.items()}
    choices = choices[agents]
    x = bandits.before(choices, rewards[agents])
    fitted, held_out = ([np.ascontiguousarray(a[:, :, half]) for a in (x, choices)] for half in (slice(FITTED), slice(FITTED, None)))
    bandits.fit(net, *fitted, updates)
    return bandits.losses(net, *held_out, gradients=False)[0], net


def problem():
    """All nets as one part, and what their agents chose and were paid."""
    rng = np.random.default_rng(0)
    choices, rewards, _ = bandits.simulate(rng)
    starts = [bandits.start(rng) for _ in range(STARTS)]
    net = {name: np.concatenate([start[name] for start in starts]) for name in starts[0]}
    return (np.tile(np.arange(bandits.AGENTS), STARTS), net), choices, rewards


def split(part, count):
    agents, net = part
    for mine in np.array_split(np.arange(len(agents)), count):
        yield agents[mine], {name: array[mine] for name, array in net.items()}


def fit_all(client, everything, choices, rewards, updates):
    """What `fit` would return of everything."""
    shared = client.scatter({"choices": choices, "rewards": rewards}, broadcast=True)  # once to each worker, not once with each part
    futures = client.map(fit, list(split(everything, PARTS)), updates=updates, **shared)
    losses, nets = zip(*client.gather(futures))
    return np.concatenate(losses), {name: np.concatenate([net[name] for net in nets]) for name in nets[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes on this machine")
    parser.add_argument("--scheduler", help="the address of a cluster that is running")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--out", help="an .npz file for losses and nets")
    options = parser.parse_args()
    here = {"n_workers": options.workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with Client(options.scheduler) if options.scheduler else Client(**here) as client:
        client.upload_file(bandits.__file__)  # workers elsewhere have fastbptt, but not this
        losses, net = fit_all(client, *problem(), options.updates)
    best = losses.reshape(STARTS, -1).min(axis=0)
    print(f"one start: {losses.reshape(STARTS, -1)[0].mean():.4f} nats for a choice; the best of {STARTS}: {best.mean():.4f}")
    if options.out:
        np.savez(options.out, losses=losses, **net)


if __name__ == "__main__":
    main()
