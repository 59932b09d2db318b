"""Forward and backward of each recurrent layer: check the arguments, allocate the results, call the kernel."""

from typing import NamedTuple

import numpy as np

from . import _checks
from ._kernels import kernels

NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")  # their places are the kernels' numbers for them


class Gradients(NamedTuple):
    """What a backward pass returns; ``None`` where there is nothing (``need_dx=False``, tokens, no bias).

    Attributes
    ----------
    x : ndarray (T, B, I) or None
    state : ndarray (B, H)
        The gradient of the initial state, dL/dh_0.
    w_ih, w_hh : ndarray (G*H, I), (G*H, H)
    b_ih, b_hh : ndarray (G*H,) or None
    """

    x: np.ndarray | None
    state: np.ndarray
    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray | None
    b_hh: np.ndarray | None


class Tape:
    """What a forward pass leaves for the backward pass, and for you to look at.

    The tape refers to the arrays of its call and does not copy them: change the input or the weights only after the backward pass.

    Attributes
    ----------
    h : ndarray (T+1, B, H), read-only
        The states; slot 0 is the initial one. ``out`` is a view of ``h[1:]``.
    x : ndarray (T, B, I), or tokens (T, B)
    w_ih, w_hh, b_ih, b_hh : ndarray or None
    nonlinearity : str
    """

    __slots__ = ("cell", "x", "w_ih", "w_hh", "b_ih", "b_hh", "nonlinearity", "h", "shape")

    def __len__(self):
        """The number of steps."""
        return self.shape[0]

    def last(self, steps):
        """The tape of the last ``steps`` steps alone, as views; the tape itself if it has no more."""
        T, B, H = self.shape
        if steps >= T:
            return self
        tail = Tape()
        for name in self.__slots__:
            setattr(tail, name, getattr(self, name))
        tail.shape, tail.x, tail.h = (steps, B, H), self.x[T - steps :], self.h[T - steps :]
        return tail

    def __repr__(self):
        T, B, H = self.shape
        return f"<{self.cell} tape: {T} steps, {B} rows, {H} units, {self.w_hh.dtype}>"


def rnn_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh"):
    r"""Run a vanilla RNN (Elman 1990) over a batch of sequences.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad t = 1 \dots T

    Parameters
    ----------
    x : ndarray (T, B, I), or integer ndarray (T, B)
        The inputs, time first. Integers are tokens from 0 to I-1 and mean their one-hot rows, which are never built.
    h0 : ndarray (B, H) or None
        The initial state; ``None`` means zeros.
    w_ih, w_hh : ndarray (H, I), (H, H)
        The weights, in PyTorch's layout.
    b_ih, b_hh : ndarray (H,) or None
        The biases.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}
        The function f.

    Returns
    -------
    out : ndarray (T, B, H), read-only
        The states h_1 ... h_T: a view of the tape, which a change would falsify. Copy it to change it.
    h_n : ndarray (B, H)
        The last state, an array of its own.
    tape : Tape
        For `rnn_backward`.

    Raises
    ------
    TypeError
        If an argument is no NumPy array, or of a dtype that is not supported or not that of ``w_ih``.
    ValueError
        If shapes do not fit together; the message names the argument.
    IndexError
        If a token is not in [0, I).

    See Also
    --------
    rnn_backward, fastbptt.RNN

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((5, 3, 4))                               # T=5, B=3, I=4
    >>> w_ih, w_hh = rng.standard_normal((7, 4)), np.eye(7)              # H=7
    >>> out, h_n, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
    >>> out.shape, h_n.shape, tape.h.shape
    ((5, 3, 7), (3, 7), (6, 3, 7))
    """
    _checks.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    dtype, T, B, H, x, w_ih, w_hh, b_ih, b_hh = _check_call(1, x, w_ih, w_hh, b_ih, b_hh)
    h = np.empty((T + 1, B, H), dtype)
    h[0] = 0 if h0 is None else _checks.array("h0", h0, (B, H), dtype)
    if T and B:
        tokens = x.ndim == 2
        kernels[dtype].rnn_forward(
            NONLINEARITIES.index(nonlinearity), None if tokens else x, x if tokens else None, w_ih, w_hh, b_ih, b_hh, h
        )
    tape = Tape()
    tape.cell, tape.shape, tape.nonlinearity = "rnn", (T, B, H), nonlinearity
    tape.x, tape.w_ih, tape.w_hh, tape.b_ih, tape.b_hh = x, w_ih, w_hh, b_ih, b_hh
    h_n = h[T].copy()
    h.flags.writeable = False
    tape.h = h
    return h[1:], h_n, tape


