"""Watching a training run's gradients: how far back they reach, looked at now and then, and a warning when something goes wrong."""

import math
import time
from typing import NamedTuple

import numpy as np

from ...gradients.flow import gradient_flow

SHARE = 0.03  # of the training time that looking may take
PAUSE = 0.5  # seconds between looks at the least
LEFT = -2.0  # log10 of the share, 1 %, that defines how far a gradient reaches
RECENT = 100  # updates that are judged
SPIKE = 100.0  # times the usual norm
TEETH = 3  # leaps of the loss that make it jagged
LEAP = 0.1  # of the loss that the run began with: below it, a leap is none
NOISE = 6.0  # standard deviations of the loss from update to update: likewise
SWING = 0.5  # of the loss, from each update to the next, is jagged too
NOTHING = 1e-6  # of the norm that the run began with is no gradient any more


class Look(NamedTuple):
    """How far back the gradient of a window's last loss reaches.

    Attributes
    ----------
    update : int
        The one that was about to be made.
    log10_decay : ndarray (T+1,)
        The share of the gradient that is left by lag; see `fastbptt.GradientFlow`.
    half_life : float
    verdict : str
        "vanishing", "stable", "exploding" or "nonfinite".
    finding : str
        The verdict with its numbers; where inf or NaN came from.
    """

    update: int
    log10_decay: np.ndarray
    half_life: float
    verdict: str
    finding: str

    @property
    def steps(self):
        return len(self.log10_decay) - 1

    @property
    def reach(self):
        """The most steps back after which 1 % of the gradient is left."""
        lags = np.flatnonzero(self.log10_decay >= LEFT)
        return int(lags[-1]) if lags.size else 0

    def lags(self):
        """Lags worth showing: 1, 2, 5, 10, ... and the last; none if there is no gradient."""
        if np.isnan(self.log10_decay).any():
            return []
        round_ones = (m * 10**e for e in range(len(str(self.steps))) for m in (1, 2, 5))
        return [*(lag for lag in round_ones if lag < self.steps), self.steps]


class Monitor:
    """The observer of a `Training`: looks at the gradients of its windows, often enough to see and seldom enough not to matter.

    Parameters
    ----------
    training : fastbptt.app.train.loop.Training
        Its ``observer`` is set.

    Attributes
    ----------
    look : Look or None
        The latest.
    seconds : float
        Time spent looking, which the training does not count as its own.
    """

    def __init__(self, training):
        self.training, self.look, self.seconds = training, None, 0.0
        self._next = 0.0
        self._seconds_before = training.seconds
        training.observer = self

    def __call__(self, tape, d_out, d_state, *, failed=False):
        """Called before each update's step with what its backward pass has gone through; ``failed`` if there will be no step."""
        start = time.perf_counter()
        if failed or start >= self._next:
            self.look = take_look(self.training.updates + 1, tape, d_out, d_state, whole=failed)
            taken = time.perf_counter() - start
            self.seconds += taken
            self._next = time.perf_counter() + max(PAUSE, taken / SHARE)

    @property
    def share(self):
        """Of the time of training and looking, what looking took."""
        return self.seconds / (self.seconds + self.training.seconds - self._seconds_before or 1.0)

    def troubles(self):
        return troubles(self.training.losses, self.training.norms, self.look)


def take_look(update, tape, d_out, d_state=None, *, whole=False):
    """A `Look` at a window's gradients.

    Parameters
    ----------
    update : int
    tape, d_out, d_state : as for `fastbptt.gradient_flow`
    whole : bool
        Whether all losses count. Otherwise it is that of the last step alone, which has the longest way back: the others cost T / 2 times
        as much.
    """
    if d_out is not None and not whole:
        last = np.zeros_like(d_out)
        last[-1:] = d_out[-1:]
        d_out = last
    flow = gradient_flow(tape, d_out, d_state)
    if flow.reason is not None:
        return Look(update, np.full(len(tape) + 1, np.nan), math.nan, "nonfinite", flow.reason)
    return Look(update, flow.log10_decay, flow.half_life, flow.verdict, flow.finding)


