"""Penalties on gradients that shrink or grow on their way back through time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from .._typing import Array, F, Int, OptionalPair, Real
from ..cells import NONLINEARITIES, activations
from ..results import Gradients
from .frames import orthonormalise, random_frame
from .linearised import check_loss, check_tape, linearise, product, sum_of_products
from .state_gradients import squared_norm, state_gradients

if TYPE_CHECKING:
    from ..tape import Tape


def omega(
    tape: Tape[F], d_out: Array[F] | None, d_state: Array[F] | OptionalPair[F] | None = None, *, least: Real = 1e-10
) -> tuple[float, Array[F]]:
    r"""The vanishing-gradient regulariser of Pascanu, Mikolov and Bengio 2013, and its immediate derivative.

    It penalises every step that changes the norm of the gradient passing through it: with :math:`d_t = \mathrm{d}L/\mathrm{d}h_t` and
    the step's Jacobian J_t,

    .. math::
        \Omega = \frac{1}{n} \sum_{t=1}^{T} \sum_b \left(\frac{\|J_t^\top d_t\|^2}{\|d_t\|^2} - 1\right)^2, \qquad
        J_t^\top d_t = W_{hh}^\top (f'(a_t) \odot d_t)

    over all steps and rows with a gradient, n of them. This is equation 10 of the paper, with ratios of squared norms as in the authors'
    program; equation 9 has norms that are not squared. As there, the derivative is immediate: d_t and f'(a_t) are held constant.

    Parameters
    ----------
    tape : Tape
        Of any cell; the Jacobian of an LSTM's step is from (h, c) to (h, c).
    d_out : ndarray (T, B, H) or None
        dL/d out, as for the backward pass.
    d_state : ndarray (B, H), or of an LSTM a pair of them, or None
        dL/d h_n, or (dL/d h_n, dL/d c_n).
    least : float
        Steps with ||d_t|| below it are left out. The default is that of the authors' program; with 0, gradients count however small,
        since only their direction matters.

    Returns
    -------
    value : float
    d_w_hh : ndarray (G*H, H)
        To be added, times a weight, to the gradient of ``w_hh``; of its dtype.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `gradient_flow`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> x, w_ih, w_hh = np.ones((32, 1, 1)), np.ones((1, 1)), np.full((1, 1), 0.5)
    >>> out, h_n, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh, nonlinearity="identity")
    >>> value, d_w_hh = fastbptt.omega(tape, None, np.ones((1, 1)))      # L = h_n.sum()
    >>> value, d_w_hh.item()                                             # (w**2 - 1)**2 and 4 w (w**2 - 1)
    (0.5625, -1.5)
    """
    d_out, d_state = check_loss(tape, d_out, d_state)
    least = _checks.number("least", least, 0)
    squared, counts, z, da = _passage(tape, d_out, d_state, least)
    n, H = np.count_nonzero(counts), tape.w_hh.shape[1]
    if not n:
        return 0.0, np.zeros_like(tape.w_hh)
    with np.errstate(all="ignore"):
        # r = (|z|^2 / |d|^2 - 1)^2, and the first H elements of z are d_keep + W_hh^T da
        q = np.where(counts, squared_norm(z) / squared, 1.0)
        value = ((q - 1) ** 2).sum() / n
        d_z = z[..., :H]
        d_z *= np.where(counts, 4 * (q - 1) / (squared * n), 0.0)[..., None]
        da = da if counts.all() else np.where(counts[..., None], da, 0.0)
        return float(value), sum_of_products(da, d_z).astype(tape.w_hh.dtype, copy=False)


def _passage(tape, d_out, d_state, least):
    """Gradients before and after each step, scaled so that they neither under- nor overflow.

    Returns
    -------
    squared : ndarray (T, B)
        ||d_t||^2, each times a power of two of its own.
    counts : bool ndarray (T, B)
        Where ||d_t|| is at least ``least``, and not 0.
    z : ndarray (T, B, N)
        J_t^T d_t, times the root of that power.
    da : ndarray (T, B, G*H)
        The gradient of W_hh h_{t-1} + b_hh, likewise.
    """
    gradients = state_gradients(tape, d_out, d_state)
    dh, dc, da, _, squares = gradients
    d, squared = (dh if dc is None else np.concatenate([dh, dc], axis=-1))[1:], squares[1:]
    with np.errstate(all="ignore"):
        counts = gradients.log10_state_norm()[1:] >= (np.log10(least) if least else -np.finfo(float).max)
        if tape.cell != "rnn":
            return squared, counts, *linearise(tape).vjp(slice(None), d)
        z = product(da, tape.w_hh.T.astype(np.float64, order="C"))
        return squared, counts, z if tape.leak is None else z + (1 - tape.leak.astype(np.float64)) * d, da


def gradient_flossing(tape: Tape[F], k: Int | None = None, *, target: Real = 0.0, burn_in: Int = 0) -> tuple[float, Gradients[F, Array[F]]]:
    r"""Gradient flossing (Engelken 2023): keep the leading Lyapunov exponents of an RNN near a target, and its exact derivative.

    .. math:: L = \frac{1}{B k} \sum_b \sum_{i=1}^k (\lambda_{b,i} - \mathrm{target})^2, \qquad
        \lambda_i = \frac{1}{T} \sum_t \ln |R_{t,ii}|, \qquad Q_t R_t = J_t Q_{t-1}

    Exponents of 0 let gradients pass over many steps without vanishing or exploding. The derivative goes back through the QR
    decompositions, the Jacobians and the states, as automatic differentiation would.

    Parameters
    ----------
    tape : Tape
        Of `rnn_forward`; with a leak or without.
    k : int or None
        How many exponents; None means all H.
    target : float
        In nats per step.
    burn_in : int
        Steps at the start whose growth is not counted, while the frame aligns.

    Returns
    -------
    value : float
    grads : Gradients
        As of the backward pass, in the tape's dtype.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `lyapunov_spectrum`; or if the tape is not that of an RNN.
    FloatingPointError
        If a step reduces one of the k directions to rounding errors or subnormal numbers, as where a ReLU is off and k is H: an exponent
        of -inf has no derivative.

    Notes
    -----
    The frames of all steps are kept: T * B * k * (H + k) numbers.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w_hh = np.full((1, 1), 0.5)
    >>> out, h_n, tape = fastbptt.rnn_forward(np.ones((10, 1, 1)), None, np.ones((1, 1)), w_hh, nonlinearity="identity")
    >>> value, grads = fastbptt.gradient_flossing(tape)
    >>> np.allclose([value, grads.w_hh.item()], [np.log(0.5) ** 2, 2 * np.log(0.5) / 0.5])
    True
    """
    T, B, H = check_tape(tape)
    if tape.cell != "rnn":
        raise ValueError(f"tape: expected the tape of rnn_forward, got that of {tape.cell}_forward")
    k = H if k is None else _checks.size("k", k)
    if k > H:
        raise ValueError(f"k: expected at most the {H} units, got {_checks.quoted(k)}")
    target, burn_in = _checks.number("target", target, -np.inf), _checks.size("burn_in", burn_in, 0)
    if burn_in >= T:
        raise ValueError(f"burn_in: expected fewer than the tape's {T} steps, got {_checks.quoted(burn_in)}")

    with np.errstate(all="ignore"):
        steps = linearise(tape)
        h, w_hh, w_ih = (array.astype(np.float64, copy=False) for array in (tape.h, tape.w_hh, tape.w_ih))
        x = np.eye(w_ih.shape[1])[tape.x] if tape.x.ndim == 2 else tape.x.astype(np.float64, copy=False)
        leak = 1.0 if tape.leak is None else tape.leak.astype(np.float64)
        f_a = activations(tape).astype(np.float64, copy=False)
        curvature = NONLINEARITIES[tape.nonlinearity].curvature(f_a, steps.gate_slopes)
        frames, triangles = [random_frame(B, k, H)], []
        for t in range(T):
            v = steps.jvp(t, frames[-1])
            q, r = orthonormalise(v)
            _require_rank(t, r, v)
            frames.append(q)
            triangles.append(r)
        growth = np.abs(np.diagonal(triangles[burn_in:], axis1=2, axis2=3))
        exponents = np.log(growth).mean(axis=0)
        d_log = 2 * (exponents - target) / (exponents.size * (T - burn_in))

        # v^T = q^T r at every step. Adding multiples of earlier tangents to a tangent changes no r_ii, and its length cancels from one step
        # to the next. So of the derivative of the decompositions only r^-1 remains, with a term at the last frame and one at the first.
        dw_hh, da, dh = np.zeros_like(w_hh), np.empty((T, B, H)), np.zeros((B, H))
        dq = d_log[..., None] * frames[T]
        for t in reversed(range(T)):
            dv = np.linalg.solve(triangles[t], dq)
            # v = keep q_before + slopes (q_before w_hh^T), with slopes = leak f'(a)
            q = frames[t]
            dw_hh += (steps.slopes[t][:, None] * dv).reshape(-1, H).T @ q.reshape(-1, H)
            da[t] = leak * curvature[t] * (dv * (q @ w_hh.T)).sum(axis=1)
            dq = steps.vjp_rows(t, dv)
            if t == burn_in:
                dq -= d_log[..., None] * q
            # h_t = keep h_{t-1} + leak f(a)
            dh, through_state = steps.vjp(t, dh)
            dh += da[t] @ w_hh
            da[t] += through_state
        rows = da.reshape(-1, H)
        dw_hh += rows.T @ h[:-1].reshape(-1, H)
        grads = Gradients(
            da @ w_ih if tape.x.ndim == 3 else None,
            dh,
            rows.T @ x.reshape(-1, x.shape[-1]),
            dw_hh,
            None if tape.b_ih is None else rows.sum(axis=0),
            None if tape.b_hh is None else rows.sum(axis=0),
        )
        value = float(((exponents - target) ** 2).mean()) if B else 0.0
        in_dtype: list[Any] = [None if grad is None else grad.astype(tape.h.dtype, copy=False) for grad in grads]
        return value, Gradients(*in_dtype)


def _require_rank(t, r, v):
    """FloatingPointError if a diagonal element of r (B, k, k), the triangular factor of v^T, is 0 up to rounding."""
    v = np.abs(v)
    k, eps, tiny = v.shape[1], np.finfo(float).eps, np.finfo(float).tiny
    largest = np.fmin(-np.sort(-v.max(axis=1), axis=-1)[:, :k], v.max(axis=2))  # of the i-th largest row of v^T, and of tangent i
    left = np.abs(np.diagonal(r, axis1=1, axis2=2))
    lost = np.argwhere(np.isfinite(largest) & ((left <= v.shape[2] * eps * largest) | (left < tiny)))
    if lost.size:
        b, i = lost[0]
        raise FloatingPointError(
            f"tape: step {t} leaves nothing of direction {i} of row {b}, so that its exponent is -inf and has no derivative"
            + (f"; with k = {i} it would not be looked at" if i else "")
        )
