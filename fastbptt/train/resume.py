"""A training run's checkpoint: everything that the rest of the run depends on."""

import math
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np

from .. import _checks
from .checkpoint import load_checkpoint, save_checkpoint
from .loop import Training
from .settings import Settings
from .text import DEFAULT_SOURCE, read_corpus

FORMAT = "fastbptt train 2"
STATES = ("training.h", "training.c")
HISTORIES = ("training.losses", "training.norms")


def save(training, path):
    """Write a run's checkpoint.

    Parameters
    ----------
    training : Training
    path : str or path

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
    save_checkpoint(path, arrays, _metadata(training))


def resume(path, source=None, **changes):
    """Go on with a run that was saved.

    Parameters
    ----------
    path : str or path
        What `save` wrote.
    source : str or None
        The text; None means where it was read from before.
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
    arrays, metadata = load_checkpoint(path)
    with _damage_named(path):
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        settings = _saved_settings(metadata["settings"], arrays)
        text = metadata["text"]
        text_source, digest, characters = str(text["source"]), str(text["sha256"]), int(text["characters"])
    settings = _changed(settings, changes, path)
    corpus = _corpus_again(path, source, text_source)
    if corpus.digest != digest:
        raise ValueError(
            f"{corpus.source}: not the text that {path} was trained on: {len(corpus.tokens)} characters, "
            f"{len(corpus.vocabulary)} different; expected {characters}, {arrays['vocabulary'].size} different"
        )
    with _damage_named(path):
        training = Training(settings, corpus)
        _check_arrays(arrays, _arrays(training))
        _restore(training, arrays, metadata)
    if settings.updates is not None and training.updates > settings.updates:
        raise ValueError(f"updates: {path} has made {training.updates} already, more than {settings.updates}")
    return training


def _arrays(training):
    return {
        **training.model.state_dict(),
        **{f"optimiser.{name}": array for name, array in training.optimiser.state_dict().items()},
        **dict(zip(STATES, _state(training))),
        "training.losses": np.array(training.losses, np.float64),
        "training.norms": np.array(training.norms, np.float64),
        "vocabulary": training.corpus.vocabulary,
    }


def _state(training):
    """The carried state as (h,) or, of an LSTM, (h, c)."""
    state = training.reader.state
    if state is None:
        state = training.model.initial_state(training.settings.batch)
    return state if isinstance(state, tuple) else (state,)


def _metadata(training):
    settings, corpus = training.settings, training.corpus
    return {
        "format": FORMAT,
        "settings": asdict(settings) | {"clip": None if settings.clip == math.inf else settings.clip},
        "text": {"source": corpus.source, "sha256": corpus.digest, "characters": len(corpus.tokens)},
        "rng": training.rng.bit_generator.state,
        "seconds": 0.0 if settings.minutes is None else training.seconds,
    }


def _check_arrays(arrays, expected):
    """ValueError unless a checkpoint's arrays are such as the run's own."""
    if set(arrays) != set(expected):
        raise ValueError(f"missing {sorted(set(expected) - set(arrays))}, unexpected {sorted(set(arrays) - set(expected))}")
    updates = arrays["optimiser.steps"]
    for name, array in arrays.items():
        shape = (*updates.shape, int(updates)) if name in HISTORIES else expected[name].shape
        if array.shape != shape or array.dtype != expected[name].dtype:
            raise ValueError(f"{name}: expected shape {shape}, {expected[name].dtype}, got {array.shape}, {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    if not np.array_equal(arrays["vocabulary"], expected["vocabulary"]):
        raise ValueError("its vocabulary is not that of its text")


def _restore(training, arrays, metadata):
    """Set a new run to where the saved one was."""
    training.model.load_state_dict(_below("rnn.", arrays) | _below("readout.", arrays))
    training.optimiser.load_state_dict({name.removeprefix("optimiser."): array for name, array in _below("optimiser.", arrays).items()})
    state = tuple(arrays[name] for name in STATES if name in arrays)
    training.reader.reset(state if len(state) > 1 else state[0])
    training.losses, training.norms = (arrays[name].tolist() for name in HISTORIES)
    training.clipped = sum(norm > training.settings.clip for norm in training.norms)
    training.rng.bit_generator.state = metadata["rng"]
    training.seconds = _checks.number("seconds", metadata["seconds"], 0)


def _below(prefix, arrays):
    return {name: array for name, array in arrays.items() if name.startswith(prefix)}


@contextmanager
def _damage_named(path):
    """Whatever is found wrong with a checkpoint's content is the checkpoint's fault."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: damaged checkpoint: {error} is missing") from None
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from None


def _saved_settings(saved, arrays):
    """The settings, if the arrays are of their size: nothing is allocated on a damaged file's word."""
    settings = Settings(**saved | {"clip": math.inf if saved["clip"] is None else saved["clip"]})
    rows, columns = arrays["rnn.weight_hh_l0"].shape
    if min(rows, columns) < settings.hidden or arrays["training.h"].shape != (1, settings.batch, settings.hidden):
        raise ValueError(f"its arrays are not those of {settings.hidden} units and {settings.batch} streams")
    return settings


def _changed(settings, changes, path):
    for name, value in changes.items():
        if name not in ("updates", "minutes") and value != getattr(settings, name):
            before = "no choice" if getattr(settings, name) is None else getattr(settings, name)
            raise ValueError(f"{name.replace('_', '-')}: {path} was made with {before}, which {value} contradicts")
    length = {name: changes.get(name) for name in ("updates", "minutes")}
    return replace(settings, **length) if any(value is not None for value in length.values()) else settings


def _corpus_again(path, source, before):
    try:
        return read_corpus(before if source is None else source)
    except OSError:
        if source is not None or before == DEFAULT_SOURCE:
            raise
        raise ValueError(f"{before}: {path} was trained on this text, which cannot be read; say where it is now") from None