def rnn_backward(tape, d_out, d_state=None, *, need_dx=True):
    r"""Backpropagation through time for `rnn_forward`: the exact gradients of a loss, from its gradients at the outputs.

    With a_t the argument of f, each step takes the gradient of the state through the Jacobian diag(f'(a_t)) W_hh:

    .. math::
        \mathrm{d}a_t = f'(a_t) \odot \mathrm{d}h_t, \qquad
        \mathrm{d}h_{t-1} = \mathrm{d}out_{t-1} + W_{hh}^\top \mathrm{d}a_t, \qquad
        \mathrm{d}W_{hh} = \sum_t \mathrm{d}a_t h_{t-1}^\top

    (Werbos 1990, "Backpropagation through time: what it does and how to do it").

    Parameters
    ----------
    tape : Tape
        From `rnn_forward`. It may be used more than once.
    d_out : ndarray (T, B, H) or None
        dL/d out; ``None`` means zeros.
    d_state : ndarray (B, H) or None
        dL/d h_n, for a loss that also looks at the last state.
    need_dx : bool
        Whether the gradient of the input is wanted; without it, its work is not done.

    Returns
    -------
    Gradients
        ``x`` (T, B, I), ``state`` (B, H), ``w_ih`` (H, I), ``w_hh`` (H, H), ``b_ih`` and ``b_hh`` (H,).

    Raises
    ------
    TypeError, ValueError
        If an argument is not what is said above.
    RuntimeError
        If an array of the tape was resized since the forward pass.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((7, 4)), np.eye(7)
    >>> out, h_n, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
    >>> grads = fastbptt.rnn_backward(tape, np.ones_like(out))           # L = out.sum()
    >>> grads.x.shape, grads.w_hh.shape, grads.b_ih
    ((5, 3, 4), (7, 7), None)
    """
    (T, B, H), dtype = _check_tape(tape, "rnn")
    x, w_ih = tape.x, tape.w_ih
    tokens = x.ndim == 2
    if d_out is not None:
        d_out = _checks.array("d_out", d_out, (T, B, H), dtype)
    dh = np.zeros((B, H), dtype) if d_state is None else np.array(_checks.array("d_state", d_state, (B, H), dtype))
    dx = np.empty(x.shape, dtype) if need_dx and not tokens else None
    dw_ih, dw_hh, db = np.zeros(w_ih.shape, dtype), np.zeros((H, H), dtype), np.zeros(H, dtype)
    if T and B:
        kernels[dtype].rnn_backward(
            NONLINEARITIES.index(tape.nonlinearity),
            None if tokens else x,
            x if tokens else None,
            w_ih,
            tape.w_hh,
            tape.h,
            d_out,
            dh,
            dx,
            dw_ih,
            dw_hh,
            db,
        )
    return Gradients(dx, dh, dw_ih, dw_hh, None if tape.b_ih is None else db, None if tape.b_hh is None else db.copy())


def _check_call(gates, x, w_ih, w_hh, b_ih, b_hh):
    """The dtype and sizes of a call, and its arrays in the layout that the kernels read."""
    dtype = _checks.require_float("w_ih", w_ih)
    _checks.require_array("w_hh", w_hh)
    _checks.require_array("x", x)
    if w_hh.ndim != 2 or w_hh.shape[0] != gates * w_hh.shape[1] or not w_hh.size:
        raise ValueError(f"w_hh: expected shape ({'' if gates == 1 else f'{gates}*'}H, H) with H >= 1, got {w_hh.shape}")
    H = w_hh.shape[1]
    if w_ih.ndim != 2 or w_ih.shape[0] != gates * H or not w_ih.size:
        raise ValueError(f"w_ih: expected shape ({gates * H}, I) with I >= 1 to go with w_hh {w_hh.shape}, got {w_ih.shape}")
    I = w_ih.shape[1]
    if x.dtype.kind in "iu":
        if x.ndim != 2:
            raise ValueError(f"x: expected tokens of shape (T, B), got {x.shape}")
        x = _checks.integers("x", x, x.shape, I, "tokens")
    else:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (T, B, {I}), or integer tokens (T, B), got {x.shape}")
        x = _checks.array("x", x, (*x.shape[:2], I), dtype)
    T, B = x.shape[:2]
    w_ih, w_hh = _checks.contiguous(w_ih), _checks.array("w_hh", w_hh, w_hh.shape, dtype)
    if b_ih is not None:
        b_ih = _checks.array("b_ih", b_ih, (gates * H,), dtype)
    if b_hh is not None:
        b_hh = _checks.array("b_hh", b_hh, (gates * H,), dtype)
    return dtype, T, B, H, x, w_ih, w_hh, b_ih, b_hh


def _check_tape(tape, cell):
    """The tape's sizes (T, B, H) and dtype, if its arrays are still what the forward pass saw."""
    if not isinstance(tape, Tape):
        raise TypeError(f"tape: expected the tape of {cell}_forward, got {_checks.describe(tape)}")
    if tape.cell != cell:
        raise ValueError(f"tape: expected the tape of {cell}_forward, got that of {tape.cell}_forward")
    T, B, H = tape.shape
    gates, inputs = tape.w_hh.shape[0], tape.w_ih.shape[-1]
    if (
        tape.h.shape != (T + 1, B, H)
        or tape.w_hh.shape != (gates, H)
        or tape.w_ih.shape != (gates, inputs)
        or tape.x.shape != ((T, B) if tape.x.ndim == 2 else (T, B, inputs))
    ):
        raise RuntimeError("tape: an array of the forward pass was reshaped or resized before the backward pass")
    return tape.shape, tape.h.dtype
