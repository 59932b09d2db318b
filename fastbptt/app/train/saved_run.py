"""A training run's checkpoint: everything that the rest of the run depends on."""

import math
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from ... import _checks
from ..._files import write_atomically
from .checkpoint import below, damage_named, load_checkpoint, save_checkpoint
from .loop import Training
from .objective import Evaluation
from .settings import Settings
from .task_objective import TaskObjective
from .text_objective import TextObjective

FORMAT = "fastbptt train 3"
OBJECTIVES = {objective.kind: objective for objective in (TextObjective, TaskObjective)}
STATES = ("training.h", "training.c")
EVALUATIONS = "training.exams"  # (evaluations, 4): what an `Evaluation` has


def save(training, path, write=write_atomically):
    """Write a run's checkpoint.

    Parameters
    ----------
    training : Training
    path : str or path
    write : callable
        What writes it, called as ``write(path, content)``.

    Raises
    ------
    FloatingPointError
        If a parameter is not finite. Nothing is written then.
    OSError
        If the file cannot be written. What was there before is kept.
    """
    arrays = _arrays(training)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"update {training.updates}: {name} is not finite")
    save_checkpoint(path, arrays, _metadata(training), write)


class SavedRun(NamedTuple):
    """What a checkpoint has: the kind of `Objective` and its description, the settings, and everything as it stands in the file."""

    path: object
    objective_type: type
    settings: Settings
    description: dict
    arrays: dict
    metadata: dict

    def model(self, inputs, outputs):
        """The `Model`. ValueError if its arrays are not such as these sizes ask for; nothing is allocated before that is known."""
        settings, arrays = self.settings, self.arrays
        shapes = arrays["rnn.weight_ih_l0"].shape, arrays["readout.weight"].shape
        dtypes = {array.dtype for name, array in arrays.items() if name.startswith(("rnn.", "readout."))}
        if shapes != ((len(arrays["rnn.weight_hh_l0"]), inputs), (outputs, settings.hidden)) or dtypes != {np.dtype(settings.dtype)}:
            raise ValueError(
                f"its weights are not those of {inputs} inputs, {settings.hidden} units and {outputs} outputs, {settings.dtype}"
            )
        model = settings.model(inputs, outputs, rng=0)
        model.load_state_dict(arrays)
        return model


def load_run(path):
    """A `SavedRun`, as `save` wrote it. OSError or ValueError if it is not to be had, damaged, or of another format."""
    arrays, metadata = load_checkpoint(path)
    with damage_named(path):
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        objective_type = OBJECTIVES[_checks.one_of("kind", metadata["kind"], tuple(OBJECTIVES))]
        settings = _saved_settings(objective_type, metadata["settings"], arrays)
        return SavedRun(path, objective_type, settings, dict(metadata["description"]), arrays, metadata)


def resume(path, source=None, encoding=None, **changes):
    """Go on with a run that was saved.

    Parameters
    ----------
    path : str or path
        What `save` wrote.
    source : str or None
        The text, if it is one that is learned; None means where it was read from before.
    encoding : str or None
        The text's; None means the same as before.
    **changes
        Settings that are asked for. ``updates`` and ``minutes`` may differ from the saved ones: they are the new length of the whole run,
        to which the learning-rate schedule is stretched. All others must be what they were.

    Returns
    -------
    Training

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If it is no checkpoint, or a damaged one; if the text is not the same; if a setting contradicts it.
    """
    saved = load_run(path)
    settings = _changed(saved.settings, changes, path, saved.objective_type.kind)
    objective = saved.objective_type.from_checkpoint(path, settings, saved.description, source, encoding)
    with damage_named(path):
        training = Training(objective)
        _check_arrays(saved.arrays, training)
        _restore(training, saved.arrays, saved.metadata)
    if settings.updates is not None and training.updates > settings.updates:
        raise ValueError(f"updates: {path} has made {training.updates} already, more than {settings.updates}")
    return training


def _histories(settings):
    """What the run keeps one number of for every update."""
    return ("losses", "norms", "omegas") if settings.omega else ("losses", "norms")


def _arrays(training):
    return {
        **training.model.state_dict(),
        **{f"optimiser.{name}": array for name, array in training.optimiser.state_dict().items()},
        **dict(zip(STATES, _state(training))),
        **{f"training.{name}": np.array(getattr(training, name), np.float64) for name in _histories(training.settings)},
        EVALUATIONS: np.array(training.evaluations, np.float64).reshape(-1, len(Evaluation._fields)),
        **training.objective.arrays(),
    }


