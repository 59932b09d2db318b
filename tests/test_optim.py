"""The optimisers, against their formulas in NumPy and against PyTorch."""

import copy
import os
import pickle

import numpy as np
import pytest
from processes import run_python

import fastbptt

STEPS = 6


def plain_sgd(p, grads, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    buffer = None
    for g in grads:
        g = g + weight_decay * p
        if momentum:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        p = p - lr * g
    return p


def plain_rmsprop(p, grads, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    square, mean, buffer = 0, 0, 0
    for g in grads:
        g = g + weight_decay * p
        square = alpha * square + (1 - alpha) * g**2
        mean = alpha * mean + (1 - alpha) * g
        step = g / (np.sqrt(square - mean**2 if centered else square) + eps)
        buffer = momentum * buffer + step
        p = p - lr * buffer
    return p


def plain_adam(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False):
    mean, square, largest = 0, 0, 0
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * p
        mean = betas[0] * mean + (1 - betas[0]) * g
        square = betas[1] * square + (1 - betas[1]) * g**2
        largest = np.maximum(largest, square) if amsgrad else square
        p = p - lr * (mean / (1 - betas[0] ** t)) / (np.sqrt(largest / (1 - betas[1] ** t)) + eps)
    return p


CASES = [
    ("SGD", plain_sgd, {"lr": 0.1}),
    ("SGD", plain_sgd, {"lr": 0.1, "weight_decay": 0.2}),
    ("SGD", plain_sgd, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", plain_sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", plain_sgd, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    ("RMSprop", plain_rmsprop, {"lr": 0.1}),
    ("RMSprop", plain_rmsprop, {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", plain_rmsprop, {"lr": 0.1, "momentum": 0.9}),
    ("RMSprop", plain_rmsprop, {"lr": 0.1, "alpha": 0.5, "centered": True, "momentum": 0.5}),
    ("Adam", plain_adam, {"lr": 0.1}),
    ("Adam", plain_adam, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-2, "weight_decay": 0.3}),
    ("Adam", plain_adam, {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.5)}),
    ("Adam", plain_adam, {"lr": 0.1, "betas": (0.0, 0.0)}),
]
EACH_CASE = pytest.mark.parametrize(
    ("name", "plain", "options"), CASES, ids=lambda value: str(value) if isinstance(value, (str, dict)) else ""
)


def start(seed=0):
    """Parameters of several shapes, and gradients for some steps: the first ones large, so that a running maximum matters."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (7, 4), "b": (33,), "c": (1,)}
    params = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    return params, [{key: rng.standard_normal(shape) * (3 if t < 2 else 1) for key, shape in shapes.items()} for t in range(STEPS)]


@EACH_CASE
def test_the_formula(name, plain, options):
    params, grads = start()
    expected = {key: plain(p, [g[key] for g in grads], **options) for key, p in params.items()}
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads:
        before = {key: array.copy() for key, array in g.items()}
        optimiser.step(g)
        for key, array in g.items():
            np.testing.assert_array_equal(array, before[key])
    for key, p in params.items():
        np.testing.assert_allclose(p, expected[key], rtol=1e-12, atol=1e-13, err_msg=key)
        assert np.abs(p - start()[0][key]).max() > 1e-3


def step_theirs(torch, optimiser, parameters, grads):
    """A step of PyTorch's optimiser, of parameters and NumPy gradients by name."""
    for key, parameter in parameters.items():
        parameter.grad = torch.from_numpy(grads[key].copy())
    optimiser.step()


@pytest.mark.one_level
@EACH_CASE
def test_against_torch(name, plain, options, torch):
    params, grads = start()
    theirs = {key: torch.nn.Parameter(torch.from_numpy(p.copy())) for key, p in params.items()}
    their_optimiser = getattr(torch.optim, name)(theirs.values(), **options)
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads:
        optimiser.step(g)
        step_theirs(torch, their_optimiser, theirs, g)
    for key, p in params.items():
        np.testing.assert_allclose(p, theirs[key].detach().numpy(), rtol=1e-12, atol=1e-13, err_msg=key)


def to_single(arrays):
    return {key: array.astype(np.float32) for key, array in arrays.items()}


@EACH_CASE
def test_the_formula_in_single_precision(name, plain, options):
    """Up to the rounding of the parameters and of the state, the numbers of the same steps in double precision."""
    params, grads = start()
    params, grads = to_single(params), [to_single(g) for g in grads]
    wide = {key: p.astype(float) for key, p in params.items()}
    expected = {key: plain(p, [g[key].astype(float) for g in grads], **options) for key, p in wide.items()}
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads:
        optimiser.step(g)
    for key, p in params.items():
        assert p.dtype == np.float32
        np.testing.assert_allclose(p, expected[key], rtol=3e-6, atol=3e-6, err_msg=key)
    for array in optimiser.state_dict().values():
        assert array.dtype in (np.float32, np.int64)


@pytest.mark.one_level
@EACH_CASE
def test_single_precision_against_torch(name, plain, options, torch):
    params, grads = start()
    params, grads = to_single(params), [to_single(g) for g in grads]
    theirs = {key: torch.nn.Parameter(torch.from_numpy(p.copy())) for key, p in params.items()}
    their_optimiser = getattr(torch.optim, name)(theirs.values(), **options)
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads:
        optimiser.step(g)
        step_theirs(torch, their_optimiser, theirs, g)
    for key, p in params.items():
        np.testing.assert_allclose(p, theirs[key].detach().numpy(), rtol=1.3e-6, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("options", [{}, {"betas": (0.9, 0.9999)}, {"amsgrad": True}, {"betas": (0.99, 0.99999)}], ids=str)
def test_the_first_step_of_adam_is_the_learning_rate_in_single_precision(options):
    """1 - beta must not be computed from a rounded beta: 0.001 would have four digits left, 0.00001 two."""
    w = np.zeros(5, np.float32)
    fastbptt.Adam(w, lr=1.0, eps=0.0, **options).step(np.array([1e-3, 0.1, 1, 100, 1e4], np.float32))
    np.testing.assert_allclose(w, -1.0, rtol=1e-6)


def test_the_first_step_of_rmsprop_in_single_precision():
    w = np.zeros(3, np.float32)
    fastbptt.RMSprop(w, lr=1.0, alpha=0.9999, eps=0.0).step(np.array([1e-3, 1, 100], np.float32))
    np.testing.assert_allclose(w, -100.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_layers_of_both_precisions_side_by_side(name):
    layers = [fastbptt.GRU(4, 7, rng=0), fastbptt.LSTM(4, 7, rng=0, dtype=np.float32)]
    before = [layer.flat_params.copy() for layer in layers]
    for layer in layers:
        layer.flat_grads[:] = 1
    getattr(fastbptt, name)(layers, lr=0.5).step()
    for layer, old in zip(layers, before):
        assert layer.flat_params.dtype == old.dtype and (layer.flat_params < old).all()


@pytest.mark.one_level
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_defaults_are_torchs(name, torch):
    import inspect

    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    for key, parameter in list(inspect.signature(getattr(fastbptt, name)).parameters.items())[1:]:
        assert parameter.default == theirs[key].default, key


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_layers_are_updated_through_their_own_gradients(name):
    layers = [fastbptt.RNN(4, 7, rng=0), fastbptt.Linear(7, 3, rng=1)]
    bare = [layer.flat_params.copy() for layer in layers]
    by_layers, by_arrays = getattr(fastbptt, name)(layers, lr=0.1), getattr(fastbptt, name)(bare, lr=0.1)
    for seed in range(3):
        for i, layer in enumerate(layers):
            layer.flat_grads[:] = np.random.default_rng([seed, i]).standard_normal(layer.flat_grads.size)
        by_layers.step()
        by_arrays.step([layer.flat_grads for layer in layers])
    for layer, array in zip(layers, bare):
        np.testing.assert_array_equal(layer.flat_params, array)
        assert all(np.shares_memory(p, layer.flat_params) for p in layer.params.values())


def test_zero_grad_is_that_of_all_layers():
    layers = [fastbptt.RNN(2, 3, rng=0), fastbptt.Linear(3, 1, rng=0)]
    for layer in layers:
        layer.flat_grads[:] = 1
    fastbptt.SGD(layers, lr=0.1).zero_grad()
    assert not any(layer.flat_grads.any() for layer in layers)
    with pytest.raises(TypeError, match="zero_grad: expected an optimiser of layers; this one has bare arrays"):
        fastbptt.SGD(np.ones(3), lr=0.1).zero_grad()


@pytest.mark.parametrize("form", ["array", "list", "tuple", "dict"])
def test_forms_of_parameters(form):
    w = np.ones((2, 3))
    given = {"array": w, "list": [w], "tuple": (w,), "dict": {"w": w}}[form]
    g = np.full((2, 3), 0.5)
    gradient = {"array": g, "list": [g], "tuple": (g,), "dict": {"w": g}}[form]
    fastbptt.SGD(given, lr=1.0).step(gradient)
    np.testing.assert_array_equal(w, 0.5)


def test_the_learning_rate_may_change():
    w = np.zeros(1)
    optimiser = fastbptt.SGD(w, lr=1.0)
    optimiser.step(np.ones(1))
    optimiser.lr = 0.25
    optimiser.step(np.ones(1))
    assert w[0] == -1.25 and optimiser.lr == 0.25
    with pytest.raises(ValueError, match="lr: expected a number at least 0, got -1"):
        optimiser.lr = -1


CHANGES = {
    "SGD": {"lr": 0.2, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.2, "alpha": 0.5, "eps": 0.1, "weight_decay": 0.1},
    "Adam": {"lr": 0.2, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.1},
}
EACH_CHANGE = pytest.mark.parametrize(("name", "key"), [(name, key) for name, options in CHANGES.items() for key in options], ids=str)


@pytest.mark.one_level
@EACH_CHANGE
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_hyper_parameters_may_change_as_torchs_do(name, key, momentum, torch):
    """From the next step on; momentum that is switched on later, off again and on again too."""
    options = {"lr": 0.1} | ({} if name == "Adam" else {"momentum": momentum}) | ({"dampening": 0.3} if name == "SGD" else {})
    params, grads = start()
    theirs = {k: torch.nn.Parameter(torch.from_numpy(p.copy())) for k, p in params.items()}
    optimiser, their_optimiser = getattr(fastbptt, name)(params, **options), getattr(torch.optim, name)(theirs.values(), **options)
    values = {1: CHANGES[name][key], 3: options.get(key, getattr(optimiser, key)), 4: CHANGES[name][key]}
    for t, g in enumerate(grads):
        if t in values:
            setattr(optimiser, key, values[t])
            their_optimiser.param_groups[0][key] = values[t]
            assert getattr(optimiser, key) == values[t]
        optimiser.step(g)
        step_theirs(torch, their_optimiser, theirs, g)
    for k, p in params.items():
        np.testing.assert_allclose(p, theirs[k].detach().numpy(), rtol=1e-12, atol=1e-13, err_msg=k)


def plain_sgd_of_changes(p, grads, options):
    """`plain_sgd` with options for each step; what the momentum was before it was 0 for a while is not forgotten."""
    buffer = None
    for g, o in zip(grads, options):
        if o["momentum"]:
            buffer = g if buffer is None else o["momentum"] * buffer + (1 - o["dampening"]) * g
            g = buffer
        p = p - o["lr"] * g
    return p


@pytest.mark.parametrize("momenta", [(0, 0.9), (0.9, 0), (0, 0, 0.9, 0, 0, 0.5), (0.9, 0, 0.5, 0.5, 0, 0.9)], ids=str)
@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_momentum_that_comes_and_goes(momenta, dampening):
    params, grads = start()
    options = [{"lr": 0.1 + 0.01 * t, "momentum": momenta[min(t, len(momenta) - 1)], "dampening": dampening} for t in range(STEPS)]
    expected = {key: plain_sgd_of_changes(p, [g[key] for g in grads], options) for key, p in params.items()}
    optimiser = fastbptt.SGD(params, **options[0])
    for g, now in zip(grads, options):
        for key, value in now.items():
            setattr(optimiser, key, value)
        optimiser.step(g)
    for key, p in params.items():
        np.testing.assert_allclose(p, expected[key], rtol=1e-12, atol=1e-13, err_msg=key)


LATER = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("Adam", {"amsgrad": True}),
]
EACH_LATER = pytest.mark.parametrize(("name", "changed"), LATER, ids=str)


@EACH_LATER
def test_options_that_need_state_take_effect_later_too(name, changed):
    """Switched on before the first step they are those of the constructor; after some steps, they make a difference from then on."""
    params, grads = start()
    given, _ = start()
    optimiser, other = getattr(fastbptt, name)(params, lr=0.1), getattr(fastbptt, name)(given, lr=0.1, **changed)
    for key, value in changed.items():
        setattr(optimiser, key, value)
    for g in grads:
        optimiser.step(g)
        other.step(g)
    for key, p in params.items():
        np.testing.assert_array_equal(p, given[key])
    decays = {"betas": (0.9, 0.5)} if name == "Adam" else {}
    plain, late = (getattr(fastbptt, name)(start()[0], lr=0.1, **decays) for _ in range(2))
    for g in grads[:3]:
        plain.step(g)
        late.step(g)
    for key, value in changed.items():
        setattr(late, key, value)
    for g in grads[3:]:
        plain.step(g)
        late.step(g)
    assert all((a != b).any() for a, b in zip(plain._params, late._params))


@EACH_LATER
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_saved_after_a_change_it_goes_on_the_same(name, changed, steps):
    """Whether what was switched on has been used yet or not."""
    params, grads = start()
    optimiser = getattr(fastbptt, name)(params, lr=0.1)
    for g in grads[:2]:
        optimiser.step(g)
    for key, value in changed.items():
        setattr(optimiser, key, value)
    for g in grads[2 : 2 + steps]:
        optimiser.step(g)
    saved, kept = optimiser.state_dict(), {key: p.copy() for key, p in params.items()}
    again = getattr(fastbptt, name)(kept, lr=0.1, **changed)
    again.load_state_dict(saved)
    for g in grads[2 + steps :]:
        optimiser.step(g)
        again.step(g)
    for key, p in params.items():
        np.testing.assert_array_equal(kept[key], p)
    for key, array in optimiser.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], array)


@EACH_LATER
@pytest.mark.parametrize("between", [0, 1], ids=lambda n: f"{n} steps between")
def test_saved_after_an_option_was_switched_off_it_goes_on_the_same(name, changed, between):
    """In an optimiser that never had it; also if the option is switched on again."""
    params, grads = start()
    optimiser = getattr(fastbptt, name)(params, lr=0.1, **changed)
    before = {key: getattr(getattr(fastbptt, name)(np.ones(3)), key) for key in changed}
    for g in grads[:2]:
        optimiser.step(g)
    for key in reversed(changed):
        setattr(optimiser, key, before[key])
    for g in grads[2 : 2 + between]:
        optimiser.step(g)
    kept = {key: p.copy() for key, p in params.items()}
    again = getattr(fastbptt, name)(kept, lr=0.1)
    again.load_state_dict(optimiser.state_dict())
    for t, g in enumerate(grads[2 + between :]):
        for one in (optimiser, again):
            for key, value in changed.items() if t == 1 else ():
                setattr(one, key, value)
            one.step(g)
    for key, p in params.items():
        np.testing.assert_array_equal(kept[key], p)
    assert optimiser.state_dict().keys() == again.state_dict().keys()
    with pytest.raises(KeyError, match=r"^\"state: missing \[\], unexpected \['other.a'\]"):
        again.load_state_dict(optimiser.state_dict() | {"other.a": np.ones(28)})


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_variance_is_not_below_0(dtype):
    """Of equal gradients it is 0 up to rounding, and only eps is left to divide by."""
    w, g = np.zeros(40, dtype), np.linspace(1, 10, 40, dtype=dtype)
    optimiser = fastbptt.RMSprop(w, lr=1e-12, alpha=0.5, centered=True)
    for _ in range(200):
        optimiser.step(g)
    assert np.isfinite(w).all() and (w < 0).all()
    optimiser.step(np.full(40, np.nan, dtype))
    assert np.isnan(w).all()


def test_a_mean_that_missed_steps_is_not_taken_up_again():
    """It would be that of old gradients, and the variance negative: two runs with the same mean square make the same steps."""
    shrunk, plain = np.zeros(3), np.zeros(3)
    optimiser, other = fastbptt.RMSprop(shrunk, centered=True), fastbptt.RMSprop(plain)
    for centered, gradient, steps in ((True, 10.0, 50), (False, 1e-3, 500), (True, 1e-3, 2)):
        optimiser.centered, other.centered = centered, centered and gradient < 1
        shrunk[:] = plain[:] = 0
        for _ in range(steps):
            optimiser.step(np.full(3, gradient))
            other.step(np.full(3, gradient))
        assert ("grad_avg.0" in optimiser.state_dict()) == centered
    np.testing.assert_array_equal(shrunk, plain)


def test_the_first_momentum_is_not_dampened():
    w = np.zeros(1)
    optimiser = fastbptt.SGD(w, lr=1.0, dampening=0.5)
    for momentum, expected in ((0.0, -1.0), (0.75, -2.0), (0.75, -3.25)):  # buffers: none, 1, 0.75 * 1 + 0.5 * 1
        optimiser.momentum = momentum
        optimiser.step(np.ones(1))
        assert w[0] == expected


def test_nesterov_without_momentum_is_refused_at_the_step():
    w = np.ones(1)
    optimiser = fastbptt.SGD(w, lr=1.0)
    optimiser.nesterov = True
    with pytest.raises(ValueError, match=r"^nesterov: expected momentum above 0 and no dampening"):
        optimiser.step(np.ones(1))
    assert w[0] == 1 and optimiser.steps == 0
    optimiser.momentum = 0.5
    optimiser.step(np.ones(1))
    assert w[0] == 1 - 1.5


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_what_has_no_effect_cannot_be_set(name):
    optimiser = getattr(fastbptt, name)(np.ones(3))
    for other in ("learning_rate", "Lr", "momentums", "beta1"):
        with pytest.raises(AttributeError, match=f"'{name}' object has no attribute '{other}'"):
            setattr(optimiser, other, 0.5)
    with pytest.raises(AttributeError):
        optimiser.steps = 5
    assert optimiser.steps == 0


@pytest.mark.parametrize(
    ("name", "key", "value", "error"),
    [
        ("SGD", "momentum", -1, ValueError),
        ("SGD", "momentum", "0.9", TypeError),
        ("SGD", "dampening", np.nan, ValueError),
        ("SGD", "weight_decay", None, TypeError),
        ("SGD", "nesterov", np.ones(2), TypeError),
        ("RMSprop", "alpha", 1.5, ValueError),
        ("RMSprop", "eps", -1, ValueError),
        ("RMSprop", "momentum", 10**400, ValueError),
        ("RMSprop", "centered", "yes", TypeError),
        ("Adam", "betas", 0.9, TypeError),
        ("Adam", "betas", (0.9, 1), ValueError),
        ("Adam", "amsgrad", 2, TypeError),
    ],
    ids=str,
)
def test_changes_are_checked(name, key, value, error):
    optimiser = getattr(fastbptt, name)(np.ones(3))
    before = getattr(optimiser, key)
    with pytest.raises(error, match=f"^{key}"):
        setattr(optimiser, key, value)
    assert getattr(optimiser, key) == before


def test_names_of_any_kind_in_a_state():
    optimiser = fastbptt.SGD(np.ones(3), momentum=0.9)
    for state in ({None: 1, "a": 2}, {None: np.ones(3)}, {("a", 1): 1, 2: 3, b"x": 4}):
        with pytest.raises(KeyError, match=r"state: missing .*unexpected"):
            optimiser.load_state_dict(state)
    with pytest.raises(TypeError, match=r"^layers_or_params: expected names as keys"):
        fastbptt.SGD({None: np.ones(3), "a": np.ones(2)})


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda optimiser: pickle.loads(pickle.dumps(optimiser))], ids=["copy", "pickle"])
@EACH_CASE
def test_a_copy_goes_on_the_same(name, plain, options, copy_of):
    params, grads = start()
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads[:3]:
        optimiser.step(g)
    other = copy_of(optimiser)
    for g in grads[3:]:
        optimiser.step(g)
        other.step(g)
    for mine, theirs in zip(optimiser._params, other._params):
        np.testing.assert_array_equal(mine, theirs)


