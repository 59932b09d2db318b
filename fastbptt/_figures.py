"""What all pictures share: colours, axes in powers of ten that have no end, and files that are written whole or not at all."""

import io
import math
from pathlib import Path

import numpy as np

from ._files import write_atomically

# Okabe and Ito's colours, which colour-blind people tell apart
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY, GRID = "#606060", "#E6E6E6"
FORMATS = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None, "Producer": None}}
DPI = 150


def picture_format(path):
    """The format that a file's name asks for. ValueError if it is none of `FORMATS`."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(f'.{name}' for name in FORMATS)}, got {suffix!r}")
    return suffix


def new_figure(width, height):
    """A figure of so many inches, without pyplot and its state. ImportError, in one line, if Matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('matplotlib missing: pip install "fastbptt[train]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure, path, write=write_atomically):
    """Write a figure, by a function of its path and content, all of it or nothing; equal figures make equal files.

    Raises
    ------
    OSError
        If it cannot be written. A file that was there before is then still there.
    ValueError
        If the name asks for a format that there is not.
    """
    from matplotlib import rc_context

    kind, picture = picture_format(path), io.BytesIO()
    with rc_context({"svg.hashsalt": "fastbptt"}):
        figure.savefig(picture, format=kind, dpi=DPI, metadata=FORMATS[kind])
    write(path, picture.getvalue())


def quiet_axes(axes, grid="both"):
    """Only the two axes that are read from, and a pale grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def heading(axes, text):
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold")


def powers_of_ten(axis, low, high, most=6):
    """Ticks for an axis whose values, from low to high, are decimal logarithms: powers of ten, or round numbers if it is short."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    if high - low >= 3:
        axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=(1, 2, 4, 5, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: rf"$10^{{{value:.0f}}}$" if round(value) else "1"))
        return
    base = math.floor(low)
    if high - low >= 0.8:
        digits = (1, 2, 5) if high - low < 1.6 else (1,)
        ticks = [n + math.log10(digit) for n in range(base, math.ceil(high) + 1) for digit in digits]
    else:
        values = MaxNLocator(nbins=most - 1, steps=(1, 2, 2.5, 5, 10)).tick_values(10 ** (low - base), 10 ** (high - base))
        ticks = [base + math.log10(value) for value in values if value > 0]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))


def limits(values, least=0.2, margin=0.06):
    """From where to where an axis has to go to show the finite ones of these logarithms; (-1, 1) if there are none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    more = max((least - (high - low)) / 2, margin * (high - low))
    return low - more, high + more


def _plain(log10):
    if -4 < log10 < 5:
        return f"{10**log10:.4g}"
    exponent = math.floor(log10 + 1e-9)
    return rf"${10 ** (log10 - exponent):.3g}\cdot10^{{{exponent}}}$"
