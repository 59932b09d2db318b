"""Layers within a memory budget, and in evaluation mode: the same bits, in less memory."""

import copy
import re

import numpy as np
import pytest
from peaks import peak_of
from problems import arrays_of
from tolerances import assert_same_bits

import fastbptt

# What a layer is made with, and what of its call is ragged.
KINDS = {
    "one": ({}, ()),
    "one, batch first": ({"batch_first": True}, ("resets",)),
    "two": ({"num_layers": 2, "batch_first": True}, ("lengths",)),
    "three, dropout": ({"num_layers": 3, "dropout": 0.3}, ()),
    "both ways": ({"bidirectional": True}, ("lengths", "resets")),
    "two, both ways": ({"num_layers": 2, "bidirectional": True, "dropout": 0.2}, ("lengths",)),
    "two, both ways, whole": ({"num_layers": 2, "bidirectional": True, "bias": False}, ()),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_LAYER = pytest.mark.parametrize("name", ["RNN", "leaky", "GRU", "LSTM", "projected"])


def problem(name, kind, T=700, B=3, I=4, H=9, tokens=False, dtype=np.float64):
    """A layer and the arguments of its two passes."""
    options, ragged = KINDS[kind]
    own = {"leaky": {"leak": 0.4}, "projected": {"proj_size": H // 2}}.get(name, {})
    make = getattr(fastbptt, {"leaky": "RNN", "projected": "LSTM"}.get(name, name))
    layer = make(I, H, **options, **own, dtype=dtype, rng=0)
    rng = np.random.default_rng(1)
    axes = (B, T) if layer.batch_first else (T, B)
    x = rng.integers(0, I, axes) if tokens else rng.standard_normal((*axes, I)).astype(dtype)
    given = {"lengths": rng.integers(T // 2, T + 1, B), "resets": rng.random(axes) < 0.01}
    d_out = rng.standard_normal((*axes, layer.eval()(x)[0].shape[2])).astype(dtype)
    layer.train()
    return layer, x, {key: given[key] for key in ragged}, d_out


def passes(layer, x, given, d_out, **options):
    """All results; a copy of the layer drops the same as the layer would."""
    layer = copy.deepcopy(layer)
    out, state = layer(x, **given, **options)
    dx, d_state = layer.backward(d_out)
    return [out, *arrays_of(state), *([] if dx is None else [dx]), *arrays_of(d_state), layer.flat_grads]


def least(layer, x, given):
    with pytest.raises(ValueError, match="memory_budget: expected at least") as caught:
        layer(x, **given, memory_budget=1)
    return int(re.fullmatch(r"memory_budget: expected at least (\d+) bytes for arrays of these sizes, got 1", str(caught.value))[1])


@EACH_KIND
@EACH_LAYER
def test_the_bits_of_full_tapes(name, kind, threads):
    for tokens in (False, True):
        call = problem(name, kind, tokens=tokens)
        layer, x, given, _ = call
        expected, smallest = passes(*call), least(layer, x, given)
        for n, budget in ((1, smallest), (2, smallest + 50_000), (3, 10**8)):
            threads(n)
            for i, (got, want) in enumerate(zip(passes(*call, memory_budget=budget), expected, strict=True)):
                assert_same_bits(f"result {i}", got, want)
        with pytest.raises(ValueError, match=f"expected at least {least(layer, x, given)} bytes"):
            layer(x, **given, memory_budget=least(layer, x, given) - 1)


@EACH_KIND
@pytest.mark.parametrize("name", ["RNN", "GRU", "projected"])
def test_the_peak(name, kind, threads):
    """Of what Python and the kernels allocate, beyond arguments, results and `grads`."""
    threads(1)
    layer, x, given, d_out = problem(name, kind, T=6000, B=2, H=32, I=16)
    smallest = least(layer, x, given)
    for budget in (smallest, 2 * smallest):

        def both(budget=budget):
            out, _ = layer(x, **given, memory_budget=budget)
            return out, layer.backward(d_out)[0]

        (out, dx), peak = peak_of(both)
        assert peak - out.nbytes - dx.nbytes <= 1.05 * budget


def test_each_direction_has_its_plan():
    layer, x, given, _ = problem("LSTM", "two, both ways", T=3000)
    smallest = least(layer, x, given)
    steps = []
    for budget in (smallest, smallest + 300_000, 10**9):
        layer(x, **given, memory_budget=budget)
        plans = [tape.plan for tape in layer.take_tape()]
        assert len(plans) == 4 and sum(plan.bytes for plan in plans) < budget
        steps.append(sum(plan.recomputed_steps for plan in plans))
    assert steps == sorted(steps, reverse=True) and steps[-1] == 0 < steps[0]


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 1)], ids=str)
def test_next_to_nothing(shape):
    layer, x = fastbptt.GRU(2, 5, 2, bidirectional=True, rng=0), np.ones((*shape, 2))
    for budget in (None, 10**8):
        out, _ = layer(x, memory_budget=budget)
        assert layer.backward(np.ones_like(out))[0].shape == x.shape


def test_a_gradient_that_is_not_finite():
    """Its first step is not looked for, as there are no states to tell it."""
    for layers in (1, 2):
        layer, x = fastbptt.RNN(1, 2, layers, nonlinearity="identity", rng=0), np.ones((3, 1, 1))
        layer(x, memory_budget=10**7)
        layer.backward(np.full((3, 1, 2), np.inf))
        with pytest.raises(FloatingPointError, match="weight_ih_l0"):
            fastbptt.clip_grad_norm_(layer, 1.0)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (0, ValueError, "memory_budget: expected an integer of at least 1, got 0"),
        (-3, ValueError, "memory_budget: expected an integer of at least 1, got -3"),
        (1e6, TypeError, "memory_budget: expected an integer, got 1000000.0"),
    ],
)
def test_bad_budgets(budget, error, message, mode):
    for layers in (1, 2):
        with pytest.raises(error, match=re.escape(message)):
            fastbptt.GRU(2, 3, layers).train(mode)(np.ones((4, 1, 2)), memory_budget=budget)


# --- Evaluation mode --------------------------------------------------------------------------------------------------


@EACH_KIND
@EACH_LAYER
def test_evaluation_mode_has_the_bits_of_training_mode(name, kind):
    layer, x, given, d_out = problem(name, kind)
    layer.dropout = 0.0
    out, state = layer(x, **given)
    layer.eval()
    for options in ({}, {"memory_budget": 1}):
        got, last = layer(x, **given, **options)
        assert_same_bits("out", got, out)
        assert got.flags.writeable
        for a, b in zip(arrays_of(last), arrays_of(state), strict=True):
            assert_same_bits("state", a, b)
    with pytest.raises(RuntimeError, match="no forward pass in training mode"):
        layer.backward(d_out)
    with pytest.raises(RuntimeError, match="no forward pass in training mode"):
        layer.take_tape()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_evaluation_mode_keeps_no_gates(name, layers):
    layer = getattr(fastbptt, name)(3, 24, layers, dtype=np.float32, rng=0).eval()
    x = np.ones((60_000, 2, 3), np.float32)
    (out, _), peak = peak_of(lambda: layer(x))
    assert peak < (layers + 0.5) * out.nbytes
