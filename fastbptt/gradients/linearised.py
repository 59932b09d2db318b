"""One step of each cell, linearised: what a small change of the state before the step does to the state after it.

Every cell turns W_hh h_{t-1}, G blocks of H numbers, into the next state, and keeps a share of the old one. To first order

    dh_t = keep dh_{t-1} + sum over g of slopes_g W_g dh_{t-1}                                                         (RNN, GRU)
    dc_t = keep dc_{t-1} + sum over i, f, g of slopes_g W_g dh_{t-1},    dh_t = show dc_t + slopes_o W_o dh_{t-1}      (LSTM)

with element-wise factors that depend on the step, and with g the blocks of the cell's gates. So a cell is three arrays; what is done with
them is written once. If an LSTM has a projection, dh_t is W_hr times what stands here, and has P numbers for H units.
"""

import numpy as np

from .. import _checks
from .._kernels import kernels, memory
from ..cells import CELLS, NONLINEARITIES
from ..functional import parts_of, state_arrays
from ..tape import Tape, require_tape, state_widths


class Linearised:
    """The steps of a tape, linearised around its states, in float64.

    The state is h, P numbers, or of an LSTM h and c side by side; N is its size. Steps are counted from 0: step t leads from state t to state t + 1,
    and wherever a step is asked for, an index array of n steps may stand, which puts an axis n before the batch.

    Attributes
    ----------
    keep : ndarray (T, B, H) or None
    slopes : ndarray (T, B, G*H)
    show : ndarray (T, B, H) or None
        The factors of the equations above; ``keep`` is None (0) for a plain RNN, ``show`` but for an LSTM.
    gate_slopes : ndarray (T, B, G*H)
        The derivative of each nonlinearity at its argument.
    w_hh, w_hr : ndarray (G*H, P), ndarray (P, H) or None
    """

    def __init__(self, w_hh, keep, slopes, show, gate_slopes, w_hr=None):
        self.w_hh, self.w_hh_t = w_hh, np.ascontiguousarray(w_hh.T)
        self.w_hr, self.w_hr_t = w_hr, None if w_hr is None else np.ascontiguousarray(w_hr.T)
        self.keep, self.slopes, self.show, self.gate_slopes = keep, slopes, show, gate_slopes
        self.P = w_hh.shape[1]
        self.H = self.P if w_hr is None else w_hr.shape[1]
        self.N = self.P if show is None else self.P + self.H

    def rows(self, rows):
        """The same steps for some rows of the batch."""
        parts = (
            None if part is None else np.ascontiguousarray(part[:, rows]) for part in (self.keep, self.slopes, self.show, self.gate_slopes)
        )
        return Linearised(self.w_hh, *parts, self.w_hr)

    def vjp(self, t, d):
        """Take gradients with respect to state t + 1 back to state t.

        Parameters
        ----------
        t : int or integer ndarray (n,) or slice
        d : ndarray (..., B, N)

        Returns
        -------
        d_before : ndarray (..., B, N)
        da : ndarray (..., B, G*H)
            The gradient of W_hh h_t + b_hh. That of w_hh is the sum of ``da.T @ h[t]`` over the steps.
        """
        H, slopes = self.H, self.slopes[t]
        if self.show is None:
            gates = slopes.shape[-1] // H
            da = (d if gates == 1 else np.concatenate([d] * gates, axis=-1)) * slopes
            d_before = product(da, self.w_hh_t)
            if self.keep is not None:
                d_before += self.keep[t] * d
            return d_before, da
        d_shown, dc = d[..., : self.P], d[..., self.P :]
        if self.w_hr is not None:
            d_shown = product(d_shown, self.w_hr_t)
        dc = dc + d_shown * self.show[t]
        da = np.concatenate([dc, dc, dc, d_shown], axis=-1)
        da *= slopes
        return np.concatenate([product(da, self.w_hh_t), self.keep[t] * dc], axis=-1), da

    def vjp_rows(self, t, d):
        """`vjp` of k gradients for each row of the batch, (B, k, N) as for `jvp`; (B, k, N)."""
        return self.vjp(t, d.swapaxes(0, 1))[0].swapaxes(0, 1)

    def jvp(self, t, v):
        """Take changes of state t to the changes of state t + 1 that they cause: k of them, as rows.

        Parameters
        ----------
        t : int
        v : ndarray (B, k, N)

        Returns
        -------
        ndarray (B, k, N)
        """
        if self.show is not None:
            return self.jvp_shown(t, self.jvp_gates(t, v))
        da = self._pre_activations(t, v)
        gates = da.shape[-1] // self.H
        after = da if gates == 1 else da.reshape(*v.shape[:-1], gates, self.H).sum(axis=-2)
        if self.keep is not None:
            after += self.keep[t][:, None] * v
        return after

    def jvp_gates(self, t, v):
        """Of an LSTM, `jvp` to (u, dc_t) alone, with u = slopes_o W_o dh_{t-1}, projected."""
        H, da = self.H, self._pre_activations(t, v)
        dc = self.keep[t][:, None] * v[..., self.P :] + da[..., : 3 * H].reshape(*v.shape[:-1], 3, H).sum(axis=-2)
        return np.concatenate([self._projected(da[..., 3 * H :]), dc], axis=-1)

    def jvp_shown(self, t, v):
        """Of an LSTM, the rest of `jvp`: dh_t = u + show dc_t, the second projected."""
        u, dc = v[..., : self.P], v[..., self.P :]
        return np.concatenate([u + self._projected(self.show[t][:, None] * dc), dc], axis=-1)

    def _projected(self, shown):
        return shown if self.w_hr is None else product(shown, self.w_hr)

    def _pre_activations(self, t, v):
        """What a change of h does to them, times the slopes."""
        da = product(v[..., : self.P], self.w_hh)
        da *= self.slopes[t][:, None]
        return da

    def by_halves(self, span, show):
        """What the kernel `carry` asks for, which knows of no projection: the slopes by halves of the state and gates, (T, B, N / H, G, H), and what goes past the gates.

        Parameters
        ----------
        span : slice
            The steps; T in number.
        show : bool
            Of an LSTM, whether show dc_t is to be added to dh_t.
        """
        slopes, keep = self.slopes[span], None if self.keep is None else self.keep[span]
        T, B, width = slopes.shape
        gates = width // self.H
        slopes = slopes.reshape(T, B, 1, gates, self.H)
        if self.show is None:
            return slopes, None if keep is None else np.ascontiguousarray(keep)
        both = np.zeros((T, B, 2, gates, self.H))
        both[:, :, 1, :3] = slopes[:, :, 0, :3]
        both[:, :, 0, 3] = slopes[:, :, 0, 3]
        if not show:
            return both, np.concatenate([np.zeros_like(keep), keep], axis=-1)
        with np.errstate(all="ignore"):
            both[:, :, 0, :3] = self.show[span][:, :, None] * slopes[:, :, 0, :3]
            return both, np.concatenate([self.show[span] * keep, keep], axis=-1)

    def jacobian(self, t):
        """The matrix of step t, d state_{t+1} / d state_t: (B, N, N)."""
        B = self.slopes.shape[1]
        columns = self.jvp(t, np.broadcast_to(np.eye(self.N), (B, self.N, self.N)))
        return columns.swapaxes(1, 2)


