"""Forward and backward of fleets: check the arguments, allocate the results, call the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks
from .._kernels import kernels, memory
from .._typing import Array, Bool, CellName, ClipStep, F, Integers, Nonlinearity, OptionalPair, Pair, Real
from ..cells import CELLS, NONLINEARITIES
from ..functional import check_clip_step, check_leak, pair, state_arrays
from ..ragged import checked_lengths
from ..results import Gradients
from .tape import Tape, require_tape


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
    tape: Bool = True,
    last_only: Bool = False,
) -> tuple[Array[F], Array[F], Tape[F]]:
    """`fastbptt.rnn_forward` for K independent nets of one shape, each with weights of its own, in one call.

    Nets are dealt out to threads; nets of few units go side by side in the lanes of vectors. A net's bits do not depend on the others, on K
    or on the number of threads, and what is not finite in one net stays there.

    Parameters
    ----------
    x : ndarray (K, T, B, I) or (T, B, I); or integer ndarray (K, T, B) or (T, B)
        The inputs, or tokens: of each net, or one for all.
    h0 : ndarray (K, B, H) or None
        The initial states; ``None`` means zeros.
    w_ih, w_hh : ndarray (K, H, I), (K, H, H)
        The weights.
    b_ih, b_hh : ndarray (K, H) or None
        The biases.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}
        The function f.
    leak : float or ndarray (K, H) or None
        In (0, 1], one for all units of all nets or one for each; ``None`` is the plain RNN.
    lengths : integer ndarray (K, B) or (B,), or None
        Row b of net k ends after ``lengths[k, b]`` steps; ``None`` means T for all. What stands in ``x`` behind a row's end is never looked
        at, and ``out`` is 0 there.
    tape : bool
        Whether there will be a backward pass. Without it each thread has room for the states of one net, or of one vector of small nets.
    last_only : bool
        Whether only the last states are wanted: ``out`` is None then, and so must be ``d_out`` of the backward pass.

    Returns
    -------
    out : ndarray (K, T, B, H), or None
        The states h_1 ... h_T; read-only unless ``tape=False``.
    h_n : ndarray (K, B, H)
        Each row's last state; ``h0`` where a row has no steps.
    tape : Tape or None
        For `rnn_backward`.

    Raises
    ------
    TypeError
        If an argument is no NumPy array, or of a dtype that is not supported or not that of ``w_ih``.
    ValueError
        If shapes do not fit together, K included, or a length is not in [0, T]; the message names the argument.
    IndexError
        If a token is not in [0, I).

    See Also
    --------
    fastbptt.rnn_forward

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((5, 3, 4))                               # T=5, B=3, I=4, for all nets
    >>> w_ih, w_hh = rng.standard_normal((10, 2, 4)), rng.standard_normal((10, 2, 2))       # K=10, H=2
    >>> out, h_n, tape = fastbptt.fleet.rnn_forward(x, None, w_ih, w_hh)
    >>> out.shape, h_n.shape, tape.h.shape
    ((10, 5, 3, 2), (10, 3, 2), (10, 6, 3, 2))
    """
    _checks.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    return _forward("rnn", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, lengths, tape, last_only, nonlinearity, leak)


def rnn_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
) -> Gradients[F, Array[F]]:
    """`fastbptt.rnn_backward` for the nets of a fleet: the exact gradients of each net's loss.

    Parameters
    ----------
    tape : Tape
        From `rnn_forward`. It may be used more than once.
    d_out : ndarray (K, T, B, H) or None
        dL/d out; ``None`` means zeros. What stands behind a row's end is never looked at.
    d_state : ndarray (K, B, H) or None
        dL/d h_n.
    need_dx : bool
        Whether the gradient of the input is wanted; without it, its work is not done, nor its memory taken.
    clip_step : ("value", c), ("norm", c) or None
        As for `fastbptt.rnn_backward`: every row of every net for itself.

    Returns
    -------
    Gradients
        ``x`` (K, T, B, I), for each net even where all share one ``x``; ``state`` (K, B, H), ``w_ih`` (K, H, I), ``w_hh`` (K, H, H),
        ``b_ih`` and ``b_hh`` (K, H).

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
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((10, 2, 4)), rng.standard_normal((10, 2, 2))
    >>> out, h_n, tape = fastbptt.fleet.rnn_forward(x, None, w_ih, w_hh)
    >>> grads = fastbptt.fleet.rnn_backward(tape, np.ones_like(out))     # each net's L is the sum of its out
    >>> grads.x.shape, grads.w_hh.shape
    ((10, 5, 3, 4), (10, 2, 2))
    """
    return _backward("rnn", tape, d_out, {"d_state": d_state}, need_dx, clip_step)


def gru_forward(
    x: Array[F] | Integers,
    h0: Array[F] | None,
    w_ih: Array[F],
    w_hh: Array[F],
    b_ih: Array[F] | None = None,
    b_hh: Array[F] | None = None,
    *,
    lengths: Integers | None = None,
    tape: Bool = True,
    last_only: Bool = False,
) -> tuple[Array[F], Array[F], Tape[F]]:
    """`fastbptt.gru_forward` for K independent nets of one shape; arguments, results and errors as `rnn_forward`.

    Parameters
    ----------
    x : ndarray (K, T, B, I) or (T, B, I); or integer ndarray (K, T, B) or (T, B)
    h0 : ndarray (K, B, H) or None
    w_ih, w_hh : ndarray (K, 3*H, I), (K, 3*H, H)
    b_ih, b_hh : ndarray (K, 3*H) or None
    lengths : integer ndarray (K, B) or (B,), or None
    tape, last_only : bool

    Returns
    -------
    out : ndarray (K, T, B, H), or None
    h_n : ndarray (K, B, H)
    tape : Tape or None
        For `gru_backward`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((10, 6, 4)), rng.standard_normal((10, 6, 2))
    >>> out, h_n, tape = fastbptt.fleet.gru_forward(x, None, w_ih, w_hh)
    >>> out.shape, tape.gates.shape
    ((10, 5, 3, 2), (10, 5, 3, 6))
    """
    return _forward("gru", x, {"h0": h0}, w_ih, w_hh, b_ih, b_hh, lengths, tape, last_only)


def gru_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: Array[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
) -> Gradients[F, Array[F]]:
    """`fastbptt.gru_backward` for the nets of a fleet; arguments, results and errors as `rnn_backward`.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (K, T, B, H) or None
    d_state : ndarray (K, B, H) or None
    need_dx : bool
    clip_step : ("value", c), ("norm", c) or None

    Returns
    -------
    Gradients
        As of `rnn_backward`, with 3*H rows of weights and biases.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((10, 6, 4)), rng.standard_normal((10, 6, 2))
    >>> out, h_n, tape = fastbptt.fleet.gru_forward(x, None, w_ih, w_hh)
    >>> fastbptt.fleet.gru_backward(tape, np.ones_like(out)).w_hh.shape
    (10, 6, 2)
    """
    return _backward("gru", tape, d_out, {"d_state": d_state}, need_dx, clip_step)


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
    tape: Bool = True,
    last_only: Bool = False,
) -> tuple[Array[F], Pair[F], Tape[F]]:
    """`fastbptt.lstm_forward` for K independent nets of one shape; arguments, results and errors as `rnn_forward`, but for the state.

    Parameters
    ----------
    x : ndarray (K, T, B, I) or (T, B, I); or integer ndarray (K, T, B) or (T, B)
    state : (ndarray (K, B, H), ndarray (K, B, H)) or None
        The initial state (h0, c0); ``None`` means zeros, for both or for either.
    w_ih, w_hh : ndarray (K, 4*H, I), (K, 4*H, H)
    b_ih, b_hh : ndarray (K, 4*H) or None
    w_hr : ndarray (K, P, H) or None
        The projection, with P < H. With it h is (K, B, P) wherever it stands, and ``w_hh`` is (K, 4*H, P).
    lengths : integer ndarray (K, B) or (B,), or None
    tape, last_only : bool

    Returns
    -------
    out : ndarray (K, T, B, H), or None
    state : (ndarray (K, B, H), ndarray (K, B, H))
        The last state (h_n, c_n).
    tape : Tape or None
        For `lstm_backward`.

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((10, 8, 4)), rng.standard_normal((10, 8, 2))
    >>> out, (h_n, c_n), tape = fastbptt.fleet.lstm_forward(x, None, w_ih, w_hh)
    >>> out.shape, c_n.shape
    ((10, 5, 3, 2), (10, 3, 2))
    """
    return _forward("lstm", x, pair("state", state), w_ih, w_hh, b_ih, b_hh, lengths, tape, last_only, w_hr=w_hr)


def lstm_backward(
    tape: Tape[F],
    d_out: Array[F] | None,
    d_state: OptionalPair[F] | None = None,
    *,
    need_dx: Bool = True,
    clip_step: ClipStep | None = None,
) -> Gradients[F, Pair[F]]:
    """`fastbptt.lstm_backward` for the nets of a fleet; arguments, results and errors as `rnn_backward`, but for the state.

    Parameters
    ----------
    tape : Tape
    d_out : ndarray (K, T, B, H) or None
    d_state : (ndarray (K, B, H), ndarray (K, B, H)) or None
        dL/d h_n and dL/d c_n; ``None`` means zeros, for both or for either.
    need_dx : bool
    clip_step : ("value", c), ("norm", c) or None

    Returns
    -------
    Gradients
        As of `rnn_backward`, with 4*H rows of weights and biases, a pair of arrays as ``state``, and with a projection ``w_hr`` (K, P, H).

    Examples
    --------
    >>> import numpy as np, fastbptt
    >>> rng = np.random.default_rng(0)
    >>> x, w_ih, w_hh = rng.standard_normal((5, 3, 4)), rng.standard_normal((10, 8, 4)), rng.standard_normal((10, 8, 2))
    >>> out, state, tape = fastbptt.fleet.lstm_forward(x, None, w_ih, w_hh)
    >>> grads = fastbptt.fleet.lstm_backward(tape, np.ones_like(out))
    >>> grads.w_ih.shape, [d.shape for d in grads.state]
    ((10, 8, 4), [(10, 3, 2), (10, 3, 2)])
    """
    return _backward("lstm", tape, d_out, pair("d_state", d_state), need_dx, clip_step)


def _forward(
    name: CellName,
    x: Array,
    state: dict[str, Array | None],
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None,
    b_hh: Array | None,
    lengths: Integers | None,
    keep: Bool,
    last_only: Bool,
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array | None = None,
    w_hr: Array | None = None,
) -> Any:
    """Any cell's forward pass; ``state`` has the arrays of the initial state, by the names that errors call them."""
    cell, keep, last_only = CELLS[name], _checks.flag("tape", keep), _checks.flag("last_only", last_only)
    w_ih, w_hh, w_hr, H = _checked_weights(len(cell.gates), w_ih, w_hh, w_hr)
    (K, N, P), I, dtype = w_hh.shape, w_ih.shape[2], w_ih.dtype
    x, T, B, lengths = _checked_inputs(x, lengths, K, I, dtype)
    b_ih = None if b_ih is None else _checks.array("b_ih", b_ih, (K, N), dtype)
    b_hh = None if b_hh is None else _checks.array("b_hh", b_hh, (K, N), dtype)
    leak = _checked_leak(leak, K, H, dtype)
    initial = state_arrays(state, (K, B), (P, H), dtype)

    there_is_work = bool(K and T and B)
    nets = kernels[dtype].nets_in_group(H, w_hr is not None) if there_is_work else 1
    tape = Tape(name, x, w_ih, w_hh, b_ih, b_hh, w_hr, leak, nonlinearity, lengths, (K, T, B, H), nets, last_only)
    if lengths is not None:
        tape._initial = tuple(None if part is None else part.copy() for part in initial)
    shapes, out_is_h = tape._kept_shapes(), nets == 1 and lengths is None
    wanted = ["_h"] if keep or (out_is_h and not last_only) else []
    if keep:
        wanted += ["_c"] * (len(initial) == 2) + ["_gates"] * (cell.tape_gates or leak is not None) + ["_m"] * cell.reset_after
    try:
        for kept in wanted:
            setattr(tape, kept, memory.empty(shapes[kept], dtype))
        out = None
        if not (last_only or out_is_h):
            out = (memory.empty if lengths is None else memory.zeros)((K, T, B, P), dtype)
        last = [memory.empty((K, B, width), dtype) for _, width in zip(initial, (P, H))]
    except (MemoryError, ValueError):  # the second is what NumPy says to the largest sizes
        raise MemoryError(f"x, w_hh: no memory for the states of {K} nets, {T} steps, {B} rows and {H} units") from None
    h, c, gates, m = tape._h, tape._c, tape._gates, tape._m
    if there_is_work:
        vectors, tokens = (None, x) if x.dtype.kind == "i" else (x, None)
        (h0, c0), (h_n, c_n) = (*initial, None)[:2], (*last, None)[:2]
        numbers = cell.number, NONLINEARITIES[nonlinearity].number, cell.reset_after
        weights = w_ih, w_hh, b_ih, b_hh, w_hr, leak
        kernels[dtype].fleet_forward(*numbers, vectors, tokens, *weights, lengths, h0, c0, h, c, gates, m, out, h_n, c_n)
    else:
        for part, given, history in zip(last, initial, (h, c)):
            part[...] = 0 if given is None else given
            if history is not None:
                history[:, 0] = part
    if out_is_h and not last_only:
        out = h[:, 1:]
    if out is not None:
        out.setflags(write=not keep)
    return out, cell.state(last), (tape if keep else None)


