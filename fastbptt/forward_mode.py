"""Forward mode of each recurrent layer: tangents, carried forward through time."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._kernels import kernels, memory
from ._typing import Array, CellName, F, OptionalPair, Pair
from .cells import CELLS
from .functional import parts_of, state_arrays, vectors_or_tokens
from .tape import Tape, kernel_arguments, require_tape, state_widths


def rnn_jvp(
    tape: Tape[F],
    *,
    x: Array[F] | None = None,
    state: Array[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F]]:
    r"""Forward mode for `rnn_forward`: what a small change of its arguments does to its results, to first order.

    The arguments are such changes, tangents, named after what they change. In one pass forward through time, at the cost of about two
    forward passes, they become the tangents of all outputs: the Jacobian of the layer times a vector, as `rnn_backward` is a vector times
    the Jacobian. With :math:`\dot h` for the tangent of h, and a_t the argument of f,

    .. math::
        \dot a_t = \dot W_{ih} x_t + W_{ih} \dot x_t + \dot b_{ih} + \dot W_{hh} h_{t-1} + W_{hh} \dot h_{t-1} + \dot b_{hh}, \qquad
        \dot h_t = f'(a_t) \odot \dot a_t

    or, with a leak, :math:`\dot h_t = (1 - leak) \odot \dot h_{t-1} + leak \odot f'(a_t) \odot \dot a_t`. For one direction in the space
    of the weights, this is what real-time recurrent learning (Williams and Zipser 1989) carries along for all of them.

    Parameters
    ----------
    tape : Tape
        From `rnn_forward`. It may be used more than once.
    x : ndarray (T, B, I) or None
        The tangent of the inputs, not looked at behind a row's end; ``None`` means zeros, here and below, and their work is not done.
        Tokens have none.
    state : ndarray (B, H) or None
        Of the initial state h_0.
    w_ih, w_hh : ndarray (H, I), (H, H), or None
        Of the weights.
    b_ih, b_hh : ndarray (H,) or None
        Of the biases, where the forward pass had them.

    Returns
    -------
    out_dot : ndarray (T, B, H)
        The tangent of the outputs.
    state_dot : ndarray (B, H)
        Of the last state.

    Raises
    ------
    TypeError
        If an argument is no NumPy array, or of another dtype than the tape.
    ValueError
        If an array's shape is not that of what it is the tangent of; or if there is nothing that it could be the tangent of: of the
        inputs where they are tokens, or of a bias that the forward pass did not have.
    RuntimeError
        If an array of the tape was resized since the forward pass.

    See Also
    --------
    rnn_backward, fastbptt.lyapunov_spectrum

    Examples
    --------
    How much larger all outputs become with a larger gain of the recurrent weights, and the same from their gradient:

    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((7, 4)), np.eye(7)
    >>> out, h_n, tape = fastbptt.rnn_forward(x, None, w_ih, w_hh)
    >>> out_dot, state_dot = fastbptt.rnn_jvp(tape, w_hh=w_hh)
    >>> out_dot.shape, state_dot.shape
    ((5, 3, 7), (3, 7))
    >>> grads = fastbptt.rnn_backward(tape, np.ones_like(out))
    >>> bool(np.isclose(out_dot.sum(), (grads.w_hh * w_hh).sum()))
    True
    """
    return _jvp("rnn", tape, x, state, w_ih, w_hh, b_ih, b_hh)


def gru_jvp(
    tape: Tape[F],
    *,
    x: Array[F] | None = None,
    state: Array[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
) -> tuple[Array[F], Array[F]]:
    """Forward mode for `gru_forward`; arguments, results and errors as `rnn_jvp`.

    Parameters
    ----------
    tape : Tape
    x : ndarray (T, B, I) or None
    state : ndarray (B, H) or None
    w_ih, w_hh : ndarray (3*H, I), (3*H, H), or None
    b_ih, b_hh : ndarray (3*H,) or None

    Returns
    -------
    out_dot : ndarray (T, B, H)
    state_dot : ndarray (B, H)

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((21, 4)), rng.standard_normal((21, 7))
    >>> out, h_n, tape = fastbptt.gru_forward(x, None, w_ih, w_hh)
    >>> out_dot, state_dot = fastbptt.gru_jvp(tape, x=np.ones_like(x))   # a step of all inputs
    >>> out_dot.shape, state_dot.shape
    ((5, 3, 7), (3, 7))
    """
    return _jvp("gru", tape, x, state, w_ih, w_hh, b_ih, b_hh)


def lstm_jvp(
    tape: Tape[F],
    *,
    x: Array[F] | None = None,
    state: OptionalPair[F] | None = None,
    w_ih: Array[F] | None = None,
    w_hh: Array[F] | None = None,
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    w_hr: Array[F] | None = None,
) -> tuple[Array[F], Pair[F]]:
    """Forward mode for `lstm_forward`; arguments, results and errors as `rnn_jvp`, but for the state.

    Parameters
    ----------
    tape : Tape
    x : ndarray (T, B, I) or None
    state : (ndarray (B, H), ndarray (B, H)) or None
        The tangents of h_0 and c_0; ``None`` means zeros, for both or for either.
    w_ih, w_hh : ndarray (4*H, I), (4*H, H), or None
    b_ih, b_hh : ndarray (4*H,) or None
    w_hr : ndarray (P, H) or None
        Of the projection, where the forward pass had one; then P stands in place of H for whatever is a tangent of h.

    Returns
    -------
    out_dot : ndarray (T, B, H)
    state_dot : (ndarray (B, H), ndarray (B, H))
        Of h_n and c_n.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((28, 4)), rng.standard_normal((28, 7))
    >>> out, state, tape = fastbptt.lstm_forward(x, None, w_ih, w_hh)
    >>> out_dot, (h_dot, c_dot) = fastbptt.lstm_jvp(tape, state=(None, np.ones((3, 7))))
    >>> out_dot.shape, c_dot.shape
    ((5, 3, 7), (3, 7))
    """
    return _jvp("lstm", tape, x, state, w_ih, w_hh, b_ih, b_hh, w_hr)


def _jvp(
    name: CellName,
    tape: Tape,
    x: Array | None,
    state: Any,
    w_ih: Array | None,
    w_hh: Array | None,
    b_ih: Array | None,
    b_hh: Array | None,
    w_hr: Array | None = None,
) -> tuple[Array, Any]:
    """Any cell's tangents."""
    cell, ((T, B, H), dtype), pieces = CELLS[name], require_tape(tape, name), tape._pieces
    if x is not None and tape._x.dtype.kind == "i":
        raise ValueError(f"x: expected None, as tokens have no tangent, got {_checks.describe(x)}")
    x, w_ih, w_hh = (
        None if tangent is None else _checks.array(argument, tangent, shape, dtype)
        for argument, tangent, shape in (
            ("x", x, (T, B, tape._x.shape[-1])),
            ("w_ih", w_ih, tape._w_ih.shape),
            ("w_hh", w_hh, tape._w_hh.shape),
        )
    )
    b_ih, b_hh = (_of_optional("b_ih", b_ih, tape._b_ih, "bias", dtype), _of_optional("b_hh", b_hh, tape._b_hh, "bias", dtype))
    w_hr = _of_optional("w_hr", w_hr, tape._w_hr, "projection", dtype)
    state = state_arrays(parts_of(cell, "state", state), (B,), state_widths(tape), dtype)
    with _checks.Room("tape", tape._h.size):
        h_dot = memory.empty(tape._h.shape, dtype)
    carried = [np.zeros((B if pieces is None else pieces.count, 1, H), dtype) for _ in state[1:]]  # an LSTM's c_dot
    for tangent, part in zip((h_dot, *carried), state):
        if pieces is not None:
            pieces.begin(tangent, part)
        elif tangent is h_dot:
            tangent[0] = 0 if part is None else part
        elif part is not None:
            tangent[:, 0] = part
    if tape._x.size:
        numbers, arrays = kernel_arguments(tape)
        if pieces is not None and x is not None:
            x = pieces.pack(x)
        tangents = (x, w_ih, w_hh, b_ih, b_hh, h_dot, *(part[:, 0] for part in carried), None)[:7]
        first = None if pieces is None else pieces.first
        kernels[dtype].jvp(*numbers, *vectors_or_tokens(tape._x), *arrays, *tangents, first, tape._w_hr, w_hr)
    if pieces is None:
        return h_dot[1:], cell.state([h_dot[T].copy(), *(part[:, 0] for part in carried)])
    last = [pieces.end(h_dot, state[0]), *(pieces.end_carried(*both) for both in zip(carried, state[1:]))]
    return pieces.unpack(h_dot[pieces.count :]), cell.state(last)


def _of_optional(name: str, tangent: Array | None, array: Array | None, kind: str, dtype: np.dtype[Any]) -> Array | None:
    if tangent is None:
        return None
    if array is None:
        raise ValueError(f"{name}: expected None, as the forward pass had no such {kind}, got {_checks.describe(tangent)}")
    return _checks.array(name, tangent, array.shape, dtype)
