"""Frames: k tangents of norm 1 at right angles to each other, as the rows of (B, k, N), and how steps stretch them."""

import numpy as np

from ._kernels import kernels

eliminate = kernels[np.dtype(np.float64)].eliminate
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

    With J_t v_{t-1} = C_t v_t, where C_t is triangular, the growth is the product of the diagonals, whatever frames v_t the factors leave:
    to choose others is to multiply C_t by a triangular matrix and C_{t+1} by its inverse. So only the first and the last frame are
    orthonormal; in between, Gaussian elimination with pivoting will do, at a fraction of the cost of a QR decomposition.

    Parameters
    ----------
    push : callable
        ``push(t, v)`` applies the map of step t to the tangents v (B, k, N), and returns a new array.
    steps : range
    frame : ndarray (B, k, N)
        Orthonormal.
    every : int
        Steps from one elimination to the next.

    Returns
    -------
    logs : ndarray (len(steps), B, k)
        The logarithm of each step's growth; the steps between two eliminations share theirs evenly.
    frame : ndarray (B, k, N)
        What has become of the frame, orthonormal again.
    """
    logs = np.empty((len(steps), *frame.shape[:2]))
    if not len(steps):
        return logs, frame
    with np.errstate(all="ignore"):
        for start in range(0, len(steps), every):
            stop = min(start + every, len(steps))
            for t in steps[start:stop]:
                frame = push(t, frame)
            frame = np.ascontiguousarray(frame)
            eliminate(frame, logs[start])
            logs[start:stop] = logs[start] / (stop - start)
        frame, r = orthonormalise(frame)
        logs[-1] += np.log(np.abs(np.diagonal(r, axis1=1, axis2=2)))
    return logs, frame


def without_rounding(r, v):
    """The triangular factor of v^T with 0 on its diagonal where only the rounding error of a row is left, as v^T has not full rank."""
    i = np.arange(v.shape[1])
    row = -np.sort(-np.abs(v).max(axis=1), axis=-1)[:, : v.shape[1]]
    r[:, i, i] = np.where(np.abs(r[:, i, i]) <= v.shape[-1] * np.finfo(float).eps * row, 0.0, r[:, i, i])
    return r