def _backward(
    name: CellName, tape: Tape, d_out: Array | None, d_state: dict[str, Array | None], need_dx: Bool, clip_step: ClipStep | None
) -> Gradients:
    """Any cell's backward pass; ``d_state`` as for `_forward`."""
    cell, tape, need_dx = CELLS[name], require_tape(tape, name), _checks.flag("need_dx", need_dx)
    (K, T, B, H), (_, N, P), I, dtype = tape._shape, tape._w_hh.shape, tape._w_ih.shape[2], tape._w_hh.dtype
    clip, lengths, w_hr = check_clip_step(clip_step), tape._lengths, tape._w_hr
    if d_out is not None:
        if tape._last_only:
            raise ValueError(f"d_out: expected None, as the forward pass had last_only=True, got {_checks.describe(d_out)}")
        d_out = _checks.array("d_out", d_out, (K, T, B, P), dtype)
    given = state_arrays(d_state, (K, B), (P, H), dtype)
    d_initial = [np.zeros((K, B, width), dtype) if d is None else d.copy() for d, width in zip(given, (P, H))]
    vectors, tokens = (None, tape._x) if tape._x.dtype.kind == "i" else (tape._x, None)
    dx = None
    if need_dx and tokens is None:
        dx = (memory.empty if lengths is None else memory.zeros)((K, T, B, I), dtype)
    room = memory.empty if K and T and B else memory.zeros  # the first is filled by the kernels
    dw_ih, dw_hh = room((K, N, I), dtype), room((K, N, P), dtype)
    db_ih, db_hh = room((K, N), dtype), room((K, N), dtype) if cell.reset_after else None
    dw_hr = None if w_hr is None else room(w_hr.shape, dtype)
    if K and T and B:
        dh, dc = (*d_initial, None)[:2]
        numbers = cell.number, NONLINEARITIES[tape._nonlinearity].number, cell.reset_after
        kept = tape._h, tape._c, tape._gates, tape._m
        sums = dw_ih, dw_hh, db_ih, db_hh, dw_hr
        weights = tape._w_ih, tape._w_hh, w_hr, tape._leak
        kernels[dtype].fleet_backward(*numbers, vectors, tokens, *weights, lengths, *kept, d_out, dh, dc, dx, *sums, *clip)
    if tape._b_hh is None:
        db_hh = None
    elif db_hh is None:
        db_hh = db_ih.copy()
    return Gradients(dx, cell.state(d_initial), dw_ih, dw_hh, None if tape._b_ih is None else db_ih, db_hh, dw_hr)


