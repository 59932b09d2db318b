"""What a net is trained to do, as seen by the training that is the same for all: `text_objective` and `task_objective` fill it in."""

from typing import NamedTuple

import numpy as np

from .settings import Settings


class Window(NamedTuple):
    """What one update learns from.

    Attributes
    ----------
    inputs : ndarray (T, B, I), or integer ndarray (T, B)
    targets : ndarray (S, B, ...)
        The right answers at the last S steps: S is 1, or it is T.
    begins : bool
        Whether sequences begin here; otherwise they go on from the window before.
    """

    inputs: np.ndarray
    targets: np.ndarray
    begins: bool


class Evaluation(NamedTuple):
    """How a net has done on what it was not trained on.

    Attributes
    ----------
    update : int
        After which it was made.
    loss : float
        The mean loss.
    sequences, wrong : int
        How many were asked, and how many of them were answered wrongly; 0 where there is no right or wrong.
    """

    update: int
    loss: float
    sequences: int = 0
    wrong: int = 0

    @property
    def error(self):
        """The share of wrong answers."""
        return self.wrong / self.sequences


class Objective:
    """Where the windows come from, what mistakes cost, and how the net is judged.

    Attributes
    ----------
    kind : str
        What it is, in a checkpoint.
    settings_type : type
        Its kind of `Settings`.
    settings : Settings
    inputs, outputs : int
        Of the net: I and N.
    steps : int
        The most that a window has.
    unit : str
        What is counted to tell how much was read.
    """

    kind: str
    settings_type: type
    settings: Settings
    inputs: int
    outputs: int
    steps: int
    unit: str

    def window(self, updates, rng):
        """The `Window` of the next update, after so many."""
        raise NotImplementedError

    def units(self, inputs):
        """How much is read with these inputs."""
        raise NotImplementedError

    def loss(self, outputs, targets):
        """The loss of a window's answers, and its gradient."""
        raise NotImplementedError

    def evaluation_is_due(self, updates):
        """Whether to evaluate after so many updates."""
        return False

    def evaluate(self, model, updates, *, thoroughly=False):
        """The `Evaluation` of a net; unless ``thoroughly``, it may be a short one. The same net after as many updates has the same one."""
        raise NotImplementedError

    def is_solved(self, evaluation):
        """Whether there is no more to learn."""
        return False

    def sample(self, model, length, temperature, rng):
        """Something by the net, to look at; "" if there is nothing."""
        return ""

    # --- In words and pictures

    def introduction(self):
        """What is learned, as (heading, text)."""
        raise NotImplementedError

    def title(self):
        """The same in few words, for a picture; "" if that cannot be."""
        return ""

    def portions(self):
        """What an update reads, in words."""
        raise NotImplementedError

    def readings(self, training):
        """What to show of the training beside its loss: texts by name."""
        raise NotImplementedError

    def verdict(self, evaluation):
        """The last evaluation in words."""
        raise NotImplementedError

    def picture(self, evaluations, last):
        """Arguments of `plot_training` that depend on the objective; ``last`` is the last evaluation, or None before it."""
        raise NotImplementedError

    # --- In a checkpoint

    def description(self):
        """What to know it by again, beside the settings: anything that JSON can hold, by name."""
        return {}

    def arrays(self):
        """The same, in arrays."""
        return {}

    @classmethod
    def from_checkpoint(cls, path, settings, description, source=None, encoding=None):
        """The objective of a checkpoint.

        Parameters
        ----------
        path : str or path
            Where the checkpoint is.
        settings : Settings
        description : dict
        source, encoding : str or None
            Where and how it is to be read, as arguments of `read_corpus`; None means as before.

        Raises
        ------
        OSError, ValueError
            If it cannot be read, or is not the same; if the checkpoint is damaged.
        """
        raise NotImplementedError