class Trouble(NamedTuple):
    """Something that has gone wrong.

    Attributes
    ----------
    kind : {"not finite", "exploding", "vanishing", "jagged loss"}
    finding : str
        In words, with its numbers.
    cure : str
        What may help.
    """

    kind: str
    finding: str
    cure: str

    def __str__(self):
        return f"{self.kind}: {self.finding}; {self.cure}"


def troubles(losses, norms, look=None):
    """What is wrong with a training run, worst first.

    Parameters
    ----------
    losses, norms : sequence of float
        Of every update so far: the loss, and the gradient norm before clipping.
    look : Look or None
        The latest.

    Returns
    -------
    list of Trouble
        At most one of each kind: see `_not_finite`, `_exploding`, `_vanishing` and `_jagged` for what counts as each.

    Examples
    --------
    >>> for trouble in troubles([1.4, 1.3] * 100, [0.3] * 199 + [500.0]):
    ...     print(trouble)
    exploding: the gradient norm leapt to 500 at update 200, 1.7e+03 times the usual 0.3; lower --clip or --lr
    """
    start = [_median(values[:RECENT]) for values in (losses, norms)]
    recent = [np.asarray(values[-RECENT:], float) for values in (losses, norms)]
    found = _not_finite(len(losses), *recent, look)
    if found is None:
        first = len(norms) - len(recent[1]) + 1
        every = _exploding(recent[1], start[1], first, look), _vanishing(*recent, *start, look), _jagged(recent[0], start[0])
    else:
        every = (found,)
    return [trouble for trouble in every if trouble is not None]


def _not_finite(updates, losses, norms, look):
    """A loss, a norm, or anything that was looked at is inf or NaN."""
    cure = "lower --lr or --clip"
    if look is not None and look.verdict == "nonfinite":
        return Trouble("not finite", look.finding, cure)
    for what, values in (("loss", losses), ("gradient norm", norms)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            return Trouble("not finite", f"the {what} is {values[wrong[0]]} at update {updates - len(values) + 1 + wrong[0]}", cure)
    return None


def _exploding(norms, start, first, look):
    """The gradient grows tenfold on its way back; or its norm has leapt, far above the usual one and that of the beginning."""
    cure = "lower --clip or --lr"
    if look is not None and look.verdict == "exploding":
        return Trouble("exploding", f"{look.finding}", cure)
    if norms.size > 1:
        usual, at = _median(norms), int(norms.argmax())
        if norms[at] > max(SPIKE * usual, SPIKE / 10 * start):
            times = f", {norms[at] / usual:.2g} times the usual {usual:.2g}" if usual else ""
            return Trouble("exploding", f"the gradient norm leapt to {norms[at]:.3g} at update {first + at}{times}", cure)
    return None


def _vanishing(losses, norms, loss_at_start, norm_at_start, look):
    """Less than 1 % of the gradient is left before half of the window; or there is none although the loss is as it was."""
    cure = "--omega, --init orthogonal or --cell lstm may help"
    if look is not None and look.verdict == "vanishing" and look.reach < look.steps / 2:
        finding = f"1 % of the gradient is left after {look.reach} of {look.steps} steps back"
        if 0 < look.half_life < math.inf:
            finding += f" (half-life {look.half_life:.2g})"
        return Trouble("vanishing", finding, cure)
    if norms.size >= RECENT and _median(norms) <= NOTHING * norm_at_start and _median(losses) > loss_at_start / 2:
        return Trouble("vanishing", f"the gradient norm is {_median(norms):.2g}, and the loss still {_median(losses):.3g}", cure)
    return None


def _jagged(losses, start):
    """The loss leaps up again and again, by what chance in drawing batches does not do; or all of it is ups and downs."""
    if losses.size < RECENT:
        return None
    cure = "lower --lr or --clip"
    steps = np.diff(losses)
    swing = np.abs(steps).mean()
    if swing > max(SWING * losses.mean(), LEAP * start):
        return Trouble("jagged loss", f"it changes by {swing / losses.mean():.0%} from each update to the next", cure)
    leap = max(NOISE * 1.4826 * _median(np.abs(steps)), LEAP * start)
    teeth = int((steps > leap).sum())
    if teeth >= TEETH:
        return Trouble("jagged loss", f"it leapt up {teeth} times in {losses.size} updates, by {steps.max():.2g} at most", cure)
    return None


def _median(values):
    return float(np.median(values)) if len(values) else 0.0
