"""The losses of predictions, with their gradients."""

from __future__ import annotations

import math

import numpy as np

from . import _checks
from ._kernels import kernels, memory
from ._typing import Array, Bools, F, Integers, Real


def softmax_cross_entropy(logits: Array[F], targets: Integers, *, mask: Bools | None = None) -> tuple[float, Array[F]]:
    r"""The mean cross-entropy of softmax predictions, in nats, and its gradient.

    .. math:: L = \frac{1}{n} \sum_i \Bigl(\log \sum_v e^{z_{iv}} - z_{i,y_i}\Bigr), \qquad
              \frac{\partial L}{\partial z_i} = \frac{1}{n} (\mathrm{softmax}(z_i) - \mathrm{onehot}(y_i))

    Parameters
    ----------
    logits : ndarray (..., V)
        The scores z, before the softmax.
    targets : integer ndarray (...)
        The right classes y, from 0 to V-1.
    mask : bool ndarray (...) or None
        Where given, only predictions marked True count, and n is their number. If none counts, loss and gradient are 0.

    Returns
    -------
    loss : float
    d_logits : ndarray (..., V)
        The gradient of the loss.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.
    IndexError
        If a target that counts is not in [0, V).

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> loss, d_logits = fastbptt.softmax_cross_entropy(np.zeros((5, 3, 10)), np.ones((5, 3), int))
    >>> round(fastbptt.perplexity(loss), 9), d_logits.shape                             # all ten classes are equally likely
    (10.0, (5, 3, 10))
    """
    logits = _checks.require_array("logits", logits)
    dtype = _checks.require_float("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {logits.shape}")
    shape, V = logits.shape[:-1], logits.shape[-1]
    n = math.prod(shape)
    if mask is not None:
        mask = _checks.require_array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
        if mask.shape != shape:
            raise ValueError(f"mask: expected shape {shape}, got {mask.shape}")
        mask = _checks.contiguous("mask", mask)
        n = int(mask.sum())
    targets = _checks.integers("targets", targets, shape, V, "classes", mask)
    if n == 0:
        return 0.0, np.zeros(logits.shape, dtype)
    d_logits = memory.empty(logits.shape, dtype)
    losses = np.empty(targets.size)
    kernels[dtype].softmax_cross_entropy(
        _checks.contiguous("logits", logits).reshape(-1, V),
        targets.reshape(-1),
        None if mask is None else mask.reshape(-1).view(np.uint8),
        1.0 / n,
        losses,
        d_logits.reshape(-1, V),
    )
    return float(losses.sum()) / n, d_logits


def mean_squared_error(outputs: Array[F], targets: Array[F]) -> tuple[float, Array[F]]:
    r"""The mean squared error, and its gradient.

    .. math:: L = \frac{1}{n} \sum_i (y_i - \hat{y}_i)^2, \qquad \frac{\partial L}{\partial y_i} = \frac{2}{n} (y_i - \hat{y}_i)

    Parameters
    ----------
    outputs, targets : ndarray (...)
        The predictions y, and what they should be; n is the number of elements.

    Returns
    -------
    loss : float
    d_outputs : ndarray (...)
        The gradient of the loss.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> fastbptt.mean_squared_error(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    (4.5, array([ 0., -3.]))
    """
    outputs = _checks.require_array("outputs", outputs)
    dtype = _checks.require_float("outputs", outputs)
    targets = _checks.array("targets", targets, outputs.shape, dtype)
    n = outputs.size
    if n == 0:
        return 0.0, np.zeros(outputs.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.subtract(outputs, targets, dtype=np.float64)
        return float(np.square(error).mean()), np.multiply(error, 2 / n).astype(dtype, copy=False)


def perplexity(loss: Real) -> float:
    """exp(loss): the number of equally likely choices that would be as hard to predict.

    Parameters
    ----------
    loss : float
        A mean cross-entropy in nats.

    Returns
    -------
    float
        inf where exp(loss) overflows, and NaN for NaN.

    Raises
    ------
    TypeError, ValueError
        If the loss is not a number, or an int that no float can hold.

    Examples
    --------
    >>> import fastbptt
    >>> fastbptt.perplexity(0.0)
    1.0
    """
    loss = _checks.real("loss", loss)
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
