"""A penalty on gradients that shrink or grow on their way back through time."""

import numpy as np

from . import _checks
from ._state_gradients import _state_gradients, log10_norm
from .linearised import check_loss, linearise


def omega(tape, d_out, d_state=None, *, least=1e-10):
    r"""The vanishing-gradient regulariser of Pascanu, Mikolov and Bengio 2013, and its immediate derivative.

    It asks of every step that it keeps the norm of the gradient that passes through it: with :math:`d_t = \mathrm{d}L/\mathrm{d}h_t` and
    the step's Jacobian J_t,

    .. math::
        \Omega = \frac{1}{n} \sum_{t=1}^{T} \sum_b \left(\frac{\|J_t^\top d_t\|^2}{\|d_t\|^2} - 1\right)^2, \qquad
        J_t^\top d_t = W_{hh}^\top (f'(a_t) \odot d_t)

    over all steps and rows with a gradient, n of them. This is equation 10 of the paper, with ratios of squared norms as in the authors'
    program; equation 9 has norms that are not squared. As there, the derivative is immediate: d_t and f'(a_t) are held constant.

    Parameters
    ----------
    tape : Tape
        Of any cell: the Jacobian is then that of its step, from (h, c) to (h, c) for an LSTM.
    d_out : ndarray (T, B, H) or None
        dL/d out, as for the backward pass.
    d_state : ndarray (B, H), or of an LSTM a pair of them, or None
        dL/d h_n, or (dL/d h_n, dL/d c_n).
    least : float
        Where ||d_t|| is below it, there is no gradient to keep. The default is that of the authors' program; with 0, gradients however
        small are counted, as only their direction matters.

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
    dh, dc, _, exponent = _state_gradients(tape, d_out, d_state)
    d, H = (dh if dc is None else np.concatenate([dh, dc], axis=-1))[1:], dh.shape[-1]
    counts = log10_norm(d, exponent[1:]) >= (np.log10(least) if least else -np.finfo(float).max)
    n = np.count_nonzero(counts)
    if not n:
        return 0.0, np.zeros_like(tape.w_hh)
    with np.errstate(all="ignore"):
        # z = J^T d, its first H elements being d_keep + W_hh^T da;  r = (|z|^2 / |d|^2 - 1)^2
        z, da = linearise(tape).vjp(slice(None), d)
        squared = (d**2).sum(axis=-1)
        q = np.where(counts, (z**2).sum(axis=-1) / squared, 1.0)
        d_z = np.where(counts, 4 * (q - 1) / squared, 0.0)[..., None] * z[..., :H] / n
    d_w_hh = np.where(counts[..., None], da, 0.0).reshape(-1, da.shape[-1]).T @ d_z.reshape(-1, H)
    return float(((q - 1) ** 2).sum() / n), d_w_hh.astype(tape.w_hh.dtype, copy=False)
