"""Logarithms of the norms and singular values of products of Jacobians; and when gradients must vanish."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _checks
from .._typing import Array, Float64s, Int, Nonlinearity
from ..cells import NONLINEARITIES
from .chain import chains
from .frames import KERNELS
from .linearised import check_tape, linearise

if TYPE_CHECKING:
    from ..tape import Tape

EPS = np.finfo(np.float64).eps


def jacobian_product_norms(tape: Tape, *, since: Int | None = None, until: Int | None = None) -> Float64s:
    """Spectral norms ||d state_t / d state_k||_2 of the products of Jacobians, from a fixed state on or up to one.

    Parameters
    ----------
    tape : Tape
        From any forward pass. State 0 is the initial one; the state of an LSTM is (h, c).
    since : int or None
        k, for the norms of all t >= k: how much a change of state k matters later. 0 if neither is given.
    until : int or None
        t, for the norms of all k <= t: how far back the gradient of a loss at state t can reach. Not together with ``since``.

    Returns
    -------
    ndarray (T + 1 - since, B), or (until + 1, B)
        Natural logarithms, ascending in time, of t = since .. T or of k = 0 .. until; that of a state with itself is 0. Finite far beyond
        the range of floating-point numbers; -inf where a product is 0. Divide by ln 10 for decimal ones.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.

    See Also
    --------
    log_singular_values : all of them, of one product.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w_hh = np.array([[0.0, 0.01], [0.01, 0.0]])
    >>> out, h_n, tape = fastbptt.rnn_forward(np.zeros((200, 1, 1)), None, np.zeros((2, 1)), w_hh, nonlinearity="identity")
    >>> (fastbptt.jacobian_product_norms(tape)[[0, 1, 200], 0] / np.log(10)).round(9)            # powers of 0.01
    array([   0.,   -2., -400.])
    """
    T, B, _ = check_tape(tape)
    if since is not None and until is not None:
        raise ValueError("until: expected None together with since, or the other way round")
    steps = linearise(tape)
    product = np.ascontiguousarray(np.broadcast_to(np.eye(steps.N), (B, steps.N, steps.N)))
    if until is None:
        since = 0 if since is None else _step("since", since, 0, T)
        path = [(steps.jvp, t) for t in range(since, T)]
    else:
        path = [(steps.vjp_rows, t) for t in reversed(range(_step("until", until, 0, T)))]
    norms, exponent = [np.zeros(B)], np.zeros(B)
    with np.errstate(all="ignore"):
        for push, t in path:
            product = push(t, product)
            shift = np.frexp(np.abs(product).max(axis=(1, 2), initial=0.0))[1]
            product = np.ldexp(product, -shift[:, None, None])
            exponent = exponent + shift
            norms.append(np.log(_spectral_norm(product)) + exponent * math.log(2))
    return np.array(norms if until is None else norms[::-1])


def log_singular_values(tape: Tape, start: Int = 0, stop: Int | None = None) -> Float64s:
    """The singular values of d state_stop / d state_start, the product of the Jacobians of the steps between.

    Parameters
    ----------
    tape : Tape
        From any forward pass. State 0 is the initial one; the state of an LSTM is (h, c), N = 2H, or P + H with a projection; otherwise
        N = H.
    start, stop : int
        0 <= start <= stop <= T; ``stop`` None means T.

    Returns
    -------
    ndarray (B, N)
        Natural logarithms, descending. Finite far beyond the range of floating-point numbers; -inf for a singular value of 0. Small ones
        are as accurate as large ones; computed from the product itself, they would be lost in the rounding errors of the large ones.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.

    Notes
    -----
    The product is never formed. That of the steps so far is kept as X D Y, with D diagonal, in logarithms, and X and Y well-conditioned;
    the next step is applied to Y, and the result is brought back to that form by elimination with complete pivoting. Such a product
    determines even its smallest singular values to nearly all digits (Demmel, Gu, Eisenstat, Slapnicar, Veselic and Drmac 1999, "Computing
    the singular value decomposition with high relative accuracy"): a QR decomposition turns it into a matrix of graded rows, and one-sided
    Jacobi rotations (de Rijk 1989), computed from the ratios of the scales, do the rest.

    A difference that is no larger than the rounding of its terms, about N eps of them, counts as 0. So does an f'(a) below the floating
    range (2e-308), as that of a tanh beyond ``|a|`` = 354. Rows and columns of a step may have any scales within that range. Elements that
    differ by tens of powers of ten otherwise than by row and column can cost digits of the smallest values.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> w_hh = np.diag([2.0, 0.01])
    >>> out, h_n, tape = fastbptt.rnn_forward(np.zeros((200, 1, 1)), None, np.zeros((2, 1)), w_hh, nonlinearity="identity")
    >>> (fastbptt.log_singular_values(tape, 0, 200) / np.log(10)).round(6)                       # 2**200 and 0.01**200
    array([[  60.205999, -400.      ]])
    """
    T, B, _ = check_tape(tape)
    stop = T if stop is None else _step("stop", stop, 0, T)
    start = _step("start", start, 0, stop)
    steps = linearise(tape)
    if start == stop:
        return np.zeros((B, steps.N))
    logs = np.empty((B, steps.N))
    with np.errstate(all="ignore"):
        for rows, chain in chains(steps, start, stop):
            logs[rows] = _log_singular_values_of_chain(chain)
    return logs


def _log_singular_values_of_chain(chain):
    """As `log_singular_values`, (B, N)."""
    N, B = chain.steps.N, chain.steps.slopes.shape[1]
    x, logs = np.broadcast_to(np.eye(N), (B, N, N)), np.zeros((B, N))
    v = chain.enter(x)
    for i in range(len(chain) + 1):
        x, logs, v = _factorised(x, logs, chain.push(i - 1, v) if i else v)
    order = np.argsort(-logs, axis=-1, kind="stable")
    x, logs, v = _columns(x, order), np.take_along_axis(logs, order, axis=1), np.take_along_axis(v, order[..., None], axis=1)
    return _log_singular_values_of_rows(*_times_graded(np.linalg.qr(x, mode="r"), v, logs))


def _factorised(x, logs, v):
    """``x @ diag(exp(logs)) @ v`` in the same form, with v after elimination: each row is 0 at the pivots of those before it."""
    v, logs, order = np.array(v, order="C"), logs.copy(), np.empty(logs.shape, np.intp)
    c, growth = np.zeros(v.shape), np.empty(logs.shape)
    KERNELS.factorise(v, logs, order, c, growth)
    ratio = (np.log(np.abs(c)) - growth[:, None]) + (logs[..., None] - logs[:, None])
    logs = logs + growth
    kept = (c != 0) & ~np.isneginf(logs)[:, None]
    return _columns(x, order) @ np.where(kept, np.sign(c) * np.exp(ratio), 0.0), logs, v


def _columns(x, order):
    return np.take_along_axis(x, order[:, None], axis=2)


class VanishingCondition(NamedTuple):
    """What `vanishing_condition` returns; print it for a sentence.

    Attributes
    ----------
    sigma_max, spectral_radius : float
        The largest singular value of w_hh, and the largest magnitude of its eigenvalues.
    gamma : float
        The steepest slope of the nonlinearity: 1 for tanh, ReLU and identity, 1/4 for sigmoid.
    must_vanish : bool
        Whether sigma_max < 1 / gamma, which is enough for gradients to vanish.
    may_explode : bool
        Whether sigma_max > 1 / gamma, without which gradients cannot explode.
    finding : str
        What follows, with the numbers it follows from.
    """

    sigma_max: float
    spectral_radius: float
    gamma: float
    must_vanish: bool
    may_explode: bool

    @property
    def finding(self) -> str:
        fate, relation = ("must vanish", "<") if self.must_vanish else ("may explode", ">") if self.may_explode else ("cannot explode", "=")
        return f"gradients {fate}: sigma_max {self.sigma_max:.4g} {relation} 1/gamma {1 / self.gamma:g}"

    def __str__(self) -> str:
        return f"{self.finding} (spectral radius {self.spectral_radius:.4g})"


def vanishing_condition(w_hh: Array, nonlinearity: Nonlinearity = "tanh") -> VanishingCondition:
    """Whether the recurrent weights alone force gradients to vanish, or allow them to explode.

    With gamma = sup f', no Jacobian diag(f'(a)) w_hh stretches anything by more than gamma * sigma_max. So sigma_max < 1 / gamma suffices
    for gradients to vanish, and sigma_max > 1 / gamma is necessary for them to explode (Pascanu, Mikolov and Bengio 2013, section 2.1, as
    printed at ICML; the arXiv version has the largest eigenvalue in place of sigma_max). Both hold for a leaky RNN with one leak too.

    Parameters
    ----------
    w_hh : ndarray (H, H)
        Of an RNN.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}

    Returns
    -------
    VanishingCondition

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> print(fastbptt.vanishing_condition(np.array([[0.9, 0.5], [0.0, 0.9]])))
    gradients may explode: sigma_max 1.184 > 1/gamma 1 (spectral radius 0.9)
    >>> fastbptt.vanishing_condition(3 * np.eye(2), "sigmoid").must_vanish
    True
    """
    w_hh = _checks.require_array("w_hh", w_hh)
    _checks.require_float("w_hh", w_hh)
    if w_hh.ndim != 2 or w_hh.shape[0] != w_hh.shape[1] or not w_hh.size:
        raise ValueError(f"w_hh: expected shape (H, H) with H >= 1, got {w_hh.shape}")
    if not np.isfinite(w_hh).all():
        raise ValueError("w_hh: expected finite numbers, got inf or NaN")
    gamma = NONLINEARITIES[_checks.one_of("nonlinearity", nonlinearity, NONLINEARITIES)].steepest
    w_hh = w_hh.astype(np.float64, copy=False)
    sigma_max = float(np.linalg.norm(w_hh, 2))
    radius = float(np.abs(np.linalg.eigvals(w_hh)).max())
    return VanishingCondition(sigma_max, radius, gamma, sigma_max * gamma < 1, sigma_max * gamma > 1)


def _step(name, value, low, high):
    value = _checks.size(name, value, 0)
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a state from {low} to {high}, got {_checks.quoted(value)}")
    return value


def _spectral_norm(matrices):
    """The largest singular value of each; NaN where a matrix is not finite."""
    finite = np.isfinite(matrices).all(axis=(1, 2))
    norms = np.full(len(matrices), np.nan)
    if finite.any():
        norms[finite] = np.linalg.svd(matrices[finite], compute_uv=False)[:, 0]
    return norms


def _times_graded(r, u, scale):
    """``r @ diag(exp(scale)) @ u`` in the same form: rows of largest element 1, and the logarithms of their scales."""
    logs = np.log(np.abs(r)) + scale[:, None]
    largest = logs.max(axis=-1)
    product = np.where(np.isneginf(logs), 0.0, np.sign(r) * np.exp(logs - largest[..., None])) @ u
    return _with_unit_rows(product, largest, np.abs(product).max(axis=-1))


def _with_unit_rows(x, scale, size):
    zero = (size == 0) | np.isneginf(scale)
    return np.where(zero[..., None], 0.0, x / np.where(zero, 1.0, size)[..., None]), np.where(zero, -np.inf, scale + np.log(size))


def _log_singular_values_of_rows(x, scale, sweeps=30):
    """Logarithms of the singular values of ``diag(exp(scale)) @ x``, (B, N) for (B, N, N), by Jacobi rotations of its rows."""
    N = x.shape[-1]
    x, scale = _with_unit_rows(x, scale, np.linalg.norm(x, axis=-1))
    off_diagonal = ~np.eye(N, dtype=bool)
    for _ in range(sweeps):
        cosines = np.abs(x @ x.swapaxes(1, 2))[:, off_diagonal]
        if not (cosines > 4 * np.sqrt(N) * EPS).any():
            break
        for p, q in _rounds(N):
            x, scale = _rotate(x, scale, p, q)
    return -np.sort(-scale, axis=-1)


def _rounds(N):
    """Every pair of N once, in rounds of pairs that have no member in common (a round-robin tournament)."""
    players = np.arange(N + N % 2)
    half = len(players) // 2
    for _ in range(len(players) - 1):
        p, q = players[:half], players[: half - 1 : -1]
        both = (p < N) & (q < N)
        yield p[both], q[both]
        players = np.concatenate([players[:1], np.roll(players[1:], 1)])


def _rotate(x, scale, p, q):
    """Make rows p and q orthogonal, pair by pair. The rotation is computed from unit rows and the ratio of their scales, at most 1."""
    swap = scale[:, p] < scale[:, q]
    p, q = np.where(swap, q, p), np.where(swap, p, q)
    batch = np.arange(len(x))[:, None]
    x_p, x_q, s_p, s_q = x[batch, p], x[batch, q], scale[batch, p], scale[batch, q]
    ratio = np.where(np.isneginf(s_q), 0.0, np.exp(s_q - s_p))
    cosine = np.where(np.isneginf(s_q), 0.0, (x_p * x_q).sum(axis=-1))
    difference = (1 - ratio) * (1 + ratio)
    # tan = tangent / ratio of the angle theta with which a_p cos - a_q sin and a_p sin + a_q cos are orthogonal; a = exp(s) x
    tan = np.where(cosine == 0, 0.0, -2 * cosine / (difference + np.hypot(difference, 2 * ratio * cosine)))
    cos = 1 / np.hypot(1, tan * ratio)
    x_p, x_q = cos[..., None] * (x_p - (tan * ratio**2)[..., None] * x_q), cos[..., None] * (tan[..., None] * x_p + x_q)
    for i, x_i, s_i in ((p, x_p, s_p), (q, x_q, s_q)):
        x[batch, i], scale[batch, i] = _with_unit_rows(x_i, s_i, np.linalg.norm(x_i, axis=-1))
    return x, scale
