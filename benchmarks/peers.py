"""The contestants: one recurrent layer, forward and backward, as a good user of each package would write it.

Every contestant gets the same numbers and the same cores, and gives back the same list of gradients. What it can prepare once
(modules, device arrays, compilation) it prepares outside the timed calls. On a machine with many cores, run under ``taskset`` to
choose how many are used: XLA and BLAS size their pools by the cores that the process may use, and the others are told that number.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# How far results may differ: the 2-norm of the difference by the 2-norm of the array.
TOLERANCE = {"float64": 1e-10, "float32": 1e-3}


class Contestant(NamedTuple):
    """Two calls without arguments, to be timed.

    Attributes
    ----------
    forward : callable
        Returns ``out`` (T, B, H). No gradient will be asked for.
    forward_backward : callable
        Returns ``[out, dx, dh0, (dc0,) dw_ih, dw_hh, db_ih, db_hh]``, arrays that NumPy can read.
    """

    forward: Callable
    forward_backward: Callable


def build(name, case, arrays=None):
    """The contestant for a case, or None where its package is not installed or has no such layer.

    Parameters
    ----------
    name : {"reference", "fastbptt", "torch", "jax"}
    case : Case
    arrays : Arrays, optional
        The numbers, if not those of the case.
    """
    if name in OPTIONAL and find_spec(name) is None:
        return None
    return CONTESTANTS[name](case, case.arrays() if arrays is None else arrays)


def agreed(case):
    """The result that all must reach: the reference's, in float64, on the numbers as rounded to the case's dtype."""
    return build("reference", case, case.arrays().astype(np.float64)).forward_backward()


def disagreement(result, expected):
    """The largest relative difference of an array in ``result`` from its twin in ``expected``."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(result, expected, strict=True)]
    wrong = [(a.shape, b.shape) for a, b in pairs if a.shape != b.shape]
    if wrong:
        raise ValueError(f"results differ in shape: {wrong}")
    return max(float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel())) for a, b in pairs)


# --- fastbptt, and its reference ------------------------------------------------------------------------------------------


def build_fastbptt(case, arrays):
    package = import_module("fastbptt")
    package.set_num_threads(THREADS)
    return build_functions(package, case, arrays)


def build_reference(case, arrays):
    return build_functions(import_module("fastbptt.reference"), case, arrays)


def build_functions(module, case, arrays):
    """The functions ``*_forward`` and ``*_backward`` of a module."""
    run_forward = getattr(module, f"{case.family}_forward", None)
    run_backward = getattr(module, f"{case.family}_backward", None)
    if run_forward is None or run_backward is None:
        return None
    options = {} if case.traits.gated else {"nonlinearity": case.cell}
    x, weights, d_out = arrays.x, arrays.weights, arrays.d_out
    state = case.traits.state(arrays.state)

    def forward():
        return run_forward(x, state, *weights, **options)[0]

    def forward_backward():
        out, _, tape = run_forward(x, state, *weights, **options)
        dx, d_state, *d_weights = run_backward(tape, d_out)
        return [out, dx, *(d_state if isinstance(d_state, tuple) else (d_state,)), *(d for d in d_weights if d is not None)]

    return Contestant(forward, forward_backward)


# --- PyTorch --------------------------------------------------------------------------------------------------------------


def torch_module(modules, case, arrays):
    """RNN, GRU or LSTM of ``modules``, or None if there is no such layer."""
    torch = import_module("torch")
    layer = getattr(modules, case.family.upper(), None)
    if layer is None:
        return None
    torch.set_num_threads(THREADS)
    options = {} if case.traits.gated else {"nonlinearity": case.cell}
    module = layer(case.I, case.H, dtype=getattr(torch, case.dtype), **options)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), arrays.weights, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return module


def build_torch(case, arrays, modules=None):
    """A module of torch.nn, unless others are given; gradients by torch.autograd.grad, so that each call makes fresh ones."""
    torch = import_module("torch")
    module = torch_module(modules or torch.nn, case, arrays)
    if module is None:
        return None
    x = torch.from_numpy(arrays.x).requires_grad_()
    states = tuple(torch.from_numpy(s)[None].requires_grad_() for s in arrays.state)
    state = case.traits.state(states)
    inputs = [x, *states, *module.parameters()]
    d_out = torch.from_numpy(arrays.d_out)

    @torch.inference_mode()
    def forward():
        return module(x, state)[0]

    def forward_backward():
        out, _ = module(x, state)
        dx, *grads = torch.autograd.grad(out, inputs, d_out)
        d_states, d_weights = grads[: len(states)], grads[len(states) :]
        return [out.detach(), dx, *(d[0] for d in d_states), *d_weights]

    return Contestant(forward, forward_backward)


# --- JAX ------------------------------------------------------------------------------------------------------------------


def build_jax(case, arrays):
    """A jitted lax.scan and its vjp; the input projection is one product before the scan."""
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    jax.config.update("jax_enable_x64", True)
    cell = jax_cells(jax).get(case.cell)
    if cell is None:
        return None

    def layer(x, state, w_ih, w_hh, b_ih, b_hh):
        if case.traits.reset_after:
            p, b = x @ w_ih.T + b_ih, b_hh
        else:
            p, b = x @ w_ih.T + (b_ih + b_hh), 0

        def step(state, p_t):
            state = cell(p_t, state[0] @ w_hh.T + b, *state)
            return state, state[0]

        return jax.lax.scan(step, state, p)[1]

    @jax.jit
    def value_and_vjp(d_out, *inputs):
        out, pull_back = jax.vjp(layer, *inputs)
        return out, pull_back(d_out)

    value = jax.jit(layer)
    d_out, inputs = jax.tree.map(jnp.asarray, (arrays.d_out, (arrays.x, arrays.state, *arrays.weights)))

    def forward():
        return value(*inputs).block_until_ready()

    def forward_backward():
        return jax.tree.leaves(jax.block_until_ready(value_and_vjp(d_out, *inputs)))

    return Contestant(forward, forward_backward)


def jax_cells(jax):
    """The cells: from p = x W_ih^T + b, q = h W_hh^T (+ b_hh, where the reset comes after) and the old state, the new one."""
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid

    def tanh(p, q, h):
        return (jnp.tanh(p + q),)

    def relu(p, q, h):
        return (jax.nn.relu(p + q),)

    def gru(p, q, h):
        (p_r, p_z, p_n), (q_r, q_z, q_n) = jnp.split(p, 3, -1), jnp.split(q, 3, -1)
        r, z = sigmoid(p_r + q_r), sigmoid(p_z + q_z)
        n = jnp.tanh(p_n + r * q_n)
        return ((1 - z) * n + z * h,)

    def lstm(p, q, h, c):
        i, f, g, o = jnp.split(p + q, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c

    return {"tanh": tanh, "relu": relu, "gru": gru, "lstm": lstm}


CONTESTANTS = {"reference": build_reference, "fastbptt": build_fastbptt, "torch": build_torch, "jax": build_jax}
OPTIONAL = ("torch", "jax")
