"""The Jacobians of a tape's steps as a chain of factors, scaled so that their small rows and columns keep their relative accuracy.

Tangents are pushed through the factors one after another. A small *row* of a factor gives small elements with full relative accuracy. What
a small *column* contributes is lost in the rounding of what the others do. So where columns differ much in size, the state before a factor
is scaled so that they are about equal,

    F_n ... F_2 F_1 = (F_n D_n^-1) ... (D_3 F_2 D_2^-1) (D_2 F_1 D_1^-1) D_1,

with diagonal D of powers of two, which cost no rounding. (Columns are measured after each row of F has been divided by the sum of its
magnitudes: those of D_1 A D_2, with a well-scaled A, are then D_2.)

A factor is the Jacobian of a step. In that of an LSTM, the rows for h are show times those for c plus a term of their own, u, which can be
lost in their rounding; where it would be, the step is split into two factors,

    u = slopes_o W_o dh,  dc_t = keep dc + sum over i, f, g of slopes_g W_g dh;    dh_t = u + show dc_t;

with a projection, u = W_hr slopes_o W_o dh and dh_t = u + W_hr show dc_t.
"""

import numpy as np

from .linearised import Linearised, product

UNEVEN = 2.0**-13  # smallest column over largest, below which columns are scaled; unscaled, it costs 4 of 16 digits
HIDDEN = 2.0**-20  # an LSTM's u over show dc, below which the step is split; most often of one unit, whose c is about to change sign
SMALLEST = 2.0**-500  # scale, relative to the largest
ROUNDS = 8  # of dividing rows and columns by their sums, where columns differ much


def chains(steps, start, stop):
    """The chain of some steps, with scaling for the rows of the batch that need it and without for the rest: no row depends on the others.

    Yields
    ------
    rows : bool ndarray (B,)
    chain : Chain
        Of these rows alone.
    """
    span = slice(start, stop)
    with np.errstate(all="ignore"):
        # dividing each row by its sum cancels the slopes of a plain RNN: the columns of all its steps are alike
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
        The sizes of the columns of each step's first factor; None for no scaling.

    Attributes
    ----------
    parts : int
        Factors for each step: 1 or 2.
    units : ndarray (n + 1, B, N) or None
        The scales of the state before, between and after the n factors: the diagonals of D. The last are ones. None if all are.
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
        """Scale tangents (B, k, N) for the first factor."""
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
    """The sizes of columns, after rows and columns have been divided by their sums in turn (Sinkhorn and Knopp 1967)."""
    for _ in range(ROUNDS):
        columns, _ = _weigh(steps, span, np.maximum(columns, SMALLEST * columns.max(axis=-1, keepdims=True)))
    return columns


def _weigh(steps, span, units=None):
    """Column sums of magnitudes of each step's first factor, (T, B, N), in these units, after each row has been divided by its own sum;
    and whether an LSTM's u is much smaller than show dc_t anywhere, (T, B)."""
    H, w_hh, slopes = steps.H, np.abs(steps.w_hh), np.abs(steps.slopes[span])
    T, B, N = slopes.shape
    reach = w_hh.sum(axis=-1) if units is None else product(1 / units[..., : steps.P], w_hh)
    by_gate = (T, B, N // H, H)
    sums = (slopes * reach).reshape(by_gate)
    keep = np.zeros((T, B, H)) if steps.keep is None else steps.keep[span]
    own = keep if units is None else keep / units[..., -H:]
    rows = sums[:, :, : N // H if steps.show is None else 3].sum(axis=2) + own
    shares, kept = _ratio(slopes.reshape(by_gate), rows[:, :, None]), _ratio(keep, rows)
    if steps.show is None:
        return product(shares.reshape(T, B, N), np.abs(steps.w_hh_t)) + kept, np.zeros((T, B), bool)
    u, shown, slopes_o = sums[:, :, 3], steps.show[span] * rows, slopes.reshape(by_gate)[:, :, 3]
    if steps.w_hr is None:
        shares[:, :, 3] = _ratio(slopes_o, u)
    else:
        w_hr = np.abs(steps.w_hr)
        u, shown = product(u, w_hr), product(shown, w_hr)
        shares[:, :, 3] = slopes_o * product(_ratio(np.ones_like(u), u), np.abs(steps.w_hr_t))
    columns = product(shares.reshape(T, B, N), np.abs(steps.w_hh_t))
    return np.concatenate([columns, kept], axis=-1), (u < HIDDEN * shown).any(axis=-1)


def _ratio(a, b):
    return np.where(b > 0, a / b, 0.0)


def powers_of_two(sizes):
    """``sizes`` (..., N) relative to the largest, rounded down to powers of two; all 1 where they are not finite, or all 0."""
    largest = sizes.max(axis=-1, keepdims=True)
    sizes = np.where(np.isfinite(largest) & (largest > 0), sizes, 1.0)
    relative = np.maximum(sizes / sizes.max(axis=-1, keepdims=True), SMALLEST)
    return np.ldexp(1.0, np.frexp(relative)[1] - 1)
