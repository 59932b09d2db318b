"""Make fleet.md and its picture, from fleet.template.md and what comes of fitting the agents of bandits.py.

    python docs/make_fleet.py             # some seconds

Seeded, so that another run gives the same numbers, but for the last bits on another processor.
"""

import json
from pathlib import Path

import bandits
import numpy as np

from fastbptt._figures import BLUE, GREY, VERMILION, new_figure, quiet_axes

HERE = Path(__file__).parent
UPDATES, FITTED = 300, bandits.SESSIONS // 2


def learn(updates):
    """Losses by update and agent; then of each agent, on sessions that it was not fitted to, the loss of its net and its own."""
    rng = np.random.default_rng(0)
    choices, rewards, own = bandits.simulate(rng)
    x, net = bandits.before(choices, rewards), bandits.start(rng)
    history = bandits.fit(net, np.ascontiguousarray(x[:, :, :FITTED]), np.ascontiguousarray(choices[:, :, :FITTED]), updates)
    x, choices = np.ascontiguousarray(x[:, :, FITTED:]), np.ascontiguousarray(choices[:, :, FITTED:])
    return history, bandits.losses(net, x, choices, gradients=False)[0], own[:, :, FITTED:].mean(axis=(1, 2))


def draw(history, held_out, own):
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2)
    left.plot(history, color=BLUE, linewidth=0.5, alpha=0.35)
    left.plot(history.mean(axis=1), color=VERMILION, linewidth=2, label="mean of all nets")
    left.set_xlabel("update")
    left.set_ylabel("loss, nats for a choice")
    left.legend(frameon=False)
    right.plot([0.2, 0.7], [0.2, 0.7], color=GREY, linewidth=1)
    right.plot(own, held_out, "o", color=BLUE, markersize=3, alpha=0.6)
    right.set_xlabel("what the agent itself leaves open, nats")
    right.set_ylabel("loss of its net on other sessions, nats")
    for axes in (left, right):
        quiet_axes(axes)
    figure.savefig(HERE / "fleet.png", dpi=100)


def page(found):
    """The text, with what was found."""
    text = (HERE / "fleet.template.md").read_text().replace("{{bandits.py}}", (HERE / "bandits.py").read_text().strip())
    for name, value in {"start": found["first"][0], "last": found["last"], "held out": found["held out"], "own": found["own"]}.items():
        text = text.replace(f"{{{{{name}}}}}", f"{value:.3f}")
    return text


def main():
    history, held_out, own = learn(UPDATES)
    draw(history, held_out, own)
    found = {"first": history[:20].mean(axis=1).tolist(), "last": float(history[-1].mean())}
    found |= {"held out": float(held_out.mean()), "own": float(own.mean())}
    (HERE / "fleet.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "fleet.md").write_text(page(found))


if __name__ == "__main__":
    main()
