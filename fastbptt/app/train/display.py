"""What a training run shows while it goes on: a live line in a terminal, plain lines elsewhere; how its gradients fare, if watched."""

import math
import os
import sys
import time

import numpy as np

from ..._notation import format_log10
from ..messages import show
from .monitor import LEFT, RECENT

LIVE_SECONDS, WATCH_SECONDS = 0.1, 0.25  # between redrawings; of more lines, which take longer
LINE_SECONDS = 5.0  # between plain lines
BAR, CURVE = 48, 50  # columns of a bar, and of a curve
FAINTEST = -8.0  # decades: where bars begin
BLOCKS, LEVELS = " ▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█"
ASCII_BLOCKS, ASCII_LEVELS = " #", "_.-=*#"  # where the terminal has no others


def display_for(meter, quiet=False, monitor=None):
    """The display that suits standard output: a context manager whose ``update()`` is to be called after every update.

    Parameters
    ----------
    meter : Meter
    quiet : bool
        Show nothing.
    monitor : fastbptt.app.train.monitor.Monitor or None
        Show how the gradients fare, too.
    """
    if quiet:
        return Silence()
    return Live(meter, monitor) if is_live() else Lines(meter, monitor)


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

    def __init__(self, meter, monitor=None):
        self.meter, self.monitor = meter, monitor
        self.shown = time.monotonic()
        self.known = set()

    def update(self):
        if time.monotonic() - self.shown >= LINE_SECONDS or self.meter.training.done:
            self.shown = time.monotonic()
            readings = "  ".join(f"{name} {value}" for name, value in self.meter.readings().items())
            show(f"{self.meter.position()}  {readings}")
            if self.monitor is not None:
                self._print_gradients()

    def _print_gradients(self):
        """How much is left by lag, and what has gone wrong since the last line."""
        look = self.monitor.look
        if lags := look.lags():
            left = "  ".join(f"{lag}: {format_log10(look.log10_decay[lag])}" for lag in lags)
            show(f"  gradient left, by steps back  {left}")
        troubles = self.monitor.troubles()
        for trouble in troubles:
            if trouble.kind not in self.known:
                show(f"  warning: {trouble}")
        self.known = {trouble.kind for trouble in troubles}


class Live(Silence):
    """Redraws a progress bar, the readings below it, and what is watched."""

    def __init__(self, meter, monitor=None):
        from rich.live import Live as Screen
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.meter, self.monitor = meter, monitor
        self.shown, self.pause = 0.0, LIVE_SECONDS if monitor is None else WATCH_SECONDS
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
        if time.monotonic() - self.shown >= self.pause:
            self._draw()

    def _draw(self):
        from rich.console import Group

        self.shown = time.monotonic()
        self.bar.update(self.task, description=self.meter.position(), completed=self.meter.training.progress)
        watched = [] if self.monitor is None else gradients_drawn(self.monitor, plain=self.screen.console.options.ascii_only)
        self.screen.update(Group(self.bar, self._table(), *watched), refresh=True)

    def _table(self):
        from rich.table import Table

        readings = self.meter.readings()
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in readings:
            table.add_column(name, justify="right", min_width=12)
        table.add_row(*readings.values())
        return table


def gradients_drawn(monitor, plain=False):
    """What is watched, for a terminal: bars by lag, curves of the latest updates, warnings.

    Parameters
    ----------
    monitor : Monitor
    plain : bool
        Use ASCII only.

    Returns
    -------
    list of rich.text.Text
    """
    from rich.text import Text

    training, look = monitor.training, monitor.look
    if not training.updates:
        return []
    lines = []
    if lags := look.lags():
        lines.append(Text(f"\nhow much of the last loss's gradient is left so many steps back (update {look.update:,})", "dim"))
        width = len(f"{look.steps:,}")
        for lag, bar, style in bars(look, lags, plain):
            left = format_log10(look.log10_decay[lag])
            lines.append(Text.assemble(f"{lag:{width},} ", (f"{bar:{BAR}}", style), f" {left}"))
        lines.append(Text(f"{' ' * width} {scale(look, lags)}", "dim"))
    norm, clip = training.norms[-1], training.settings.clip
    after = f", clipped to {clip:g}" if norm > clip else ", not clipped" if math.isfinite(clip) else ""
    for name, values, now in (("loss", training.losses, f"{training.losses[-1]:.3g}"), ("norm", training.norms, f"{norm:.3g}{after}")):
        lines.append(Text.assemble((f"\n{name} " if name == "loss" else f"{name} "), (curve(values[-RECENT:], plain), "cyan"), f" {now}"))
    for trouble in monitor.troubles():
        lines.append(Text(f"! {trouble}", "bold yellow"))
    return lines


def bars(look, lags, plain=False):
    """A bar for each lag on a logarithmic scale that begins at `FAINTEST`, as (lag, text, style)."""
    blocks, top = ASCII_BLOCKS if plain else BLOCKS, _top(look, lags)
    parts = len(blocks) - 1
    for lag in lags:
        left = look.log10_decay[lag]
        filled = round(BAR * parts * min(1.0, max(0.0, (left - FAINTEST) / (top - FAINTEST))))
        bar = blocks[-1] * (filled // parts) + blocks[filled % parts].strip()
        yield lag, bar, "red" if left > 1 else "yellow" if left < LEFT else "blue"


def scale(look, lags):
    """What the bars' ends mean, and where the whole gradient is."""
    top = _top(look, lags)
    whole = round(BAR * -FAINTEST / (top - FAINTEST))
    begin, end = format_log10(FAINTEST), format_log10(top) if top else ""
    return f"{begin}{'|1':>{max(1, whole + 1 - len(begin))}}{end:>{max(1, BAR - whole + len(end) - 1)}}".rstrip()


def _top(look, lags):
    """Decades, at the right end: the whole gradient, or what it has grown to."""
    left = look.log10_decay[lags]
    return max(0, math.ceil(left[np.isfinite(left)].max(initial=0.0)))


def curve(values, plain=False):
    """The largest of each few values, on a logarithmic scale from the least to the most, as one line of blocks."""
    levels = ASCII_LEVELS if plain else LEVELS
    values = np.asarray(values, float)
    edges = np.linspace(0, len(values), min(CURVE, len(values)) + 1).astype(int)
    largest = np.maximum.reduceat(values, edges[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log10(largest)
    known = log[np.isfinite(log)]
    low, high = known.min(initial=np.inf), known.max(initial=-np.inf)
    span = max(high - low, 0.1)  # of steady values, the line is flat
    places = np.clip(np.nan_to_num((log - low) / span, nan=1.0, posinf=1.0, neginf=0.0), 0, 1) * (len(levels) - 1)
    return "".join(levels[round(place)] for place in places)


class Meter:
    """Reads a training run's instruments.

    Parameters
    ----------
    training : fastbptt.app.train.loop.Training
    """

    def __init__(self, training):
        self.training = training
        self._seconds_before = training.seconds

    @property
    def speed(self):
        """Characters or sequences per second since the meter was made; saving, showing and evaluations are left out."""
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
            f"{training.objective.unit}/s": f"{self.speed:,.0f}",
            "loss": f"{training.recent_loss:.3f}",
            **training.objective.readings(training),
            **({"Omega": f"{training.omegas[-1]:.3g}"} if training.omegas else {}),
            "gradient norm": f"{training.norms[-1]:.3g}",
            "clipped": f"{training.clipped / training.updates:.1%}",
        }
