"""Learning a task of `fastbptt.tasks`: every update has fresh sequences, every evaluation others, and the run ends once it is solved."""

import numpy as np

from ...tasks import TASKS
from .objective import Evaluation, Objective, Window
from .settings import TaskSettings

SEQUENCES, FIRST_SEQUENCES = 10_000, 1000  # of a whole evaluation, and of the short one that comes first
SOLVED = 0.01  # fewer are wrong
STATES_AT_ONCE = 1 << 22  # numbers evaluated in one call: what bounds the memory


class TaskObjective(Objective):
    """A task as an objective; see `Objective`.

    Parameters
    ----------
    settings : TaskSettings

    Attributes
    ----------
    task : fastbptt.tasks.Task
    """

    kind = "task"
    settings_type = TaskSettings
    unit = "sequences"

    def __init__(self, settings):
        self.settings = settings
        self.task = TASKS[settings.task](settings.length)
        self.inputs, self.outputs, self.steps = self.task.inputs, self.task.outputs, self.task.longest
        self.loss = self.task.loss

    def window(self, updates, rng):
        return Window(*self.task.batch(rng, self.settings.batch, self.settings.dtype), begins=True)

    def units(self, inputs):
        return inputs.shape[1]

    def evaluation_is_due(self, updates):
        return updates % self.settings.check_every == 0

    def evaluate(self, model, updates, *, thoroughly=False):
        """Fresh sequences; unless ``thoroughly``, a few, and many others only if the net does well on those."""
        rng = np.random.default_rng(np.random.SeedSequence(self.settings.seed, spawn_key=(updates,)))
        if not thoroughly:
            evaluation = self._evaluate(model, updates, rng, FIRST_SEQUENCES)
            if evaluation.error >= SOLVED:
                return evaluation
        return self._evaluate(model, updates, rng, SEQUENCES)

    def is_solved(self, evaluation):
        return evaluation.sequences == SEQUENCES and evaluation.error < SOLVED

    def introduction(self):
        task = self.task
        shown = f"{task.inputs} symbols" if task.tokens else f"{task.inputs} numbers"
        asked = "a number" if task.tolerance else f"one of {task.outputs} classes"
        loss, error, formula = task.baseline
        return "task", f"{self.title()}: {shown} in, {asked} out; by chance loss {loss:.4g}, {error:.1%} wrong ({formula})"

    def title(self):
        low, high = self.task.lengths[0], self.task.lengths[-1]
        return f"{self.task.name}, length {low}" + (f" to {high}" if high > low else "")

    def portions(self):
        return f"batches of {self.settings.batch} fresh sequences"

    def readings(self, training):
        return {"wrong": f"{training.evaluations[-1].error:.1%}" if training.evaluations else "-"}

    def verdict(self, evaluation):
        found = f"{evaluation.error:.2%} wrong of {evaluation.sequences:,} fresh sequences, loss {evaluation.loss:.4g}"
        if self.is_solved(evaluation):
            return f"{found}: solved after {evaluation.update:,} updates"
        return f"{found}: not solved, which takes less than {SOLVED:.0%}"

    def picture(self, evaluations, last):
        chance = self.task.baseline.loss
        return {
            "loss_label": "loss (squared error)" if self.task.tolerance else "loss (nats per answer)",
            "level": (chance, f"by chance: {chance:.4g}"),
            "errors": [(evaluation.update, evaluation.error) for evaluation in (*evaluations, last) if evaluation is not None],
            "solved": SOLVED,
        }

    @classmethod
    def from_checkpoint(cls, path, settings, description, source=None, encoding=None):
        if (source or encoding) is not None:
            raise ValueError(f"{source or 'encoding'}: {path} was trained on the task {settings.task}, not on a text")
        return cls(settings)

    def _evaluate(self, model, updates, rng, sequences):
        at_once = min(FIRST_SEQUENCES, max(1, STATES_AT_ONCE // (self.steps * self.settings.hidden)))
        loss, wrong = 0.0, 0
        with model.evaluating():
            for start in range(0, sequences, at_once):
                size = min(at_once, sequences - start)
                inputs, targets = self.task.batch(rng, size, self.settings.dtype)
                out, _ = model.rnn(inputs)
                outputs = model.readout(out[-len(targets) :])
                loss += self.task.loss(outputs, targets)[0] * size
                wrong += self.task.wrong(outputs, targets)
        return Evaluation(updates, loss / sequences, sequences, wrong)
