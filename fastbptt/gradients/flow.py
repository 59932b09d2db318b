"""What happens to gradients on their way back through time, in numbers that neither under- nor overflow."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal

import numpy as np

from .._notation import format_log10
from .._typing import Array, FilePath, Float64s, OptionalPair
from ..cells import CELLS
from ..tape import Tape, state_widths
from .linearised import check_loss, linearise, slopes_by_gate, sum_of_products
from .nonfinite import first_nonfinite
from .state_gradients import log10_norm, rescale, state_gradients

CHANGE = 1.0  # decades over the whole sequence from which on a gradient counts as vanishing or exploding
SATURATED = 0.01  # share of the steepest slope below which a unit counts as saturated
LOG10_2 = math.log10(2)


def gradient_flow(tape: Tape, d_out: Array | None, d_state: Array | OptionalPair | None = None) -> GradientFlow:
    """Look at the gradients of a loss on their way back through time.

    Parameters
    ----------
    tape : Tape
        From any forward pass.
    d_out : ndarray (T, B, H) or None
        dL/d out, as for the backward pass; ``None`` means zeros. P stands in place of H where an LSTM has a projection.
    d_state : ndarray (B, H), or of an LSTM a pair of them, or None
        dL/d h_n, or (dL/d h_n, dL/d c_n).

    Returns
    -------
    GradientFlow
        Print it for a report in words; `GradientFlow.plot` draws it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.
    RuntimeError
        If an array of the tape was resized since the forward pass.

    Notes
    -----
    The norms by step cost less than a backward pass and are there at once. All else is computed when it is first asked for: keep the
    arrays of the tape and of the loss as they are. What is split by lag (`by_lag`, `contributions`, `half_life`, the verdict) needs the
    gradient of each step's loss by itself: the work of T / 2 backward passes, done as T products with a row for each loss. Steps whose
    ``d_out`` is zero have no loss and cost nothing, so that a loss at the last step alone costs one pass.

    The quantities are those of Pascanu, Mikolov and Bengio 2013 ("On the difficulty of training recurrent neural networks"), equations
    3 to 5: dL/dW is the sum over losses t and steps k <= t of a contribution that has gone through t - k Jacobians.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> x, w_ih, w_hh = np.ones((40, 1, 1)), np.ones((1, 1)), np.full((1, 1), 0.01)
    >>> out, h_n, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh, nonlinearity="identity")
    >>> d_out = np.zeros_like(out)
    >>> d_out[-1] = 1                                                    # a loss at the last step: L = out[-1].sum()
    >>> flow = fastbptt.gradient_flow(tape, d_out)
    >>> float(flow.log10_state_norm[0, 0].round(9))                      # 0.01**40
    -80.0
    >>> print(flow)
    vanishing: half-life 0.15 steps; after 40 steps 1e-80 of the gradient is left
      identity RNN: 40 steps, 1 row, 1 unit; saturated: 0%
      |dL/dh| from 1 at the last step to 1e-80 before the first
    """
    return GradientFlow(tape, d_out, d_state)


class GradientFlow:
    """What `gradient_flow` returns.

    A loss at step t looks at ``out[t]``, for t = 0 .. T-1 (with d_state, the last one also at the final state), and the lag of step k is
    t - k. Gradients are float64 whatever the tape. Logarithms are decimal, -inf for an exact zero, and finite far beyond the range of
    floating-point numbers.

    Attributes
    ----------
    log10_state_norm : ndarray (T+1, B)
        Of ||dL/dh_t||_2 for the states ``tape.h``; of an LSTM, whose state is (h, c), ||dL/d(h_t, c_t)||_2.
    log10_preactivation_norm : ndarray (T, B)
        Of ||dL/da_t||_2, where a_t = W_hh h_{t-1} + b_hh, all gates together: what dL/dw_hh = sum of da_t h_{t-1}^T is made of.
    saturated : float
        The share of units, over all steps and rows, whose derivative is below 1 % of the steepest that their nonlinearity has (``|f|`` above
        0.995 for tanh; for sigmoid, below 0.0025 or above 0.9975; for ReLU, off). Of a GRU or an LSTM, of all gates.
    saturated_gates : dict
        The same for each gate: "h" of an RNN, r z n of a GRU, i f g o of an LSTM.
    headline, finding : str
        The first line of the report, the verdict and what was found; and what was found alone.
    setting : str
        Its second line: the net, its size, and how much of it is saturated.
    reason : str or None
        Where inf or NaN first appeared, in causal order: in the weights, the inputs, a state, ``d_out``, or a gradient on the way back.
    """

    log10_state_norm: Float64s
    log10_preactivation_norm: Float64s

    def __init__(self, tape: Tape, d_out: Array | None, d_state: Array | OptionalPair | None = None) -> None:
        self._d_out, self._d_state = check_loss(tape, d_out, d_state)
        self.tape = tape
        self._saturated_gates: dict[str, float] | None = None
        gradients = state_gradients(tape, self._d_out, self._d_state)
        self.log10_state_norm = gradients.log10_state_norm()
        self.log10_preactivation_norm = gradients.log10_preactivation_norm()

    @cached_property
    def reason(self) -> str | None:
        return first_nonfinite(self.tape, self._d_out, self._d_state, self.log10_state_norm)

    @property
    def saturated_gates(self) -> dict[str, float]:
        if self._saturated_gates is None:
            self._linearise()
        return self._saturated_gates  # type: ignore[return-value]

    @property
    def saturated(self) -> float:
        return math.fsum(self.saturated_gates.values()) / len(self.saturated_gates)

    def _linearise(self):
        """The linearised steps of the tape, which are too large to keep; the shares of saturated units are kept on the way."""
        steps = linearise(self.tape)
        self._saturated_gates = {
            gate.letter: float((slopes < SATURATED).mean()) if slopes.size else 0.0 for gate, slopes in slopes_by_gate(self.tape, steps)
        }
        return steps

    @cached_property
    def _by_lag(self):
        """Norms that need the gradient of every loss by itself.

        Returns the norms of the gradient of w_hh by lag, and their exponents; the steps t (n,) that have a loss; and decimal logarithms
        of norms by lag for each of them: of the gradient of w_hh (T, n), and of the state gradient (T+1, n).
        """
        T = self.tape.shape[0]
        h = self.tape.h.astype(np.float64, copy=False)
        with np.errstate(all="ignore"):
            # |sum over b of da_b h_b^T| does not change if the rows h are rotated, after which at most B of their columns are not 0.
            factor = np.linalg.qr(h[:-1].swapaxes(1, 2), mode="r") if h[:-1].size else h[:-1]
        norm, exponent = np.zeros(T), np.zeros(T, np.int64)
        losses = self._losses()[0]
        log10_part = np.full((T, len(losses)), -np.inf)
        log10_state = np.full((T + 1, len(losses)), -np.inf)
        for lag, t, d, da, e in self._losses_back():
            log10_state[lag, len(losses) - len(t) :] = log10_norm(d, e, axis=(1, 2))
            reached = t >= lag
            t, e = t[reached], e[reached]
            if t.size:
                log10_part[lag, len(losses) - len(t) :] = log10_norm(factor[t - lag] @ da, e, axis=(1, 2))
                part, exponent[lag] = _sum_of_products(da, e, h[t - lag])
                norm[lag] = math.sqrt(np.einsum("ij,ij", part, part))
        return norm, exponent, losses, log10_part, log10_state

    def _losses(self):
        """The steps that have a loss, (n,), and the gradients of the states after them, (n, B, N)."""
        (T, B, _), widths = self.tape.shape, state_widths(self.tape)
        d = np.zeros((T, B, sum(widths)))
        if self._d_out is not None:
            d[..., : widths[0]] = self._d_out
        for part, of_part in zip(self._d_state, np.split(d, np.cumsum(widths)[:-1], axis=-1)):
            if T and part is not None:
                of_part[-1] += part
        t = np.flatnonzero((d != 0).any(axis=(1, 2)))
        return t, d[t]

    def _losses_back(self):
        """Go back from the losses of all steps at once, lag by lag, so that one product with w_hh serves all.

        Yields, for lag = 0 .. T, of the losses that have not yet reached the initial state: ``(lag, t, d, da, e)`` with the
        steps t of the losses, ascending, their state gradients ``d`` (n, B, N) and exponents ``e`` (n,), and, for those with t >= lag,
        the gradients ``da`` of the pre-activations at step t - lag.
        """
        steps = self._linearise()
        t, d = self._losses()
        e = np.zeros(len(t), np.int64)
        with np.errstate(all="ignore"):
            for lag in range(len(self.tape) + 1):
                if not t.size:
                    return
                d, e = rescale(d, e, axis=(1, 2))
                reached = t >= lag
                before, da = steps.vjp(t[reached] - lag, d[reached])
                yield lag, t, d, da, e
                t, d, e = t[reached], before, e[reached]

    @property
    def by_lag(self) -> Float64s:
        """(T,): the norm of the part of dL/dw_hh that comes from steps ``lag`` before the loss, all losses together."""
        norm, exponent, *_ = self._by_lag
        return np.ldexp(norm, exponent)

    @property
    def log10_by_lag(self) -> Float64s:
        """(T,): log10 of `by_lag`, also where that under- or overflows."""
        norm, exponent, *_ = self._by_lag
        with np.errstate(divide="ignore"):
            return np.log10(norm) + exponent * LOG10_2

    @property
    def contributions(self) -> Float64s:
        """(T, T): row t, column k: the norm of what the loss at step t owes to step k in dL/dw_hh; 0 for k > t."""
        with np.errstate(over="ignore"):
            return 10.0**self.log10_contributions

    @cached_property
    def log10_contributions(self) -> Float64s:
        """(T, T): log10 of `contributions`."""
        _, _, losses, log10_part, _ = self._by_lag
        log10 = np.full((len(log10_part), len(log10_part)), -np.inf)
        for t, parts in zip(losses, log10_part.T):
            log10[t, : t + 1] = parts[t::-1]
        return log10

    def lag_gradients(self) -> Float64s:
        """The parts of dL/dw_hh by lag, (T, G*H, H): their sum over the first axis is dL/dw_hh.

        It is a large array, and computed anew at each call.
        """
        T = self.tape.shape[0]
        h = self.tape.h.astype(np.float64, copy=False)
        parts = np.zeros((T, *self.tape.w_hh.shape))
        for lag, t, _, da, e in self._losses_back():
            reached = t >= lag
            if reached.any():
                part, exponent = _sum_of_products(da, e[reached], h[t[reached] - lag])
                parts[lag] = np.ldexp(part, exponent)
        return parts

    @cached_property
    def log10_decay(self) -> Float64s:
        """(T+1,): log10 of the share of the state gradient that is left after so many steps back; it starts with 0.

        The share is the root mean square of ||dL_t / d state_{t-lag}||, over rows and over the losses that reach so far back, divided by
        that of the same losses at lag 0. NaN where no loss reaches.
        """
        _, _, losses, _, log10_state = self._by_lag
        decay = np.full(len(log10_state), np.nan)
        start = log10_state[0]
        for lag, now in enumerate(log10_state):
            reach = np.isfinite(start) & (losses >= lag - 1)
            if reach.any():
                decay[lag] = _log10_of_mean_square(now[reach]) - _log10_of_mean_square(start[reach])
        return decay

    @cached_property
    def log10_slope(self) -> float:
        """The decades that the gradient gains with every step back: the slope of a straight line through `log10_decay`.

        Least squares, from lag 1 on (an LSTM's first step back leads from h to c and is unlike the others), where each lag counts as many
        times as losses reach it. -inf if nothing is left anywhere; NaN if there is no gradient, or no step.
        """
        decay = self.log10_decay
        losses = self._by_lag[2]
        lags = np.flatnonzero(np.isfinite(decay))
        weight = len(losses) - np.searchsorted(losses, np.arange(len(decay)) - 1)
        if lags.size > 2:
            lags = lags[1:]
        if lags.size < 2:
            return -np.inf if np.isneginf(decay).any() else np.nan
        w = weight[lags] / weight[lags].sum()
        x, y = lags - w @ lags, decay[lags] - w @ decay[lags]
        return float((w * x) @ y / ((w * x) @ x))

    @property
    def half_life(self) -> float:
        """The number of steps back in which the gradient halves, log10(1/2) / `log10_slope`; inf if it does not decay."""
        slope = self.log10_slope
        return math.inf if slope >= 0 else math.log10(0.5) / slope

    @cached_property
    def verdict(self) -> Literal["vanishing", "stable", "exploding", "nonfinite"]:
        """ "vanishing", "stable", "exploding" or "nonfinite".

        It depends on how much the gradient changes over the whole sequence, by the line fitted for `log10_slope`: tenfold or more is
        exploding, to a tenth or less is vanishing. Gradients that end in exact zeros for all losses are vanishing too. With inf or NaN
        anywhere it is "nonfinite", and ``reason`` says where. Without any gradient, or without steps, it is "stable".
        """
        if self.reason is not None:
            return "nonfinite"
        decay = self.log10_decay[np.isfinite(self.log10_decay) | np.isneginf(self.log10_decay)]
        if len(decay) and np.isneginf(decay[-1]):
            return "vanishing"
        change = self.log10_slope * (len(decay) - 1)
        return "vanishing" if change <= -CHANGE else "exploding" if change >= CHANGE else "stable"

    def plot(self, path: FilePath, *, title: str | None = None) -> None:
        """Draw it: decay by lag, contributions, singular values, derivatives and Lyapunov exponents; see `fastbptt.pictures.plot_flow`.

        Parameters
        ----------
        path : str or path
            A .png, .svg or .pdf. It is written whole or not at all.
        title : str or None
            The first line; None says what the net is.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        OSError
            If the file cannot be written.
        ValueError
            If the name asks for another format, or there are no steps or rows to draw.
        """
        from ..pictures import plot_flow

        plot_flow(self, path, title=title)

    def __str__(self) -> str:
        return "\n  ".join([self.headline, self.setting, *self._norms()])

    @property
    def headline(self) -> str:
        return f"{self.verdict}: {self.finding}"

    @property
    def finding(self) -> str:
        if self.reason is not None:
            return self.reason
        reached = np.flatnonzero(~np.isnan(self.log10_decay))
        if len(reached) < 2:
            return "no gradient to look at" if not len(reached) else "no steps to look at"
        left = self.log10_decay[reached[-1]]
        if self.half_life > 1000 * len(self.log10_decay):
            doubling = LOG10_2 / self.log10_slope if self.log10_slope > 0 else math.inf
            rate = f"doubles every {doubling:.2g} steps" if self.verdict == "exploding" else "no decay"
        else:
            rate = f"half-life {self.half_life:.2g} steps"
        after = _plural(int(reached[-1]), "step")
        if self.verdict == "exploding":
            return f"{rate}; after {after} the gradient is {format_log10(left)} times as large"
        return f"{rate}; after {after} {format_log10(left)} of the gradient is left"

    @property
    def setting(self) -> str:
        T, B, H = self.tape.shape
        kind = f"{'' if self.tape.leak is None else 'leaky '}{CELLS[self.tape.cell].title(self.tape.nonlinearity)}"
        shares = self.saturated_gates
        each = "" if len(shares) == 1 else " (" + ", ".join(f"{gate} {share:.0%}" for gate, share in shares.items()) + ")"
        size = f"{_plural(T, 'step')}, {_plural(B, 'row')}, {_plural(H, 'unit')}"
        if self.tape.w_hr is not None:
            size += f" projected to {len(self.tape.w_hr)}"
        return f"{kind}: {size}; saturated: {self.saturated:.0%}{each}"

    def _norms(self):
        if not self.log10_state_norm.size:
            return []
        state = "h" if self.tape.c is None else "(h, c)"
        last, first = (_log10_of_sum_square(self.log10_state_norm[t]) for t in (-1, 0))
        return [f"|dL/d{state}| from {format_log10(last)} at the last step to {format_log10(first)} before the first"]

    def __repr__(self) -> str:
        return f"<GradientFlow of {self.tape!r}: {self.verdict}>"


def _plural(n, noun):
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _sum_of_products(da, e, h):
    """The sum over losses and rows of da h^T, as (matrix, exponent)."""
    top = e.max()
    return sum_of_products(np.ldexp(da, (e - top)[:, None, None]), h), top


def _log10_of_sum_square(log10):
    """log10 of the root of the sum of squares of 10**log10."""
    top = log10.max()
    if not np.isfinite(top):
        return float(top)
    return float(top + np.log10((10 ** (2 * (log10 - top))).sum()) / 2)


def _log10_of_mean_square(log10):
    return _log10_of_sum_square(log10) - math.log10(len(log10)) / 2
