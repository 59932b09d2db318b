"""The picture of a training run: loss and gradient norm, update by update; Omega and the share of wrong answers, where there are any."""

import math

import numpy as np

from ..._figures import BLUE, VERMILION, new_figure, save
from ..._files import write_atomically

TOP = 1e150  # values beyond are drawn here, where Matplotlib's own arithmetic does not overflow yet
POINTS = 300  # that a curve is drawn through; each stands for several updates, if there are more
PERPLEXITIES = (1.1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100, 500)  # marked on an axis


def plot_training(
    path,
    losses,
    norms,
    omegas=(),
    *,
    clip=math.inf,
    loss_label="loss",
    level=None,
    perplexities=False,
    errors=None,
    solved=0.0,
    title="",
    write=write_atomically,
):
    """Draw the loss and the gradient norm of a training run, update by update, on logarithmic scales.

    Parameters
    ----------
    path : str or path
        Where the picture goes, a .png, .svg or .pdf. It is written whole or not at all.
    losses, norms : sequence of float
        Of every update: the loss, and the gradient norm before clipping.
    omegas : sequence of float
        Omega of every update, if it was used.
    clip : float
        The norm above which gradients were clipped.
    loss_label : str
    level : (float, str) or None
        A loss to compare with, and what to call it.
    perplexities : bool
        Whether the loss, a cross-entropy in nats, is also to be read as a perplexity.
    errors : sequence of (int, float), or None
        Shares of wrong answers, and after which update; None where there is no right or wrong.
    solved : float
        The share that is aimed at.
    title : str
    write : callable
        What writes the picture, called as ``write(path, content)``.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    OSError
        If the file cannot be written.
    ValueError
        If the name asks for another format.
    """
    from matplotlib.ticker import MaxNLocator

    losses, norms = (np.minimum(np.asarray(values, float), TOP) for values in (losses, norms))
    panels = 2 + (errors is not None) + (len(omegas) > 0)
    figure = new_figure(8, 1 + 2.7 * panels)
    upper, *middle, lower = figure.subplots(panels, sharex=True)
    figure.suptitle(title, fontsize=11)

    _curve(upper, losses)
    if level is not None:
        upper.axhline(min(level[0], TOP), color=VERMILION, linestyle="--", label=level[1])
    _finish(upper, losses, loss_label)
    if perplexities:
        _perplexity_axis(upper)

    if errors is not None:
        _errors(middle.pop(0), errors, solved)
    for axes in middle:
        omegas = np.minimum(np.asarray(omegas, float), TOP)
        _curve(axes, omegas)
        _finish(axes, omegas, "Omega")

    _curve(lower, norms)
    if math.isfinite(clip):
        share = np.mean(norms > clip) if norms.size else 0
        lower.axhline(min(clip, TOP), color=VERMILION, linestyle="--", label=f"clipped to {clip:g}: {share:.1%} of the updates")
    _finish(lower, norms, "gradient norm before clipping")
    lower.set_xlabel("update")
    lower.set_xlim(0, max(1, len(losses)))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    save(figure, path, write)


def _curve(axes, values):
    """Neighbouring updates' means as a line, and their range as a band around it."""
    if not values.size:
        return
    edges = np.linspace(0, len(values), min(POINTS, len(values)) + 1).astype(int)
    starts, sizes = edges[:-1], np.diff(edges)
    middles = starts + (1 + sizes) / 2
    group = f"{sizes.min()} updates" if sizes.max() > 1 else None
    if group:
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        axes.fill_between(middles, low, high, color=BLUE, alpha=0.25, linewidth=0, label=f"range of {group}")
    means = np.add.reduceat(values, starts) / sizes
    axes.plot(middles, means, color=BLUE, linewidth=1.3, marker="." if len(means) == 1 else None, label=group and f"mean of {group}")


def _errors(axes, errors, solved):
    """The share of wrong answers at each evaluation, in per cent."""
    updates, shares = zip(*errors) if errors else ((), ())
    axes.plot(updates, [100 * share for share in shares], color=BLUE, linewidth=1.3, marker=".", label="evaluations on fresh sequences")
    axes.axhline(100 * solved, color=VERMILION, linestyle="--", label=f"solved below {solved:.0%}")
    axes.set_ylim(-3, 103)
    _finish(axes, np.zeros(0), "wrong answers (%)")


def _finish(axes, values, label):
    if (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")
        _plain_ticks(axes)
    axes.set_ylabel(label)
    axes.grid(which="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9, frameon=False, borderaxespad=0.2)


def _perplexity_axis(axes):
    """The same axis again, on the right, with its ticks where the perplexity is round."""
    from matplotlib.ticker import FixedLocator, NullLocator

    if _is_wide(axes):
        return
    low, high = axes.get_ylim()
    ticks = [p for p in PERPLEXITIES if low <= math.log(p) <= high]
    right = axes.twinx()
    right.set_yscale(axes.get_yscale())
    right.set_ylim(low, high)
    right.yaxis.set_major_locator(FixedLocator([math.log(p) for p in ticks]))
    right.yaxis.set_minor_locator(NullLocator())
    right.set_yticklabels([f"{p:g}" for p in ticks])
    right.set_ylabel("perplexity")


def _plain_ticks(axes):
    """Ticks at 1, 2 and 5 times powers of ten, written out, unless the axis spans many of those."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if _is_wide(axes):
        return
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _is_wide(axes):
    low, high = axes.get_ylim()
    return low <= 0 or high > 1000 * low