def _checked_weights(gates: int, w_ih: Any, w_hh: Any, w_hr: Any) -> tuple[Array, Array, Array | None, int]:
    """The weights, as the kernels read them, and H."""
    w_ih, w_hh = _checks.require_array("w_ih", w_ih), _checks.require_array("w_hh", w_hh)
    dtype = _checks.require_float("w_ih", w_ih)
    K, N, P = w_hh.shape if w_hh.ndim == 3 else (-1, -1, 0)
    H = P
    if w_hr is not None:
        w_hr = _checks.require_array("w_hr", w_hr)
        rows, H = w_hr.shape[1:] if w_hr.ndim == 3 else (0, 0)
        if not 1 <= rows < H:
            raise ValueError(f"w_hr: expected shape (K, P, H) with 1 <= P < H, got {w_hr.shape}")
        if w_hh.shape != (len(w_hr), gates * H, rows):
            expected = len(w_hr), gates * H, rows
            raise ValueError(f"w_hh: expected shape {expected}, (K, 4*H, P) to go with w_hr {w_hr.shape}, got {w_hh.shape}")
        w_hr = _checks.array("w_hr", w_hr, (K, P, H), dtype)
    elif gates * H != N or not H:
        raise ValueError(f"w_hh: expected shape (K, {'' if gates == 1 else f'{gates}*'}H, H) with H >= 1, got {w_hh.shape}")
    if w_ih.ndim != 3 or w_ih.shape[:2] != (K, N) or not w_ih.shape[2]:
        raise ValueError(f"w_ih: expected shape ({K}, {N}, I) with I >= 1 to go with w_hh {w_hh.shape}, got {w_ih.shape}")
    return _checks.contiguous("w_ih", w_ih), _checks.array("w_hh", w_hh, (K, N, P), dtype), w_hr, H


