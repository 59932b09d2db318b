"""Pictures of gradients on their way back through time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks
from ._figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    heading,
    limits,
    new_figure,
    picture_format,
    powers_of_ten,
    quiet_axes,
    save,
)
from ._notation import format_log10
from .cells import CELLS
from .gradients.flow import GradientFlow
from .gradients.portrait import BINS, Portrait

if TYPE_CHECKING:
    from ._typing import FilePath

WIDTH = 8.4  # inches: a README shows it at about 100 pixels each
FAN = 40  # lines for singular values, at most
COLOURS = (BLUE, VERMILION, GREEN, ORANGE)
GATE_COLOURS = (SKY, BLACK, PURPLE, GREY)
DASHES = ("-", "--", "-.", ":")
MAP = "cividis"
THEORY = {"bound": ((0, (1, 1.6)), GREY), "largest Lyapunov exponent": ((0, (5, 2)), BLACK)}


def plot_flow(flow: GradientFlow, path: FilePath, *, title: str | None = None) -> None:
    """Draw what `gradient_flow` found: decay, contributions, singular values, derivatives, Lyapunov exponents.

    Parameters
    ----------
    flow : GradientFlow
    path : str or path
        Where the picture goes, a .png, .svg or .pdf. It is written whole or not at all.
    title : str or None
        The first line; None says what the net is.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    OSError
        If the file cannot be written.
    TypeError, ValueError
        If an argument is not what is said above, the name asks for another format, or there are no steps or rows to draw.
    """
    path, title = _destination(path, title)
    draw_portrait(Portrait(_flow("flow", flow)), path, title=title)


def draw_portrait(portrait: Portrait, path: FilePath, *, title: str | None = None) -> None:
    """`plot_flow` of a ``Portrait``."""
    flow = portrait.flow
    figure = new_figure(WIDTH, 9.4)
    _title(figure, flow.setting if title is None else title, flow.headline)
    panels = figure.subplot_mosaic([["decay", "decay"], ["map", "fan"], ["slopes", "lyapunov"]], height_ratios=(1, 1.15, 0.85))

    _decay(panels["decay"], {"": portrait})
    heading(panels["decay"], "How much of the gradient is left")
    image = _contributions(panels["map"], portrait, *_range_of_contributions([portrait]))
    heading(panels["map"], "What each loss owes to each step")
    if image is not None:  # in the upper right corner, which is empty: no loss owes anything to a later step
        _colour_bar(figure.colorbar(image, cax=panels["map"].inset_axes((0.5, 0.87, 0.46, 0.035)), orientation="horizontal"))
    _fan(panels["fan"], portrait, *_range_of_singular_values([portrait]))
    heading(panels["fan"], "Singular values of the Jacobians' product")
    _slopes(panels["slopes"], portrait)
    heading(panels["slopes"], "Derivatives of the activations")
    _spectra(panels["lyapunov"], {"": portrait})
    heading(panels["lyapunov"], "Lyapunov spectrum")
    save(figure, path)


def plot_comparison(flows: dict[str, GradientFlow], path: FilePath, *, title: str | None = None) -> None:
    """Draw several flows side by side, with the panels of `plot_flow` on common scales.

    Parameters
    ----------
    flows : dict of GradientFlow
        At most four, by the names to be shown.
    path, title
        As of `plot_flow`.

    Raises
    ------
    ImportError, OSError, TypeError, ValueError
        As `plot_flow`; ValueError also if there are none, or too many.
    """
    path, title = _destination(path, title)
    if not isinstance(flows, dict):
        raise TypeError(f"flows: expected a dict of GradientFlow, got {_checks.describe(flows)}")
    if not 1 <= len(flows) <= len(COLOURS):
        raise ValueError(f"flows: expected 1 to {len(COLOURS)} of them, got {len(flows)}")
    portraits = {_text("flows", name): Portrait(_flow(_checks.item("flows", name), flow)) for name, flow in flows.items()}
    draw_portraits(portraits, path, title=title)


def draw_portraits(portraits: dict[str, Portrait], path: FilePath, *, title: str | None = None) -> None:
    """`plot_comparison` of each net's ``Portrait``."""
    figure = new_figure(WIDTH, 10.2)
    _title(figure, "Gradients on their way back" if title is None else title, "")
    top, maps, fans, slopes = figure.subfigures(4, 1, height_ratios=(1.05, 0.9, 0.95, 0.75))

    decay, spectra = top.subplots(1, 2, width_ratios=(1.5, 1))
    _decay(decay, portraits)
    heading(decay, "How much of the gradient is left")
    _spectra(spectra, portraits)
    heading(spectra, "Lyapunov spectrum")

    each = list(portraits.values())
    rows: list[Any] = [
        (maps, "What each loss owes to each step", _contributions, _range_of_contributions(each)),
        (fans, "Singular values of the Jacobians' product", _fan, (*_range_of_singular_values(each), False)),
        (slopes, "Derivatives of the activations", _slopes, ()),
    ]
    for row, text, draw, scale in rows:
        row.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")
        panels = row.subplots(1, len(portraits), sharey=True, squeeze=False)[0]
        images = [draw(panel, portrait, *scale) for panel, portrait in zip(panels, each)]
        for panel, name, colour in zip(panels, portraits, COLOURS):
            panel.set_title(name, fontsize=9.5, color=colour)
            panel.label_outer()
        image = next((image for image in images if image is not None), None)
        if image is not None:
            _colour_bar(row.colorbar(image, ax=list(panels), pad=0.02, aspect=18))
    save(figure, path)


