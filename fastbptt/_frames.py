"""Frames: k tangents of norm 1 at right angles to each other, as the rows of (B, k, N), and how steps stretch them."""

import numpy as np

GRADED = 2.0**10  # from this ratio of the largest row of a matrix to its smallest on, its rows are put in order before a QR decomposition


def random_frame(B, k, N, seed=0):
    """The same for every row of the batch, and at every call: results are to be the same again, for a row in any batch."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((N, k)))
    return np.ascontiguousarray(np.broadcast_to(q.T, (B, k, N)))


def orthonormalise(v):
    """The frame of ``v`` (B, k, N), and the triangular r (B, k, k) with v^T = frame^T r.

    Householder's QR decomposition loses small rows of v^T to the rounding of large ones, and those of saturated units are small: with
    f'(a) = 1e-15, the smallest diagonal elements of r have no digits left. With the rows in descending order they keep all of them
    (Cox and Higham 1998, "Stability of Householder QR factorization for weighted least squares problems"), and as the rows' order is the
    units' order, it can be undone in the frame.
    """
    size = np.abs(v).max(axis=1)
    if size.size and (size.max(axis=-1) <= GRADED * size.min(axis=-1)).all():
        q, r = np.linalg.qr(v.swapaxes(1, 2))
        return q.swapaxes(1, 2), r
    order = np.argsort(-size, axis=-1, kind="stable")[:, None]
    q, r = np.linalg.qr(np.take_along_axis(v, order, axis=-1).swapaxes(1, 2))
    frame = np.empty(v.shape)
    np.put_along_axis(frame, order, q.swapaxes(1, 2), axis=-1)
    return frame, r


def stretch(push, steps, frame, every=1):
    """How fast each tangent of a frame grows under a sequence of linear maps, what it shares with those before it being taken away.

    Parameters
    ----------
    push : callable
        ``push(t, v)`` applies the map of step t to the tangents v (B, k, N).
    steps : range
    frame : ndarray (B, k, N)
    every : int or None
        The frame is made orthonormal again every so many steps; None chooses, see `lyapunov_spectrum`.

    Returns
    -------
    logs : ndarray (len(steps), B, k)
        The logarithm of each step's growth; a window of several steps shares its growth among them.
    frame : ndarray (B, k, N)
        What has become of the frame.
    """
    logs = np.empty((len(steps), *frame.shape[:2]))
    start, window = 0, every or 1
    with np.errstate(all="ignore"):
        while start < len(steps):
            stop = min(start + window, len(steps))
            v = frame
            for t in steps[start:stop]:
                v = push(t, v)
            after, r = orthonormalise(v)
            if stop - start == 1:
                r = without_rounding(r, v)
            growth = np.abs(np.diagonal(r, axis1=1, axis2=2))
            if every is None:
                used = budget_used(v, growth)
                window = int(min(max(0.8 * (stop - start) / used, 1), 2 * (stop - start)))
                if used > 1 and stop - start > 1:
                    window = min(window, (stop - start) // 2)
                    continue
            logs[start:stop] = np.log(growth) / (stop - start)
            start, frame = stop, after
    return logs, frame


def without_rounding(r, v):
    """The triangular factor of v^T with 0 on its diagonal where only the rounding error of a row is left, as v^T has not full rank."""
    i = np.arange(v.shape[1])
    row = -np.sort(-np.abs(v).max(axis=1), axis=-1)[:, : v.shape[1]]
    r[:, i, i] = np.where(np.abs(r[:, i, i]) <= v.shape[-1] * np.finfo(float).eps * row, 0.0, r[:, i, i])
    return r


def budget_used(v, growth):
    """How much of what may be lost has been lost when tangents that were orthonormal have become ``v``; 1 is all.

    A tangent may come to lean so much towards those before it that its own growth is left with half of its digits, and may grow or shrink
    by 2**300.
    """
    size = np.sqrt((v**2).sum(axis=-1))
    used = np.maximum(np.log2(size / growth) / 26, np.abs(np.log2(size)) / 300)
    return np.clip(np.nan_to_num(used, nan=np.inf), 1e-3, np.inf).max(initial=1e-3)
