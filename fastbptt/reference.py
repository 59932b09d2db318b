"""Backpropagation through time in plain NumPy: the lesson, the specification, and one of the two oracles of the tests.

The functions have the names, the arguments and the results of the fast ones. Nothing here is fast, and nothing is shared with the kernels.
"""

import numpy as np

from .functional import Gradients


class Tape:
    """What forward leaves for backward, under the names of the equations."""

    def __init__(self, **values):
        self.__dict__.update(values)


# Each nonlinearity f, and its derivative written in terms of h = f(a).
NONLINEARITIES = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda a: np.where(a < 0, 0, a), lambda h: np.where(h <= 0, 0.0, 1.0)),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda h: h * (1 - h)),
    "identity": (lambda a: a, lambda h: np.ones_like(h)),
}


def rnn_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh"):
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), for t = 1..T.

    The rows of a batch are the rows of x_t and h_t, so that W h for a column h reads h @ W.T for rows.
    """
    f, _ = NONLINEARITIES[nonlinearity]
    b = (0 if b_ih is None else b_ih) + (0 if b_hh is None else b_hh)

    h = [initial_state(h0, x, w_hh)]
    for x_t in one_hot(x, w_ih):
        a_t = x_t @ w_ih.T + h[-1] @ w_hh.T + b
        h.append(f(a_t))

    h = np.array(h)
    return h[1:], h[-1], Tape(x=x, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, nonlinearity=nonlinearity)


def rnn_backward(tape, d_out, d_state=None, *, need_dx=True):
    """The gradients of a loss L with respect to everything, from dL/d out and dL/d h_n.

    One step back, the gradient of the state passes through the transposed Jacobian of h_t with respect to h_{t-1}, which is
    diag(f'(a_t)) W_hh; over many steps it has passed through their product. That product is what vanishes or explodes. The weights are
    the same at every step, so their gradient is the sum over time.
    """
    h, w_ih, w_hh = tape.h, tape.w_ih, tape.w_hh
    x = one_hot(tape.x, w_ih)
    _, derivative = NONLINEARITIES[tape.nonlinearity]

    dx, dw_ih, dw_hh, db = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh), np.zeros_like(w_hh[:, 0])
    dh = np.zeros_like(h[0]) if d_state is None else d_state
    for t in reversed(range(len(x))):  # h[t] is the state before this step, h[t + 1] the one after it
        dh = dh if d_out is None else dh + d_out[t]
        da = dh * derivative(h[t + 1])  # h_t = f(a_t)
        dw_ih += da.T @ x[t]  # a_t = W_ih x_t + W_hh h_{t-1} + b
        dw_hh += da.T @ h[t]
        db += da.sum(axis=0)
        dx[t] = da @ w_ih
        dh = da @ w_hh

    return gradients(tape, dx if need_dx else None, dh, dw_ih, dw_hh, db, db.copy())


def one_hot(x, w_ih):
    """Tokens (T, B) as the one-hot rows (T, B, I) that they mean; other inputs as they are."""
    return np.eye(w_ih.shape[1], dtype=w_ih.dtype)[x] if x.ndim == 2 else x


def initial_state(h0, x, w_hh):
    return np.zeros((x.shape[1], w_hh.shape[1]), w_hh.dtype) if h0 is None else h0


def gradients(tape, dx, d_state, dw_ih, dw_hh, db_ih, db_hh):
    """No gradient of tokens, nor of a bias that there was not."""
    return Gradients(
        None if tape.x.ndim == 2 else dx,
        d_state,
        dw_ih,
        dw_hh,
        None if tape.b_ih is None else db_ih,
        None if tape.b_hh is None else db_hh,
    )
