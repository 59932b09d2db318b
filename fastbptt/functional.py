"""Forward and backward of each recurrent layer: check the arguments, allocate the results, call the kernel."""

from typing import NamedTuple

import numpy as np

from . import _checks
from ._kernels import kernels, memory

CELLS = {"rnn": 1, "gru": 3, "lstm": 4}  # gates; the order is that of the kernels' numbers for them
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")  # likewise

_NUMBER = {name: number for number, name in enumerate(CELLS)} | {name: number for number, name in enumerate(NONLINEARITIES)}


class Gradients(NamedTuple):
    """What a backward pass returns; ``None`` where there is nothing (``need_dx=False``, tokens, no bias).

    Attributes
    ----------
    x : ndarray (T, B, I) or None
    state : ndarray (B, H), or two of them
        The gradient of the initial state: dL/dh_0, or of an LSTM (dL/dh_0, dL/dc_0).
    w_ih, w_hh : ndarray (G*H, I), (G*H, H)
    b_ih, b_hh : ndarray (G*H,) or None
    """

    x: np.ndarray | None
    state: np.ndarray | tuple[np.ndarray, np.ndarray]
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
    c : ndarray (T+1, B, H), read-only, or None
        The cell states of an LSTM.
    gates : ndarray (T, B, G*H), read-only, or None
        The activated gates: r z n of a GRU, i f g o of an LSTM, and of a leaky RNN f(a_t). A plain RNN's are its states.
    m : ndarray (T, B, H), read-only, or None
        Of a GRU, W_hn h_{t-1} + b_hn: what the reset gate is multiplied with.
    cell : {"rnn", "gru", "lstm"}
    x, w_ih, w_hh, b_ih, b_hh, leak : ndarray or None
        The arguments of the call; ``x`` may be tokens (T, B).
    nonlinearity : str
    """

    __slots__ = ("cell", "x", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "nonlinearity", "h", "c", "gates", "m", "shape")

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
        for name in ("x", "h", "c", "gates", "m"):
            if getattr(self, name) is not None:
                setattr(tail, name, getattr(self, name)[T - steps :])
        tail.shape = (steps, B, H)
        return tail

    def __repr__(self):
        T, B, H = self.shape
        return f"<{self.cell} tape: {T} steps, {B} rows, {H} units, {self.w_hh.dtype}>"


def rnn_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh", leak=None):
    r"""Run a vanilla RNN (Elman 1990) over a batch of sequences.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad t = 1 \dots T

    or, with a leak, the continuous-time RNN of computational neuroscience in steps of leak = dt / tau,

    .. math:: h_t = (1 - leak) \odot h_{t-1} + leak \odot f(\dots)

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
    leak : float or ndarray (H,) or None
        In (0, 1], one for all units or one for each; ``None`` is the plain RNN.

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
    return _forward("rnn", x, (h0,), w_ih, w_hh, b_ih, b_hh, nonlinearity, leak)


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
    return _backward("rnn", tape, d_out, (d_state,), need_dx)


def gru_forward(x, h0, w_ih, w_hh, b_ih=None, b_hh=None):
    r"""Run a GRU (Cho et al. 2014) over a batch of sequences, with the reset applied after the product, as PyTorch does.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Parameters
    ----------
    x : ndarray (T, B, I), or integer ndarray (T, B)
        The inputs, or tokens, as for `rnn_forward`.
    h0 : ndarray (B, H) or None
        The initial state; ``None`` means zeros.
    w_ih, w_hh : ndarray (3*H, I), (3*H, H)
        The weights of the gates r, z, n, one below the other.
    b_ih, b_hh : ndarray (3*H,) or None
        The biases.

    Returns
    -------
    out : ndarray (T, B, H), read-only
    h_n : ndarray (B, H)
    tape : Tape
        For `gru_backward`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `rnn_forward`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((21, 4)), rng.standard_normal((21, 7))
    >>> out, h_n, tape = fastbptt.gru_forward(x, None, w_ih, w_hh)
    >>> out.shape, h_n.shape, tape.gates.shape
    ((5, 3, 7), (3, 7), (5, 3, 21))
    """
    return _forward("gru", x, (h0,), w_ih, w_hh, b_ih, b_hh)


