"""Forward and backward of each recurrent layer: check the arguments, allocate the results, call the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._kernels import kernels, memory
from ._typing import Array, Bool, CellName, F, Integers, Nonlinearity, OptionalPair, Pair, Real
from .cells import CELLS, NONLINEARITIES, Cell
from .results import Gradients
from .tape import Tape, kernel_arguments, require_tape


def rnn_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array[F] | None = None,
) -> tuple[Array[F], Array[F], Tape[F]]:
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
    return _forward("rnn", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, nonlinearity, leak)


def rnn_backward(tape: Tape[F], d_out: Array[F] | None, d_state: Array[F] | None = None, *, need_dx: Bool = True) -> Gradients[F, Array[F]]:
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
    return _backward("rnn", tape, d_out, {"d_state": d_state}, need_dx)


def gru_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F], Tape[F]]:
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
    return _forward("gru", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh)


def gru_backward(tape: Tape[F], d_out: Array[F] | None, d_state: Array[F] | None = None, *, need_dx: Bool = True) -> Gradients[F, Array[F]]:
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
    return _backward("gru", tape, d_out, {"d_state": d_state}, need_dx)


def lstm_forward(
    x: Array[F] | Integers,
    state: OptionalPair[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Pair[F], Tape[F]]:
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
    return _forward("lstm", x, pair("state", state), w_ih, w_hh, b_ih, b_hh)


def lstm_backward(
    tape: Tape[F], d_out: Array[F] | None, d_state: OptionalPair[F] | None = None, *, need_dx: Bool = True
) -> Gradients[F, Pair[F]]:
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
    return _backward("lstm", tape, d_out, pair("d_state", d_state), need_dx)


def _forward(
    name: CellName,
    x: Array,
    state: dict[str, Array | None],
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array | None = None,
) -> tuple[Array, Any, Tape]:
    """Any cell's forward pass; ``state`` has the arrays of the initial state, by the names that errors call them."""
    cell = CELLS[name]
    x, w_ih, w_hh, b_ih, b_hh = _checked_call(len(cell.gates), x, w_ih, w_hh, b_ih, b_hh)
    (T, B), (N, H), dtype = x.shape[:2], w_hh.shape, w_ih.dtype
    leak = check_leak(leak, H, dtype)
    try:
        histories = [memory.empty((T + 1, B, H), dtype) for _ in state]
        gates = memory.empty((T, B, N), dtype) if cell.tape_gates or leak is not None else None
        m = memory.empty((T, B, H), dtype) if cell.reset_after else None
    except (MemoryError, ValueError):  # the second is what NumPy says to the largest sizes
        raise MemoryError(f"x, w_hh: no memory for the states of {T} steps, {B} rows and {H} units") from None
    for history, (argument, initial) in zip(histories, state.items()):
        history[0] = 0 if initial is None else _checks.array(argument, initial, (B, H), dtype)
    h, c = histories[0], histories[1] if len(histories) == 2 else None
    tape = Tape(name, x, w_ih, w_hh, b_ih, b_hh, leak, nonlinearity, h, c, gates, m, (T, B, H))
    if T and B:
        vectors, tokens = _vectors_or_tokens(x)
        activation = NONLINEARITIES[nonlinearity].number
        kernels[dtype].forward(cell.number, activation, vectors, tokens, w_ih, w_hh, b_ih, b_hh, leak, h, c, gates, m)
    for array in (h, c, gates, m):
        if array is not None:
            array.setflags(write=False)
    return h[1:], cell.state([history[T].copy() for history in histories]), tape


