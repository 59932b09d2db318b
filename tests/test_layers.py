"""Layers: parameters and gradients as views, PyTorch's names, and when a backward pass is due."""

import copy
import functools
import os
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import CELLS, WEIGHTS, arrays_of, random_problem
from processes import run_python
from tolerances import DTYPES, TOLERANCES, assert_close

import fastbptt
import fastbptt.layers
from fastbptt import cells

NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]

RECURRENT = {
    "leaky RNN": functools.partial(fastbptt.RNN, leak=0.3),
    **{cls.__name__: cls for cls in fastbptt.layers.LAYERS.values()},
}
LAYERS = {
    **{name: lambda cls=cls, **options: cls(4, 7, rng=0, **options) for name, cls in RECURRENT.items()},
    "Linear": lambda **options: fastbptt.Linear(4, 7, rng=0, **options),
}
EACH_RECURRENT = pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(seed=0, shape=(5, 3, 4), dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layered(state):
    """A state as a layer takes it: an array, or a pair of them, with an axis for the layers."""
    return None if state is None else state[0][None] if len(state) == 1 else tuple(part[None] for part in state)


def run(layer, x):
    result = layer.forward(x)
    return result[0] if isinstance(result, tuple) else result


def copies(arrays):
    return {name: array.copy() for name, array in arrays.items()}


# --- Parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_parameters_are_views_of_one_flat_array(make):
    layer = make()
    for flat, named in ((layer.flat_params, layer.params), (layer.flat_grads, layer.grads)):
        assert flat.ndim == 1 and flat.flags.c_contiguous and flat.size == sum(p.size for p in named.values())
        flat[:] = np.arange(flat.size)
        np.testing.assert_array_equal(np.concatenate([p.ravel() for p in named.values()]), flat)
        for p in named.values():
            assert np.shares_memory(p, flat) and p.flags.c_contiguous
            p[...] = -1
        assert (flat == -1).all()
    assert layer.params.keys() == layer.grads.keys()
    assert not np.shares_memory(layer.flat_params, layer.flat_grads)


def unpickled(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, unpickled])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_copy_learns_and_leaves_the_original_alone(make, copy_of):
    layer = make()
    run(layer, inputs())
    layer.backward(np.ones((5, 3, 7)))
    before, grads = layer.flat_params.copy(), layer.flat_grads.copy()
    other = copy_of(layer)
    assert type(other) is type(layer) and other.params.keys() == layer.params.keys()
    np.testing.assert_array_equal(other.flat_params, before)
    np.testing.assert_array_equal(other.flat_grads, grads)
    np.testing.assert_array_equal(run(other, inputs()), run(layer, inputs()))
    test_parameters_are_views_of_one_flat_array(lambda: copy_of(layer))
    other.zero_grad()
    other.backward(np.ones((5, 3, 7)))
    assert fastbptt.total_norm(other) == pytest.approx(fastbptt.total_norm(other.grads), rel=1e-14)
    fastbptt.SGD(other, lr=1.0).step()
    assert all((p != layer.params[name]).any() for name, p in other.params.items())
    np.testing.assert_array_equal(layer.flat_params, before)
    np.testing.assert_array_equal(layer.flat_grads, grads)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, unpickled, copy.copy])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_copy_has_nothing_to_go_back_through(make, copy_of):
    layer = make()
    run(layer, inputs())
    with pytest.raises(RuntimeError, match="backward: no forward pass"):
        copy_of(layer).backward(np.ones((5, 3, 7)))
    layer.backward(np.ones((5, 3, 7)))