def _state(training):
    """The carried state as (h,) or, of an LSTM, (h, c)."""
    state = training.reader.state
    if state is None:
        state = training.model.initial_state(training.settings.batch)
    return state if isinstance(state, tuple) else (state,)


def _metadata(training):
    settings, objective = training.settings, training.objective
    return {
        "format": FORMAT,
        "kind": objective.kind,
        "settings": asdict(settings) | {"clip": None if settings.clip == math.inf else settings.clip},
        "description": objective.description(),
        "rng": training.rng.bit_generator.state,
        "seconds": 0.0 if settings.minutes is None else training.seconds,
    } | ({"dropout_rng": training.model.rnn.rng.bit_generator.state} if settings.dropout else {})


def _check_arrays(arrays, training):
    """ValueError unless a checkpoint's arrays are such as the run's own."""
    expected = _arrays(training)
    if set(arrays) != set(expected):
        raise ValueError(f"missing {sorted(set(expected) - set(arrays))}, unexpected {sorted(set(arrays) - set(expected))}")
    updates = arrays["optimiser.steps"]
    shapes = {name: array.shape for name, array in expected.items()}
    shapes |= {f"training.{name}": (*updates.shape, int(updates)) for name in _histories(training.settings)}
    shapes[EVALUATIONS] = (*arrays[EVALUATIONS].shape[:1], len(Evaluation._fields))
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype != expected[name].dtype:
            raise ValueError(f"{name}: expected shape {shapes[name]}, {expected[name].dtype}, got {array.shape}, {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    for name, array in training.objective.arrays().items():
        if not np.array_equal(arrays[name], array):
            raise ValueError(f"its {name} is not that of its {training.objective.kind}")


def _restore(training, arrays, metadata):
    """Set a new run to where the saved one was."""
    training.model.load_state_dict(arrays)
    training.optimiser.load_state_dict(below("optimiser.", arrays))
    state = tuple(arrays[name] for name in STATES if name in arrays)
    training.reader.reset(state if len(state) > 1 else state[0])
    for name in _histories(training.settings):
        setattr(training, name, arrays[f"training.{name}"].tolist())
    training.evaluations = [_evaluation(*numbers, updates=training.updates) for numbers in arrays[EVALUATIONS].tolist()]
    training.clipped = sum(norm > training.settings.clip for norm in training.norms)
    _set_generator(training.rng, metadata["rng"])
    if training.settings.dropout:
        _set_generator(training.model.rnn.rng, metadata["dropout_rng"])
    training.seconds = _checks.number("seconds", metadata["seconds"], 0)


def _set_generator(generator, state):
    if any(number < 0 for number in state["state"].values()):  # which NumPy 1 takes, with a warning
        raise ValueError("negative numbers in a generator's state")
    generator.bit_generator.state = state


def _evaluation(update, loss, sequences, wrong, *, updates):
    evaluation = Evaluation(int(update), loss, int(sequences), int(wrong))
    if evaluation != (update, loss, sequences, wrong) or not (0 < update <= updates and 0 <= wrong <= sequences and sequences > 0):
        raise ValueError(f"{EVALUATIONS}: no evaluation is {(update, loss, sequences, wrong)}")
    return evaluation


def _saved_settings(objective_type, saved, arrays):
    """The settings, if the arrays are of their size: nothing is allocated on a damaged file's word."""
    settings = objective_type.settings_type(**saved | {"clip": math.inf if saved["clip"] is None else saved["clip"]})
    shapes = [arrays[f"rnn.weight_hh_l{k}"].shape for k in range(settings.layers)]
    if any(len(shape) != 2 or min(shape) < settings.hidden for shape in shapes) or (
        arrays["training.h"].shape != (settings.layers, settings.batch, settings.hidden)
    ):
        raise ValueError(f"its arrays are not those of {settings.hidden} units, {settings.layers} layers and {settings.batch} rows")
    return settings


def _changed(settings, changes, path, kind):
    for name, value in changes.items():
        option = name.replace("_", "-")
        if not hasattr(settings, name):
            raise ValueError(f"{option}: {path} was trained on a {kind}, which has no such setting")
        if name not in ("updates", "minutes") and value != getattr(settings, name):
            before = "no choice" if getattr(settings, name) is None else getattr(settings, name)
            raise ValueError(f"{option}: {path} was made with {before}, which {value} contradicts")
    length = {name: changes.get(name) for name in ("updates", "minutes")}
    return replace(settings, **length) if any(value is not None for value in length.values()) else settings
