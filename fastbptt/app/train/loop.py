"""Training a net: backpropagation through time, Omega if wanted, clipping by the norm, an optimiser; whatever the objective is."""

import copy
import math
import time

import numpy as np

from ...cells import CELLS
from ...clipping import clip_grad_norm_
from ...gradients.regularisation import omega
from ...truncation import TruncatedBPTT
from .settings import OPTIMISERS, SCHEDULES

WARM_UP = 100  # updates until the learning rate is reached: what RMSprop's mean square, with its alpha of 0.99, remembers
RECENT = 100  # updates that the displayed loss is the mean of


class Training:
    """A training run, one update at a time.

    The same objective and settings give the same bits, at any number of threads; so does a run that was saved and resumed
    (`fastbptt.app.train.saved_run`) at any update.

    Parameters
    ----------
    objective : Objective
        It has the settings.

    Attributes
    ----------
    settings : Settings
    model : Model
    losses, norms : list of float
        Of every update so far: the window's mean loss, and the gradient norm before clipping.
    omegas : list of float
        Of every update so far: Omega, if it has a weight; otherwise empty.
    evaluations : list of Evaluation
        Those held so far.
    clipped : int
        How many updates were clipped.
    seconds : float
        Time spent in updates; of a resumed run, since then, unless it is what the run is measured by.
    units : int
        Characters or sequences read since the run began or was resumed.
    observer : callable or None
        Called before each update's step as ``observer(tape, d_out, d_state)``, with the arguments of its backward pass, of several layers
        those of the last one; with ``failed=True`` if something is not finite. The time it takes does not count.

    Examples
    --------
    >>> from fastbptt.app.train.settings import TaskSettings
    >>> from fastbptt.app.train.task_objective import TaskObjective
    >>> training = Training(TaskObjective(TaskSettings(task="temporal-order", length=20, updates=3)))
    >>> while not training.done:
    ...     training.update()
    >>> len(training.losses), round(training.losses[0], 1)
    (3, 1.4)
    """

    def __init__(self, objective):
        self.objective, self.settings = objective, objective.settings
        settings = self.settings
        self.rng = np.random.default_rng(settings.seed)
        self.model = settings.model(objective.inputs, objective.outputs, self.rng)
        self.optimiser = OPTIMISERS[settings.optimiser](self.model.layers)
        self.warm_up = 0 if settings.optimiser == "sgd" else WARM_UP
        self.reader = TruncatedBPTT(self.model.rnn, objective.steps)
        self.losses, self.norms, self.omegas, self.evaluations = [], [], [], []
        self.clipped = self.units = 0
        self.seconds = 0.0
        self.observer = None

    @property
    def updates(self):
        """How many updates have been made."""
        return len(self.losses)

    @property
    def progress(self):
        """The share of the run that is done, from 0 to 1."""
        if self.settings.minutes is None:
            return min(1.0, self.updates / self.settings.updates)
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    @property
    def solved(self):
        """Whether the task was solved at the last evaluation, which ends the run."""
        return bool(self.evaluations) and self.objective.is_solved(self.evaluations[-1])

    @property
    def done(self):
        return self.progress >= 1 or self.solved

    @property
    def recent_loss(self):
        """The mean loss of the latest updates."""
        latest = self.losses[-RECENT:]
        return sum(latest) / len(latest)

    @property
    def learning_rate(self):
        """Of the next update."""
        warmth = 1.0 if self.updates >= self.warm_up else self.updates / self.warm_up
        return self.settings.lr * warmth * SCHEDULES[self.settings.schedule](self.progress)

    def update(self):
        """Read one window, learn from it, and evaluate the net if that is due.

        Raises
        ------
        FloatingPointError
            If the loss or the gradient is not finite. The parameters are then as they were.
        """
        start = time.perf_counter()
        inputs, targets, begins = self.objective.window(self.updates, self.rng)
        # each window is gone back through on its own, also after one that was shorter: a resumed run has no other to go back through
        self.reader.reset(None if begins else self.reader.state)
        out = self.reader.forward(inputs)
        self.model.zero_grad()
        loss, d_last = self.model.loss(self.objective.loss, out, targets)
        gradients = self._gradients(out, d_last)
        tape = self.reader.tape if self.observer else None
        try:
            norm = self._go_back(loss, gradients)
        except FloatingPointError:
            self._show(tape, gradients, failed=True)
            raise
        unseen = self._show(tape, gradients)
        self.optimiser.lr = self.learning_rate
        self.optimiser.step()
        self._record(loss, norm, self.objective.units(inputs), time.perf_counter() - start - unseen)
        if self.objective.evaluation_is_due(self.updates):
            self.evaluations.append(self.objective.evaluate(self.model, self.updates))

    def last_evaluation(self):
        """The evaluation of the net as it is now."""
        if self.solved and self.evaluations[-1].update == self.updates:
            return self.evaluations[-1]
        return self.objective.evaluate(self.model, self.updates, thoroughly=True)

    def sample(self, length, temperature):
        """Something by the net, to look at. The same run gives the same."""
        return self.objective.sample(self.model, length, temperature, copy.deepcopy(self.rng))

    def _gradients(self, out, d_last):
        """The gradient of the last layer's last S states, (S, B, H), as arguments of a backward pass: of all of them, or of the last one."""
        if len(d_last) == len(out):
            return d_last, None
        cell, d_h = CELLS[self.settings.cell], d_last[0]
        if self.settings.layers > 1:
            d_h = np.zeros((self.settings.layers, *d_h.shape), d_h.dtype)
            d_h[-1] = d_last[0]
        return None, cell.state([d_h, *(None for _ in cell.states[1:])])

    def _go_back(self, loss, gradients):
        """The gradients of all parameters, clipped; their norm before."""
        self._require_finite("loss", loss)
        if self.settings.omega:
            self._add_omega(gradients)
        self.reader.backward(*gradients, need_dx=False)
        norm = clip_grad_norm_(self.model.layers, self.settings.clip, nonfinite="skip")
        self._require_finite("gradient norm", norm)
        return norm

    def _show(self, tape, gradients, **how):
        """Let the observer see them; the seconds that it took."""
        if self.observer is None:
            return 0.0
        start = time.perf_counter()
        if self.settings.layers > 1:
            tape, gradients = tape[-1], self._of_last_layer(*gradients)
        self.observer(tape, *gradients, **how)
        return time.perf_counter() - start

    def _of_last_layer(self, d_out, d_state):
        if isinstance(d_state, tuple):
            return d_out, tuple(None if part is None else part[-1] for part in d_state)
        return d_out, None if d_state is None else d_state[-1]

    def _add_omega(self, gradients):
        """The penalty's immediate derivative, to that of W_hh."""
        value, d_w_hh = omega(self.reader.tape, *gradients)
        self._require_finite("Omega", value)
        d_w_hh *= self.settings.omega
        self.model.rnn.grads["weight_hh_l0"] += d_w_hh
        self.omegas.append(value)

    def _require_finite(self, what, value):
        if not math.isfinite(value):
            raise FloatingPointError(f"update {self.updates + 1}: the {what} is {value}")

    def _record(self, loss, norm, units, seconds):
        self.losses.append(loss)
        self.norms.append(norm)
        self.clipped += norm > self.settings.clip
        self.units += units
        self.seconds += seconds