@pytest.mark.parametrize("arrays", ["params", "grads"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_arrays_can_be_written_into_but_not_replaced(make, arrays):
    layer = make()
    named = getattr(layer, arrays)
    before = {name: (array, array.copy()) for name, array in named.items()}
    for name, array in before.items():
        for value in (np.zeros_like(array[0]), np.zeros((1, 1)), array[1], None):
            with pytest.raises(TypeError, match=f"^{name}: .* written into .* not replaced$"):
                named[name] = value
        for change in (
            lambda name: named.pop(name),
            lambda name: named.__delitem__(name),
            lambda name: named.update({name: 1}),
            lambda name: named.setdefault(name, 1),
        ):
            with pytest.raises(TypeError, match="fixed"):
                change(name)
    for value in (None, np.ones(3)):
        with pytest.raises(TypeError, match=r"^another: "):
            named["another"] = value
    for attribute in (arrays, f"flat_{arrays}"):
        with pytest.raises(TypeError, match=f"^{attribute}: .* not replaced$"):
            setattr(layer, attribute, copy.copy(getattr(layer, attribute)))
    assert named.keys() == before.keys() and all(named[name] is array for name, (array, _) in before.items())
    for name, (array, values) in before.items():
        named[name] += 1
        named[name] *= 2
        np.testing.assert_array_equal(array, (values + 1) * 2)
    flat = getattr(layer, f"flat_{arrays}")
    flat *= 0
    if arrays == "params":
        layer.flat_params -= 1
    else:
        layer.flat_grads -= 1
    assert all((array == -1).all() for array in named.values())


@pytest.mark.parametrize("copy_of", [copy.deepcopy, unpickled, copy.copy, dict.copy, dict])
def test_copies_of_the_parameters_are_ordinary_dicts(copy_of):
    layer = fastbptt.RNN(4, 7, rng=0)
    mine = copy_of(layer.params)
    assert type(mine) is dict and mine.keys() == layer.params.keys()
    mine["bias_hh_l0"] = np.zeros(7)
    layer.load_state_dict(mine)
    assert not layer.params["bias_hh_l0"].any()


@pytest.mark.one_level
@pytest.mark.parametrize("bias", [True, False])
def test_names_and_shapes_are_torchs(bias, torch):
    for layer, module in [
        (fastbptt.RNN(4, 7, bias=bias), torch.nn.RNN(4, 7, bias=bias)),
        (fastbptt.GRU(4, 7, bias=bias), torch.nn.GRU(4, 7, bias=bias)),
        (fastbptt.LSTM(4, 7, bias=bias), torch.nn.LSTM(4, 7, bias=bias)),
        (fastbptt.Linear(4, 7, bias=bias), torch.nn.Linear(4, 7, bias=bias)),
    ]:
        theirs = {name: tuple(p.shape) for name, p in module.named_parameters()}
        assert {name: p.shape for name, p in layer.params.items()} == theirs
        assert list(layer.params) == list(theirs)


@EACH_RECURRENT
def test_the_start_is_drawn_from_the_seed(make):
    a, b, c = (make(4, 25, rng=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.flat_params, b.flat_params)
    assert (a.flat_params != c.flat_params).all()
    assert 0.19 < np.abs(a.flat_params).max() <= 0.2
    np.testing.assert_array_equal(make(4, 25, rng=np.random.default_rng(1)).flat_params, a.flat_params)
    single = make(4, 25, rng=1, dtype=np.float32)
    np.testing.assert_array_equal(single.flat_params, a.flat_params.astype(np.float32))
    assert single.flat_grads.dtype == np.float32 == single.dtype
    assert 0.45 < np.abs(fastbptt.Linear(4, 50, rng=0).flat_params).max() <= 0.5


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_state_dict_is_a_copy_and_loads_back(make):
    layer, other = make(), make()
    saved = layer.state_dict()
    assert saved.keys() == layer.params.keys()
    layer.flat_params[:] = 0
    assert all(array.any() for array in saved.values())
    other.flat_params[:] = 5
    other.load_state_dict({name: array.astype(np.float32) for name, array in saved.items()})
    for name, p in other.params.items():
        np.testing.assert_array_equal(p, saved[name].astype(np.float32))
        assert np.shares_memory(p, other.flat_params)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: None, TypeError, "state: expected a dict of arrays, got NoneType"),
        (lambda d: {}, KeyError, "missing"),
        (lambda d: d | {"weight_ih_l1": np.ones(3)}, KeyError, "unexpected.*weight_ih_l1"),
        (lambda d: {name: d[name] for name in NAMES[:3]}, KeyError, "missing.*bias_hh_l0"),
        (lambda d: d | {"bias_hh_l0": np.ones(8)}, ValueError, r"state\['bias_hh_l0'\]: expected shape \(7,\), got \(8,\)"),
        (lambda d: d | {"bias_hh_l0": np.ones(7, int)}, TypeError, r"state\['bias_hh_l0'\]: expected a float dtype, got int64"),
        (lambda d: d | {"bias_hh_l0": np.ones(7, complex)}, TypeError, r"state\['bias_hh_l0'\]: expected a float dtype"),
        (lambda d: d | {"bias_hh_l0": [1.0] * 7}, TypeError, r"state\['bias_hh_l0'\]: expected a NumPy array, got list"),
        (lambda d: d | {"bias_hh_l0": np.ma.ones(7)}, TypeError, r"state\['bias_hh_l0'\]: expected a plain NumPy array"),
    ],
)
def test_loading_is_strict_and_all_or_nothing(change, error, message):
    layer = fastbptt.RNN(4, 7, rng=0)
    before = layer.flat_params.copy()
    zeros = {name: np.zeros_like(p) for name, p in layer.params.items()}
    with pytest.raises(error, match=message):
        layer.load_state_dict(change(zeros))
    np.testing.assert_array_equal(layer.flat_params, before)


def test_parameters_of_the_layer_itself_can_trade_places():
    layer = fastbptt.RNN(4, 7, rng=0)
    before = layer.state_dict()
    layer.load_state_dict(dict(layer.params) | {"bias_ih_l0": layer.params["bias_hh_l0"], "bias_hh_l0": layer.params["bias_ih_l0"][::-1]})
    np.testing.assert_array_equal(layer.params["bias_ih_l0"], before["bias_hh_l0"])
    np.testing.assert_array_equal(layer.params["bias_hh_l0"], before["bias_ih_l0"][::-1])


@pytest.mark.parametrize("write", [lambda layer, ones: layer.load_state_dict(ones), lambda layer, ones: layer._add(*ones.values())])
@pytest.mark.parametrize("views", ["params", "grads"])
def test_where_one_array_is_read_only_none_is_written(write, views):
    layer = fastbptt.RNN(4, 7)
    ones = {name: np.ones_like(p) for name, p in layer.params.items()}
    for array in (layer.params["bias_hh_l0"], layer.grads["bias_hh_l0"]):
        array.flags.writeable = False
    before = getattr(layer, f"flat_{views}").copy()
    with pytest.raises(
        ValueError, match=r"^(params|grads)\['bias_hh_l0'\]: expected a writeable array as the layer made it, got .*\(7,\).* read-only$"
    ):
        write(layer, ones)
    np.testing.assert_array_equal(getattr(layer, f"flat_{views}"), before)


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype)")
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_what_is_written_is_the_layers_memory_whatever_its_views_are_taken_for(make):
    changed, plain = make(), make()
    state = {name: p + 1 for name, p in plain.params.items()}
    first = next(iter(changed.params))
    changed.params[first].dtype = changed.grads[first].dtype = np.int64
    plain.load_state_dict(state)
    changed.load_state_dict(state)
    changed.params[first].dtype = np.float64
    changed.grads[first].shape = -1
    for layer in (changed, plain):
        layer.backward(np.ones_like(run(layer, inputs())))
    np.testing.assert_array_equal(changed.flat_params, plain.flat_params)
    np.testing.assert_array_equal(changed.flat_grads, plain.flat_grads)


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype)")
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_parameters_of_another_shape_or_dtype_are_not_read(name, bidirectional):
    x, options = np.ones((4, 3, 6)), {"bidirectional": bidirectional, "rng": 0}
    for key in getattr(fastbptt, name)(6, 6, **options).params:
        changed = getattr(fastbptt, name)(6, 6, **options)
        view = changed.params[key]
        for shape in (-1, (1, -1), (-1, 1), (2, -1), (-1, 2)):
            view.shape = shape
            if view.shape != changed._shapes[key]:
                with pytest.raises(ValueError, match=rf"params\['{key}'\]: expected shape {re.escape(str(changed._shapes[key]))}, got"):
                    changed(x)
        view.shape = changed._shapes[key]
        changed.backward(changed(x)[0])
        view.dtype = np.int64
        with pytest.raises(TypeError, match=rf"params\['{key}'\]: expected dtype float64"):
            changed(x)


