"""The numbers behind a picture of the flow of gradients: `pictures` draws them, the command prints them, the page sends them."""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..cells import NONLINEARITIES
from ..tape import state_widths
from .jacobians import log_singular_values, vanishing_condition
from .linearised import linearise, slopes_by_gate
from .lyapunov import LyapunovSpectrum, lyapunov_spectrum

BINS = 20  # of the histogram: 5 % of the steepest slope each
LAGS = 16  # at which singular values are computed; fewer for a state of more than AFFORDABLE / LAGS elements
AFFORDABLE = 2048
EXPONENTS = 600


class Rate(NamedTuple):
    """The growth of a gradient with every step back that theory predicts.

    Attributes
    ----------
    name, symbol : str
        The symbol is in Matplotlib's mathematical notation.
    log10 : float
        Decades per step.
    """

    name: str
    symbol: str
    log10: float


class Portrait:
    """The numbers behind a picture of a `GradientFlow`, each computed when it is first asked for.

    Singular values and Lyapunov exponents are those of the first row of the batch.

    Parameters
    ----------
    flow : GradientFlow
    exponents : int
        How many Lyapunov exponents, at most.

    Raises
    ------
    ValueError
        If there are no steps or no rows to look at.
    """

    def __init__(self, flow, exponents=EXPONENTS):
        self.flow, self.tape, self.exponents = flow, flow.tape, exponents
        T, B, _ = self.tape.shape
        if not (T and B):
            raise ValueError(f"tape: expected at least one step and one row to draw, got {T} and {B}")

    @property
    def N(self):
        """The size of the state."""
        return sum(state_widths(self.tape))

    @cached_property
    def finite(self):
        """Whether there is a Jacobian at every step: weights, inputs and states are finite."""
        tape = self.row
        arrays = (tape.x, tape.w_ih, tape.w_hh, tape.b_ih, tape.b_hh, tape.w_hr, tape.h, tape.c)
        return all(np.isfinite(array).all() for array in arrays if array is not None)

    @cached_property
    def row(self):
        """The tape of the first row alone."""
        return self.tape.row(0)

    @cached_property
    def condition(self):
        """The `VanishingCondition` of a plain RNN's weights; None of other cells and of weights that are not finite."""
        tape = self.tape
        if tape.cell != "rnn" or tape.leak is not None or not np.isfinite(tape.w_hh).all():
            return None
        return vanishing_condition(tape.w_hh, tape.nonlinearity)

    @cached_property
    def lyapunov(self):
        """The `LyapunovSpectrum`, (k,), with a fifth of the steps as burn-in; None where there are no Jacobians."""
        if not self.finite:
            return None
        row = self.row
        k = min(self.exponents, self.N)
        spectrum = lyapunov_spectrum(row, k, burn_in=len(row) // 5)
        return LyapunovSpectrum(*(array[0] for array in spectrum))

    @property
    def rates(self):
        """Each `Rate` that there is: of the largest Lyapunov exponent, and the bound of a plain RNN's weights."""
        rates = []
        if self.lyapunov is not None and math.isfinite(exponent := self.lyapunov.exponents[0]):
            rates.append(Rate("largest Lyapunov exponent", r"$\mathrm{e}^{\lambda_1 \mathrm{lag}}$", exponent / math.log(10)))
        if self.condition is not None and self.condition.sigma_max > 0:
            bound = math.log10(NONLINEARITIES[self.tape.nonlinearity].steepest * self.condition.sigma_max)
            rates.append(Rate("bound", r"$(\gamma\,\sigma_\mathrm{max})^\mathrm{lag}$", bound))
        return rates

    @cached_property
    def singular_values(self):
        """Lags (n,), and log10 of the singular values (n, N) of d state_T / d state_{T - lag}; None where there are no Jacobians."""
        if not self.finite:
            return None
        T = len(self.row)
        count = min(LAGS, max(3, AFFORDABLE // self.N))
        lags = np.unique(np.linspace(0, T, count).round().astype(int))
        return lags, np.array([log_singular_values(self.row, T - lag, T)[0] for lag in lags]) / math.log(10)

    @cached_property
    def slopes(self):
        """By each gate's letter a histogram (BINS,), over units, steps and rows, of f'(a) relative to the steepest slope."""
        shares = {}
        for gate, slopes in slopes_by_gate(self.tape, linearise(self.tape)):
            slopes = slopes[np.isfinite(slopes)]
            counts = np.histogram(slopes, BINS, (0, 1 + 1e-12))[0]
            shares[gate.letter] = counts / max(1, slopes.size)
        return shares
