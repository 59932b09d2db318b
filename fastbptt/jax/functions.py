"""The functions of `fastbptt.jax`: they check what can be checked while a program is traced, and bind the primitive."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks
from .._typing import CellName, Nonlinearity, Real
from ..cells import CELLS, NONLINEARITIES
from ..functional import check_leak, pair, sizes_of_weights
from . import primitives

Array: TypeAlias = "jax.Array"


def rnn(
    x: Array,
    state: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    nonlinearity: Nonlinearity = "tanh",
    leak: Real | Array | None = None,
) -> tuple[Array, Array]:
    """Run a vanilla RNN over a batch of sequences, differentiably: `fastbptt.rnn_forward`, and under `jax.grad` its backward pass.

    Parameters
    ----------
    x : array (T, B, I), or integer array (T, B)
        The inputs, time first, T and B at least 1. Integers are tokens from 0 to I-1 and mean their one-hot rows, which are never built.
    state : array (B, H) or None
        The initial state; ``None`` means zeros.
    w_ih, w_hh : array (H, I), (H, H)
        The weights, in PyTorch's layout.
    b_ih, b_hh : array (H,) or None
        The biases.
    lengths : integer array (B,) or None
        Row b ends after ``lengths[b]`` steps; ``out`` is 0 behind, and the last state is that of the row's own end.
    resets : bool array (T, B) or None
        Where True, the row's state is set to zero before the step, and no gradient goes back beyond.
    nonlinearity : {"tanh", "relu", "sigmoid", "identity"}
        Of all units; static under ``jax.jit``.
    leak : float or array (H,) or None
        In (0, 1]; ``None`` is the plain RNN. There is no gradient of it.

    Returns
    -------
    out : array (T, B, H)
    state : array (B, H)
        Each row's last state.

    Raises
    ------
    TypeError, ValueError
        While traced: if shapes or dtypes do not fit together; the message names the argument.
    NotImplementedError
        Where a program is lowered for another platform than the CPU, or asks for forward mode or second derivatives.
    jax.errors.JaxRuntimeError, ValueError
        When it runs: if a token is not in [0, I), or a length not in [0, T]. JAX raises the second if it has run the program before.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fastbptt.jax
    >>> x, w_ih, w_hh = jnp.ones((5, 3, 4)), jnp.ones((7, 4)), jnp.eye(7)    # T=5, B=3, I=4, H=7
    >>> loss = jax.jit(lambda w_hh: fastbptt.jax.rnn(x, None, w_ih, w_hh)[0].sum())
    >>> jax.grad(loss)(w_hh).shape
    (7, 7)
    """
    _checks.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    out, h_n = _run("rnn", {"h0": ("state", state)}, x, w_ih, w_hh, b_ih, b_hh, lengths, resets, nonlinearity, leak)
    return out, h_n


def gru(
    x: Array,
    state: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, Array]:
    """Run a GRU over a batch of sequences, differentiably: `fastbptt.gru_forward`, and under `jax.grad` its backward pass.

    Parameters
    ----------
    x : array (T, B, I), or integer array (T, B)
    state : array (B, H) or None
    w_ih, w_hh : array (3*H, I), (3*H, H)
        The weights of the gates r, z, n, one below the other.
    b_ih, b_hh : array (3*H,) or None
    lengths, resets : array (B,) or None, array (T, B) or None
        These and all others as for `rnn`.

    Returns
    -------
    out : array (T, B, H)
    state : array (B, H)

    Raises
    ------
    TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError
        As `rnn`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastbptt.jax
    >>> out, state = fastbptt.jax.gru(jnp.ones((5, 3, 4)), None, jnp.ones((21, 4)), jnp.ones((21, 7)))
    >>> out.shape, state.shape
    ((5, 3, 7), (3, 7))
    """
    out, h_n = _run("gru", {"h0": ("state", state)}, x, w_ih, w_hh, b_ih, b_hh, lengths, resets)
    return out, h_n


def lstm(
    x: Array,
    state: tuple[Array | None, Array | None] | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    w_hr: Array | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Run an LSTM over a batch of sequences, differentiably: `fastbptt.lstm_forward`, and under `jax.grad` its backward pass.

    Parameters
    ----------
    x : array (T, B, I), or integer array (T, B)
    state : (array (B, H), array (B, H)) or None
        The initial state (h0, c0); ``None`` means zeros, for both or for either.
    w_ih, w_hh : array (4*H, I), (4*H, H)
        The weights of the gates i, f, g, o, one below the other.
    b_ih, b_hh : array (4*H,) or None
    w_hr : array (P, H) or None
        The projection, with P < H: h is (B, P) then, and ``w_hh`` (4*H, P).
    lengths, resets : array (B,) or None, array (T, B) or None
        These and all others as for `rnn`.

    Returns
    -------
    out : array (T, B, H)
    state : (array (B, H), array (B, H))
        The last state (h_n, c_n).

    Raises
    ------
    TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError
        As `rnn`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastbptt.jax
    >>> out, (h_n, c_n) = fastbptt.jax.lstm(jnp.ones((5, 3, 4)), None, jnp.ones((28, 4)), jnp.ones((28, 7)))
    >>> out.shape, c_n.shape
    ((5, 3, 7), (3, 7))
    """
    parts = pair("state", state)
    states = dict(zip(("h0", "c0"), parts.items()))
    out, h_n, c_n = _run("lstm", states, x, w_ih, w_hh, b_ih, b_hh, lengths, resets, w_hr=w_hr)
    return out, (h_n, c_n)