@pytest.mark.filterwarnings("ignore:Setting the strides")
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_parameters_of_other_strides_are_read_so(name):
    changed, plain = (getattr(fastbptt, name)(6, 6, rng=0) for _ in range(2))
    for key, p in plain.params.items():
        if p.ndim == 1:
            changed.params[key].strides = 0
            p[...] = p[0]
        else:
            changed.params[key].strides = 8, 8
            p[...] = np.lib.stride_tricks.as_strided(p, p.shape, (8, 8)).copy()
    x = np.ones((4, 3, 6))
    np.testing.assert_array_equal(changed(x)[0], plain(x)[0])


# --- Forward and backward ---------------------------------------------------------------------------------------------


def layer_of(problem, **options):
    cls = getattr(fastbptt, problem.cell.prefix.upper())
    leak = {} if problem.leak is None else {"leak": problem.leak}
    H, I = problem.w_hh.shape[1], problem.w_ih.shape[1]
    layer = cls(I, H, dtype=problem.w_ih.dtype, **problem.cell.options, **leak, **options)
    layer.load_state_dict({name: getattr(problem, short) for name, short in zip(NAMES, WEIGHTS)})
    return layer


@EACH_DTYPE
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
def test_the_layer_is_the_function(cell, tokens, dtype):
    problem = random_problem(cell, tokens=tokens, dtype=dtype)
    layer = layer_of(problem)
    expected = problem.results(fastbptt)
    out, state = layer(problem.x, layered(problem.state))
    dx, d_state = layer.backward(problem.d_out, layered(problem.d_state))
    np.testing.assert_array_equal(out, expected["out"])
    assert isinstance(state, tuple) == isinstance(d_state, tuple) == (problem.cell.states == 2)
    for i, (part, d_part) in enumerate(zip(arrays_of(state), arrays_of(d_state), strict=True)):
        np.testing.assert_array_equal(part, expected[f"final state {i}"][None])
        np.testing.assert_array_equal(d_part, expected[f"d_initial_state {i}"][None])
    for name, short in zip(NAMES, WEIGHTS):
        np.testing.assert_array_equal(layer.grads[name], expected[f"d_{short}"])
        assert layer.grads[name].dtype == dtype
    assert dx is None if tokens else np.array_equal(dx, expected["d_x"])


@pytest.mark.one_level
@EACH_DTYPE
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_against_torch(name, batch_first, bias, dtype, torch):
    torch.manual_seed(0)
    module = getattr(torch.nn, name)(4, 7, bias=bias, batch_first=batch_first, dtype=getattr(torch, dtype.name))
    layer = getattr(fastbptt, name)(4, 7, bias=bias, batch_first=batch_first, dtype=dtype)
    layer.load_state_dict({key: p.numpy() for key, p in module.state_dict().items()})
    shape, parts = (3, 5) if batch_first else (5, 3), 2 if name == "LSTM" else 1
    x, d_out = inputs(1, (*shape, 4), dtype), inputs(2, (*shape, 7), dtype)
    start, d_end = ([inputs(seed + i, (1, 3, 7), dtype) for i in range(parts)] for seed in (3, 5))
    pack = tuple if parts == 2 else lambda arrays: arrays[0]
    their_x, *their_start = (torch.from_numpy(array).requires_grad_() for array in (x, *start))
    their_out, their_end = module(their_x, pack(their_start))
    torch.autograd.backward([their_out, *arrays_of(their_end)], [torch.from_numpy(d) for d in (d_out, *d_end)])
    out, end = layer(x, pack(start))
    dx, d_start = layer.backward(d_out, pack(d_end))
    pairs = {"out": (out, their_out), "dx": (dx, their_x.grad)}
    pairs |= {f"state {i}": pair for i, pair in enumerate(zip(arrays_of(end), arrays_of(their_end), strict=True))}
    pairs |= {f"d_state {i}": (d, t.grad) for i, (d, t) in enumerate(zip(arrays_of(d_start), their_start, strict=True))}
    pairs |= {key: (layer.grads[key], p.grad) for key, p in module.named_parameters()}
    for key, (got, expected) in pairs.items():
        assert_close(key, got, expected.detach().numpy(), TOLERANCES[dtype].torch, relative=TOLERANCES[dtype].torch_relative)