def gru_backward(tape, d_out, d_state=None, *, need_dx=True):
    """Backpropagation through time for `gru_forward`; arguments, results and errors as `rnn_backward`.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (T, B, H) or None
    d_state : ndarray (B, H) or None
    need_dx : bool

    Returns
    -------
    Gradients
        ``x`` (T, B, I), ``state`` (B, H), ``w_ih`` (3*H, I), ``w_hh`` (3*H, H), ``b_ih`` and ``b_hh`` (3*H,).

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((21, 4)), rng.standard_normal((21, 7))
    >>> out, h_n, tape = fastbptt.gru_forward(x, None, w_ih, w_hh)
    >>> fastbptt.gru_backward(tape, np.ones_like(out)).w_hh.shape
    (21, 7)
    """
    return _backward("gru", tape, d_out, (d_state,), need_dx)


def lstm_forward(x, state, w_ih, w_hh, b_ih=None, b_hh=None):
    r"""Run an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) over a batch of sequences.

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i\cdot} x_t + b_{i\cdot} + W_{h\cdot} h_{t-1} + b_{h\cdot}), \qquad
        g_t = \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t, \qquad h_t = o_t \odot \tanh(c_t)

    Parameters
    ----------
    x : ndarray (T, B, I), or integer ndarray (T, B)
        The inputs, or tokens, as for `rnn_forward`.
    state : (ndarray (B, H), ndarray (B, H)) or None
        The initial state (h0, c0); ``None`` means zeros, for both or for either.
    w_ih, w_hh : ndarray (4*H, I), (4*H, H)
        The weights of the gates i, f, g, o, one below the other.
    b_ih, b_hh : ndarray (4*H,) or None
        The biases.

    Returns
    -------
    out : ndarray (T, B, H), read-only
    state : (ndarray (B, H), ndarray (B, H))
        The last state (h_n, c_n).
    tape : Tape
        For `lstm_backward`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `rnn_forward`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((28, 4)), rng.standard_normal((28, 7))
    >>> out, (h_n, c_n), tape = fastbptt.lstm_forward(x, None, w_ih, w_hh)
    >>> out.shape, c_n.shape, tape.c.shape
    ((5, 3, 7), (3, 7), (6, 3, 7))
    """
    return _forward("lstm", x, _pair("state", state), w_ih, w_hh, b_ih, b_hh)


def lstm_backward(tape, d_out, d_state=None, *, need_dx=True):
    """Backpropagation through time for `lstm_forward`; arguments, results and errors as `rnn_backward`, but for the state.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (T, B, H) or None
    d_state : (ndarray (B, H), ndarray (B, H)) or None
        dL/d h_n and dL/d c_n; ``None`` means zeros, for both or for either.
    need_dx : bool

    Returns
    -------
    Gradients
        ``x`` (T, B, I), ``state`` (dL/dh_0, dL/dc_0), ``w_ih`` (4*H, I), ``w_hh`` (4*H, H), ``b_ih`` and ``b_hh`` (4*H,).

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((28, 4)), rng.standard_normal((28, 7))
    >>> out, state, tape = fastbptt.lstm_forward(x, None, w_ih, w_hh)
    >>> grads = fastbptt.lstm_backward(tape, np.ones_like(out))
    >>> grads.w_hh.shape, [d.shape for d in grads.state]
    ((28, 7), [(3, 7), (3, 7)])
    """
    return _backward("lstm", tape, d_out, _pair("d_state", d_state), need_dx)


def _forward(cell, x, state, w_ih, w_hh, b_ih, b_hh, nonlinearity="tanh", leak=None):
    """Any cell's forward pass; ``state`` is a tuple, (h0,) or (h0, c0)."""
    tape = Tape()
    dtype, T, B, H = _check_call(tape, cell, x, w_ih, w_hh, b_ih, b_hh)
    tape.cell, tape.nonlinearity, tape.leak, tape.shape = cell, nonlinearity, check_leak(leak, H, dtype), (T, B, H)
    names = ("h0",) if len(state) == 1 else ("state[0]", "state[1]")
    histories = [memory.empty((T + 1, B, H), dtype) for _ in state]
    for name, history, initial in zip(names, histories, state):
        history[0] = 0 if initial is None else _checks.array(name, initial, (B, H), dtype)
    tape.h, tape.c = histories if len(histories) == 2 else (*histories, None)
    tape.gates = None if cell == "rnn" and leak is None else memory.empty((T, B, CELLS[cell] * H), dtype)
    tape.m = memory.empty((T, B, H), dtype) if cell == "gru" else None
    if T and B:
        kernels[dtype].forward(
            _NUMBER[cell],
            _NUMBER[nonlinearity],
            *_x_or_tokens(tape.x),
            tape.w_ih,
            tape.w_hh,
            tape.b_ih,
            tape.b_hh,
            tape.leak,
            tape.h,
            tape.c,
            tape.gates,
            tape.m,
        )
    last = tuple(history[T].copy() for history in histories)
    for array in (tape.h, tape.c, tape.gates, tape.m):
        if array is not None:
            array.flags.writeable = False
    return tape.h[1:], last if len(last) == 2 else last[0], tape