def _flow(name, value):
    if not isinstance(value, GradientFlow):
        raise TypeError(f"{name}: expected a GradientFlow, got {_checks.describe(value)}")
    return value


def _destination(path, title):
    """Where a picture goes and what is written above it, both checked before it is drawn."""
    path = _checks.path("path", path)
    try:
        picture_format(path)
    except ValueError as error:
        raise ValueError(f"path: {error}") from None
    return path, None if title is None else _text("title", title)


def _text(name, value):
    """``value``, a str that can be drawn: without surrogates, which are no characters."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {_checks.describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected a text without surrogates, got {_checks.quoted(value)}") from None
    return value


def _title(figure, title, verdict):
    figure.suptitle(title + ("\n" + verdict if verdict else ""), fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)


def _decay(axes, portraits):
    """The share of the gradient by lag; with one net, the rates that theory gives as well."""
    for (name, portrait), colour, dash in zip(portraits.items(), COLOURS, DASHES):
        decay = portrait.flow.log10_decay
        lags = np.flatnonzero(np.isfinite(decay))
        axes.plot(lags, decay[lags], color=colour, linestyle=dash, linewidth=2.2, label=name or "measured", zorder=3)
    T = max(len(portrait.tape) for portrait in portraits.values())
    low, high = limits(np.concatenate([portrait.flow.log10_decay for portrait in portraits.values()]))
    if len(portraits) == 1:
        (portrait,) = portraits.values()
        for rate in portrait.rates:
            if rate.name == "bound" and rate.log10 > 0:
                continue  # a bound above 1 does not say whether the gradient vanishes
            dash, colour = THEORY[rate.name]
            label = rf"{rate.name}: {rate.symbol}, $\times$ {format_log10(rate.log10, 3)} a step"
            axes.plot([0, T], [0, rate.log10 * T], color=colour, linestyle=dash, linewidth=1.2, label=label, zorder=4)
        _note_zeros(axes, portrait.flow.log10_decay)
    axes.set_ylim(low, high)
    axes.set_xlim(0, T)
    axes.set_xlabel("lag (steps back from the loss)")
    axes.set_ylabel("share of the gradient")
    powers_of_ten(axes.yaxis, low, high)
    quiet_axes(axes)
    _steps(axes.xaxis)
    _legend(axes)


def _note_zeros(axes, decay):
    if np.isneginf(decay).any():
        _note(axes, f"exactly 0 from lag {int(np.isneginf(decay).argmax())} on")
    elif not np.isfinite(decay).any():
        _note(axes, "no gradient")


def _range_of_contributions(portraits):
    values = np.concatenate([portrait.flow.log10_contributions.ravel() for portrait in portraits])
    values = values[np.isfinite(values)]
    return (values.min(), values.max()) if values.size else (-1.0, 0.0)


def _contributions(axes, portrait, low, high):
    """A heat map over (t, k); of a single loss, a line over k. Returns the image, if it is one."""
    log10 = portrait.flow.log10_contributions
    T = len(log10)
    losses = np.flatnonzero(np.isfinite(log10).any(axis=1))
    axes.set_xlabel("step k")
    axes.set_xlim(-0.5, T - 0.5)
    _steps(axes.xaxis)
    if not losses.size:
        quiet_axes(axes, grid=None)
        _note(axes, "no contributions")
        return None
    if len(losses) == 1:
        shown = np.flatnonzero(np.isfinite(log10[losses[0]]))
        axes.plot(shown, log10[losses[0], shown], color=BLUE, linewidth=2.2, marker="." if len(shown) == 1 else None)
        low, high = limits((low, high))
        axes.set_ylim(low, high)
        powers_of_ten(axes.yaxis, low, high)
        axes.set_ylabel(f"norm in dL/dW, loss at step {losses[0]}")
        quiet_axes(axes)
        return None
    from matplotlib import colormaps

    # grey where a loss owes nothing to a step; white where the step is later than the loss
    shown = np.ma.masked_invalid(log10)
    axes.set_facecolor("white")
    axes.imshow(np.where(np.tri(T, dtype=bool) & shown.mask, 0.85, np.nan), cmap="gray", vmin=0, vmax=1, origin="upper")
    image = axes.imshow(shown, cmap=colormaps[MAP], vmin=low, vmax=max(high, low + 1e-9), origin="upper", interpolation="nearest")
    axes.set_aspect("auto")
    axes.set_ylabel("loss at step t")
    _steps(axes.yaxis)
    quiet_axes(axes, grid=None)
    return image


def _colour_bar(bar):
    bar.outline.set_visible(False)
    axis = bar.ax.yaxis if bar.orientation == "vertical" else bar.ax.xaxis
    powers_of_ten(axis, *bar.mappable.get_clim(), most=6 if bar.orientation == "vertical" else 3)
    bar.ax.tick_params(labelsize=8.5)
    bar.set_label("norm in dL/dW", fontsize=9)


def _range_of_singular_values(portraits):
    """Limits for the singular values of one net; of several nets, for the largest values and four times as far down."""
    values = [portrait.singular_values[1] for portrait in portraits if portrait.singular_values is not None]
    if len(values) < 2:
        return limits(values[0] if values else ())
    largest = np.concatenate([v[:, 0] for v in values])
    low, high = limits(largest)
    return max(limits(np.concatenate([v.ravel() for v in values]))[0], min(4 * low, -6)), high + 0.15 * max(high - 4 * low, 0)


def _fan(axes, portrait, low, high, legend=True):
    """All singular values by lag, the larger the darker."""
    from matplotlib import colormaps

    T = len(portrait.tape)
    axes.set_xlabel("lag (steps)")
    axes.set_ylabel("singular value")
    axes.set_xlim(0, T)
    axes.set_ylim(low, high)
    _steps(axes.xaxis)
    powers_of_ten(axes.yaxis, low, high)
    quiet_axes(axes)
    if portrait.singular_values is None:
        _note(axes, "no Jacobians: not all is finite")
        return
    lags, log10 = portrait.singular_values
    N = log10.shape[1]
    named = {N // 2: "median", 0: "largest", N - 1: "smallest"} if N > 2 else {}
    for rank in sorted({*np.linspace(0, N - 1, min(N, FAN)).round().astype(int), *named}, reverse=True):
        values = np.where(np.isfinite(log10[:, rank]), log10[:, rank], np.nan)
        colour = colormaps[MAP](0.92 * rank / max(1, N - 1))
        axes.plot(lags, values, color=colour, linewidth=2 if rank in named or N == 1 else 0.8, label=named.get(rank))
    zeros = int(np.isneginf(log10[-1]).sum())
    text = f"{zeros} of {N} are 0 after {lags[-1]} steps" if zeros else None
    if legend and named:
        handles, labels = axes.get_legend_handles_labels()
        _legend(axes, handles[::-1], labels[::-1], title=text, title_fontsize=8.5, alignment="left")
    elif text:
        _note(axes, text.replace(" after", "\nafter"), at=(0.04, 0.04), ha="left", va="bottom")


def _slopes(axes, portrait):
    """A histogram of f'(a) for each gate."""
    from matplotlib.ticker import PercentFormatter

    edges = np.linspace(0, 1, BINS + 1)
    gates = CELLS[portrait.tape.cell].gates
    for gate, colour, dash in zip(gates, GATE_COLOURS, DASHES):
        share = portrait.slopes[gate.letter]
        if len(gates) == 1:
            axes.stairs(share, edges, fill=True, color=colour)
        else:
            axes.stairs(share, edges, color=colour, linestyle=dash, linewidth=1.5, label=gate.name)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("f'(a) / steepest slope")
    axes.set_ylabel("share")
    quiet_axes(axes, grid="y")
    if len(gates) > 1:
        _legend(axes, loc="upper left", handlelength=1.8)