def test_an_lstm_takes_half_a_state():
    layer, x = fastbptt.LSTM(4, 7, rng=0), inputs()
    part, zero = inputs(1, (1, 3, 7)), np.zeros((1, 3, 7))
    for half, whole in [
        ((part, None), (part, zero)),
        ((None, part), (zero, part)),
        ([part, zero], (part, zero)),
        ((part[0], zero[0]), (part, zero)),
    ]:
        out, _ = layer(x, half)
        np.testing.assert_array_equal(out, layer(x, whole)[0])
        expected = layer.backward(out.copy(), whole)
        layer(x, whole)
        for a, b in zip(layer.backward(out.copy(), half)[1], expected[1]):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (np.zeros((1, 3, 7)), TypeError, "^state: expected a pair of arrays or None, got ndarray"),
        (np.zeros((2, 3, 7)), TypeError, "^state: expected a pair of arrays or None, got ndarray"),
        ((np.zeros((1, 3, 7)),), TypeError, "^state: expected a pair of arrays or None, got tuple"),
        ((np.zeros((1, 3, 7)),) * 3, TypeError, "^state: expected a pair of arrays or None, got tuple"),
        ((np.zeros((1, 3, 7)), np.zeros((1, 2, 7))), ValueError, r"^state\[1\]: expected shape \(1, 3, 7\), got \(1, 2, 7\)"),
        ((np.zeros((2, 3, 7)), np.zeros((1, 3, 7))), ValueError, r"^state\[0\]: expected shape \(1, 3, 7\), got \(2, 3, 7\)"),
        ((np.zeros((1, 3, 7)), [0.0]), TypeError, r"^state\[1\]: expected a NumPy array, got list"),
        ((np.zeros((1, 3, 7)), np.zeros((1, 3, 7), np.float32)), TypeError, r"^state\[1\]: expected dtype float64 .*, got float32"),
        ("hc", TypeError, "^state: expected a pair of arrays or None, got 'hc'"),
        ({}, TypeError, "^state: expected a pair of arrays or None, got dict"),
    ],
)
def test_wrong_pairs(state, error, message):
    layer = fastbptt.LSTM(4, 7, rng=0)
    with pytest.raises(error, match=message):
        layer(inputs(), state)
    layer(inputs())
    with pytest.raises(error, match=message.replace("^state", "^d_state")):
        layer.backward(None, state)
    assert not layer.flat_grads.any()


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU])
def test_a_pair_where_none_is_due(make):
    layer = make(4, 7, rng=0)
    pair = (np.zeros((1, 3, 7)),) * 2
    with pytest.raises(TypeError, match=r"^state: expected a NumPy array, got tuple"):
        layer(inputs(), pair)
    layer(inputs())
    with pytest.raises(TypeError, match=r"^d_state: expected a NumPy array, got tuple"):
        layer.backward(None, pair)


@EACH_DTYPE
def test_a_leak_of_a_layer(dtype):
    each = 1 - np.random.default_rng(0).random(7).astype(dtype)
    one, many = fastbptt.RNN(4, 7, leak=0.25, rng=0, dtype=dtype), fastbptt.RNN(4, 7, leak=each, rng=0, dtype=dtype)
    plain = fastbptt.RNN(4, 7, rng=0, dtype=dtype)
    assert plain.leak is None and set(one.params) == set(plain.params)
    x = inputs(dtype=dtype)
    for layer, leak in ((one, 0.25), (many, each)):
        expected = fastbptt.rnn_forward(x, None, *layer.params.values(), leak=leak)[0]
        np.testing.assert_array_equal(layer(x)[0], expected)
        assert np.abs(layer(x)[0] - plain(x)[0]).max() > 0.01


# From a single number to several blocks of rows and of columns, and enough work for threads.
@pytest.mark.parametrize(
    "sizes",
    [
        ((1,), 1, 1),
        ((5, 3), 4, 7),
        ((4,), 9, 9),
        ((), 4, 7),
        ((2, 3, 4), 5, 6),
        ((300,), 60, 30),
        ((700,), 33, 65),
        ((513,), 530, 70),
        ((3,), 2, 70_000),  # one row is more than is projected at a time
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
@EACH_DTYPE
def test_linear_is_the_formula(sizes, bias, n, dtype, threads):
    threads(n)
    shape, I, N = sizes
    layer = fastbptt.Linear(I, N, bias=bias, dtype=dtype, rng=0)
    x, d_out = inputs(1, (*shape, I), dtype), inputs(2, (*shape, N), dtype)
    y, dx = layer(x), layer.backward(d_out)
    assert y.dtype == dx.dtype == dtype
    limit = 500 * TOLERANCES[dtype].eps
    x, d_out = x.astype(float), d_out.astype(float)
    w, b = layer.params["weight"].astype(float), layer.params.get("bias", np.zeros(1)).astype(float)
    assert_close("y", y, x @ w.T + b, limit)
    rows, d_rows = x.reshape(-1, I), d_out.reshape(-1, N)
    assert_close("dx", dx, d_out @ w, limit)
    assert_close("d_weight", layer.grads["weight"], d_rows.T @ rows, limit)
    if bias:
        assert_close("d_bias", layer.grads["bias"], d_rows.sum(axis=0), 10 * limit)


def test_linear_without_dx():
    layer = fastbptt.Linear(4, 7, rng=0)
    x, d_out = inputs(), inputs(1, (5, 3, 7))
    layer(x)
    assert layer.backward(d_out, need_dx=False) is None
    assert_close("d_weight", layer.grads["weight"], d_out.reshape(-1, 7).T @ x.reshape(-1, 4), 1e-14)


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4)])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@EACH_DTYPE
def test_nothing_in_nothing_out(make, shape, dtype):
    layer = make(dtype=dtype)
    out = run(layer, np.empty(shape, dtype))
    assert out.shape == (*shape[:2], 7)
    layer.backward(np.empty(out.shape, dtype))
    assert not layer.flat_grads.any()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_gradients_add_up_until_zeroed(make):
    layer, x, d_out = make(), inputs(), inputs(1, (5, 3, 7))
    run(layer, x)
    layer.backward(d_out)
    once = copies(layer.grads)
    run(layer, x)
    layer.backward(d_out)
    for name, g in layer.grads.items():
        assert_close(name, g, 2 * once[name], 1e-14)
        assert np.abs(g).max() > 0.1
    layer.zero_grad()
    assert not layer.flat_grads.any()


