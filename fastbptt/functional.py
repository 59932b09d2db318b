"""Forward and backward of each recurrent layer: check the arguments, allocate the results, call the kernel."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from . import _checks, checkpointing
from ._kernels import kernels, memory
from ._typing import Array, Bool, Bools, CellName, ClipStep, F, Int, Integers, Nonlinearity, OptionalPair, Pair, Real
from .cells import CELLS, NONLINEARITIES, Cell
from .ragged import Backwards, Pieces, cut
from .results import Gradients
from .segments import fits, forward_without_tape
from .side_by_side import Pass, alone
from .tape import Tape, kernel_arguments, require_tape

Weights: TypeAlias = "tuple[Array, Array, Array | None, Array | None, Array | None]"  # w_ih, w_hh, b_ih, b_hh and w_hr
STEP_CLIPS = {"value": 1, "norm": 2}  # and what the kernels call them


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
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: Int | None = None,
    tape: Bool = True,
    last_only: Bool = False,
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
    lengths : integer ndarray (B,) or None
        Row b ends after ``lengths[b]`` steps, in any order of rows; ``None`` means T for all. What stands in ``x`` behind a row's end is
        never looked at, and ``out`` is 0 there. Only the steps that there are take time.
    resets : bool ndarray (T, B) or None
        Where True, the row's state is set to zero before the step, and no gradient goes back beyond. Ignored behind a row's end.
    memory_budget : int or None
        Bytes that the call and its backward pass may take beyond their arguments and results. The tape then keeps the state at some steps
        alone, ``tape.plan`` says how many, and the backward pass computes the rest once more, to the same bits.
    tape : bool
        Whether there will be a backward pass. Without a tape, memory does not grow with T beyond ``out``, which may be written to.
    last_only : bool
        Whether only the last state is wanted: ``out`` is None then, and so must be ``d_out`` of the backward pass.

    Returns
    -------
    out : ndarray (T, B, H), read-only, or None
        The states h_1 ... h_T: a view of the tape, which a change would falsify. Copy it to change it.
    h_n : ndarray (B, H)
        Each row's last state, an array of its own; ``h0`` where a row has no steps.
    tape : Tape or None
        For `rnn_backward`.

    Raises
    ------
    TypeError
        If an argument is no NumPy array, or of a dtype that is not supported or not that of ``w_ih``.
    ValueError
        If shapes do not fit together, or a length is not in [0, T]; the message names the argument. If the memory budget is less than the
        least possible, which the message tells, or given with ``tape=False``.
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
    kept = memory_budget, tape, last_only
    return alone(*forward_pass("rnn", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, lengths, resets, kept, nonlinearity, leak))


def rnn_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Array[F]]:
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
        dL/d out; ``None`` means zeros. What stands behind a row's end is never looked at. After ``last_only=True`` it must be None.
    d_state : ndarray (B, H) or None
        dL/d h_n, for a loss that also looks at the last state.
    need_dx : bool
        Whether the gradient of the input is wanted; without it, its work is not done.
    clip_step : ("value", c), ("norm", c) or None
        Clips the gradient of the state on its way, with d_out's share, each time before it goes through a step: every element into
        [-c, c], or every row of the batch, for itself, down to a norm of c (of an LSTM, the norm of dh and dc together). What is returned
        is then no gradient of the loss any more. The gradient of the initial state, which goes through no further step, is not clipped.
        NaN stays NaN. An infinite element becomes c by value; by norm, a row that is not finite has no direction to keep, and stays as
        it is, to be seen in the results.
    carry : ndarray (T, B) or None
        Factors: what step t hands to the state before it is multiplied by ``carry[t]``, row by row, the gradient of the initial state by
        ``carry[0]``. A factor of 0 cuts: nothing gets by, NaN neither. `ARTBP` is made of this.

    Returns
    -------
    Gradients
        ``x`` (T, B, I), 0 behind each row's end, ``state`` (B, H), ``w_ih`` (H, I), ``w_hh`` (H, H), ``b_ih`` and ``b_hh`` (H,).

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
    return alone(*backward_pass("rnn", tape, d_out, {"d_state": d_state}, need_dx, clip_step, carry))


def gru_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: Int | None = None,
    tape: Bool = True,
    last_only: Bool = False,
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
    lengths, resets : ndarray (B,) or None, ndarray (T, B) or None
        Where rows end, and where their states are set to zero, as for `rnn_forward`.
    memory_budget, tape, last_only : int or None, bool, bool
        What is kept and returned, as for `rnn_forward`.

    Returns
    -------
    out : ndarray (T, B, H), read-only, or None
    h_n : ndarray (B, H)
    tape : Tape or None
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
    return alone(*forward_pass("gru", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, lengths, resets, (memory_budget, tape, last_only)))


def gru_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Array[F]]:
    """Backpropagation through time for `gru_forward`; arguments, results and errors as `rnn_backward`.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (T, B, H) or None
    d_state : ndarray (B, H) or None
    need_dx : bool
    clip_step : ("value", c), ("norm", c) or None
    carry : ndarray (T, B) or None

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
    return alone(*backward_pass("gru", tape, d_out, {"d_state": d_state}, need_dx, clip_step, carry))


