"""Training with other people's code, on our kernels and without them: ``python benchmarks/bench_torch_clients.py CartPole-v1``.

The names of environments measure RecurrentPPO (sb3-contrib) with 8 of them: sb3-contrib's loop over time, the same after
`fastbptt.torch.accelerate`, one call of PyTorch's LSTM for a minibatch, and ours. ``darts`` is an epoch of Darts' `RNNModel` on a sine in
float64. One thread, process CPU time, contestants in turn; a package that is not installed is an error. ``--rewards SEEDS`` trains instead,
from so many seeds, by sb3-contrib's loop and by our adapter, and compares the rewards of the last 100 episodes at the end.
"""

import argparse
import time
import warnings
from statistics import mean, median, stdev

import torch
from timing import median_ratio

import fastbptt.torch

EPOCHS, STEPS, ENVIRONMENTS = 10, 128, 8  # of a rollout; the defaults of sb3-contrib, but for the last


def seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def ways():
    """By name, what is done to a policy."""
    import fastbptt.contrib.sb3 as adapter

    def one_call(policy):
        policy._process_sequence = adapter.process_sequence

    return {
        "loop": lambda policy: None,
        "loop, accelerated": fastbptt.torch.accelerate,
        "one call, PyTorch": one_call,
        "one call, ours": adapter.accelerate,
    }


def learner(name, change, seed, epochs):
    import sb3_contrib
    from stable_baselines3.common.env_util import make_vec_env

    environments = make_vec_env(name, ENVIRONMENTS, seed=seed)
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", environments, n_steps=STEPS, n_epochs=epochs, seed=seed, device="cpu")
    change(model.policy)
    return model


def collect(model):
    model.collect_rollouts(model.env, _nothing(model), model.rollout_buffer, n_rollout_steps=STEPS)


def _nothing(model):
    from stable_baselines3.common.callbacks import ConvertCallback

    callback = ConvertCallback(None)
    callback.init_callback(model)
    return callback


def bench_ppo(name, rounds):
    """Frames a second, from the seconds of a rollout and of one of its `EPOCHS` epochs of updates."""
    models = {way: learner(name, change, seed=0, epochs=1) for way, change in ways().items()}
    for model in models.values():
        model._setup_learn(1, None)
    rollout, update = ({way: [] for way in models} for _ in range(2))
    for _ in range(rounds):
        for way, model in models.items():
            rollout[way].append(seconds(lambda m=model: collect(m)))
            update[way].append(seconds(model.train))
    rates = {way: [STEPS * ENVIRONMENTS / (a + EPOCHS * b) for a, b in zip(rollout[way], update[way])] for way in models}
    for way in models:
        seen = ", ".join(f"{median_ratio(rates[way], rates[other]):.2f} of {other}" for other in models if other != way)
        parts = f"rollout {median(rollout[way]):.2f} s, epoch {median(update[way]):.2f} s"
        print(f"{name}, {way}: {median(rates[way]):.0f} frames/s ({parts}); {seen}", flush=True)


def compare_rewards(name, seeds, frames):
    """Mean rewards of episodes at the end of training, seed by seed, and whether their means differ by more than they vary."""
    rewards = {way: [] for way in ("loop", "one call, ours")}
    for seed in range(seeds):
        for way, got in rewards.items():
            model = learner(name, ways()[way], seed, EPOCHS)
            model.learn(frames)
            got.append(mean(episode["r"] for episode in model.ep_info_buffer))
        print(f"{name}, seed {seed}, {frames} frames: " + ", ".join(f"{way} {got[-1]:.1f}" for way, got in rewards.items()), flush=True)
    (loop, ours), spread = map(mean, rewards.values()), sum(stdev(got) ** 2 / seeds for got in rewards.values()) ** 0.5
    apart = abs(ours - loop) / spread
    print(f"{name}: {loop:.1f} by the loop, {ours:.1f} by ours; the difference is {apart:.1f} of its standard errors ({spread:.1f})")


def bench_darts(rounds):
    """An epoch of training, seconds."""
    import numpy as np
    from darts import TimeSeries
    from darts.models import RNNModel

    series = TimeSeries.from_values(np.sin(np.arange(1000) / 8))
    quiet = {
        "enable_progress_bar": False,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "enable_model_summary": False,
    }
    for cell in ("GRU", "LSTM"):
        took = {}
        models = {}
        for way in ("PyTorch", "ours"):
            options = {"input_chunk_length": 40, "training_length": 50, "hidden_dim": 25, "batch_size": 32}
            models[way] = RNNModel(model=cell, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet, **options)
            models[way].fit(series, epochs=1)
            if way == "ours":
                print(f"Darts {cell}: {fastbptt.torch.accelerate(models[way].model)!r}")
            took[way] = []
        for _ in range(rounds):
            for way, model in models.items():
                took[way].append(seconds(lambda m=model: m.fit(series, epochs=2)))
        ratio = median_ratio(took["PyTorch"], took["ours"])
        print(
            f"Darts {cell}: an epoch {median(took['PyTorch']):.2f} s, ours {median(took['ours']):.2f} s, {ratio:.2f} times as fast",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="ENVIRONMENT|darts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rewards", type=int, metavar="SEEDS", help="train from so many seeds, at least 2, and compare what is learnt")
    parser.add_argument("--frames", type=int, default=30_000, help="of a training (default: 30,000)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for what in options.what:
        if what == "darts":
            bench_darts(options.rounds)
        elif options.rewards:
            compare_rewards(what, options.rewards, options.frames)
        else:
            bench_ppo(what, options.rounds)


if __name__ == "__main__":
    main()