@EACH_RECURRENT
def test_batch_first_turns_inputs_and_outputs_round(make):
    a, b = make(4, 7, rng=0), make(4, 7, rng=0, batch_first=True)
    x, d_out = inputs(), inputs(1, (5, 3, 7))
    (out, state), (turned, same) = a(x), b(x.swapaxes(0, 1))
    np.testing.assert_array_equal(turned, out.swapaxes(0, 1))
    np.testing.assert_array_equal(same, state)
    (dx, d_state), (turned, same) = a.backward(d_out), b.backward(d_out.swapaxes(0, 1))
    np.testing.assert_array_equal(turned, dx.swapaxes(0, 1))
    np.testing.assert_array_equal(same, d_state)
    np.testing.assert_array_equal(a.flat_grads, b.flat_grads)


@EACH_RECURRENT
def test_tokens_batch_first(make):
    layer = make(4, 7, rng=0, batch_first=True)
    tokens = np.arange(15).reshape(3, 5) % 4
    np.testing.assert_array_equal(layer(tokens)[0], layer(np.eye(4)[tokens])[0])


@EACH_RECURRENT
def test_a_state_may_be_carried_on(make):
    layer, x = make(4, 7, rng=0), inputs()
    whole, end = layer(x)
    first, state = layer(x[:2])
    second, last = layer(x[2:], state)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(last, end)
    bare = state[0] if not isinstance(state, tuple) else tuple(part[0] for part in state)
    np.testing.assert_array_equal(layer(x[2:], bare)[0], second)


# --- When ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
class TestOrderOfCalls:
    d_out = np.ones((5, 3, 7))

    def test_backward_without_forward(self, make):
        with pytest.raises(RuntimeError, match="backward: no forward pass"):
            make().backward(self.d_out)

    def test_backward_twice(self, make):
        layer = make()
        run(layer, inputs())
        layer.backward(self.d_out)
        once = layer.flat_grads.copy()
        with pytest.raises(RuntimeError, match="backward: no forward pass in training mode since the last backward pass"):
            layer.backward(self.d_out)
        np.testing.assert_array_equal(layer.flat_grads, once)

    def test_backward_after_eval(self, make):
        layer = make()
        run(layer, inputs())
        assert layer.eval() is layer and layer.training is False
        run(layer, inputs())
        with pytest.raises(RuntimeError, match="no forward pass in training mode"):
            layer.backward(self.d_out)
        assert layer.train() is layer and layer.training is True
        run(layer, inputs())
        layer.backward(self.d_out)

    def test_a_failed_backward_may_be_tried_again(self, make):
        layer = make()
        run(layer, inputs())
        with pytest.raises(ValueError, match=r"d_out: expected shape \(5, 3, 7\), got \(5, 3, 6\)"):
            layer.backward(np.ones((5, 3, 6)))
        assert not layer.flat_grads.any()
        layer.backward(self.d_out)
        assert layer.flat_grads.any()


# --- Interruptions and threads ----------------------------------------------------------------------------------------

BACKWARD_AND_SIGNALS = """
import signal, sys, time
import fastbptt, numpy as np
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
rng = np.random.default_rng(0)
if sys.argv[1] == "linear":
    layer = fastbptt.Linear(900, 700, rng=0)
    x, d_out = rng.standard_normal((600, 900)), rng.standard_normal((600, 700))
    def forward(): layer(x)
    def backward(): layer.backward(d_out)
else:
    layer = fastbptt.LSTM(200, 200, rng=0)
    x = rng.standard_normal((40, 8, 200))
    d_out = rng.standard_normal((10 if sys.argv[1] == "truncated" else 40, 8, 200))
    reader = fastbptt.TruncatedBPTT(layer, 40, 10)
    def forward():
        if sys.argv[1] == "lstm": return layer(x)
        reader.reset()
        for start in range(0, 40, 10): reader.forward(x[start : start + 10])
    def backward(): layer.backward(d_out) if sys.argv[1] == "lstm" else reader.backward(d_out)
duration = 1
for _ in range(3):
    layer.zero_grad()
    forward()
    start = time.perf_counter()
    backward()
    duration = min(duration, time.perf_counter() - start)
expected = layer.flat_grads.copy()
cut = tried_again = 0
for n in range(20):
    layer.zero_grad()
    forward()
    try:
        signal.setitimer(signal.ITIMER_REAL, duration * (n + 1) / 20, 5)  # once more, if the first is raised where Python ignores it
        backward()
        while True: pass
    except Alarm:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not layer.flat_grads.any():
        try: backward()
        except RuntimeError as error: assert "no forward pass" in str(error), error
        else: tried_again += 1
    assert not layer.flat_grads.any() or layer.flat_grads.tobytes() == expected.tobytes(), n
assert cut == 20 and tried_again >= 2, (cut, tried_again)
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("layer", ["linear", "lstm", "truncated"])
def test_an_interrupted_backward_pass_adds_all_or_nothing(layer):
    run_python(BACKWARD_AND_SIGNALS, layer)


UNFIT = {  # what makes a bias's gradient one that nothing can be added to, and what undoes it
    "read-only": (lambda g: g.setflags(write=False), lambda g: g.setflags(write=True)),
    "with other strides": (lambda g: setattr(g, "strides", 0), lambda g: setattr(g, "strides", 8)),
}


@pytest.mark.filterwarnings("ignore:Setting the strides")
@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize(
    "make", [*LAYERS.values(), lambda: fastbptt.TruncatedBPTT(fastbptt.GRU(4, 7, rng=0), 12, 5)], ids=[*LAYERS, "truncated"]
)
def test_after_gradients_that_cannot_be_added_backward_can_be_called_again(make, unfit):
    owners = make(), make()
    for owner in owners:
        for seed in range(3):
            run(owner, inputs(seed))
    layer, same = (getattr(owner, "layer", owner) for owner in owners)
    name, (spoil, mend) = list(layer.grads)[-1], UNFIT[unfit]
    spoil(layer.grads[name])
    d_out = np.ones((5, 3, 7))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^grads\['{name}'\]: expected a writeable array as the layer made it, got "):
            owners[0].backward(d_out)
        assert not layer.flat_grads.any()
    mend(layer.grads[name])
    dx, expected = (owner.backward(d_out) for owner in owners)
    np.testing.assert_array_equal(arrays_of(dx)[0], arrays_of(expected)[0])
    np.testing.assert_array_equal(layer.flat_grads, same.flat_grads)


LOADS_AND_SIGNALS = """
import signal
import fastbptt, numpy as np
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
layer = fastbptt.LSTM(300, 300, rng=0)
states = [{name: np.full_like(p, value) for name, p in layer.params.items()} for value in (0, 1)]
layer.load_state_dict(states[0])
cut = 0
for n in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 5e-3 + 1e-4 * n, 10)  # once more, if the first is raised where Python ignores it
        while True:
            for state in states: layer.load_state_dict(state)
    except Alarm:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert (layer.flat_params == layer.flat_params[0]).all(), n
