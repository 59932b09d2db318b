"""The contestants: one recurrent layer, forward and backward, as a good user of each package would write it.

Every contestant gets the same numbers and the same cores, and gives back the same list of gradients. What it can prepare once
(modules, device arrays, compilation) it prepares outside the timed calls. On a machine with many cores, run under ``taskset`` to
choose how many are used: XLA and BLAS size their pools by the cores that the process may use, and the others are told that number.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from timing import enough_repeats, sample

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

# How far results may differ: the 2-norm of the difference by the 2-norm of the array.
TOLERANCE = {"float64": 1e-10, "float32": 1e-3}


class Contestant(NamedTuple):
    """Two calls without arguments, to be timed.

    Attributes
    ----------
    forward : callable
        Returns ``out`` (T, B, H). No gradient will be asked for.
    forward_backward : callable or None
        Returns ``[out, dx, dh0, (dc0,) dw_ih, dw_hh, db_ih, db_hh]``, arrays that NumPy can read; of a stack, the last four for each
        direction. None where the package has no backward pass.
    """

    forward: Callable
    forward_backward: Callable


def build(name, case, arrays=None):
    """The contestant for a case, or None where its package is not installed or has no such layer.

    Parameters
    ----------
    name : {"reference", "fastbptt", "torch", "jax", "onnxruntime"}
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
    return build_layer(package, case, arrays) if case.is_stack else build_functions(package, case, arrays)


def build_reference(case, arrays):
    return None if case.is_stack else build_functions(import_module("fastbptt.reference"), case, arrays)


def build_layer(package, case, arrays):
    """A layer of the package. Its gradients are set to zero at each call, so that they are fresh."""
    cls = getattr(package, case.family.upper(), None)
    if cls is None:
        return None
    options = {} if case.traits.gated else {"nonlinearity": case.cell}
    layer = cls(case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=case.dtype, **options)
    for parameter, value in zip(layer.params.values(), arrays.weights, strict=True):
        parameter[...] = value
    x, state, d_out, ragged = arrays.x, case.traits.state(arrays.state), arrays.d_out, case.ragged()

    def forward():
        layer.eval()
        return layer(x, state, **ragged)[0]

    def forward_backward():
        layer.train()
        layer.zero_grad()
        out, _ = layer(x, state, **ragged)
        dx, d_state = layer.backward(d_out)
        return [out, dx, *(d_state if isinstance(d_state, tuple) else (d_state,)), *layer.grads.values()]

    return Contestant(forward, forward_backward)


def build_functions(module, case, arrays):
    """The functions ``*_forward`` and ``*_backward`` of a module."""
    run_forward = getattr(module, f"{case.family}_forward", None)
    run_backward = getattr(module, f"{case.family}_backward", None)
    if run_forward is None or run_backward is None:
        return None
    options = case.ragged() | ({} if case.traits.gated else {"nonlinearity": case.cell})
    x, weights, d_out = arrays.x, arrays.weights, arrays.d_out
    state = case.traits.state(arrays.state)

    def forward():
        return run_forward(x, state, *weights, **options, tape=False)[0]

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
    module = layer(case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=getattr(torch, case.dtype), **options)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), arrays.weights, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return module


def build_torch(case, arrays, modules=None):
    """A module of torch.nn, unless others are given; gradients by torch.autograd.grad, so that each call makes fresh ones.

    Rows that end early are packed and padded again. Where rows begin anew, the module is called from one such step to the next.
    """
    torch = import_module("torch")
    module = torch_module(modules or torch.nn, case, arrays)
    if module is None:
        return None
    x = torch.from_numpy(arrays.x).requires_grad_()
    states = tuple((torch.from_numpy(s) if case.is_stack else torch.from_numpy(s)[None]).requires_grad_() for s in arrays.state)
    inputs = [x, *states, *module.parameters()]
    d_out = torch.from_numpy(arrays.d_out)
    run = torch_loop_over_resets if case.resets else torch_call
    call = run(case, module, x, states, **case.ragged())
    if call is None:
        return None

    @torch.inference_mode()
    def forward():
        return call()

    def forward_backward():
        out = call()
        dx, *grads = torch.autograd.grad(out, inputs, d_out)
        d_states, d_weights = grads[: len(states)], grads[len(states) :]
        return [out.detach(), dx, *(d if case.is_stack else d[0] for d in d_states), *d_weights]

    return Contestant(forward, forward_backward)


def torch_call(case, module, x, states, lengths=None):
    state = case.traits.state(states)
    if lengths is None:
        return lambda: module(x, state)[0]
    torch = import_module("torch")
    rnn, lengths = torch.nn.utils.rnn, torch.from_numpy(lengths)

    def call():
        packed, _ = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), state)
        return rnn.pad_packed_sequence(packed, total_length=case.T)[0]

    return call