@EACH_CASE
def test_saved_and_restored_it_goes_on_the_same(name, plain, options):
    params, grads = start()
    optimiser = getattr(fastbptt, name)(params, **options)
    for g in grads[:3]:
        optimiser.step(g)
    saved, kept = optimiser.state_dict(), {key: p.copy() for key, p in params.items()}
    for g in grads[3:]:
        optimiser.step(g)
    again = getattr(fastbptt, name)(kept, **options)
    again.load_state_dict(saved)
    for g in grads[3:]:
        again.step(g)
    for key, p in params.items():
        np.testing.assert_array_equal(kept[key], p)


def test_the_saved_state_is_a_copy():
    optimiser = fastbptt.Adam(np.ones(3))
    optimiser.step(np.ones(3))
    saved = optimiser.state_dict()
    before = {name: array.copy() for name, array in saved.items()}
    optimiser.step(np.ones(3))
    for name, array in saved.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_state_that_does_not_fit_changes_nothing():
    optimiser = fastbptt.Adam(np.ones(3))
    optimiser.step(np.ones(3))
    before = optimiser.state_dict()
    unusable = before | {"exp_avg_sq.0": np.array(["x", "y", "z"]), "exp_avg.0": np.full(3, 9.0)}
    for state, error in [
        ({}, KeyError),
        (before | {"more": np.ones(1)}, KeyError),
        (before | {"exp_avg.0": np.ones(4)}, ValueError),
        (before | {"steps": np.array(-1)}, ValueError),
        (before | {"steps": np.array(1.0)}, TypeError),
        (before | {"steps": np.ones(1, int)}, ValueError),
        (before | {"steps": 1}, TypeError),
        (None, TypeError),
        (list(before), TypeError),
        (unusable, (TypeError, ValueError)),
    ]:
        with pytest.raises(error):
            optimiser.load_state_dict(state)
        for name, array in optimiser.state_dict().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


