"""The Jacobians of a tape's steps as a chain of factors, written so that rounding spoils none of them, however small parts of it are.

Tangents are pushed through the factors one after another. Where a *row* of a factor is small, it makes small elements with all their digits.
Where a *column* is small, what it adds drowns in the rounding of what the others add. So if columns are uneven, the state before a factor
is measured in units in which its columns are all of a size,

    F_n ... F_2 F_1 = (F_n D_n^-1) ... (D_3 F_2 D_2^-1) (D_2 F_1 D_1^-1) D_1,

with diagonal D of powers of two, which cost no rounding. (The size of a column is taken after each row of F has been divided by its sum of
magnitudes: D_1 A D_2 with an ordinary A has then D_2 for its columns.)

The factors are the steps' Jacobians. Only that of an LSTM has rows for h that are show times those for c, in which what comes on top can
drown; where it would, it is taken in two factors,

    u = slopes_o W_o dh,  dc_t = keep dc + sum over i, f, g of slopes_g W_g dh;    dh_t = u + show dc_t.
"""

import numpy as np

from .linearised import Linearised, product

UNEVEN = 2.0**-13  # a column that is smaller than others by more than this, which costs 4 of 16 digits, is taken with care
HIDDEN = 2.0**-20  # so is an LSTM's u beside show dc: most often only one unit's, whose c is about to change its sign
SMALLEST = 2.0**-500  # unit, relative to the largest
ROUNDS = 8  # of weighing rows and columns by turns, where they are uneven


def chains(steps, start, stop):
    """The chains of some steps, for rows of the batch that need the same care; a row is worked on in the same way whatever others there are.

    Yields
    ------
    rows : bool ndarray (B,)
    chain : Chain
        Of these rows alone.
    """
    span = slice(start, stop)
    with np.errstate(all="ignore"):
        # once each row has been divided by its sum, nothing is left of a plain RNN's slopes: one step stands for all
        alike = steps.keep is None and steps.slopes[span].all()
        if alike:
            one, hidden = Linearised(steps.w_hh, None, np.ones((1, 1, steps.H)), None, None), False
            columns = np.broadcast_to(_balanced(one, slice(0, 1), _weigh(one, slice(0, 1))[0]), steps.slopes[span].shape)
        else:
            columns, hidden = _weigh(steps, span)
        uneven = (hidden | (columns.min(axis=-1) < UNEVEN * columns.max(axis=-1))).any(axis=0)
        if not uneven.all():
            even = steps if not uneven.any() else steps.rows(~uneven)
            yield ~uneven, Chain(even, start, stop)
        if uneven.any():
            some = steps if uneven.all() else steps.rows(uneven)
            sizes = columns[:, uneven]
            yield uneven, Chain(some, start, stop, sizes if alike else _balanced(some, span, sizes))


class Chain:
    """The factors of a net's steps, the first one applied first.

    Parameters
    ----------
    steps : Linearised
    start, stop : int
        From step start to step stop - 1.
    columns : ndarray (stop - start, B, N) or None
        The sizes of the columns of each step's first factor, if care is to be taken of them.

    Attributes
    ----------
    parts : int
        Factors for each step: 1 or 2.
    units : ndarray (n + 1, B, N) or None
        In what the state before, between and behind the n factors is measured: the diagonals of D. The last are ones. None if all are.
    """

    def __init__(self, steps, start, stop, columns=None):
        self.steps, self.start, self.stop = steps, start, stop
        self.parts, self.units = 1, None
        if columns is not None:
            self.parts = 1 if steps.show is None else 2
            self.units = np.ones((len(self) + 1, *columns.shape[1:]))
            self.units[: -1 : self.parts] = powers_of_two(columns)

    def __len__(self):
        return self.parts * (self.stop - self.start)

    def enter(self, v):
        """Tangents (B, k, N), from ordinary units to those before the first factor."""
        return v if self.units is None else v * self.units[0][:, None]

    def push(self, i, v):
        """Tangents (B, k, N) through factor i."""
        part = self.steps.jvp if self.parts == 1 else (self.steps.jvp_gates, self.steps.jvp_shown)[i % 2]
        t = self.start + i // self.parts
        return part(t, v) if self.units is None else part(t, v / self.units[i][:, None]) * self.units[i + 1][:, None]

    def for_kernel(self, span):
        """The arguments of the kernel `carry` for a span of the steps, counted from ``start``."""
        all_steps = slice(self.start + span.start, self.start + span.stop)
        slopes, past = self.steps.by_halves(all_steps, show=self.parts == 1)
        units = None if self.units is None else self.units[self.parts * span.start : self.parts * span.stop + 1]
        show = None if self.parts == 1 else self.steps.show[all_steps]
        return self.steps.w_hh, slopes, past, units, show


def _balanced(steps, span, columns):
    """The sizes of columns, after rows and columns have been divided by their sums by turns (Sinkhorn and Knopp 1967)."""
    for _ in range(ROUNDS):
        columns, _ = _weigh(steps, span, np.maximum(columns, SMALLEST * columns.max(axis=-1, keepdims=True)))
    return columns


def _weigh(steps, span, units=None):
    """The sums of magnitudes in the columns of each step's first factor, (T, B, N), once its rows have been divided by their own sums, in
    these units; and whether an LSTM's u is much smaller than show dc_t anywhere, (T, B)."""
    H, w_hh, slopes = steps.H, np.abs(steps.w_hh), np.abs(steps.slopes[span])
    T, B, N = slopes.shape
    reach = w_hh.sum(axis=-1) if units is None else product(1 / units[..., :H], w_hh)
    by_gate = (T, B, N // H, H)
    sums = (slopes * reach).reshape(by_gate)
    keep = np.zeros((T, B, H)) if steps.keep is None else steps.keep[span]
    own = keep if units is None else keep / units[..., -H:]
    rows = sums[:, :, : N // H if steps.show is None else 3].sum(axis=2) + own
    of_gate = np.repeat(rows[:, :, None], N // H, axis=2)
    if steps.show is not None:
        of_gate[:, :, 3] = sums[:, :, 3]
    columns, kept = product(_ratio(slopes, of_gate.reshape(T, B, N)), np.abs(steps.w_hh_t)), _ratio(keep, rows)
    if steps.show is None:
        return columns + kept, np.zeros((T, B), bool)
    return np.concatenate([columns, kept], axis=-1), (sums[:, :, 3] < HIDDEN * steps.show[span] * rows).any(axis=-1)


def _ratio(a, b):
    return np.where(b > 0, a / b, 0.0)


def powers_of_two(sizes):
    """Powers of two next to ``sizes`` (..., N), of which the largest is taken for 1; all 1 where the sizes are not finite, or all 0."""
    largest = sizes.max(axis=-1, keepdims=True)
    sizes = np.where(np.isfinite(largest) & (largest > 0), sizes, 1.0)
    relative = np.maximum(sizes / sizes.max(axis=-1, keepdims=True), SMALLEST)
    return np.ldexp(1.0, np.frexp(relative)[1] - 1)