assert cut == 60
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_state_is_loaded_as_a_whole_or_not_at_all():
    run_python(LOADS_AND_SIGNALS)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
class TestThreads:
    d_out = np.ones((5, 3, 7))

    def test_the_tape_of_another_thread(self, make):
        layer = make()
        run(layer, inputs(1))
        with ThreadPoolExecutor(1) as other:
            with pytest.raises(RuntimeError, match=r"backward: the last forward pass was another thread's; a layer serves one thread"):
                other.submit(layer.backward, self.d_out).result()
            other.submit(run, layer, inputs(2)).result()
            with pytest.raises(RuntimeError, match="another thread's"):
                layer.backward(self.d_out)
            assert not layer.flat_grads.any()
            other.submit(layer.backward, self.d_out).result()
            once = layer.flat_grads.copy()
            with pytest.raises(RuntimeError, match="no forward pass"):
                layer.backward(self.d_out)
        same = make()
        run(same, inputs(2))
        same.backward(self.d_out)
        np.testing.assert_array_equal(once, same.flat_grads)

    def test_a_forward_pass_during_the_backward_pass(self, make, monkeypatch):
        layer = make()
        run(layer, inputs())

        def interfering(check, name, *arguments):
            if name == "d_out":
                run(layer, inputs(1))
            return check(name, *arguments)

        for check in ("array", "rows"):  # of Linear, and of recurrent layers
            monkeypatch.setattr(fastbptt._checks, check, functools.partial(interfering, getattr(fastbptt._checks, check)))
        with pytest.raises(RuntimeError, match=r"backward: there was another forward pass meanwhile; a layer serves one thread at a time"):
            layer.backward(self.d_out)
        assert not layer.flat_grads.any()

    def test_no_gradient_is_wrong_unnoticed(self, make):
        layer, start = make(), threading.Barrier(2)
        results, refusals, expected = [[], []], [], []
        for seed in range(2):
            alone = make()
            run(alone, inputs(seed))
            dx = alone.backward(self.d_out)
            expected.append(dx[0] if isinstance(dx, tuple) else dx)

        def work(i):
            start.wait()
            for _ in range(300):
                try:
                    run(layer, inputs(i))
                    dx = layer.backward(self.d_out)
                    results[i].append(dx[0] if isinstance(dx, tuple) else dx)
                except RuntimeError as error:
                    refusals.append(str(error))

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(work, range(2)))
        finally:
            sys.setswitchinterval(interval)
        assert all("thread" in message or "no forward pass" in message for message in refusals)
        for i in range(2):
            for dx in results[i]:
                np.testing.assert_array_equal(dx, expected[i])


PROMISED = (
    r"(TruncatedBPTT|RNN|GRU|LSTM|Linear)\.backward: (no forward pass|the last forward pass was another thread's|there was another forward)"
)


def promised(action):
    """What it returns, or None after an error that threads are promised who share a layer; any other is raised."""
    try:
        return action()
    except RuntimeError as error:
        if not re.match(PROMISED, str(error)):
            raise


def at_the(n, interloper, action):
    """Run ``action`` with another thread's ``interloper`` between its n-th and its next instruction in the package's layers.

    What ``action`` returns, or None after a promised error, and whether there was an n-th instruction.
    """
    files, count, due = {sys.modules[f"fastbptt.{name}"].__file__ for name in ("layers", "truncation")}, 0, []

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == n:
                due.append(other.submit(promised, interloper))
                due[0].exception()  # waits for it
        return trace

    with ThreadPoolExecutor(1) as other:
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12.1 tells of no instruction unless some frame wants it by now
        sys.settrace(trace)
        try:
            result = promised(action)
        finally:
            sys.settrace(before)
    return result, due[0].result() if due else None, bool(due)