# --- Bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastbptt.SGD([]), ValueError, "layers_or_params: expected at least one"),
        (lambda: fastbptt.SGD(None), TypeError, r"layers_or_params\[0\]: expected a NumPy array, got NoneType"),
        (lambda: fastbptt.SGD([np.ones(3), [1.0]]), TypeError, r"layers_or_params\[1\]: expected a NumPy array, got list"),
        (lambda: fastbptt.SGD(np.ones(3, int)), TypeError, r"layers_or_params\[0\]: expected dtype float"),
        (lambda: fastbptt.SGD(np.ones(6)[::2]), ValueError, r"layers_or_params\[0\]: expected a contiguous, aligned and writeable array"),
        (
            lambda: fastbptt.SGD(np.broadcast_to(1.0, 3)),
            ValueError,
            r"layers_or_params\[0\]: expected a contiguous, aligned and writeable array",
        ),
        (lambda: fastbptt.SGD(np.ones(3), lr=-1), ValueError, "lr: expected a number at least 0"),
        (lambda: fastbptt.SGD(np.ones(3), lr=np.nan), ValueError, "lr: expected a number"),
        (lambda: fastbptt.SGD(np.ones(3), lr="0.1"), TypeError, "lr: expected a number, got '0.1'"),
        (lambda: fastbptt.SGD(np.ones(3), nesterov=True), ValueError, "nesterov: expected momentum"),
        (lambda: fastbptt.RMSprop(np.ones(3), alpha=1.5), ValueError, "alpha: expected a number at least 0 and at most 1"),
        (lambda: fastbptt.RMSprop(np.ones(3), eps=-1e-8), ValueError, "eps: expected a number"),
        (lambda: fastbptt.Adam(np.ones(3), betas=(0.9, 1.0)), ValueError, r"betas\[1\]: expected a number"),
        (lambda: fastbptt.Adam(np.ones(3), betas=0.9), TypeError, "betas: expected two numbers"),
        (lambda: fastbptt.Adam(np.ones(3), weight_decay=-1), ValueError, "weight_decay: expected a number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (None, TypeError, "grads: expected the gradients of the parameter arrays, got None"),
        (5, TypeError, "grads: expected the gradients of the parameter arrays, got 5"),
        ("ab", TypeError, "grads: expected the gradients of the parameter arrays, got 'ab'"),
        (iter([np.ones(3), np.ones(4)]), TypeError, "grads: expected the gradients of the parameter arrays, got list_iterator"),
        ({"a": np.ones(3)}, ValueError, r"grads: expected a gradient for every parameter; missing \['b'\], unknown \[\]"),
        (
            {"a": np.ones(3), "b": np.ones(4), "c": np.ones(4)},
            ValueError,
            r"grads: expected a gradient for every parameter; missing \[\], unknown \['c'\]",
        ),
        ({"a": np.ones(3), "b": None}, TypeError, r"grads\['b'\]: expected a NumPy array, got NoneType"),
        ({"a": np.ones(3), "b": np.ones(3)}, ValueError, r"grads\['b'\]: expected shape \(4,\), got \(3,\)"),
        ({"a": np.ones(3), "b": np.ones(4, np.float16)}, TypeError, r"grads\['b'\]: expected dtype float64"),
        ([np.ones(3)], ValueError, "grads: expected 2 arrays, got 1"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(grads, error, message):
    params = {"a": np.ones(3), "b": np.ones(4)}
    optimiser = fastbptt.SGD(params, lr=0.1, momentum=0.9)
    with pytest.raises(error, match=message):
        optimiser.step(grads)
    assert optimiser.steps == 0 and all((p == 1).all() for p in params.values())


def test_layers_need_no_gradients():
    optimiser = fastbptt.SGD(fastbptt.Linear(2, 2))
    with pytest.raises(TypeError, match="grads: expected None, since the layers have their own gradients"):
        optimiser.step([np.ones(6)])


def test_parameters_that_overlap_are_refused():
    w = np.ones(5)
    for pair in ([w, w], [w[:3], w[2:]]):
        with pytest.raises(ValueError, match="overlap"):
            fastbptt.SGD(pair)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_gradients_that_overlap_parameters_are_refused(name):
    memory = np.ones(1001)
    one, other, apart = memory[1:501], memory[501:], np.ones(500)
    for params, grads, message in [
        (one, one, r"grads\[0\]: overlaps layers_or_params\[0\]"),
        (one, memory[:500], r"grads\[0\]: overlaps layers_or_params\[0\]"),
        (one, memory[500:1000], r"grads\[0\]: overlaps layers_or_params\[0\]"),
        ([one, other], [apart, memory[2:502]], r"grads\[1\]: overlaps layers_or_params\[0\]"),
        ({"a": apart, "b": other}, {"b": apart, "a": apart}, r"grads\['a'\]: overlaps layers_or_params\['a'\]"),
        ([apart, other], [memory[1:501], memory[401:901]], r"grads\[1\]: overlaps layers_or_params\[1\]"),
    ]:
        optimiser = getattr(fastbptt, name)(params)
        with pytest.raises(ValueError, match=f"^{message}"):
            optimiser.step(grads)
        assert optimiser.steps == 0 and (memory == 1).all() and (apart == 1).all()


def test_gradients_that_only_touch_or_share_are_fine():
    memory = np.ones(1500)
    params = [memory[:500], memory[1000:]]
    fastbptt.SGD(params, lr=0.5).step([memory[500:1000], memory[500:1000]])
    np.testing.assert_array_equal(memory, np.repeat([0.5, 1, 0.5], 500))
    columns = np.ones((2, 3))
    fastbptt.SGD(columns, lr=0.5).step(columns.reshape(3, 2).T[:, ::-1])  # an array of another layout is copied first
    np.testing.assert_array_equal(columns, 0.5)
    fastbptt.SGD(np.zeros((0, 3)), lr=0.5).step(np.zeros((0, 3)))


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_parameters_that_changed_since_the_optimiser_was_made(name):
    """In a process of its own: the state of a resized array is too small."""
    code = """
import fastbptt, numpy as np
for change in (lambda p: p.resize(100_000, refcheck=False), lambda p: p.resize(1, refcheck=False), lambda p: p.setflags(write=False)):
    p, other = np.ones(3), np.ones(4)
    optimiser = fastbptt.NAME([other, p])
    change(p)
    try: optimiser.step([np.ones(4), np.ones(p.shape)])
    except ValueError as error: assert str(error).startswith("layers_or_params[1]: resized or made read-only since"), error
    else: raise SystemExit("no error")
    assert (other == 1).all() and optimiser.steps == 0
"""
    run_python(code.replace("NAME", name))


STEPS_AND_SIGNALS = """
import signal, sys, time
import fastbptt, numpy as np
class Alarm(Exception): pass
def handler(*_): raise Alarm
signal.signal(signal.SIGALRM, handler)
rng = np.random.default_rng(0)
options = {"momentum": 0.9} if sys.argv[1] == "SGD" else {}
dtypes = [np.float64, np.float32] * 15
params = [rng.standard_normal(30_000).astype(dtype) for dtype in dtypes]
grads = [rng.standard_normal(30_000).astype(dtype) for dtype in dtypes]
calm = [p.copy() for p in params]
optimiser, again = (getattr(fastbptt, sys.argv[1])(arrays, **options) for arrays in (params, calm))
cut = 0
for n in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-5 * n, 10)  # once more, if the first is raised where Python ignores it
        while True:
            optimiser.step(grads)
    except Alarm:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
for _ in range(optimiser.steps): again.step(grads)
for one, other in zip(params, calm): np.testing.assert_array_equal(one, other)
for name, array in again.state_dict().items(): np.testing.assert_array_equal(array, optimiser.state_dict()[name])
assert cut == 60 and optimiser.steps > 0
"""


@pytest.mark.one_level
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_a_step_is_made_for_all_parameters_or_for_none(name):
    """Whenever a signal comes, parameters and state of both precisions are those of a number of whole steps."""
    run_python(STEPS_AND_SIGNALS, name)


def test_nan_gradients_reach_only_their_own_parameters():
    for name in ("SGD", "RMSprop", "Adam"):
        w = np.ones(20)
        g = np.ones(20)
        g[7] = np.nan
        getattr(fastbptt, name)(w, lr=0.1).step(g)
        assert np.flatnonzero(np.isnan(w)).tolist() == [7]