def lstm_forward(
    x: Array[F] | Integers,
    state: OptionalPair[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    w_hr: Array[F] | None = None,
    lengths: Integers | None = None,
    resets: Bools | None = None,
    memory_budget: Int | None = None,
    tape: Bool = True,
    last_only: Bool = False,
) -> tuple[Array[F], Pair[F], Tape[F]]:
    r"""Run an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) over a batch of sequences.

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i\cdot} x_t + b_{i\cdot} + W_{h\cdot} h_{t-1} + b_{h\cdot}), \qquad
        g_t = \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t, \qquad h_t = o_t \odot \tanh(c_t)

    or, with a projection (Sak, Senior and Beaufays 2014), :math:`h_t = W_{hr} (o_t \odot \tanh(c_t))`, of P numbers for H units.

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
    w_hr : ndarray (P, H) or None
        The projection, with P < H. With it h is (B, P) wherever it stands, in ``out`` and ``state`` too, and ``w_hh`` is (4*H, P).
    lengths, resets : ndarray (B,) or None, ndarray (T, B) or None
        Where rows end, and where their states are set to zero, as for `rnn_forward`; of an LSTM, both.
    memory_budget, tape, last_only : int or None, bool, bool
        What is kept and returned, as for `rnn_forward`.

    Returns
    -------
    out : ndarray (T, B, H), read-only, or None
    state : (ndarray (B, H), ndarray (B, H))
        The last state (h_n, c_n).
    tape : Tape or None
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
    >>> w_hr = rng.standard_normal((2, 7))                               # P=2
    >>> out, (h_n, c_n), tape = fastbptt.lstm_forward(x, None, w_ih, w_hh[:, :2], w_hr=w_hr)
    >>> out.shape, c_n.shape
    ((5, 3, 2), (3, 7))
    """
    kept = memory_budget, tape, last_only
    return alone(*forward_pass("lstm", x, pair("state", state), w_ih, w_hh, b_ih, b_hh, lengths, resets, kept, w_hr=w_hr))


def lstm_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: OptionalPair[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
    carry: Array[F] | None = None,
) -> Gradients[F, Pair[F]]:
    """Backpropagation through time for `lstm_forward`; arguments, results and errors as `rnn_backward`, but for the state.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (T, B, H) or None
    d_state : (ndarray (B, H), ndarray (B, H)) or None
        dL/d h_n and dL/d c_n; ``None`` means zeros, for both or for either.
    need_dx : bool
    clip_step : ("value", c), ("norm", c) or None
    carry : ndarray (T, B) or None

    Returns
    -------
    Gradients
        ``x`` (T, B, I), ``state`` (dL/dh_0, dL/dc_0), ``w_ih`` (4*H, I), ``w_hh`` (4*H, H), ``b_ih`` and ``b_hh`` (4*H,); with a
        projection ``w_hr`` (P, H), and P in place of H for whatever is the gradient of h.

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
    return alone(*backward_pass("lstm", tape, d_out, pair("d_state", d_state), need_dx, clip_step, carry))


def forward_pass(
    name: CellName,
    x: Array,
    state: dict[str, Array | None],
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    lengths: Integers | None,
    resets: Bools | None,
    kept: tuple[Int | None, Bool, Bool],
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array | None = None,
    w_hr: Array | None = None,
) -> Pass:
    """Any cell's forward pass; ``state`` has the arrays of the initial state, by the names that errors call them, and ``kept`` the options
    that say what is kept and returned. In the annotations of the functions above, the types are those of a call without such options.
    """
    checked_kept = _checked_kept(*kept)
    H, x, pieces, weights = _checked_call(len(CELLS[name].gates), x, w_ih, w_hh, w_hr, b_ih, b_hh, lengths, resets)
    initial = state_arrays(state, x.shape[1:2], (weights[1].shape[1], H), weights[1].dtype)
    return begin_forward(name, x, pieces, initial, weights, checked_kept, nonlinearity, leak)


def begin_forward(
    name: CellName,
    x: Array,
    pieces: Pieces | None,
    initial: list[Array | None],
    weights: Weights,
    kept: tuple[int | None, bool, bool],
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array | None = None,
    backwards: Backwards | None = None,
    into: Array | None = None,
) -> Pass:
    """The same with arrays that are known to fit together, of a batch that has been cut into ``pieces``.

    Of a reverse direction, ``x`` is read ``backwards``, and ``pieces`` are those of the rows so turned. ``into`` (T, B, P) is where the
    outputs go, if it is given; there may be gaps between its rows, and behind the rows' ends it stays as it is.
    """
    cell, (budget, keep, last_only), (w_ih, w_hh, b_ih, b_hh, w_hr) = CELLS[name], kept, weights
    (T, B), (N, P), dtype = x.shape[:2], w_hh.shape, w_hh.dtype
    H = N // len(cell.gates)
    leak = check_leak(leak, H, dtype)
    tape = Tape(name, x, w_ih, w_hh, b_ih, b_hh, leak, nonlinearity, _shape=(T, B, H), _w_hr=w_hr, _pieces=pieces, _last_only=last_only)
    if pieces is not None:
        tape._initial = [None if part is None else part.copy() for part in initial]
    if budget is not None or not (keep or fits(tape)):
        if backwards is not None:
            tape._x = backwards.copy(x)
        if budget is not None:
            out, last = checkpointing.forward(tape, initial, budget, last_only)
        else:
            out, last = forward_without_tape(tape, initial, last_only)
        if into is not None and out is not None:
            out = put(out, into, backwards)
        return None, out, lambda: (out, cell.state(last), tape if keep else None)
    given, rows, slots = None, (T, B), (T + 1, B)
    if pieces is not None:
        R = len(pieces.place)
        rows, slots = (R, 1), (pieces.count + R, 1)
    try:
        if x.ndim == 3:
            if pieces is not None or backwards is not None:
                given, x = x, memory.empty((*rows, x.shape[2]), dtype)  # which the kernels fill
        else:
            x = x if backwards is None else backwards.copy(x)
            x = x if pieces is None else pieces.pack(x)
        tape._x = x
        histories = [memory.empty((*slots, width), dtype) for _, width in zip(initial, (P, H))]
        gates = memory.empty((*rows, N), dtype) if cell.tape_gates or leak is not None else None
        m = memory.empty((*rows, H), dtype) if cell.reset_after else None
        placed = into if last_only or pieces is None or into is not None else pieces.room(P, dtype)
    except (MemoryError, ValueError):  # the second is what NumPy says to the largest sizes
        raise MemoryError(f"x, w_hh: no memory for the states of {T} steps, {B} rows and {H} units") from None
    for history, part in zip(histories, initial):
        if pieces is not None:
            pieces.begin(history, part)
        else:
            history[0] = 0 if part is None else part
    h, c = histories[0], histories[1] if len(histories) == 2 else None
    tape._h, tape._c, tape._gates, tape._m = h, c, gates, m
    bound = None
    if x.size:
        numbers, (vectors, tokens) = (cell.number, NONLINEARITIES[nonlinearity].number), vectors_or_tokens(x)
        arrays = vectors, tokens, w_ih, w_hh, b_ih, b_hh, leak, h, c, gates, m
        first, place, turned = places(pieces, backwards)
        bound = kernels[dtype].forward(*numbers, *arrays, first, None, w_hr, False, place, given, placed, turned)
    for array in (h, c, gates, m):
        if array is not None and keep:
            array.setflags(write=False)
    out = h[1:] if pieces is None and not last_only and into is None else None

    def finish() -> Any:
        if pieces is None:
            return out if into is None else into, cell.state([history[T].copy() for history in histories]), tape if keep else None
        if placed is not None and into is None:
            placed.setflags(write=not keep)
        return placed, cell.state([pieces.end(*both) for both in zip(histories, initial)]), tape if keep else None

    return bound, out, finish


def backward_pass(
    name: CellName,
    tape: Tape,
    d_out: Array | None,
    d_state: dict[str, Array | None],
    need_dx: Bool,
    clip_step: ClipStep | None = None,
    carry: Array | None = None,
) -> Pass:
    """Any cell's backward pass; ``d_state`` as for `forward_pass`."""
    (_, B, H), dtype = require_tape(tape, name, states=False)
    given = state_arrays(d_state, (B,), (tape._w_hh.shape[1], H), dtype)
    return begin_backward(name, tape, d_out, given, _checks.flag("need_dx", need_dx), clip_step, carry)


def begin_backward(
    name: CellName,
    tape: Tape,
    d_out: Array | None,
    d_state: list[Array | None],
    need_dx: bool,
    clip_step: ClipStep | None = None,
    carry: Array | None = None,
    backwards: Backwards | None = None,
    onto: Array | None = None,
) -> Pass:
    """The same of a tape that `require_tape` has let through, and with a ``d_state`` that is known to fit.

    ``backwards`` is as for `begin_forward`. dx is added to ``onto``, if that is given.
    """
    cell, (T, B, H), (P, dtype), w_hr = CELLS[name], tape._shape, (tape._w_hh.shape[1], tape._w_hh.dtype), tape._w_hr
    pieces, (x, tokens), clip = tape._pieces, vectors_or_tokens(tape._x), check_clip_step(clip_step)
    if carry is not None:
        carry = _checks.array("carry", carry, (T, B), dtype)
    if d_out is not None:
        if tape._last_only:
            raise ValueError(f"d_out: expected None, as the forward pass had last_only=True, got {_checks.describe(d_out)}")
        d_out = _checks.rows("d_out", d_out, (T, B, P), dtype)
    d_initial = [np.zeros((B, width), dtype) if d is None else d.copy() for d, width in zip(d_state, (P, H))]
    d_last = d_initial
    if pieces is not None:
        d_initial = [pieces.end_gradient(d) for d in d_last]
        if tape._checkpoints is None and carry is not None:
            carry = pieces.pack(carry)
    dx = None
    if need_dx and tokens is None:
        if tape._checkpoints is not None:
            dx = (memory.empty if pieces is None else memory.zeros)(x.shape, dtype)
        elif onto is not None:
            if onto.shape != (T, B, tape._w_ih.shape[1]):
                raise ValueError(f"tape: expected one of the same forward pass, got {tape!r}")
            dx = onto
        else:
            dx = memory.empty(x.shape, dtype) if pieces is None else pieces.room(x.shape[-1], dtype)
    room = memory.empty if tape._x.size and tape._checkpoints is None else memory.zeros  # the first is filled by the kernels
    dw_ih, dw_hh = room(tape._w_ih.shape, dtype), room(tape._w_hh.shape, dtype)
    db_ih = room(dw_hh.shape[:1], dtype)
    db_hh = room(dw_hh.shape[:1], dtype) if cell.reset_after else None
    dw_hr = None if w_hr is None else room(w_hr.shape, dtype)
    bound = None
    if tape._checkpoints is not None:
        if d_out is not None:
            d_out = _checks.contiguous("d_out", d_out) if backwards is None else backwards.copy(d_out)
        checkpointing.backward(tape, d_out, d_initial, dx, (dw_ih, dw_hh, db_ih, db_hh), dw_hr, clip, carry)
        if dx is not None and not (backwards is None and onto is None):
            dx = put(dx, memory.empty(dx.shape, dtype) if onto is None else onto, backwards, onto is not None)
    elif tape._x.size:
        numbers, arrays = kernel_arguments(tape)
        dh, dc = d_initial if len(d_initial) == 2 else (*d_initial, None)
        arrays = x, tokens, *arrays, d_out, dh, dc, dx, dw_ih, dw_hh, db_ih, db_hh
        first, place, turned = places(pieces, backwards)
        bound = kernels[dtype].backward(*numbers, *arrays, first, *clip, carry, w_hr, dw_hr, None, place, turned, onto is not None)

    def finish() -> Gradients:
        d_start = d_initial
        if pieces is not None:
            d_start = [pieces.begin_gradient(*both) for both in zip(d_initial, d_last)]
        d_bias = None if tape._b_hh is None else db_hh if cell.reset_after else db_ih.copy()
        return Gradients(dx, cell.state(d_start), dw_ih, dw_hh, None if tape._b_ih is None else db_ih, d_bias, dw_hr)

    return bound, dx if pieces is None else None, finish


def places(pieces: Pieces | None, backwards: Backwards | None) -> tuple[Integers | None, Integers | None, bool]:
    """Where rows stand, as the kernels are told: ``first``, ``place`` and ``turned`` (`_kernels/time.pxi`)."""
    if pieces is None:
        return None, None, backwards is not None
    return pieces.first, pieces.place if backwards is None else backwards.places(pieces), False


def put(rows: Array, into: Array, backwards: Backwards | None, adds: bool = False) -> Array:
    """Copy an array (T, B, W) that is in the order of a tape, or add it."""
    kernels[into.dtype].move_rows(rows if backwards is None else backwards(rows), into, adds)
    return into


def _checked_kept(budget: Any, tape: Bool, last_only: Bool) -> tuple[int | None, bool, bool]:
    """The options that say what a forward pass keeps and returns."""
    tape, last_only = _checks.flag("tape", tape), _checks.flag("last_only", last_only)
    if budget is not None:
        budget = _checks.size("memory_budget", budget)
        if not tape:
            raise ValueError(f"memory_budget: expected None with tape=False, which keeps nothing, got {budget}")
    return budget, tape, last_only


def vectors_or_tokens(x: Any) -> tuple[Any, Any]:
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


def state_arrays(state: dict[str, Any], rows: tuple[int, ...], widths: tuple[int, ...], dtype: np.dtype[Any]) -> list[Any]:
    """A state's parts, or their gradients or tangents, (*rows, width) each; None stays."""
    parts = zip(state.items(), widths)
    return [None if part is None else _checks.array(argument, part, (*rows, width), dtype) for (argument, part), width in parts]


def check_clip_step(clip_step: Any) -> tuple[int, float]:
    """What the kernels call the kind of clipping, and its limit."""
    if clip_step is None:
        return 0, 0.0
    if not isinstance(clip_step, (tuple, list)) or len(clip_step) != 2:
        raise TypeError(f'clip_step: expected ("value", c), ("norm", c) or None, got {_checks.describe(clip_step)}')
    kind, limit = clip_step
    _checks.one_of("clip_step[0]", kind, tuple(STEP_CLIPS))
    return STEP_CLIPS[kind], _checks.number("clip_step[1]", limit, 0, above=True)


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


def sizes_of_weights(gates: int, w_ih: Any, w_hh: Any, w_hr: Any) -> tuple[int, int, int, int]:
    """N, P, H and I: gates times units, numbers of h, units and inputs. ValueError unless the shapes go together, of arrays of any kind."""
    N, P = w_hh.shape if w_hh.ndim == 2 else (-1, 0)
    H = P
    if w_hr is not None:
        P, H = w_hr.shape if w_hr.ndim == 2 else (0, 0)
        if not 1 <= P < H:
            raise ValueError(f"w_hr: expected shape (P, H) with 1 <= P < H, got {w_hr.shape}")
        if w_hh.shape != (4 * H, P):
            raise ValueError(f"w_hh: expected shape {(4 * H, P)}, (4*H, P) to go with w_hr {w_hr.shape}, got {w_hh.shape}")
    if gates * H != N or not H:
        raise ValueError(f"w_hh: expected shape ({'' if gates == 1 else f'{gates}*'}H, H) with H >= 1, got {w_hh.shape}")
    rows, I = w_ih.shape if w_ih.ndim == 2 else (-1, 0)
    if rows != N or not I:
        raise ValueError(f"w_ih: expected shape ({N}, I) with I >= 1 to go with w_hh {w_hh.shape}, got {w_ih.shape}")
    return N, P, H, I


def _checked_call(
    gates: int,
    x: Array,
    w_ih: Array,
    w_hh: Array,
    w_hr: Array | None,
    b_ih: Array | None,
    b_hh: Array | None,
    lengths: Integers | None,
    resets: Bools | None,
) -> tuple[int, Array, Pieces | None, Weights]:
    """How many units there are; x, and its pieces if the batch is ragged; and the weights; all as the kernels read it."""
    w_ih, w_hh, x = _checks.require_array("w_ih", w_ih), _checks.require_array("w_hh", w_hh), _checks.require_array("x", x)
    dtype = _checks.require_float("w_ih", w_ih)
    if w_hr is not None:
        w_hr = _checks.require_array("w_hr", w_hr)
    N, P, H, I = sizes_of_weights(gates, w_ih, w_hh, w_hr)
    if w_hr is not None:
        w_hr = _checks.array("w_hr", w_hr, (P, H), dtype)
    tokens = x.dtype.kind in "iu"
    if x.ndim != (2 if tokens else 3):
        expected = "tokens of shape (T, B)" if tokens else f"shape (T, B, {I}), or integer tokens (T, B)"
        raise ValueError(f"x: expected {expected}, got {x.shape}")
    x, pieces = checked_input(x, I, dtype, lengths, resets)
    w_ih, w_hh = _checks.contiguous("w_ih", w_ih), _checks.array("w_hh", w_hh, (N, P), dtype)
    b_ih = None if b_ih is None else _checks.array("b_ih", b_ih, (N,), dtype)
    b_hh = None if b_hh is None else _checks.array("b_hh", b_hh, (N,), dtype)
    return H, x, pieces, (w_ih, w_hh, b_ih, b_hh, w_hr)


def checked_input(x: Array, I: int, dtype: np.dtype[Any], lengths: Integers | None, resets: Bools | None) -> tuple[Array, Pieces | None]:
    """x, of the right number of axes, as the kernels read it, and its pieces if the batch is ragged; tokens are copied."""
    T, B = x.shape[:2]
    if x.ndim == 3:
        x = _checks.array("x", x, (T, B, I), dtype)
    pieces = None if lengths is None and resets is None else cut(T, B, lengths, resets)
    if x.ndim == 2:
        x = _checks.frozen(_checks.integers("x", x, (T, B), I, "tokens", None if pieces is None else pieces.there))
    return x, pieces