def _backward(cell, tape, d_out, d_state, need_dx):
    """Any cell's backward pass; ``d_state`` is a tuple, (dh,) or (dh, dc)."""
    (T, B, H), dtype = _check_tape(tape, cell)
    if d_out is not None:
        d_out = _checks.array("d_out", d_out, (T, B, H), dtype)
    names = ("d_state",) if len(d_state) == 1 else ("d_state[0]", "d_state[1]")
    d_initial = tuple(
        np.zeros((B, H), dtype) if d is None else np.array(_checks.array(name, d, (B, H), dtype)) for name, d in zip(names, d_state)
    )
    dh, dc = d_initial if len(d_initial) == 2 else (*d_initial, None)
    dx = memory.empty(tape.x.shape, dtype) if need_dx and tape.x.ndim == 3 else None
    dw_ih, dw_hh = memory.zeros(tape.w_ih.shape, dtype), memory.zeros(tape.w_hh.shape, dtype)
    db_ih = np.zeros(len(dw_hh), dtype)
    db_hh = np.zeros(len(dw_hh), dtype) if cell == "gru" else None
    if T and B:
        kernels[dtype].backward(
            _NUMBER[cell],
            _NUMBER[tape.nonlinearity],
            *_x_or_tokens(tape.x),
            tape.w_ih,
            tape.w_hh,
            tape.leak,
            tape.h,
            tape.c,
            tape.gates,
            tape.m,
            d_out,
            dh,
            dc,
            dx,
            dw_ih,
            dw_hh,
            db_ih,
            db_hh,
        )
    if db_hh is None and tape.b_hh is not None:
        db_hh = db_ih.copy()
    return Gradients(
        dx,
        dh if dc is None else d_initial,
        dw_ih,
        dw_hh,
        None if tape.b_ih is None else db_ih,
        None if tape.b_hh is None else db_hh,
    )


def kernel_numbers(tape):
    """The kernels' numbers for the tape's cell and its nonlinearity."""
    return _NUMBER[tape.cell], _NUMBER[tape.nonlinearity]


def _x_or_tokens(x):
    return (x, None) if x.ndim == 3 else (None, x)


def _pair(name, state):
    if state is None:
        return None, None
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"{name}: expected a pair of arrays or None, got {_checks.describe(state)}")
    return tuple(state)


def check_leak(leak, H, dtype):
    """One leak for every unit, or None."""
    if leak is None:
        return None
    if isinstance(leak, np.ndarray):
        leak = _checks.array("leak", leak, (H,), dtype).copy()
        if not ((leak > 0) & (leak <= 1)).all():
            raise ValueError("leak: expected numbers above 0 and at most 1")
        return leak
    return np.full(H, _checks.number("leak", leak, 0, 1, above=True), dtype)


def _check_call(tape, cell, x, w_ih, w_hh, b_ih, b_hh):
    """Put the arrays of a call on the tape, in the layout that the kernels read; return their dtype and T, B, H."""
    gates = CELLS[cell]
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
        tape.x = _checks.integers("x", x, x.shape, I, "tokens")
    else:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (T, B, {I}), or integer tokens (T, B), got {x.shape}")
        tape.x = _checks.array("x", x, (*x.shape[:2], I), dtype)
    tape.w_ih, tape.w_hh = _checks.contiguous(w_ih), _checks.array("w_hh", w_hh, w_hh.shape, dtype)
    tape.b_ih = None if b_ih is None else _checks.array("b_ih", b_ih, (gates * H,), dtype)
    tape.b_hh = None if b_hh is None else _checks.array("b_hh", b_hh, (gates * H,), dtype)
    return dtype, *x.shape[:2], H


def _check_tape(tape, cell):
    """The tape's sizes (T, B, H) and dtype, if its arrays are still what the forward pass saw."""
    if not isinstance(tape, Tape) or not hasattr(tape, "cell"):
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
