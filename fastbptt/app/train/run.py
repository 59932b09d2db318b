"""A run of `fastbptt train`: updates, with a display, checkpoints and a clean end; then what was learned."""

import os
import shlex
import time
from dataclasses import dataclass

from ... import _checks
from ..interruption import Interruption, status_of
from ..messages import PictureError, drawing, fail, one_line, printable_name, say, show
from .display import Meter, display_for
from .folder import Folder
from .monitor import Monitor
from .plot import plot_training
from .saved_run import save
from .settings import OPTIMISERS

CHECKPOINT, PICTURE, SAMPLE = "checkpoint.safetensors", "training.png", "sample.txt"


@dataclass(frozen=True)
class Output:
    """What a run leaves, and where.

    Attributes
    ----------
    folder : Folder
    picture : bool
        Whether to draw it.
    sample : int
        How many characters, or words, to generate.
    temperature : float
    save_every : float
        Seconds between checkpoints.
    quiet : bool
        Print the results only.
    live : bool
        Watch the gradients.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be.
    """

    folder: Folder
    picture: bool = True
    sample: int = 500
    temperature: float = 0.8
    save_every: float = 15.0
    quiet: bool = False
    live: bool = False

    def __post_init__(self):
        _checks.number("sample", _checks.size("sample", self.sample, 0), 0, _checks.LARGEST)
        _checks.number("temperature", self.temperature, 0, _checks.LARGEST)
        _checks.number("save-every", self.save_every, 0)

    @property
    def checkpoint(self):
        return self.folder.path / CHECKPOINT

    @property
    def image(self):
        return self.folder.path / PICTURE

    @property
    def sample_file(self):
        return self.folder.path / SAMPLE

    def files(self):
        """All that are to be written."""
        return [self.checkpoint, *([self.image] if self.picture else []), *([self.sample_file] if self.sample else [])]

    @property
    def resume_command(self):
        path = str(self.checkpoint)
        return printable_name(shlex.join(["fastbptt", "train", *([f"--resume={path}"] if path.startswith("-") else ["--resume", path])]))


def run(training, output):
    """Train to the end, or until interrupted.

    Parameters
    ----------
    training : fastbptt.app.train.loop.Training
    output : Output

    Returns
    -------
    int
        The exit status: 0; 128 + the signal's number if one ended the run; 1 if a part of the results could not be written.

    Raises
    ------
    FloatingPointError
        If the loss, the gradient or a parameter is not finite. The checkpoint is then that of an earlier update, if there is one.
    OSError
        If the checkpoint cannot be written.
    """
    meter, saver = Meter(training), Saver(training, output)
    monitor = Monitor(training) if output.live else None
    if not output.quiet:
        introduce(training, output)
    with Interruption() as interruption:
        try:
            with display_for(meter, output.quiet, monitor) as display:
                while not (training.done or interruption.signal):
                    training.update()
                    display.update()
                    saver.save_if_due()
                saver.save()
        except FloatingPointError as error:
            found = [] if monitor is None else [monitor.look.finding]
            advice = "a smaller --lr or --clip may help"
            raise FloatingPointError("; ".join([f"{error}", *found, saver.kept(), advice, *draw(training, output)])) from None
        try:
            interruption.heed()
            troubles = report(training, output, meter, saver, monitor)
            return fail("; ".join(troubles), 1) if troubles else 0
        except KeyboardInterrupt as stop:
            status = status_of(stop)
        troubles = draw(training, output)
        if lost := saver.lost():
            return fail("; ".join([f"interrupted at update {training.updates:,}", *lost, *troubles]), status)
        show(f"interrupted at update {training.updates:,}; everything is saved; to resume: {output.resume_command}")
        return fail("; ".join(troubles), status) if troubles else status