def _spectra(axes, portraits):
    """Lyapunov exponents in descending order, with their standard errors; of several nets over rank / number of exponents."""
    shown, alone = 0, len(portraits) == 1
    for (name, portrait), colour, dash in zip(portraits.items(), COLOURS, DASHES):
        if portrait.lyapunov is None:
            continue
        exponents, stderr = portrait.lyapunov
        finite = np.isfinite(exponents)
        shown += finite.sum()
        rank = np.arange(1, len(exponents) + 1)[finite] / (1 if alone else len(exponents))
        exponents, stderr = exponents[finite], np.nan_to_num(stderr[finite])
        axes.fill_between(rank, exponents - stderr, exponents + stderr, color=colour, alpha=0.25, linewidth=0)
        axes.plot(rank, exponents, color=colour, linestyle=dash, linewidth=1.7, marker="." if len(rank) == 1 else None, label=name)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    quiet_axes(axes)
    axes.set_xlabel("rank" if alone else "rank / number of exponents")
    if alone:
        _steps(axes.xaxis)
    axes.set_ylabel("exponent (nats per step)")
    if not shown:
        _note(axes, "no finite exponents")


def _steps(axis):
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _legend(axes, *entries, **how):
    axes.legend(*entries, fontsize=8.5, frameon=False, **({"loc": "best"} | how))


def _note(axes, text, at=(0.5, 0.5), **how):
    how = {"ha": "center", "va": "center"} | how
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(*at, text, transform=axes.transAxes, fontsize=8.5, color=GREY, bbox=behind, zorder=5, **how)
