"""What a training run shows while it goes on: a live line in a terminal, plain lines elsewhere."""

import os
import sys
import time

LIVE_SECONDS = 0.1  # between redrawings
LINE_SECONDS = 5.0  # between plain lines


def display_for(meter, quiet=False):
    """The display that suits standard output: a context manager whose ``update()`` is to be called after every update.

    Parameters
    ----------
    meter : Meter
    quiet : bool
        Show nothing.
    """
    if quiet:
        return Silence()
    return Live(meter) if is_live() else Lines(meter)


def is_live():
    """Whether standard output is a terminal that lines can be redrawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Silence:
    """Shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self):
        pass


class Lines(Silence):
    """Prints a line now and then."""

    def __init__(self, meter):
        self.meter = meter
        self.shown = time.monotonic()

    def update(self):
        if time.monotonic() - self.shown >= LINE_SECONDS or self.meter.training.done:
            self.shown = time.monotonic()
            readings = "  ".join(f"{name} {value}" for name, value in self.meter.readings().items())
            print(f"{self.meter.position()}  {readings}", flush=True)


class Live(Silence):
    """Redraws a progress bar, and the readings below it."""

    def __init__(self, meter):
        from rich.live import Live as Screen
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.meter = meter
        self.shown = 0.0
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(30), TextColumn("left"), TimeRemainingColumn())
        self.task = self.bar.add_task(meter.position(), total=1.0)
        self.screen = Screen(self.bar, auto_refresh=False)

    def __enter__(self):
        self.screen.start()
        return self

    def __exit__(self, *_):
        self._draw()
        self.screen.stop()

    def update(self):
        if time.monotonic() - self.shown >= LIVE_SECONDS:
            self._draw()

    def _draw(self):
        from rich.console import Group

        self.shown = time.monotonic()
        self.bar.update(self.task, description=self.meter.position(), completed=self.meter.training.progress)
        self.screen.update(Group(self.bar, self._table()), refresh=True)

    def _table(self):
        from rich.table import Table

        readings = self.meter.readings()
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in readings:
            table.add_column(name, justify="right", min_width=12)
        table.add_row(*readings.values())
        return table


class Meter:
    """Reads a training run's instruments.

    Parameters
    ----------
    training : fastbptt.train.loop.Training
    """

    def __init__(self, training):
        self.training = training
        self._seconds_before = training.seconds

    @property
    def speed(self):
        """Characters or sequences per second since the meter was made; saving, showing and exams are left out."""
        seconds = self.training.seconds - self._seconds_before
        return self.training.units / seconds if seconds else 0.0

    def position(self):
        """How far the run has come."""
        training = self.training
        if training.settings.minutes is None:
            return f"update {training.updates:,}/{training.settings.updates:,}"
        return f"update {training.updates:,}, {training.seconds / 60:.2f}/{training.settings.minutes:g} min"

    def readings(self):
        """Speed, loss and gradient, in words, by name; nothing before the first update."""
        training = self.training
        if not training.updates:
            return {}
        return {
            f"{training.lesson.unit}/s": f"{self.speed:,.0f}",
            "loss": f"{training.recent_loss:.3f}",
            **training.lesson.readings(training),
            **({"Omega": f"{training.omegas[-1]:.3g}"} if training.omegas else {}),
            "gradient norm": f"{training.norms[-1]:.3g}",
            "clipped": f"{training.clipped / training.updates:.1%}",
        }


def printable(text):
    """The text without characters that would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