class Saver:
    """Saves a run's checkpoint now and then."""

    def __init__(self, training, output):
        self.training, self.output = training, output
        self.saved, self.file, self.last = None, None, time.monotonic()

    def save_if_due(self):
        if time.monotonic() - self.last >= self.output.save_every:
            self.save()

    def save(self):
        try:
            save(self.training, self.output.checkpoint, self.output.folder.write)
        except OSError as error:
            raise OSError(f"{one_line(error)}; {self.kept()}") from None
        self.saved, self.file, self.last = self.training.updates, self._file_there(), time.monotonic()

    def kept(self):
        """What there is to go back to, in words."""
        if self.saved is None:
            return "this run has saved no checkpoint yet"
        return "".join(self.lost()) or f"the checkpoint of update {self.saved} is kept in {self.output.checkpoint}"

    def lost(self):
        """In a list, that what was saved is no longer where it was put; as when somebody has moved it."""
        if self.file is not None and self.file == self._file_there():
            return []
        return [f"the checkpoint of update {self.saved} is no longer in {self.output.checkpoint}"]

    def _file_there(self):
        """What the file that has the checkpoint's name can be known by; None if there is none."""
        try:
            found = os.stat(self.output.checkpoint)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns


def introduce(training, output):
    """Print what is about to happen."""
    settings, objective = training.settings, training.objective
    length = f"{settings.updates:,} updates" if settings.minutes is None else f"{settings.minutes:g} minutes"
    optimiser = OPTIMISERS[settings.optimiser].__name__
    say(*objective.introduction())
    say("model", f"{settings.net}, {objective.inputs}-{settings.hidden}-{objective.outputs}: {training.model.parameters:,} parameters")
    say(
        "training",
        f"{length} on {objective.portions()}; start {settings.init}; {optimiser}, lr {settings.lr:.3g} {settings.schedule}, "
        f"clip {settings.clip:g}, {f'Omega {settings.omega:g}, ' if settings.omega else ''}seed {settings.seed}",
    )
    if training.updates:
        say("resumed", f"after update {training.updates:,}")


def report(training, output, meter, saver, monitor=None):
    """Judge the net, print what there is to see, and write it; what could not be written, in words."""
    evaluation = training.last_evaluation()
    say("held-out", training.objective.verdict(evaluation))
    if training.units:
        speed = f"{meter.speed:,.0f} {training.objective.unit}/s"
        say("speed", f"{speed}; {training.clipped / training.updates:.1%} of the updates clipped")
    if monitor is not None and monitor.look is not None:
        say("gradients", f"{monitor.look.verdict}: {monitor.look.finding}; to look took {monitor.share:.1%} of the time")
    unwritten = []
    if sample := training.sample(output.sample, output.temperature):
        unwritten = keep(sample, output)
        where = "" if unwritten else f"; also in {printable_name(output.sample_file)}"
        say("sample", f"{output.sample} {training.objective.unit} at temperature {output.temperature:g}{where}")
        show(f"\n{sample}\n")
    undrawn = draw(training, output, evaluation)
    if output.picture and not undrawn:
        say("picture", printable_name(output.image))
    lost = saver.lost()
    if not lost:
        say("checkpoint", printable_name(output.checkpoint))
    return lost + unwritten + undrawn


def keep(sample, output):
    """Write the sample; in a list, why it could not be."""
    try:
        output.folder.write(output.sample_file, sample.encode())
    except OSError as error:
        return [one_line(error)]
    return []


def draw(training, output, last_evaluation=None):
    """The picture, if it is wanted; in a list, why it could not be."""
    if not output.picture:
        return []
    settings = training.settings
    net = f"{settings.net}, {settings.hidden} units: {training.updates:,} updates"
    title = "; ".join(filter(None, (training.objective.title(), net)))
    curves = training.losses, training.norms, training.omegas
    how = {"clip": settings.clip, "title": title, "write": output.folder.write}
    try:
        with drawing(output.image):
            plot_training(output.image, *curves, **how, **training.objective.picture(training.evaluations, last_evaluation))
    except PictureError as error:
        return [str(error)]
    return []
