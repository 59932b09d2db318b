"""Lyapunov exponents: the rates at which small differences between two states grow or die out."""

from typing import NamedTuple

import numpy as np

from . import _checks
from ._frames import random_frame, stretch
from .linearised import check_tape, linearise


class LyapunovSpectrum(NamedTuple):
    """What `lyapunov_spectrum` returns.

    Attributes
    ----------
    exponents : ndarray (B, k)
        In nats per step, descending.
    stderr : ndarray (B, k)
        The standard error of each exponent as a mean over time.
    """

    exponents: np.ndarray
    stderr: np.ndarray


def lyapunov_spectrum(tape, k=None, *, burn_in=0, every=1):
    r"""The Lyapunov exponents of a net along the sequences on its tape.

    .. math:: \lambda_i = \lim_{T \to \infty} \frac{1}{T} \ln \sigma_i(J_T \cdots J_2 J_1)

    A positive one is chaos and exploding gradients; if all are far below 0, gradients vanish at the rate of the largest. Computed by
    pushing an orthonormal frame through the steps' Jacobians and making it orthonormal again by QR decompositions; the exponents are the
    time means of ln |R_ii| (Benettin et al. 1980; Engelken, Wolf and Abbott 2023, "Lyapunov spectra of chaotic recurrent neural
    networks").

    Parameters
    ----------
    tape : Tape
        From any forward pass. Use inputs of zeros for an autonomous net. The state of an LSTM is (h, c), N = 2H; otherwise N = H.
    k : int or None
        How many of the leading exponents; None means all N.
    burn_in : int
        Steps at the start that are not averaged over: while the state comes to its attractor, and the frame into line.
    every : int or None
        Steps from one QR decomposition to the next. These take most of the time; but in between, all tangents lean towards the fastest
        one, and those that differ in growth by a factor of 2**52 can no longer be told apart. None chooses as it goes, as far apart as
        leaves every growth half of its digits: best for a few leading exponents, and safe for all.

    Returns
    -------
    LyapunovSpectrum
        ``exponents`` (B, k), descending, and ``stderr`` (B, k), by the means of up to 32 batches of successive steps, which allows for
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
        raise ValueError(f"burn_in: expected fewer than the tape's {T} steps, got {burn_in}")
    every = None if every is None else _checks.size("every", every)
    steps = linearise(tape)
    k = steps.N if k is None else _checks.size("k", k)
    if k > steps.N:
        raise ValueError(f"k: expected at most the {steps.N} dimensions of the state, got {k}")
    _, frame = stretch(steps.jvp, range(burn_in), random_frame(B, k, steps.N), every)
    logs, _ = stretch(steps.jvp, range(burn_in, T), frame, every)
    return time_means(logs)


def time_means(logs):
    """The spectrum from the growth of every step, (T, B, k)."""
    T, B, k = logs.shape
    exponents, stderr = logs.mean(axis=0), np.full((B, k), np.nan)
    batches = min(32, int(np.sqrt(T)))
    with np.errstate(invalid="ignore"):  # exponents of -inf have no error
        if batches > 1:
            length = T // batches
            means = logs[T - batches * length :].reshape(batches, length, B, k).mean(axis=1)
            stderr = means.std(axis=0, ddof=1) / np.sqrt(batches)
    order = np.argsort(-exponents, axis=-1, kind="stable")
    return LyapunovSpectrum(*(np.take_along_axis(array, order, axis=-1) for array in (exponents, stderr)))