def _backward(name: CellName, tape: Tape, d_out: Array | None, d_state: dict[str, Array | None], need_dx: Bool) -> Gradients:
    """Any cell's backward pass; ``d_state`` as for `_forward`."""
    cell, ((T, B, H), dtype), need_dx = CELLS[name], require_tape(tape, name), _checks.flag("need_dx", need_dx)
    if d_out is not None:
        d_out = _checks.array("d_out", d_out, (T, B, H), dtype)
    d_initial = [
        np.zeros((B, H), dtype) if d is None else _checks.array(argument, d, (B, H), dtype).copy() for argument, d in d_state.items()
    ]
    x, tokens = _vectors_or_tokens(tape._x)
    dx = memory.empty(x.shape, dtype) if need_dx and tokens is None else None
    dw_ih, dw_hh = memory.zeros(tape._w_ih.shape, dtype), memory.zeros(tape._w_hh.shape, dtype)
    db_ih = np.zeros(len(dw_hh), dtype)
    db_hh = np.zeros(len(dw_hh), dtype) if cell.reset_after else None
    if T and B:
        numbers, arrays = kernel_arguments(tape)
        dh, dc = d_initial[0], d_initial[1] if len(d_initial) == 2 else None
        kernels[dtype].backward(*numbers, x, tokens, *arrays, d_out, dh, dc, dx, dw_ih, dw_hh, db_ih, db_hh)
    if tape._b_hh is None:
        db_hh = None
    elif not cell.reset_after:
        db_hh = db_ih.copy()
    return Gradients(dx, cell.state(d_initial), dw_ih, dw_hh, None if tape._b_ih is None else db_ih, db_hh)


def _vectors_or_tokens(x: Any) -> tuple[Any, Any]:
    return (x, None) if x.ndim == 3 else (None, x)


def pair(name: str, state: Any) -> dict[str, Any]:
    """The arrays of a state that has two, by the names that errors call them."""
    if state is None:
        state = None, None
    elif not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"{name}: expected a pair of arrays or None, got {_checks.describe(state)}")
    return {f"{name}[0]": state[0], f"{name}[1]": state[1]}


def parts_of(cell: Cell, name: str, state: Any) -> dict[str, Any]:
    """The arrays of a cell's state, by the names that errors call them."""
    return {name: state} if len(cell.states) == 1 else pair(name, state)


def check_leak(leak: Real | Array | None, H: int, dtype: np.dtype[Any]) -> Array | None:
    """One leak for every unit, or None."""
    if leak is None:
        return None
    leak = _checks.scalar(leak)
    if isinstance(leak, np.ndarray):
        leak = _checks.array("leak", leak, (H,), dtype).copy()
        if not ((leak > 0) & (leak <= 1)).all():
            raise ValueError("leak: expected numbers above 0 and at most 1")
        return leak
    each = np.full(H, _checks.number("leak", leak, 0, 1, above=True), dtype)
    if not each[0]:
        raise ValueError(f"leak: expected a number above 0 in {dtype}, got {leak}")
    return each


def _checked_call(
    gates: int, x: Array, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """The arrays of a call, in the layout that the kernels read."""
    w_ih, w_hh, x = _checks.require_array("w_ih", w_ih), _checks.require_array("w_hh", w_hh), _checks.require_array("x", x)
    dtype = _checks.require_float("w_ih", w_ih)
    N, H = w_hh.shape if w_hh.ndim == 2 else (-1, 0)
    if gates * H != N or not H:
        raise ValueError(f"w_hh: expected shape ({'' if gates == 1 else f'{gates}*'}H, H) with H >= 1, got {w_hh.shape}")
    rows, I = w_ih.shape if w_ih.ndim == 2 else (-1, 0)
    if rows != N or not I:
        raise ValueError(f"w_ih: expected shape ({N}, I) with I >= 1 to go with w_hh {w_hh.shape}, got {w_ih.shape}")
    if x.dtype.kind in "iu":
        if x.ndim != 2:
            raise ValueError(f"x: expected tokens of shape (T, B), got {x.shape}")
        x = _checks.frozen(_checks.integers("x", x, x.shape, I, "tokens"))
    else:
        if x.ndim != 3:
            raise ValueError(f"x: expected shape (T, B, {I}), or integer tokens (T, B), got {x.shape}")
        T, B, _ = x.shape
        x = _checks.array("x", x, (T, B, I), dtype)
    w_ih, w_hh = _checks.contiguous("w_ih", w_ih), _checks.array("w_hh", w_hh, (N, H), dtype)
    b_ih = None if b_ih is None else _checks.array("b_ih", b_ih, (N,), dtype)
    b_hh = None if b_hh is None else _checks.array("b_hh", b_hh, (N,), dtype)
    return x, w_ih, w_hh, b_ih, b_hh
