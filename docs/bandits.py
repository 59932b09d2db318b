"""A GRU of two units for each of 165 agents, fitted to what it chose at a two-armed bandit: all of them at once."""

import numpy as np

from fastbptt import fleet

AGENTS, TRIALS, SESSIONS = 165, 150, 32


def simulate(rng):
    """Choices and rewards (agents, trials, sessions) of Q-learners, each with its own learning rate and its own randomness."""
    rate, slope = rng.uniform(0.2, 0.9, (AGENTS, 1)), rng.uniform(1.0, 8.0, (AGENTS, 1))
    q, good = np.full((2, AGENTS, SESSIONS), 0.5), rng.random((AGENTS, SESSIONS)) < 0.5
    choices, rewards, own = (np.empty((AGENTS, TRIALS, SESSIONS), np.float32) for _ in range(3))
    for t in range(TRIALS):
        p = 1 / (1 + np.exp(slope * (q[0] - q[1])))
        right = rng.random(p.shape) < p
        reward = rng.random(p.shape) < np.where(right == good, 0.8, 0.2)
        good ^= rng.random(p.shape) < 0.05  # now and then, the other arm becomes the better one
        for arm in (0, 1):
            q[arm] += np.where(right == arm, rate * (reward - q[arm]), 0)
        choices[:, t], rewards[:, t], own[:, t] = right, reward, -np.log(np.where(right, p, 1 - p))
    return choices, rewards, own  # the last: how little the agent itself knew of its next choice, in nats


def before(choices, rewards):
    """What an agent has seen before each choice: which arm it took, and whether that was rewarded."""
    x = np.zeros((*choices.shape, 3), np.float32)
    x[:, 1:, :, 0], x[:, 1:, :, 1], x[:, 1:, :, 2] = choices[:, :-1], 1 - choices[:, :-1], rewards[:, :-1]
    return x


def start(rng):
    shapes = {"w_ih": (6, 3), "w_hh": (6, 2), "b_ih": (6,), "b_hh": (6,), "w": (2, 1), "b": (1,)}
    return {name: rng.uniform(-0.7, 0.7, (AGENTS, *shape)).astype(np.float32) for name, shape in shapes.items()}


def losses(net, x, choices, gradients=True):
    """Of each agent, the mean of -log p(choice); and its gradients."""
    out, _, tape = fleet.gru_forward(x, None, net["w_ih"], net["w_hh"], net["b_ih"], net["b_hh"], tape=gradients)
    h = out.reshape(len(out), -1, 2)
    logit = (h @ net["w"] + net["b"][:, None])[..., 0]
    target = choices.reshape(len(out), -1)
    loss = np.logaddexp(0, np.where(target, -logit, logit)).mean(axis=1)
    if not gradients:
        return loss, None
    d_logit = (1 / (1 + np.exp(-logit)) - target)[..., None] / np.float32(target.shape[1])
    grads = fleet.gru_backward(tape, (d_logit @ net["w"].transpose(0, 2, 1)).reshape(out.shape), need_dx=False)
    named = {name: getattr(grads, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")}
    return loss, named | {"w": h.transpose(0, 2, 1) @ d_logit, "b": d_logit.sum(axis=1)}


def fit(net, x, choices, updates):
    """The losses before each update, (updates, agents)."""
    optimiser, history = fleet.Adam(net, lr=0.03), []
    for _ in range(updates):
        loss, grads = losses(net, x, choices)
        fleet.clip_grad_norm_(grads, max_norm=1.0, nonfinite="zero")
        optimiser.step(grads)
        history.append(loss)
    return np.array(history)