@pytest.mark.parametrize("backward_too", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("make", [LAYERS["RNN"], LAYERS["LSTM"], LAYERS["Linear"]], ids=["RNN", "LSTM", "Linear"])
def test_another_thread_between_any_two_instructions(make, backward_too):
    """Each of the two gets its own gradients or a RuntimeError that says why not; what was added to the layer's is that of those who got them."""
    expected = []
    for seed in range(2):
        alone = make()
        run(alone, inputs(seed))
        dx = alone.backward(np.ones((5, 3, 7)))
        expected.append((dx[0] if isinstance(dx, tuple) else dx, alone.flat_grads))

    def pass_of(layer, seed, backward=True):
        run(layer, inputs(seed))
        if backward:
            dx = layer.backward(np.ones((5, 3, 7)))
            return dx[0] if isinstance(dx, tuple) else dx
        return None

    n, more, came_through = 0, True, 0
    while more:
        n += 1
        layer = make()
        *got, more = at_the(n, lambda layer=layer: pass_of(layer, 1, backward_too), lambda layer=layer: pass_of(layer, 0))
        total = np.zeros_like(layer.flat_grads)
        for dx, (right, grads) in zip(got, expected):
            if dx is not None:
                np.testing.assert_array_equal(dx, right)
                total += grads
                came_through += 1
        np.testing.assert_allclose(layer.flat_grads, total, rtol=1e-12, atol=1e-12)
    assert n > 100 and came_through > n / 3


@pytest.mark.parametrize("backward_too", [False, True], ids=["forward", "forward and backward"])
def test_another_thread_at_the_same_reader(backward_too):
    def pass_of(reader):
        out = reader.forward(inputs())
        return reader.backward(np.ones_like(out))

    def interloper(reader):
        return pass_of(reader) if backward_too else reader.forward(inputs(1))

    n, more = 0, True
    while more:
        n += 1
        reader = fastbptt.TruncatedBPTT(fastbptt.RNN(4, 7, rng=0), 12, 5)
        pass_of(reader)
        *_, more = at_the(n, lambda reader=reader: interloper(reader), lambda reader=reader: pass_of(reader))
        assert reader.tape is None or len(reader.tape) == 5
    assert n > 100


# --- What may be changed, and what not --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_what_a_layer_is_made_with_is_fixed(make):
    layer = make()
    for name in ("dtype", *(name for name in ("input_size", "hidden_size", "in_features", "out_features") if hasattr(layer, name))):
        for value in (3, np.float32, getattr(layer, name)):
            with pytest.raises(AttributeError, match=f"'{name}' of '.*' object has no setter"):
                setattr(layer, name, value)


@EACH_DTYPE
def test_what_may_be_changed_takes_effect(dtype):
    x, each = inputs(dtype=dtype), np.linspace(0.1, 1, 7, dtype=dtype)
    for changes in ({"nonlinearity": "relu"}, {"leak": 0.25}, {"leak": each}, {"leak": None}, {"batch_first": True}):
        layer, expected = (
            fastbptt.RNN(4, 7, rng=0, leak=0.5, dtype=dtype),
            fastbptt.RNN(4, 7, rng=0, **{"leak": 0.5} | changes, dtype=dtype),
        )
        for name, value in changes.items():
            setattr(layer, name, value)
        np.testing.assert_array_equal(layer(x)[0], expected(x)[0])
        np.testing.assert_array_equal(layer.backward(np.ones((5, 3, 7), dtype))[0], expected.backward(np.ones((5, 3, 7), dtype))[0])
    layer.training = False
    layer(x)
    with pytest.raises(RuntimeError, match="no forward pass in training mode"):
        layer.backward(None)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nonlinearity", "cosine", ValueError),
        ("nonlinearity", None, TypeError),
        ("leak", 0, ValueError),
        ("leak", np.ones(6), ValueError),
        ("leak", "x", TypeError),
        ("batch_first", np.ones(2), TypeError),
        ("training", None, TypeError),
    ],
)
def test_changes_are_checked(name, value, error):
    layer = fastbptt.RNN(4, 7, rng=0, leak=0.5)
    before = getattr(layer, name)
    with pytest.raises(error, match=f"^{name}: expected "):
        setattr(layer, name, value)
    assert getattr(layer, name) is before


def test_a_state_of_another_precision_is_converted_before_anything_is_written():
    layer = fastbptt.RNN(4, 7, rng=0, dtype=np.float32)
    before = layer.flat_params.copy()
    state = {name: np.ones(p.shape) for name, p in layer.params.items()}
    state["bias_hh_l0"][0] = 1e300  # which float32 has no room for: a warning, and here an error
    with pytest.raises(RuntimeWarning, match="overflow"):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.flat_params, before)