def _checked_inputs(x: Any, lengths: Any, K: int, I: int, dtype: np.dtype[Any]) -> tuple[Array, int, int, Integers | None]:
    """x or tokens, T, B, and the lengths."""
    x = _checks.require_array("x", x)
    tokens = x.dtype.kind in "iu"
    axes = 2 if tokens else 3
    if x.ndim not in (axes, axes + 1):
        expected = f"({K}, T, B) or (T, B)" if tokens else f"({K}, T, B, {I}) or (T, B, {I})"
        raise ValueError(f"x: expected {'tokens of ' if tokens else ''}shape {expected}, got {x.shape}")
    T, B = x.shape[x.ndim - axes :][:2]
    shape = (K, T, B)[axes + 1 - x.ndim :]
    if not tokens:
        x = _checks.array("x", x, (*shape, I), dtype)
    there = None
    if lengths is not None:
        lengths = _checks.frozen(checked_lengths(lengths, T, (K, B), (B,)))
        longest = lengths.max(axis=0, initial=0) if lengths.ndim == 2 and x.ndim == axes else lengths
        there = np.broadcast_to(np.arange(T)[:, None] < longest[..., None, :], shape)
    if tokens:
        x = _checks.frozen(_checks.integers("x", x, shape, I, "tokens", there))
    return x, T, B, lengths


def _checked_leak(leak: Any, K: int, H: int, dtype: np.dtype[Any]) -> Array | None:
    """One leak for every unit of every net, or None."""
    leak = _checks.scalar(leak)
    if isinstance(leak, np.ndarray):
        each = check_leak(_checks.array("leak", leak, (K, H), dtype).reshape(K * H), K * H, dtype)
    else:
        each = check_leak(leak, H, dtype)
    return None if each is None else np.ascontiguousarray(np.broadcast_to(each.reshape(-1, H), (K, H)))