def linearise(tape):
    """The steps of a tape, linearised in float64 at the states on it.

    Derivatives are taken at the pre-activations, which are computed anew from the states: 1 - h^2 has no digits left where h is near 1,
    and it is the product of such derivatives that is looked at here.

    Returns
    -------
    Linearised
    """
    check_tape(tape)
    w_hh = tape.w_hh.astype(np.float64, copy=False)
    w_hr = None if tape.w_hr is None else tape.w_hr.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):  # what is not finite is found, and named, by whoever looks at the result
        return Linearised(w_hh, *CELLS[tape.cell].derivatives(tape, *_pre_activations(tape, w_hh)), w_hr)


def slopes_by_gate(tape, steps):
    """Pairs of each gate and the derivatives of its nonlinearity, (T, B, H), as shares of the steepest that they can be."""
    gates = CELLS[tape.cell].gates
    for gate, slopes in zip(gates, np.split(steps.gate_slopes, len(gates), axis=-1)):
        yield gate, slopes / NONLINEARITIES[gate.nonlinearity or tape.nonlinearity].steepest


def check_tape(tape):
    """(T, B, H) of a tape whose arrays are still what the forward pass saw."""
    if not isinstance(tape, Tape) or tape.cell is None:
        raise TypeError(f"tape: expected the tape of a forward pass, got {_checks.describe(tape)}")
    if tape.ragged:
        raise ValueError("tape: expected rows of one length that were never reset; tape.row(b) is the tape of row b alone")
    return require_tape(tape, tape.cell)[0]


def check_loss(tape, d_out, d_state):
    """The gradients that a loss has at the outputs and at the final state, as the kernels want them; the second as a tuple."""
    (T, B, _), widths = check_tape(tape), state_widths(tape)
    if d_out is not None:
        d_out = _checks.array("d_out", d_out, (T, B, widths[0]), tape.h.dtype)
    return d_out, tuple(state_arrays(parts_of(CELLS[tape.cell], "d_state", d_state), (B,), widths, tape.h.dtype))


def _pre_activations(tape, w_hh):
    """Both halves for all steps: W_ih x_t + b_ih and W_hh h_{t-1} + b_hh, (T, B, G*H) each."""
    w_ih = tape.w_ih.astype(np.float64, copy=False)
    a_x = w_ih.T[tape.x] if tape.x.ndim == 2 else product(tape.x.astype(np.float64, copy=False), w_ih)
    a_h = product(tape.h[:-1].astype(np.float64, copy=False), w_hh)
    if tape.b_ih is not None:
        a_x = a_x + tape.b_ih
    if tape.b_hh is not None:
        a_h += tape.b_hh
    return a_x, a_h


def product(rows, w):
    """``rows @ w.T`` as one product, whatever the leading axes."""
    out = memory.empty((*rows.shape[:-1], len(w)), np.dtype(np.float64))
    if out.size:
        rows = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1])
        kernels[out.dtype].linear_forward(rows, w, None, out.reshape(-1, len(w)))
    return out


def sum_of_products(a, b):
    """The sum of ``a^T b`` over all leading axes, (M, N) of (..., M) and (..., N).

    By the kernels' own product, here and in `product`: after one by NumPy, BLAS's threads stay awake for a while, in the way of ours.
    """
    total = np.zeros((a.shape[-1], b.shape[-1]))
    if total.size and a.size:
        a, b = (np.ascontiguousarray(part).reshape(-1, part.shape[-1]) for part in (a, b))
        kernels[total.dtype].linear_backward(x=b, w=None, d_out=a, dx=None, dw=total, db=None)
    return total
