"""Products of Jacobians in arithmetic of hundreds of digits, from a tape's arrays alone; and nets that need it."""

from dataclasses import replace

import mpmath
import numpy as np
from problems import CELLS, random_problem

KINDS = ("ordinary", "gates shut", "gates wide open", "large inputs", "uneven rows", "uneven columns", "uneven both ways", "all at once")


def difficult_net(seed):
    """A small random net of any cell, made ill-conditioned in one of many ways: its `Problem`, and a description."""
    rng = np.random.default_rng([seed, 7])
    name = list(CELLS)[seed % len(CELLS)]
    kind = KINDS[seed // len(CELLS) % len(KINDS)]
    H, T = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    problem = random_problem(name, T, 1, 3, H, seed=seed, gain=float(rng.uniform(0.5, 2)))
    x, w_hh, b_ih = problem.x, problem.w_hh, problem.b_ih
    everything = kind == "all at once"
    if kind.startswith("gates") or everything:
        b_ih = rng.choice([0.0, 30.0], len(b_ih)) * (1 if kind == "gates wide open" else -1)
    if kind == "large inputs" or everything:
        x = x * rng.choice([1.0, 30.0], x.shape)
    if kind in ("uneven rows", "uneven both ways") or everything:
        w_hh = w_hh * 10.0 ** rng.uniform(-15, 0, (len(w_hh), 1))
    if kind in ("uneven columns", "uneven both ways") or everything:
        w_hh = w_hh * 10.0 ** rng.uniform(-15, 0, H)
    return replace(problem, x=x, w_hh=w_hh, b_ih=b_ih), f"{name}, {kind}"


def exact_jacobians(tape):
    """The Jacobian of every step of a tape of one row, as mpmath matrices at the precision that is set, from its weights and states."""
    steps = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}[tape.cell]
    w_hh = mpmath.matrix(tape.w_hh.tolist())
    a_x = [_sums(tape.w_ih, x, tape.b_ih) for x in tape.x[:, 0]]
    a_h = [_sums(tape.w_hh, h, tape.b_hh) for h in tape.h[:-1, 0]]
    return [steps(tape, t, w_hh, a_x[t], a_h[t]) for t in range(len(tape))]


def log_singular_values(jacobians):
    """Of the product of these matrices, the last one applied last; -inf for 0."""
    product = jacobians[0]
    for J in jacobians[1:]:
        product = J * product
    values = mpmath.svd_r(product, compute_uv=False)
    least = mpmath.mpf(10) ** (-mpmath.mp.dps * 0.8) * values[0]
    return np.array([float(mpmath.log(s)) if s > least else -np.inf for s in values])


def log_volume(jacobian):
    """log |det J|"""
    determinant = abs(mpmath.det(jacobian))
    return float(mpmath.log(determinant)) if determinant else -np.inf


def _sums(w, x, b):
    a = mpmath.matrix(w.tolist()) * mpmath.matrix(x.tolist())
    return a if b is None else a + mpmath.matrix(b.tolist())


def _sigmoid(a):
    return 1 / (1 + mpmath.exp(-a))


def _slopes(a):
    return _sigmoid(a) * _sigmoid(-a)


def _sech2(a):
    return 1 / mpmath.cosh(a) ** 2


def _rnn(tape, t, w_hh, a_x, a_h):
    H = w_hh.cols
    slope = {"tanh": _sech2, "sigmoid": _slopes, "relu": lambda a: mpmath.mpf(a > 0), "identity": lambda a: mpmath.mpf(1)}[
        tape.nonlinearity
    ]
    J = mpmath.matrix(H, H)
    for j in range(H):
        leak = mpmath.mpf(1 if tape.leak is None else tape.leak[j])
        for k in range(H):
            J[j, k] = leak * slope(a_x[j] + a_h[j]) * w_hh[j, k] + (1 - leak if j == k else 0)
    return J


def _gru(tape, t, w_hh, a_x, a_h):
    H = w_hh.cols
    J = mpmath.matrix(H, H)
    for j in range(H):
        a_r, a_z = a_x[j] + a_h[j], a_x[H + j] + a_h[H + j]
        r, z, m = _sigmoid(a_r), _sigmoid(a_z), a_h[2 * H + j]
        a_n = a_x[2 * H + j] + r * m
        n, h = mpmath.tanh(a_n), mpmath.mpf(tape.h[t, 0, j])
        for k in range(H):
            d_n = _sech2(a_n) * (r * w_hh[2 * H + j, k] + m * _slopes(a_r) * w_hh[j, k])
            J[j, k] = (1 - z) * d_n + (h - n) * _slopes(a_z) * w_hh[H + j, k] + (z if j == k else 0)
    return J


def _lstm(tape, t, w_hh, a_x, a_h):
    H = w_hh.cols
    a = a_x + a_h
    J = mpmath.matrix(2 * H, 2 * H)
    for j in range(H):
        i, f, g, o = _sigmoid(a[j]), _sigmoid(a[H + j]), mpmath.tanh(a[2 * H + j]), _sigmoid(a[3 * H + j])
        before, c = mpmath.mpf(tape.c[t, 0, j]), mpmath.mpf(tape.c[t + 1, 0, j])
        for k in range(2 * H):
            if k < H:
                d_c = g * _slopes(a[j]) * w_hh[j, k] + before * _slopes(a[H + j]) * w_hh[H + j, k]
                d_c += i * _sech2(a[2 * H + j]) * w_hh[2 * H + j, k]
                d_o = _slopes(a[3 * H + j]) * w_hh[3 * H + j, k]
            else:
                d_c, d_o = f if k - H == j else mpmath.mpf(0), mpmath.mpf(0)
            J[H + j, k] = d_c
            J[j, k] = o * _sech2(c) * d_c + mpmath.tanh(c) * d_o
    return J
