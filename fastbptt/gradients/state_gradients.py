"""The gradients of all states and pre-activations of a tape, however small or large they are."""

from typing import NamedTuple

import numpy as np

from .._kernels import kernels, memory
from ..tape import kernel_arguments, state_widths
from .linearised import linearise

FLOAT64 = np.dtype(np.float64)
COMFORT = 2.0**200  # a row stays between 1 / COMFORT and COMFORT: its square is far from under- and overflow, and so is one step's growth


class StateGradients(NamedTuple):
    """What `state_gradients` returns, in float64.

    The gradients are ``dh[t] * 2.0**exponent[t]``, ``dc[t] * 2.0**exponent[t]`` and ``da[t] * 2.0**exponent[t+1]``, for each row.

    Attributes
    ----------
    dh : ndarray (T+1, B, P)
        dL/dh_t.
    dc : ndarray (T+1, B, H) or None
        Of an LSTM dL/dc_t, where h_t is a variable beside c_t.
    da : ndarray (T, B, G*H)
        The gradient of W_hh h_t + b_hh.
    exponent : int64 ndarray (T+1, B)
    squares : ndarray (T+1, B)
        The squared norms of dh and dc together.
    """

    dh: np.ndarray
    dc: np.ndarray | None
    da: np.ndarray
    exponent: np.ndarray
    squares: np.ndarray

    def log10_state_norm(self):
        """(T+1, B): of dh, or of dh and dc as one."""
        if _comfortable(self.squares):
            return _log10_root(self.squares, self.exponent)
        return log10_norm(self.dh if self.dc is None else np.concatenate([self.dh, self.dc], axis=-1), self.exponent)

    def log10_preactivation_norm(self):
        """(T, B): of da."""
        return log10_norm(self.da, self.exponent[1:])


def state_gradients(tape, d_out, d_state):
    """Backpropagation through time, keeping the gradient of every state, with an exponent of its own for every row of every step.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (T, B, P) or None
    d_state : tuple of ndarrays (B, P), (B, H) or Nones
        Of h_n; or of h_n and c_n.

    Returns
    -------
    StateGradients
    """
    return _by_kernel(tape, d_out, d_state) or _with_exponents(tape, d_out, d_state)


def _by_kernel(tape, d_out, d_state):
    """The same from the backward pass itself, all exponents 0; None if a gradient is too small or too large for that."""
    T, B, _ = tape.shape
    if not T * B:
        return None
    numbers, arrays = kernel_arguments(tape)
    *arrays, w_hr = (None if array is None else np.ascontiguousarray(array, FLOAT64) for array in (*arrays, d_out, tape.w_hr))
    d_state = _whole(d_state, tape)
    dh, dc = (memory.empty(history.shape, FLOAT64) if history is not None else None for history in (tape.h, tape.c))
    da = memory.empty((T, B, len(tape.w_hh)), FLOAT64)
    d_h, d_c = d_state if len(d_state) == 2 else (*d_state, None)
    kernels[FLOAT64].state_gradients(*numbers, *arrays, d_h, d_c, dh, dc, da, w_hr)
    squares = _squares(dh, dc)
    if not _comfortable(squares):
        # some may have left the range: a zero, too, that comes before something else on the way back, or is but a small square
        nothing_yet = np.logical_and.accumulate(squares[::-1] == 0)[::-1]
        if not _comfortable(squares[~nothing_yet]) or dh[nothing_yet].any():
            return None
    return StateGradients(dh, dc, da, np.zeros((T + 1, B), np.int64), squares)


def _with_exponents(tape, d_out, d_state):
    T, B, _ = tape.shape
    steps = linearise(tape)
    states = np.zeros((T + 1, B, steps.N))
    da = np.empty((T, B, len(tape.w_hh)))
    exponent = np.zeros((T + 1, B), np.int64)
    d = np.concatenate(_whole(d_state, tape), axis=-1)
    e = exponent[T]
    with np.errstate(all="ignore"):
        for t in reversed(range(T + 1)):
            if t < T:
                d, da[t] = steps.vjp(t, d)
            if t and d_out is not None:
                d, e = _plus(d, e, d_out[t - 1], steps.P)
            d, e = rescale(d, e)
            states[t], exponent[t] = d, e
    dh, dc = states[..., : steps.P], states[..., steps.P :] if steps.N > steps.P else None
    return StateGradients(dh, dc, da, exponent, _squares(dh, dc))


def _whole(d_state, tape):
    """Copies of the parts of a state's gradient, zeros for None."""
    B, widths = tape.shape[1], state_widths(tape)
    return [np.zeros((B, width)) if part is None else part.astype(FLOAT64) for part, width in zip(d_state, widths)]


def rescale(d, e, axis=-1):
    """The same numbers ``d * 2.0**e`` with the exponents chosen anew where d has become uncomfortably small or large.

    ``axis`` are the axes of ``d`` that share an exponent.
    """
    largest = np.abs(d).max(axis=axis, initial=0.0)
    unfit = ((largest > COMFORT) & (largest < np.inf)) | ((largest < 1 / COMFORT) & (largest > 0))
    if not unfit.any():
        return d, e
    shift = np.where(unfit, np.frexp(largest)[1], 0)
    return np.ldexp(d, -np.expand_dims(shift, axis)), e + shift


def _plus(d, e, d_out, P):
    """``d * 2.0**e + d_out``, of which the second is only about h."""
    if e.any():
        largest = np.abs(d_out).max(axis=-1, initial=0.0)
        common = np.maximum(e, np.where(largest < 1 / COMFORT, np.frexp(largest)[1], 0))
        common = np.where(largest == 0, e, common)
        d = np.ldexp(d, (e - common)[:, None])
        d_out, e = np.ldexp(d_out.astype(np.float64), -common[:, None]), common
    else:
        d = d.copy()
    d[:, :P] += d_out
    return d, e


def squared_norm(vectors):
    return np.einsum("...i,...i->...", vectors, vectors)


def _squares(dh, dc):
    with np.errstate(all="ignore"):
        return squared_norm(dh) if dc is None else squared_norm(dh) + squared_norm(dc)


def _comfortable(squares):
    return not squares.size or (squares.min() > COMFORT**-2 and squares.max() < COMFORT**2)


def _log10_root(squares, exponent):
    log10 = np.log10(squares) / 2
    return log10 + exponent * np.log10(2.0) if exponent.any() else log10


def log10_norm(d, exponent, axis=-1):
    """log10 of the 2-norms of ``d * 2.0**exponent`` along ``axis``; -inf for 0."""
    with np.errstate(all="ignore"):
        if axis == -1 and _comfortable(squares := squared_norm(d)):
            return _log10_root(squares, exponent)
        largest = np.abs(d).max(axis=axis, initial=0.0)
        scale = np.where((largest > 0) & (largest < np.inf), largest, 1.0)
        squares = ((d / np.expand_dims(scale, axis)) ** 2).sum(axis=axis)
        return np.log10(scale) + np.log10(squares) / 2 + exponent * np.log10(2.0)
