"""Frames, k orthonormal tangents as the rows of (B, k, N), and how fast steps stretch them."""

from itertools import islice

import numpy as np

from .._kernels import kernels

KERNELS = kernels[np.dtype(np.float64)]
GRADED = 2.0**10  # largest row of a matrix over its smallest, from which on rows are sorted before a QR decomposition


def random_frame(B, k, N, seed=0):
    """The same frame at every call and for every row, so that results can be reproduced."""
    frame = np.random.default_rng(seed).standard_normal((N, k)).T[None].copy()
    for _ in range(2):  # after one pass, random rows can still be slightly off orthogonal
        KERNELS.orthonormalise(frame, np.empty((1, k)))
    return np.repeat(frame, B, axis=0)


def orthonormalise(v):
    """The frame of ``v`` (B, k, N), and the triangular r (B, k, k) with v^T = frame^T r.

    Householder's QR decomposition loses small rows of v^T, such as those of saturated units, in the rounding of large ones: with
    f'(a) = 1e-15, the smallest diagonal elements of r have no correct digits. With the rows in descending order they have all of them
    (Cox and Higham 1998, "Stability of Householder QR factorization for weighted least squares problems"). The rows are the units, so
    that their order can be undone in the frame.
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


def stretch(chain, span, frame, every=1):
    """How fast each tangent of a frame grows from step to step, apart from its components along those before it.

    In J_t v_{t-1} = C_t v_t, with C_t triangular, the growth is the product of the diagonals. It does not depend on the frames v_t in
    between, since other ones multiply C_t by a triangular matrix and C_{t+1} by its inverse. So only the first and the last frame are
    orthonormal; in between, Gaussian elimination with pivoting will do, at a fraction of the cost of a QR decomposition.

    Parameters
    ----------
    chain : Chain
    span : range
        The steps to take.
    frame : ndarray (B, k, N)
        Orthonormal, in the chain's units at the start of the span; overwritten with the frame at its end, orthonormal in the units there.
    every : int
        Steps from one elimination to the next.

    Returns
    -------
    ndarray (len(span), B, k)
        The logarithm of each step's growth; the steps between two eliminations share theirs evenly.
    """
    lengths = np.diff([*range(0, len(span), every), len(span)])
    logs, last = np.zeros((len(lengths), *frame.shape[:2])), np.empty(frame.shape[:2])
    if span and chain.steps.w_hr is not None:
        _carry(chain, span, frame, lengths, logs)
    elif span:
        KERNELS.carry(*chain.for_kernel(span), min(every, len(span)), frame, logs)
    if span:
        KERNELS.orthonormalise(frame, last)
        logs[-1] += last
    return logs if every == 1 else np.repeat(logs / lengths[:, None, None], lengths, axis=0)


def _carry(chain, span, frame, lengths, logs):
    """What the kernel does for nets without a projection: push, and eliminate after each of the ``lengths``."""
    factors = iter(range(chain.parts * span.start, chain.parts * span.stop))
    for length, log in zip(lengths, logs):
        for i in islice(factors, chain.parts * int(length)):
            frame[...] = chain.push(i, frame)
        KERNELS.eliminate(frame, log)


def change_units(frame, units):
    """Scale an orthonormal frame (B, k, N) by ``units`` (B, N) and make it orthonormal again, in place; return the log growth, (B, k)."""
    logs, last = np.zeros(frame.shape[:2]), np.empty(frame.shape[:2])
    frame *= units[:, None]
    KERNELS.eliminate(frame, logs)
    KERNELS.orthonormalise(frame, last)
    return logs + last
