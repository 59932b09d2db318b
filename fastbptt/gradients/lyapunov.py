"""Lyapunov exponents: the rates at which small differences between two states grow or die out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _checks
from .._typing import Float64s, Int
from .chain import chains
from .frames import change_units, random_frame, stretch
from .linearised import check_tape, linearise

if TYPE_CHECKING:
    from ..tape import Tape


class LyapunovSpectrum(NamedTuple):
    """What `lyapunov_spectrum` returns.

    Attributes
    ----------
    exponents : ndarray (B, k)
        In nats per step, descending.
    stderr : ndarray (B, k)
        The standard error of each exponent as a mean over time.
    """

    exponents: Float64s
    stderr: Float64s


def lyapunov_spectrum(tape: Tape, k: Int | None = None, *, burn_in: Int = 0, every: Int = 1) -> LyapunovSpectrum:
    r"""The Lyapunov exponents of a net along the sequences on its tape.

    .. math:: \lambda_i = \lim_{T \to \infty} \frac{1}{T} \ln \sigma_i(J_T \cdots J_2 J_1)

    A positive one means chaos and exploding gradients; if all are far below 0, gradients vanish at the rate of the largest. An orthonormal
    frame is pushed through the Jacobians and triangularised after each; the exponents are the time means of the logarithms of the
    diagonals (Benettin et al. 1980; Engelken, Wolf and Abbott 2023, "Lyapunov spectra of chaotic recurrent neural networks"). Where these
    authors take a QR decomposition at each step, here it is an LU decomposition, and Gram-Schmidt now and then, which in exact arithmetic
    gives the same means. Their sum is the mean of ``ln |det J_t|``. A tangent of which the elimination leaves no more than rounding, about
    N eps of what it subtracts, is lost: its exponent is -inf.

    Parameters
    ----------
    tape : Tape
        From any forward pass. Use inputs of zeros for an autonomous net. The state of an LSTM is (h, c), N = 2H, or P + H with a
        projection; otherwise N = H.
    k : int or None
        How many of the leading exponents; None means all N.
    burn_in : int
        Steps at the start that are left out of the means, while the state settles on its attractor and the frame aligns.
    every : int
        Steps from one decomposition to the next. In between, all tangents turn towards the fastest-growing one, and those that differ in
        growth by a factor of 2**52 can no longer be told apart; what overflows is inf or NaN.

    Returns
    -------
    LyapunovSpectrum
        ``exponents`` (B, k), descending, and ``stderr`` (B, k), from the means of up to 32 batches of successive steps, which allows for
        correlations shorter than a batch; NaN if there are fewer than 4 steps. Nats per step: divide by ln 2 for bits.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above, or no step is left after ``burn_in``.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> J = 0.5 * np.eye(3)
    >>> out, h_n, tape = fastbptt.rnn_forward(np.zeros((100, 1, 1)), None, np.zeros((3, 1)), J)   # h_t = tanh(J h_{t-1})
    >>> fastbptt.lyapunov_spectrum(tape).exponents.round(12)                                      # ln 0.5
    array([[-0.69314718, -0.69314718, -0.69314718]])
    """
    T, B, _ = check_tape(tape)
    burn_in = _checks.size("burn_in", burn_in, 0)
    if burn_in >= T:
        raise ValueError(f"burn_in: expected fewer than the tape's {T} steps, got {_checks.quoted(burn_in)}")
    every = _checks.size("every", every)
    steps = linearise(tape)
    k = steps.N if k is None else _checks.size("k", k)
    if k > steps.N:
        raise ValueError(f"k: expected at most the {steps.N} dimensions of the state, got {_checks.quoted(k)}")
    logs = np.empty((T - burn_in, B, k))
    for rows, chain in chains(steps, 0, T):
        logs[:, rows] = _growth(chain, T, k, burn_in, every)
    return time_means(logs)


def _growth(chain, T, k, burn_in, every):
    """The logarithms of growth of k tangents at each step after ``burn_in``."""
    steps = chain.steps
    frame = random_frame(steps.slopes.shape[1], k, steps.N)
    if chain.units is not None:
        change_units(frame, chain.units[0])
    stretch(chain, range(burn_in), frame, every)
    first, logs = frame.copy(), []
    for start, stop in pairwise([0, *batch_bounds(T - burn_in)]):  # frames are orthonormal at every bound, so that batches have exact means
        logs.append(stretch(chain, range(burn_in + start, burn_in + stop), frame, every))
    logs = np.concatenate(logs)
    if chain.units is not None:  # growth is from the state after burn_in to the last one, both unscaled
        logs[0] -= change_units(first, 1 / chain.units[chain.parts * burn_in])
    return logs


def batch_bounds(T):
    """Where the batches of successive steps for the standard error begin and end; the last one ends with the last step."""
    batches = min(32, math.isqrt(T))
    length = T // batches
    return range(T - batches * length, T + 1, length)


def time_means(logs):
    """The spectrum from the growth of every step, (T, B, k)."""
    T, B, k = logs.shape
    exponents, stderr = logs.mean(axis=0), np.full((B, k), np.nan)
    bounds = batch_bounds(T)
    with np.errstate(invalid="ignore"):  # exponents of -inf have no error
        if len(bounds) > 2:
            means = np.array([logs[start:stop].mean(axis=0) for start, stop in pairwise(bounds)])
            stderr = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    order = np.argsort(-exponents, axis=-1, kind="stable")
    return LyapunovSpectrum(*(np.take_along_axis(array, order, axis=-1) for array in (exponents, stderr)))