def _run(
    name: CellName,
    states: dict[str, tuple[str, Any]],
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    resets: Any,
    nonlinearity: str = "tanh",
    leak: Any = None,
    w_hr: Any = None,
) -> Any:
    """Any cell; ``states`` are the initial ones, and what errors call them."""
    w_ih, w_hh, x = _array("w_ih", w_ih), _array("w_hh", w_hh), _array("x", x)
    dtype = w_ih.dtype
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"w_ih: expected dtype float32 or float64, got {dtype}")
    if w_hr is not None:
        w_hr = _array("w_hr", w_hr)
    N, P, H, I = sizes_of_weights(len(CELLS[name].gates), w_ih, w_hh, w_hr)
    tokens = jnp.issubdtype(x.dtype, jnp.integer)
    if x.ndim != (2 if tokens else 3) or 0 in x.shape[:2]:
        expected = "tokens of shape (T, B)" if tokens else f"shape (T, B, {I}), or integer tokens (T, B)"
        raise ValueError(f"x: expected {expected}, with T and B at least 1, got {x.shape}")
    T, B = x.shape[:2]
    if leak is not None and not isinstance(leak, jax.Array):
        leak = check_leak(leak, H, np.dtype(dtype))
    elif leak is not None and leak.ndim == 0:
        leak = jnp.broadcast_to(leak, (H,)).astype(dtype)
    arguments = {
        "tokens" if tokens else "x": _integers("x", x, (T, B)) if tokens else _real("x", x, (T, B, I), dtype),
        "w_ih": w_ih,
        "w_hh": _real("w_hh", w_hh, (N, P), dtype),
        "b_ih": _real("b_ih", b_ih, (N,), dtype),
        "b_hh": _real("b_hh", b_hh, (N,), dtype),
        "w_hr": _real("w_hr", w_hr, (P, H), dtype),
        "leak": _real("leak", leak, (H,), dtype),
        "lengths": _integers("lengths", lengths, (B,)),
        "resets": _flags("resets", resets, (T, B)),
        **{name: _real(called, state, (B, width), dtype) for (name, (called, state)), width in zip(states.items(), (P, H))},
    }
    there = {name: array for name, array in arguments.items() if array is not None}
    return primitives.forward.bind(*there.values(), run=primitives.Call(name, nonlinearity, tuple(there)))


def _array(name: str, value: Any) -> Any:
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"{name}: expected a JAX or NumPy array, got {_checks.describe(value)}")
    array = jnp.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and array.dtype.itemsize < value.dtype.itemsize:
        # without jax_enable_x64, JAX drops the upper half unseen, and 2^32 + 1 would be a token like any other
        limits = np.iinfo(array.dtype)
        if value.size and not limits.min <= value.min() <= value.max() <= limits.max:
            raise ValueError(f"{name}: expected integers of 32 bits, as jax_enable_x64 is off, got {value.min()} to {value.max()}")
    return array


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    value = _array(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return value


def _real(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if value is None:
        return None
    value = _array(name, value)
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype} like w_ih, got {value.dtype}")
    return _shaped(name, value, shape)


def _integers(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """In 32 bits or 64, which the handler takes."""
    if value is None:
        return None
    value = _shaped(name, value, shape)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got dtype {value.dtype}")
    return value if value.dtype in (np.int32, np.int64) else value.astype(np.int64 if value.dtype.itemsize == 8 else np.int32)


def _flags(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    if value is None:
        return None
    value = _shaped(name, value, shape)
    if value.dtype != np.bool_:
        raise TypeError(f"{name}: expected dtype bool, got {value.dtype}")
    return value