# --- Bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastbptt.RNN(0, 7), ValueError, "input_size: expected an integer of at least 1, got 0"),
        (lambda: fastbptt.RNN(4, -1), ValueError, "hidden_size: expected an integer of at least 1, got -1"),
        (lambda: fastbptt.RNN(4, 7.0), TypeError, "hidden_size: expected an integer, got 7.0"),
        (lambda: fastbptt.RNN(True, 7), TypeError, "input_size: expected an integer"),
        (lambda: fastbptt.RNN(4, 7, dtype=np.float16), TypeError, "dtype: expected float64 or float32, got float16"),
        (lambda: fastbptt.GRU(4, 7, dtype=np.longdouble), TypeError, "dtype: expected float64 or float32"),
        (lambda: fastbptt.GRU(0, 7), ValueError, "input_size: expected an integer of at least 1, got 0"),
        (lambda: fastbptt.LSTM(4, 0), ValueError, "hidden_size: expected an integer of at least 1, got 0"),
        (lambda: fastbptt.LSTM(4, 7.5), TypeError, "hidden_size: expected an integer, got 7.5"),
        (lambda: fastbptt.LSTM(4, 7, leak=0.5), TypeError, "unexpected keyword argument 'leak'"),
        (lambda: fastbptt.GRU(4, 7, nonlinearity="tanh"), TypeError, "unexpected keyword argument 'nonlinearity'"),
        (lambda: fastbptt.RNN(4, 7, leak=0), ValueError, "leak: expected a number above 0 and at most 1, got 0"),
        (lambda: fastbptt.RNN(4, 7, leak=np.ones(6)), ValueError, r"leak: expected shape \(7,\), got \(6,\)"),
        (lambda: fastbptt.RNN(4, 7, leak=np.ones(7, np.float32)), TypeError, "leak: expected dtype float64"),
        (lambda: fastbptt.RNN(4, 7, nonlinearity="cosine"), ValueError, "nonlinearity: expected one of 'tanh'"),
        (lambda: fastbptt.Linear(4, 0), ValueError, "out_features: expected an integer of at least 1, got 0"),
        (lambda: fastbptt.Linear("4", 7), TypeError, "in_features: expected an integer, got '4'"),
    ],
)
def test_bad_sizes(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "x: expected a NumPy array, got NoneType"),
        ((np.ones((5, 3, 5)),), ValueError, r"x: expected shape \(5, 3, 4\), got \(5, 3, 5\)"),
        ((np.ones((5, 3, 4)), np.ones((2, 3, 7))), ValueError, r"^state: expected shape \(1, 3, 7\), got \(2, 3, 7\)$"),
        ((np.ones((5, 3, 4)), np.ones((1, 4, 7))), ValueError, r"^state: expected shape \(1, 3, 7\), got \(1, 4, 7\)$"),
        ((np.ones((5, 3, 4)), np.ones((4, 7))), ValueError, r"^state: expected shape \(3, 7\), got \(4, 7\)$"),
        ((np.ones((5, 3, 4)), np.ones((1, 3, 7), np.float32)), TypeError, "^state: expected dtype float64 .*, got float32$"),
        ((np.ones((5, 4)), np.ones((1, 3, 7))), ValueError, r"^x: expected shape \(T, B, 4\), or integer tokens \(T, B\), got \(5, 4\)$"),
        ((np.ones(4), np.ones((1, 3, 7))), ValueError, r"^x: expected shape \(T, B, 4\), or integer tokens \(T, B\), got \(4,\)$"),
        ((np.ones((5, 3, 4)), [1.0]), TypeError, "state: expected a NumPy array, got list"),
        ((np.full((5, 3), 4),), IndexError, "x: expected tokens from 0 to 3, got 4"),
    ],
)
@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU])
def test_bad_inputs(arguments, error, message, make):
    with pytest.raises(error, match=message):
        make(4, 7)(*arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 5, 9)), r"^x: expected shape \(3, 5, 4\), got \(3, 5, 9\)$"),
        (np.ones((3, 5)), r"^x: expected shape \(B, T, 4\), or integer tokens \(B, T\), got \(3, 5\)$"),
        (np.ones((3, 5, 4), int), r"^x: expected shape \(B, T, 4\), or integer tokens \(B, T\), got \(3, 5, 4\)$"),
        (np.ones(4), r"^x: expected shape \(B, T, 4\), or integer tokens \(B, T\), got \(4,\)$"),
    ],
)
@EACH_RECURRENT
def test_errors_speak_of_what_was_given_batch_first(make, x, message):
    layer = make(4, 7, batch_first=True)
    with pytest.raises(ValueError, match=message):
        layer(x)
    reader = fastbptt.TruncatedBPTT(layer, 6)
    with pytest.raises(ValueError, match=message):
        reader.forward(x)
    for run in (layer, reader.forward):
        run(np.ones((3, 5, 4)))
    for backward in (layer.backward, reader.backward):
        layer(np.ones((3, 5, 4)))
        with pytest.raises(ValueError, match=r"^d_out: expected shape \(3, 5, 7\), got \(3, 6, 7\)$"):
            backward(np.ones((3, 6, 7)))
        with pytest.raises(TypeError, match=r"^d_out: expected a NumPy array, got list$"):
            backward([1.0])
    cell = cells.CELLS[layer._cell]
    state = cell.state([np.ones((1, 5, 7)) for _ in cell.states])
    with pytest.raises(ValueError, match=r"^state(\[0\])?: expected shape \(1, 3, 7\), got \(1, 5, 7\)$"):
        layer(np.ones((3, 5, 4)), state)
    with pytest.raises(ValueError, match=r"^d_state(\[0\])?: expected shape \(1, 3, 7\), got \(1, 5, 7\)$"):
        layer.backward(None, state)


@EACH_RECURRENT
@EACH_DTYPE
def test_inputs_of_another_precision(make, dtype):
    layer = make(4, 7, dtype=dtype)
    other = next(d for d in DTYPES if d != dtype)
    with pytest.raises(TypeError, match=f"^x: expected dtype {dtype} like the other arrays of this call, got {other}$"):
        layer(inputs(dtype=other))
    out, _ = layer(inputs(dtype=dtype))
    with pytest.raises(TypeError, match=f"^d_out: expected dtype {dtype} like the other arrays of this call, got {other}$"):
        layer.backward(out.astype(other))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x: expected a NumPy array, got NoneType"),
        (np.float64(3), TypeError, "x: expected a NumPy array, got"),
        (np.array(3.0), ValueError, r"x: expected shape \(.*4,?\), got \(\)"),
        (np.ones((5, 3)), ValueError, r"x: expected shape \(5, 4\), got \(5, 3\)"),
        (np.ones((5, 4), int), TypeError, "x: expected dtype float64"),
    ],
)
def test_bad_linear_inputs(x, error, message):
    with pytest.raises(error, match=message):
        fastbptt.Linear(4, 7)(x)