def torch_loop_over_resets(case, module, x, states, resets, lengths=None):
    if lengths is not None or case.is_stack:
        return None
    torch = import_module("torch")
    cuts = [0, *(t for t in range(1, case.T) if resets[t].any()), case.T]
    keep = torch.from_numpy((~resets).astype(case.dtype))[..., None]

    def call():
        state, outs = states, []
        for start, stop in pairwise(cuts):
            state = tuple(part * keep[start] for part in state)
            out, state = module(x[start:stop], case.traits.state(state))
            state = state if isinstance(state, tuple) else (state,)
            outs.append(out)
        return torch.cat(outs)

    return call


# --- JAX ------------------------------------------------------------------------------------------------------------------


UNROLLS = 1, 4  # of lax.scan: which is faster depends on the size


def build_jax(case, arrays):
    """A jitted lax.scan and its vjp; the input projection is one product before the scan. The faster of two, by how far it is unrolled."""
    if case.is_stack:
        return None
    built = [jax_scan(case, arrays, unroll) for unroll in UNROLLS]
    if None in built:
        return None
    return Contestant(*(faster([getattr(contestant, call) for contestant in built]) for call in Contestant._fields))


def faster(calls):
    """Of these calls the one that takes less time."""
    for call in calls:
        call()  # is compiled
    samples = [(min(sample(call, enough_repeats(call, 0.02)) for _ in range(3)), call) for call in calls]
    return min(samples, key=lambda pair: pair[0])[1]


def jax_scan(case, arrays, unroll):
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    jax.config.update("jax_enable_x64", True)
    cell = jax_cells(jax).get(case.cell)
    if cell is None:
        return None
    ragged = case.ragged()
    there = np.arange(case.T)[:, None] < ragged.get("lengths", np.full(case.B, case.T))
    resets = ragged.get("resets", np.zeros_like(there))

    def layer(x, state, w_ih, w_hh, b_ih, b_hh):
        if case.traits.reset_after:
            p, b = x @ w_ih.T + b_ih, b_hh
        else:
            p, b = x @ w_ih.T + (b_ih + b_hh), 0

        def step(state, p_t):
            state = cell(p_t, state[0] @ w_hh.T + b, *state)
            return state, state[0]

        def ragged_step(state, inputs):
            p_t, there_t, reset_t = inputs
            state = tuple(jnp.where(reset_t[:, None], 0, part) for part in state)
            new, h = step(state, p_t)
            return tuple(jnp.where(there_t[:, None], *both) for both in zip(new, state)), jnp.where(there_t[:, None], h, 0)

        if ragged:
            return jax.lax.scan(ragged_step, state, (p, there, resets), unroll=unroll)[1]
        return jax.lax.scan(step, state, p, unroll=unroll)[1]

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


# --- ONNX Runtime ---------------------------------------------------------------------------------------------------------

ONNX_ORDER = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}  # of its gates, by PyTorch's


def build_onnxruntime(case, arrays):
    """A session of one RNN, GRU or LSTM node: the forward pass alone. It has none for other layers, for rows that are reset, or for
    float64.
    """
    if find_spec("onnx") is None or case.is_stack or case.resets or case.dtype != "float32" or case.family not in ONNX_ORDER:
        return None
    onnx, runtime = import_module("onnx"), import_module("onnxruntime")
    make, real, order = onnx.helper, onnx.TensorProto.FLOAT, ONNX_ORDER[case.family]
    w_ih, w_hh, b_ih, b_hh = (np.concatenate([np.split(w, len(order))[gate] for gate in order]) for w in arrays.weights)
    constants = {"w": w_ih[None], "r": w_hh[None], "b": np.concatenate([b_ih, b_hh])[None]}
    fed = {"x": arrays.x} | {name: part[None] for name, part in zip(("h0", "c0"), arrays.state)}
    lengths = case.ragged().get("lengths")
    if lengths is not None:
        constants["lengths"] = lengths.astype(np.int32)
    options = {"gru": {"linear_before_reset": 1}, "lstm": {}}.get(case.family, {"activations": [case.cell.capitalize()]})
    names = ["x", "w", "r", "b", "" if lengths is None else "lengths", *list(fed)[1:]]
    graph = make.make_graph(
        [make.make_node(case.family.upper(), names, ["out"], hidden_size=case.H, **options)],
        "layer",
        [make.make_tensor_value_info(name, real, array.shape) for name, array in fed.items()],
        [make.make_tensor_value_info("out", real, [case.T, 1, case.B, case.H])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    session = runtime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return Contestant(lambda: session.run(None, fed)[0][:, 0], None)


CONTESTANTS = {
    "reference": build_reference,
    "fastbptt": build_fastbptt,
    "torch": build_torch,
    "jax": build_jax,
    "onnxruntime": build_onnxruntime,
}
OPTIONAL = ("torch", "jax", "onnxruntime")
