"""`fastbptt.torch`: outputs, gradients and errors are PyTorch's, and it is our kernels that run wherever nothing stands against it."""

import copy
import ctypes
import gc
import io
import itertools
import pickle
import random
import re
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
from peaks import peak_of
from processes import run_python

torch = pytest.importorskip("torch")

from torch.nn.utils import parametrize  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastbptt  # noqa: E402
import fastbptt.torch as ours  # noqa: E402
from fastbptt import segments  # noqa: E402
from fastbptt._kernels.tensors import Numbers, Tensors, of_array  # noqa: E402
from fastbptt.torch import function, gate, modules  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning"),  # PyTorch's own forward mode uses it, and warns from 2.14 on
    pytest.mark.one_level,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
KINDS = "RNN", "GRU", "LSTM"
CELLS = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(kind, *sizes, **options):
    """One of our modules, and PyTorch's with the same parameters."""
    options = {"dtype": torch.float64, **options}
    mine, theirs = getattr(ours, kind)(*sizes, **options), getattr(torch.nn, kind)(*sizes, **options)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def flat(results):
    """The tensors of nested results, in order."""
    if isinstance(results, torch.Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for each in results if each is not None for tensor in flat(each)]


def loss_of(results, seed=0):
    """A sum of all results with random signs and sizes."""
    generator = torch.Generator().manual_seed(seed)
    return sum((each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in flat(results))


def assert_equal(got, expected, dtype):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert a.shape == b.shape and a.dtype is b.dtype
        if dtype is torch.float64:
            assert not a.numel() or (a - b).abs().max() <= 1e-12 * b.abs().max()
        else:
            torch.testing.assert_close(a, b)


def both(mine, theirs, call, *inputs, seed=0):
    """Outputs and gradients of both modules for ``call(module, *inputs)``, compared."""
    results = []
    for module in (mine, theirs):
        given = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        torch.manual_seed(seed)
        out = call(module, *given)
        module.zero_grad()
        loss_of(out).backward()
        results.append((out, [tensor.grad for tensor in (*given, *module.parameters())]))
    (out, grads), (out_n, grads_n) = results
    assert_equal([t.detach() for t in flat(out)], [t.detach() for t in flat(out_n)], inputs[0].dtype)
    assert [t.stride() for t in flat(out)] == [t.stride() for t in flat(out_n)]
    assert_equal(grads, grads_n, inputs[0].dtype)


# --- the same numbers -------------------------------------------------------------------------------------------------------------


def random_case(number):
    """A module and a call, drawn at random."""
    rng = random.Random(number)
    kind, options = rng.choice(CELLS)
    shape = rng.choice(["batch", "packed", "single"])
    options = {
        **options,
        "num_layers": rng.choice([1, 1, 2, 3]),
        "bias": rng.random() < 0.7,
        "batch_first": rng.random() < 0.5,
        "bidirectional": rng.random() < 0.5,
        "dtype": rng.choice([torch.float64, torch.float32]),
    }
    if options["num_layers"] > 1 and rng.random() < 0.5:
        options["dropout"] = 0.4
    I, H, T, B = rng.randint(1, 6), rng.randint(3, 9), rng.randint(1, 7), rng.randint(1, 5)
    return rng, kind, shape, I, H, T, B, options


@pytest.mark.parametrize("start", range(0, 360, 40))
def test_random_configurations(start):
    """Nothing falls back."""
    for number in range(start, start + 40):
        rng, kind, shape, I, H, T, B, options = random_case(number)
        torch.manual_seed(number)
        mine, theirs = pair(kind, I, H, **options)
        dtype, layers = options["dtype"], options["num_layers"] * (2 if options["bidirectional"] else 1)
        needs_dx, given_state, wanted_state = rng.random() < 0.7, rng.random() < 0.6, rng.random() < 0.7
        rows = () if shape == "single" else (B,)
        x = torch.randn(*((B, T) if shape == "batch" and options["batch_first"] else (T, *rows)), I, dtype=dtype, requires_grad=needs_dx)
        widths = [options.get("proj_size", H), H][: 2 if kind == "LSTM" else 1]
        states = [torch.randn(layers, *rows, W, dtype=dtype, requires_grad=wanted_state) for W in widths] if given_state else []
        lengths = [rng.randint(1, T) for _ in range(B)]
        is_sorted = rng.random() < 0.3
        if is_sorted:
            lengths.sort(reverse=True)

        def call(module, x, *states):
            if shape == "packed":  # noqa: B023
                x = pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)  # noqa: B023
            return module(x, (states if kind == "LSTM" else states[0]) if states else None)  # noqa: B023

        both(mine, theirs, call, x, *states, seed=number)
        assert not mine.fallbacks, number


@pytest.mark.parametrize(("kind", "options"), CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gradients(kind, options, dtype):
    mine, theirs = pair(kind, 4, 7, 2, dtype=dtype, bidirectional=True, **options)
    x = torch.randn(5, 3, 4, dtype=dtype)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got, expected = flat(mine(x)), flat(theirs(x))
        assert_equal(got, expected, dtype)
        assert [t.is_inference() for t in got] == [t.is_inference() for t in expected]
    assert not mine.fallbacks


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_without_gradients_nothing_is_kept(kind, options, monkeypatch):
    """Long calls go through time in segments, to the same bits; memory beyond the output does not grow with the number of steps."""
    monkeypatch.setattr(segments, "GATES", 1 << 12)
    for bidirectional in (False, True):
        mine, theirs = pair(kind, 4, 7, 2, bidirectional=bidirectional, batch_first=True, **options)
        x = torch.randn(3, 50, 4, dtype=torch.float64)
        with torch.no_grad():
            got, expected = flat(mine(x)), flat(theirs(x))
        assert_equal(got, expected, torch.float64)
        assert all(map(torch.equal, got, flat(mine(x)))) and not mine.fallbacks
    monkeypatch.setattr(segments, "GATES", 1 << 16)
    peaks, module = [], getattr(ours, kind)(2, 8, dtype=torch.float64, **options)
    for T in (2_000, 4_000):
        x = torch.randn(T, 5, 2, dtype=torch.float64)
        with torch.no_grad():
            peaks.append(peak_of(lambda x=x: module(x))[1])
    out = 2_000 * 5 * (options.get("proj_size") or 8) * 8
    assert peaks[1] - peaks[0] < 1.1 * out + 1e4


def test_where_torch_is_faster():
    """Calls without gradients of the sizes in the table, and no others, are left to PyTorch, unless that is turned off."""
    x, small = torch.randn(100, 16, 2), torch.randn(100, 15, 2)
    mine, theirs = pair("LSTM", 2, 32, dtype=torch.float32)
    mine(x)
    with torch.no_grad():
        mine(small), mine(pack_padded_sequence(x, [100] * 16)), ours.GRU(2, 32)(x), ours.LSTM(2, 31)(x)
        assert not mine.fallbacks
        assert torch.equal(mine(x)[0], theirs(x)[0]) and mine.fallbacks == {"PyTorch is faster": 1}
        mine.yields = False
        torch.testing.assert_close(mine(x)[0], theirs(x)[0])
    assert mine.fallbacks == {"PyTorch is faster": 1}
    ours.restore(mine)
    assert "yields" not in vars(mine)


def test_larger_and_many_steps():
    for kind in KINDS:
        mine, theirs = pair(kind, 16, 33, 2)
        both(mine, theirs, lambda module, x: module(x), torch.randn(60, 17, 16, dtype=torch.float64, requires_grad=True))
        assert not mine.fallbacks


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_the_same_bits(packed):
    """What is dropped is the same, so where all is dropped or nothing is, results are equal; and the generator is left the same."""
    mine, theirs = pair("GRU", 3, 5, 3, dropout=0.5, bidirectional=True)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    given = pack_padded_sequence(x, [6, 4, 3, 1]) if packed else x
    states = []
    for module in (mine, theirs):
        torch.manual_seed(3)
        module(given)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    both(mine, theirs, lambda module, x: module(given), x, seed=5)
    mine.eval(), theirs.eval()
    assert torch.allclose(flat(mine(given))[0], flat(theirs(given))[0], rtol=0, atol=1e-13)
    assert not mine.fallbacks


# --- what is packed ---------------------------------------------------------------------------------------------------------------


def test_packed_by_hand():
    """Without `unsorted_indices`."""
    for kind in KINDS:
        mine, theirs = pair(kind, 4, 6, bidirectional=True)
        data = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        sizes, order = torch.tensor([3, 2, 1]), torch.tensor([2, 0, 1])

        for rest in ((sizes,), (sizes, order)):
            both(mine, theirs, lambda module, d, rest=rest: module(PackedSequence(d, *rest)), data)
        assert not mine.fallbacks


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_with_rows_left_over(bidirectional):
    mine, theirs = pair("GRU", 4, 6, bidirectional=bidirectional)
    data = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    both(mine, theirs, lambda module, data: module(PackedSequence(data, torch.tensor([3, 2, 1]))), data)
    assert len(mine.fallbacks) == 1


@pytest.mark.parametrize("sizes", [[], [0], [3, 4], [3, 0], [3, -1], [20], [3, 2, 2, 2, 2], [-3], [2**62, 2**62], [5, 4, 3]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_packed_sequences(kind, sizes):
    """Never reach a kernel: PyTorch raises, or has an answer."""
    mine, theirs = pair(kind, 4, 6)
    given = PackedSequence(torch.randn(9, 4, dtype=torch.float64), torch.tensor(sizes, dtype=torch.int64))
    assert_same_outcome(lambda: theirs(given), lambda: mine(given))


def assert_same_outcome(theirs, mine):
    """The same results, or an error of the same type that says the same."""
    outcomes = []
    for call in (theirs, mine):
        try:
            outcomes.append([tensor.detach() for tensor in flat(call())])
        except Exception as error:
            outcomes.append(error)
    expected, got = outcomes
    if isinstance(expected, Exception):
        assert type(got) is type(expected) and str(got) == str(expected)
    else:
        assert_equal(got, expected, torch.float64)


def test_malformed_packed_sequences_of_other_kinds():
    mine, theirs = pair("GRU", 4, 6)
    data = torch.randn(6, 4, dtype=torch.float64)
    for sizes in (torch.tensor([3, 2, 1], dtype=torch.int32), torch.tensor([[3, 2, 1]]), torch.tensor([3.0, 2.0, 1.0])):
        given = PackedSequence(data, sizes)
        assert_same_outcome(lambda given=given: theirs(given), lambda given=given: mine(given))
    hx = torch.randn(1, 3, 6, dtype=torch.float64)
    for order in ([0, 1], [0, 1, 7], [0, 0, 0]):
        given = PackedSequence(data, torch.tensor([3, 2, 1]), torch.tensor(order), torch.tensor(order))
        assert_same_outcome(lambda given=given: theirs(given, hx), lambda given=given: mine(given, hx))


# --- errors are PyTorch's -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_constructor_errors(kind):
    bad = [
        ((4, 0), {}), ((0, 4), {}), ((4, 5, 0), {}), ((4, 5), {"dropout": 1.5}), ((4, 5), {"dropout": True}), ((4, 5), {"bias": 1}),
        ((4, 5), {"batch_first": 0}), ((4.0, 5), {}), ((4, "5"), {}), ((4, 5), {"proj_size": 7}), ((4, 5), {"proj_size": -1}), ((), {}),
        ((4, 5), {"nonlinearity": "sine"}), ((4, 5), {"colour": 1}),
    ]  # fmt: skip
    for arguments, options in bad:
        assert_same_outcome(
            lambda a=arguments, o=options: getattr(torch.nn, kind)(*a, **o), lambda a=arguments, o=options: getattr(ours, kind)(*a, **o)
        )
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        getattr(ours, kind)(4, 5, dropout=0.5)


def bad_calls(kind):
    """Arguments that do not fit a module of 4 inputs, 6 units and 2 layers in float64."""
    f = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
    x, h = f(5, 3, 4), f(2, 3, 6)
    state = (lambda h: (h, h)) if kind == "LSTM" else (lambda h: h)
    wrong = [
        (f(5, 3, 7),),
        (f(4),),
        (f(1, 5, 3, 4),),
        (x.float(),),
        (x.long(),),
        (f(0, 3, 4),),
        (None,),
        (3,),
        ([x],),
        (x.numpy(),),
        (x[0, 0, 0],),
    ]
    states = [f(2, 3, 5), f(2, 4, 6), f(1, 3, 6), f(2, 6), f(6), h.float(), h.to(torch.int64), None, 3, h.to_sparse(), h.to("meta")]
    wrong += [(x, state(s)) for s in states]
    wrong += [(x, (h,)), (x, (h, h, h)), (x, (h, h)), (x, h), (x, [h, h]), (x, ()), (x, [])]
    wrong += [(f(5, 4), state(h)), (f(5, 4), state(f(2, 6))), (f(5, 4), state(f(3, 6)))]
    wrong += [(x.to_sparse(),), (x.to("meta"),), (x.to(torch.complex128),), (x.to(torch.bfloat16),), (f(5, 0, 4),), (f(0, 4),)]
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_call_errors(kind):
    mine, theirs = pair(kind, 4, 6, 2)
    for arguments in bad_calls(kind):
        assert_same_outcome(lambda a=arguments: theirs(*a), lambda a=arguments: mine(*a))
    packed = pack_sequence([torch.zeros(3, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)])
    for hx in (torch.zeros(2, 3, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64), 4):
        hx = (hx, hx) if kind == "LSTM" else hx
        assert_same_outcome(lambda hx=hx: theirs(packed, hx), lambda hx=hx: mine(packed, hx))
    for arguments in ((), (1, 2, 3)):
        with pytest.raises(TypeError):
            mine(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind(kind):
    """They never reach a kernel."""
    x = torch.zeros(5, 3, 4, dtype=torch.float64)
    for spoil in (
        lambda m: setattr(m, "weight_hh_l0", torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))),
        lambda m: setattr(m, "bias_hh_l0", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))),
        lambda m: setattr(m, "weight_ih_l0", torch.nn.Parameter(m.weight_ih_l0.float())),
        lambda m: m.float(),
        lambda m: m.to("meta"),
        lambda m: m.__delattr__("weight_hh_l0"),
        lambda m: setattr(m, "hidden_size", 3),
        lambda m: setattr(m, "num_layers", 3),
        lambda m: setattr(m, "bidirectional", True),
        lambda m: setattr(m, "mode", "TRANSFORMER"),
    ):
        mine, theirs = pair(kind, 4, 6)
        spoil(mine)
        spoil(theirs)
        assert_same_outcome(lambda theirs=theirs: theirs(x), lambda mine=mine: mine(x))


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_samples_and_error_inputs():
    """Those that PyTorch tests its modules with."""
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_modules import module_db

    samples = errors = 0
    for info in module_db:
        kind = info.name.removeprefix("nn.")
        if kind not in KINDS or info.module_cls is not getattr(torch.nn, kind):
            continue
        options = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": True}
        for sample in info.module_inputs_func(info, **options):
            made, given = sample.constructor_input, sample.forward_input
            mine, theirs = (getattr(where, kind)(*made.args, **made.kwargs).double() for where in (ours, torch.nn))
            theirs.load_state_dict(mine.state_dict())
            tensors, shape = torch.utils._pytree.tree_flatten((given.args, given.kwargs))

            def call(module, *tensors, shape=shape):
                arguments, options = torch.utils._pytree.tree_unflatten(tensors, shape)
                return module(*arguments, **options)

            both(mine, theirs, call, *tensors)
            assert not mine.fallbacks
            samples += 1
        for error in info.module_error_inputs_func(info, **options):
            made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
            construct = lambda where, kind=kind, made=made: getattr(where, kind)(*made.args, **made.kwargs)  # noqa: E731
            with pytest.raises(error.error_type, match=error.error_regex):
                construct(ours)(*given.args, **given.kwargs) if given is not None else construct(ours)
            errors += 1
    assert samples > 50 and errors > 20


# --- autograd -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), CELLS)
@pytest.mark.parametrize("what", ["plain", "both directions", "packed"])
def test_gradcheck_and_gradgradcheck(kind, options, what):
    torch.manual_seed(1)
    module = getattr(ours, kind)(2, 3, dtype=torch.float64, bidirectional=what == "both directions", **options)
    names = [name for name, _ in module.named_parameters()]
    widths = [options.get("proj_size", 3), 3][: 2 if kind == "LSTM" else 1]
    states, D = len(widths), 2 if what == "both directions" else 1
    inputs = [torch.randn(3, 2, 2, dtype=torch.float64), *(torch.randn(D, 2, width, dtype=torch.float64) for width in widths)]
    inputs = [each.requires_grad_() for each in (*inputs, *(p.detach().clone() for p in module.parameters()))]

    def call(x, *rest):
        given = pack_padded_sequence(x, [3, 2]) if what == "packed" else x
        hx = rest[:states] if states == 2 else rest[0]
        return tuple(flat(torch.func.functional_call(module, dict(zip(names, rest[states:])), (given, hx))))

    assert torch.autograd.gradcheck(call, inputs)
    assert not module.fallbacks
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=what != "plain")
    assert set(module.fallbacks) == {"create_graph"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [False, True])
def test_gradient_penalty(kind, dtype, packed):
    mine, theirs = pair(kind, 4, 6, 2, bidirectional=packed, dtype=dtype)

    def penalised(module, x):
        x = x * 1
        out = flat(module(pack_padded_sequence(x, [5, 4, 2]) if packed else x))[0]
        (dx,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        return [out.sum(), (dx.norm() - 1) ** 2]

    both(mine, theirs, penalised, torch.randn(5, 3, 4, dtype=dtype, requires_grad=True))


def test_a_state_made_of_the_input():
    """The second derivative is of the partial first ones."""
    mine, theirs = pair("GRU", 4, 4)

    def call(module, x):
        out, _ = module(x, x[:1] * 2)
        (dx,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        return [dx]

    both(mine, theirs, call, torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_weights_changed_in_place(kind, options):
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", *["weight_hr_l0"] * ("proj_size" in options)]
    for name, needs_dx in itertools.product(names, [False, True]):
        outcomes = []
        for module in pair(kind, 4, 6, **options):
            given = x.clone().requires_grad_(needs_dx)
            loss = loss_of(module(given))
            with torch.no_grad():
                getattr(module, name).add_(1)
            try:
                loss.backward()
                outcomes.append([p.grad for p in module.parameters()])
            except RuntimeError as error:
                outcomes.append(str(error)[:100])
        if isinstance(outcomes[1], str):
            assert outcomes[0] == outcomes[1], (name, needs_dx)
        else:
            assert_equal(*outcomes, torch.float64)


def test_a_weight_changed_that_one_step_does_not_need():
    outcomes = []
    for module in pair("GRU", 4, 6):
        loss = loss_of(module(torch.ones(1, 3, 4, dtype=torch.float64)))
        with torch.no_grad():
            module.weight_hh_l0.add_(1)
        try:
            loss.backward()
            outcomes.append(True)
        except RuntimeError:
            outcomes.append(False)
    assert outcomes[0] >= outcomes[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"proj_size": 2}], ids=str)
def test_output_changed_in_place(kind, options):
    if "proj_size" in options and kind != "LSTM":
        pytest.skip("of LSTMs alone")
    mine, theirs = pair(kind, 4, 6, **options)

    def call(module, x):
        out, state = module(x)
        out *= 3
        out[0] = 1
        return out, state

    both(mine, theirs, call, torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True))
    assert not mine.fallbacks


def test_output_changed_and_then_the_weights():
    """The backward pass would have to run forward once more, on other weights."""
    module = ours.GRU(4, 6)
    out, _ = module(torch.randn(5, 3, 4))
    out.zero_()
    with torch.no_grad():
        module.bias_ih_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_states_are_no_views_of_the_output():
    for kind in KINDS:
        out, state = getattr(ours, kind)(4, 6)(torch.randn(5, 3, 4))
        before = [each.clone() for each in flat(state)]
        with torch.no_grad():
            out.zero_()
        assert all(map(torch.equal, flat(state), before)) and all(each.is_contiguous() for each in flat(state))


def test_backward_twice():
    out, _ = (module := ours.LSTM(4, 6))(torch.randn(5, 3, 4))
    out.sum().backward(retain_graph=True)
    first = module.weight_hh_l0.grad.clone()
    out.sum().backward()
    assert torch.allclose(module.weight_hh_l0.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_what_needs_no_gradient_gets_none():
    for kind in KINDS:
        mine, theirs = pair(kind, 4, 6)
        for module in (mine, theirs):
            module.weight_ih_l0.requires_grad_(False)
            module.bias_hh_l0.requires_grad_(False)
        both(mine, theirs, lambda module, x: module(x), torch.randn(5, 3, 4, dtype=torch.float64))
        out, state = mine(torch.randn(5, 3, 4, dtype=torch.float64))
        assert out.requires_grad and flat(state)[0].requires_grad
        for module in (mine, theirs):
            module.requires_grad_(False)
        both(mine, theirs, lambda module, x: module(x), torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True))


class Copies(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += operation is torch.ops.aten.clone.default
        return operation(*arguments, **(options or {}))


def test_borrowed_memory():
    """Held as long as somebody looks; any tensor as it is, unless it has gaps or is not aligned: then it is copied, once."""
    borrow = gate.tensors.borrow
    values = np.asarray(borrow(torch.arange(24.0).view(2, 3, 4)))
    gc.collect()
    assert values.dtype == np.float32 and values.flags.carray and np.array_equal(values.ravel(), np.arange(24))
    tensor = torch.randn(3, 5, dtype=torch.float64)
    assert np.shares_memory(np.asarray(borrow(tensor)), tensor.numpy())
    assert np.shares_memory(np.asarray(borrow(tensor[1:], (5, 1, 2))), tensor.numpy()) and np.array_equal(borrow(tensor[1:])[1], tensor[2])
    unaligned = torch.frombuffer(bytearray(8 * 15 + 1), dtype=torch.float64, offset=1).view(3, 5).copy_(tensor)
    for odd, times in ((tensor.T, 1), (tensor[:, ::2], 1), (unaligned, 1), (unaligned.T, 1), (tensor[:0], 0), (tensor.T[:, :0], 0)):
        with Copies() as copies:
            values = np.asarray(borrow(odd))
        assert np.array_equal(values, odd.numpy()) and values.flags.carray and copies.count == times
    for shape, itemsize in (((1,) * 5, 4), ((3,), 2)):
        with pytest.raises(ValueError, match="shape, itemsize: expected at most 4 dimensions of 4 or 8 bytes"):
            Numbers(None, 0, shape, itemsize)
    with pytest.raises(ValueError, match="tensor: expected at most 4 dimensions"):
        borrow(torch.zeros((1,) * 5))
    with pytest.raises(ImportError, match="DLPack"):
        Tensors(no_table(), ())


def no_table():
    """A capsule such as the one with PyTorch's functions, but of another version."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(no_table.memory, b"dlpack_exchange_api", None)


no_table.memory = ctypes.cast((ctypes.c_uint32 * 64)(2), ctypes.c_void_p)


def test_parts_of_numbers():
    numbers = of_array(np.arange(12.0))
    assert np.array_equal(numbers.part(2, (2, 5)), np.arange(2.0, 12).reshape(2, 5))
    for first, shape in ((-1, (2,)), (3, (2, 5)), (13, (0,))):
        with pytest.raises(ValueError, match="first, shape: expected a part"):
            numbers.part(first, shape)
    for i in (-1, 2):
        with pytest.raises(IndexError, match="expected one of the first axis"):
            numbers.part(0, (2, 6))[i]
    numbers.begin(2, of_array(np.ones(2)))
    numbers.part(4, (8,)).begin(3)
    assert np.array_equal(numbers, [1, 1, 2, 3, 0, 0, 0, 7, 8, 9, 10, 11])
    for count, others in ((13, None), (-1, None), (3, np.ones(2)), (2, np.ones(2, np.float32))):
        with pytest.raises(ValueError, match="numbers for the first of"):
            numbers.begin(count, None if others is None else of_array(others))


@pytest.mark.parametrize("dtype", gate.DTYPES)
@pytest.mark.parametrize("count", [0, 3, 100_000])
def test_lent_memory(count, dtype):
    """A tensor of our memory is like any other, has its numbers as long as it lives, and then is free, whichever thread lets go of it."""
    array = np.arange(2.0 * count).astype(str(dtype).removeprefix("torch.")).reshape(count, 2)
    alive = weakref.ref(array)
    tensor = gate.tensors.lend(of_array(array))
    assert tensor.dtype is dtype and tensor.shape == (count, 2) and tensor.is_leaf and not tensor.requires_grad and tensor.is_contiguous()
    assert count == 0 or tensor.data_ptr() == array.ctypes.data
    expected = torch.tensor(array)
    tensor[:] *= 2
    del array
    gc.collect()
    assert torch.equal(tensor, 2 * expected) and torch.equal(tensor[count // 2 :], 2 * expected[count // 2 :])
    assert torch.equal(copy.deepcopy(tensor), tensor) and tensor.share_memory_().is_shared()
    assert alive() is None  # what is shared was moved
    kept = [gate.tensors.lend(of_array(np.ones(2)))]
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    x = gate.tensors.lend(of_array(np.ones((count, 1)))).requires_grad_()
    (3 * x).sum().backward()
    assert torch.equal(x.grad, torch.full((count, 1), 3.0, dtype=torch.float64))


def functionalized(tensor):
    """What `torch.func.functionalize` leaves behind: a tensor without memory that says nothing of it."""
    left = []
    torch.func.functionalize(lambda t: (left.append(t), t)[1])(tensor)
    return left[0]


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("without_memory", [functionalized, freed])
def test_tensors_without_memory_are_not_ours(without_memory):
    module = ours.GRU(3, 6)
    x, h, d = torch.randn(5, 4, 3), torch.randn(1, 4, 6), torch.randn(5, 4, 6)
    for given in ((without_memory(x.clone()),), (x, without_memory(h.clone()))):
        assert type(modules.run(module, *given, *[None] * (2 - len(given)))) is str
    assert not gate.tensors.plain(without_memory(d.clone()), 4)
    with pytest.raises(RuntimeError, match="memory"):
        gate.tensors.borrow(freed(d.clone()))
    out, _ = module(x)
    freed(x)
    with pytest.raises(RuntimeError):
        out.sum().backward()


def test_weights_of_another_size_after_the_forward_pass():
    module = ours.GRU(3, 6)
    out, _ = module(torch.randn(5, 4, 3))
    module.bias_ih_l0.data = torch.randn(3)
    out.mul_(2)
    with pytest.raises(ValueError, match="as many numbers"):
        out.sum().backward()


def test_a_hook_that_returns_a_negative_view():
    mine, theirs = pair("GRU", 3, 6)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: -t, lambda t: torch._neg_view(t)):
        both(mine, theirs, lambda module, x: module(x), x)


def test_an_expanded_state():
    """Of stride 0, of a parameter, as learned initial states are."""
    mine, theirs = pair("LSTM", 4, 6)
    start = torch.randn(2, 1, 1, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    both(mine, theirs, lambda module, start, x: module(x, list(start.expand(2, 1, 3, 6))), start, x)
    assert not mine.fallbacks


def test_inputs_of_odd_layout():
    for kind in KINDS:
        mine, theirs = pair(kind, 4, 6)
        x = torch.randn(4, 3, 10, dtype=torch.float64, requires_grad=True)
        both(mine, theirs, lambda module, x: module(x.permute(2, 1, 0)[::2]), x)
        both(mine, theirs, lambda module, x: module(x[:1, :, 5].expand(6, 3, 3)[..., :1].expand(6, 3, 4)), x)
        for module in (mine, theirs):
            module.weight_hh_l0 = torch.nn.Parameter(theirs.weight_hh_l0.detach().T.contiguous().T)
        both(mine, theirs, lambda module, x: module(x.permute(2, 1, 0)), x)
        assert not mine.fallbacks
    misaligned = torch.frombuffer(bytearray(8 * 60 + 4), dtype=torch.float64, offset=4, count=60).view(5, 3, 4).normal_()
    both(mine, theirs, lambda module, x: module(x), misaligned)


# --- transforms and modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_jvp_and_jacobians(kind):
    mine, theirs = pair(kind, 4, 6)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    for transform in (
        lambda f: torch.func.vmap(f)(x),
        lambda f: torch.func.jvp(f, (x[0],), (x[1],)),
        lambda f: torch.func.vjp(f, x[0])[1](x.new_ones(5, 3, 6)),
        lambda f: torch.func.jacrev(f)(x[0]),
        lambda f: torch.func.grad(lambda x: f(x).sum())(x[0]),
        lambda f: torch.autograd.functional.jacobian(f, x[0]),
        lambda f: torch.autograd.functional.jacobian(f, x[0], vectorize=True),
        lambda f: torch.autograd.functional.hvp(lambda x: f(x).pow(2).sum(), x[0], x[1]),
        lambda f: tangent(f, x),
    ):
        assert_same_outcome(lambda: transform(lambda x: theirs(x)[0]), lambda: transform(lambda x: mine(x)[0]))  # noqa: B023
    assert {"torch.func", "forward mode", "create_graph"} <= set(mine.fallbacks)


def tangent(f, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x[0], x[1]))).tangent


def test_tangents_of_gradients():
    """Forward over reverse: what goes back carries a tangent."""
    results = []
    for module in pair("GRU", 4, 6):
        x = torch.ones(5, 3, 4, dtype=torch.float64, requires_grad=True)
        out, _ = module(x)
        with torch.autograd.forward_ad.dual_level():
            d = torch.autograd.forward_ad.make_dual(torch.ones_like(out), torch.full_like(out, 2))
            (dx,) = torch.autograd.grad(out, x, d)
            results.append([*torch.autograd.forward_ad.unpack_dual(dx)])
    assert_equal(*results, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_trace(kind):
    """No constant is left in the trace."""
    mine, theirs = pair(kind, 4, 6)
    x, other = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(mine, x)
    assert_equal(flat(traced(other)), flat(theirs(other)), torch.float64)
    assert mine.fallbacks["tracing"]


def test_script():
    mine, theirs = pair("LSTM", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.ModuleList([mine]))
    got = scripted[0](x)
    assert_equal(flat(got), flat(theirs(x)), torch.float64)
    with torch.no_grad():
        mine.bias_ih_l0.add_(1)
    assert torch.equal(scripted[0].bias_ih_l0, mine.bias_ih_l0)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx(kind):
    """The older export traces, and with PyTorch's own path finds one operation."""
    onnx = pytest.importorskip("onnx")
    module, file = getattr(ours, kind)(4, 6), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.randn(5, 1, 4),), file, dynamo=False)
    graph = onnx.load_from_string(file.getvalue()).graph
    assert kind in [node.op_type for node in graph.node] and module.fallbacks["tracing"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    class Net(torch.nn.Module):
        def __init__(self, recurrent):
            super().__init__()
            self.recurrent, self.linear = recurrent, torch.nn.Linear(6, 2, dtype=torch.float64)

        def forward(self, x):
            out, _ = self.recurrent(torch.tanh(x))
            return self.linear(out)

    mine, theirs = map(Net, pair("GRU", 4, 6))
    theirs.load_state_dict(mine.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(mine, backend=backend)
        x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
        d = torch.randn(5, 3, 2, dtype=torch.float64)
        got = torch.autograd.grad(compiled(x), [x, *mine.parameters()], d)
        expected = torch.autograd.grad(theirs(x), [x, *theirs.parameters()], d)
    assert_equal(got, expected, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    mine, theirs = pair(kind, 4, 6, dtype=torch.float32)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for a, b in zip(flat(mine(x)), flat(theirs(x)), strict=True):
            assert a.dtype is b.dtype and torch.equal(a, b)
    assert mine.fallbacks == {"autocast": 1}


def test_modes_that_look_at_operations():
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    mine, theirs = pair("GRU", 4, 6)
    x, other = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    counts = []
    for module in (mine, theirs):
        with FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.no_grad():
        assert torch.allclose(make_fx(lambda x: mine(x)[0])(x)(other), theirs(other)[0])
    assert mine.fallbacks["a dispatch mode"] + mine.fallbacks["tracing"] >= 2

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        mine(x)
    assert mine.fallbacks["a function mode"] == 1


def test_default_device_is_no_reason():
    module = ours.GRU(4, 6)
    with torch.device("cpu"):
        module(torch.randn(5, 3, 4))[0].sum().backward()
    assert not module.fallbacks


def test_what_has_outlived_its_transform():
    """Of torch.func, say: a tensor that a function of it has put aside."""
    mine, theirs = pair("GRU", 4, 6)
    kept = []

    def put_aside(x):
        kept.append(x)
        return x.sum()

    torch.func.grad(put_aside)(torch.randn(5, 3, 4, dtype=torch.float64))
    assert torch.equal(mine(kept[0])[0], theirs(kept[0])[0])
    assert len(mine.fallbacks) == 1


def test_subclasses_of_tensor():
    class Mine(torch.Tensor):
        pass

    mine, theirs = pair("GRU", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64).as_subclass(Mine)
    assert type(mine(x)[0]) is type(theirs(x)[0])
    assert len(mine.fallbacks) == 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint(kind, reentrant):
    from torch.utils.checkpoint import checkpoint

    mine, theirs = pair(kind, 4, 6, 2)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    both(mine, theirs, lambda module, x: checkpoint(module, x, use_reentrant=reentrant), x)
    assert not mine.fallbacks


def test_checkpoint_frees_the_tape():
    """All that a pass keeps goes through hooks on saved tensors."""
    kept = []
    module = ours.LSTM(4, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nelement()), lambda _: None):
        module(torch.randn(10, 3, 4))
    assert sum(kept) > 10 * 3 * 64 * 6


def test_save_on_cpu():
    mine, theirs = pair("LSTM", 4, 6, 2, bidirectional=True)

    def call(module, x):
        with torch.autograd.graph.save_on_cpu():
            return module(x)

    both(mine, theirs, call, torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True))
    assert not mine.fallbacks


# --- what is around them ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_repr_state_dict_and_isinstance(kind):
    mine, theirs = pair(kind, 4, 6, 2, bidirectional=True, batch_first=True)
    assert repr(mine) == repr(theirs) and isinstance(mine, type(theirs))
    mine.fallbacks["tracing"] += 1
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(mine.state_dict())
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind):
    module = getattr(ours, kind)(4, 6, 2)
    module.clip_step = "norm", 1.0
    module(x := torch.randn(5, 3, 4))
    twin = copy.deepcopy(module)
    assert type(twin) is type(module) and twin.clip_step == module.clip_step
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert not torch.equal(twin(x)[0], module(x)[0]) and not twin.fallbacks
    assert copy.copy(module).weight_hh_l0 is module.weight_hh_l0
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        loaded = pickle.loads(pickle.dumps(module, protocol))
        assert type(loaded) is getattr(torch.nn, kind)
        torch.testing.assert_close(loaded(x)[0], module(x)[0])
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert type(torch.load(file, weights_only=False)) is getattr(torch.nn, kind)


def test_hooks():
    module, seen = ours.GRU(4, 6), []
    module.register_forward_hook(lambda module, inputs, result: seen.append("forward"))
    module.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    module.register_full_backward_hook(lambda module, d_input, d_output: seen.append("backward"))
    module.weight_hh_l0.register_hook(lambda d: seen.append("weight") or 2 * d)
    out, _ = module(torch.randn(5, 3, 4, requires_grad=True))
    out.sum().backward()
    assert seen[:2] == ["before", "forward"] and set(seen[2:]) == {"weight", "backward"}
    assert not module.fallbacks


def test_to_and_weights_replaced():
    mine, theirs = pair("GRU", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for change in (
        lambda m: m.float().double(),
        lambda m: m.weight_hh_l0.data.mul_(2),
        lambda m: setattr(m.weight_ih_l0, "data", torch.ones_like(m.weight_ih_l0)),
        lambda m: setattr(m, "bias_hh_l0", torch.nn.Parameter(torch.ones(18, dtype=torch.float64))),
        lambda m: m._apply(lambda t: t * 1.5),
    ):
        for module in (mine, theirs):
            change(module)
        both(mine, theirs, lambda module, x: module(x), x)
    assert not mine.fallbacks


def test_pruned_and_parametrized():
    from torch.nn.utils import prune

    mine, theirs = pair("LSTM", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for module in (mine, theirs):
        prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    both(mine, theirs, lambda module, x: module(x), x)
    mine, theirs = pair("GRU", 4, 6)
    for module in (mine, theirs):
        parametrize.register_parametrization(module, "weight_hh_l0", torch.nn.utils.parametrizations._WeightNorm(0), unsafe=True)
    both(mine, theirs, lambda module, x: module(x), x)
    assert not mine.fallbacks
    copy.deepcopy(mine)(x)
    for module in (mine, theirs):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
    both(mine, theirs, lambda module, x: module(x), x)
    assert type(mine) is ours.GRU


def test_functional_call():
    mine, theirs = pair("GRU", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    weights = {name: 2 * p.detach() for name, p in mine.named_parameters()}
    got, expected = (torch.func.functional_call(module, weights, (x,)) for module in (mine, theirs))
    assert_equal([t.detach() for t in flat(got)], [t.detach() for t in flat(expected)], torch.float64)
    assert not mine.fallbacks


# --- models -------------------------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv1d(3, 8, 5)
        self.layers = torch.nn.ModuleList([torch.nn.GRU(8, 6, batch_first=True), torch.nn.LSTM(6, 4), torch.nn.RNN(4, 4)])
        self.again = self.layers[0]
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.convolution(x).transpose(1, 2)
        for layer in self.layers:
            x, _ = layer(x)
        return self.out(x)


class Cooperative(torch.nn.LSTM):
    """As pytorch-forecasting's."""

    def forward(self, x, hx=None):
        out, state = super().forward(x, hx)
        return out * 2, state


class Other(torch.nn.GRU):
    def forward(self, x, hx=None):
        return x, hx


class Renamed(torch.nn.GRU):
    pass


def test_a_model_there_and_back():
    torch.manual_seed(0)
    model = Model()
    parameters, x = [*model.parameters()], torch.randn(4, 3, 20)
    kinds = [type(module) for module in model.modules()]
    expected = model(x)
    expected.sum().backward()
    grads = [p.grad.clone() for p in parameters]
    model.zero_grad()
    assert ours.accelerate(model) == 3
    assert ours.accelerate(model) == 0  # once is enough
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    got = model(x)
    got.sum().backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close([p.grad for p in parameters], grads)
    assert [type(layer) for layer in model.layers] == [ours.GRU, ours.LSTM, ours.RNN]
    assert not any(layer.fallbacks for layer in model.layers)
    assert repr(model) == repr(Model())
    model.layers[0].clip_step = "value", 1.0
    assert ours.restore(model) == 3 and ours.restore(model) == 0
    assert [type(module) for module in model.modules()] == kinds
    assert "clip_step" not in repr(vars(model.layers[0])) and "fallbacks" not in repr(vars(model.layers[0]))
    torch.testing.assert_close(model(x), expected)


def test_subclasses():
    model = torch.nn.ModuleDict({"a": Cooperative(4, 6), "b": Other(4, 6), "c": Renamed(4, 6), "d": Cooperative(4, 6)})
    x = torch.randn(5, 3, 4)
    expected = {name: module(x) for name, module in model.items()}
    changed = ours.accelerate(model)
    assert changed == 3 and list(changed.skipped) == ["b"] and "Other.forward does not call super().forward" in repr(changed)
    assert type(model["a"]) is type(model["d"]) and isinstance(model["a"], (Cooperative, ours.LSTM)) and type(model["b"]) is Other
    with FallbacksOf(model["a"]):
        for name, module in model.items():
            torch.testing.assert_close(flat(module(x)), flat(expected[name]))
    assert type(copy.deepcopy(model)["a"]) is type(model["a"])
    assert type(pickle.loads(pickle.dumps(model["a"]))) is Cooperative
    ours.restore(model)
    assert [type(module) for module in model.values()] == [Cooperative, Other, Renamed, Cooperative]


class FallbacksOf:
    """That a module is ours, and runs on our kernels: under autocast, a call of it is counted."""

    def __init__(self, module):
        self.module = module

    def __enter__(self):
        with torch.autocast("cpu"):
            self.module(torch.randn(5, 3, 4))
        self.before = dict(self.module.fallbacks)
        assert self.before == {"autocast": 1}

    def __exit__(self, *_):
        assert self.module.fallbacks == self.before


def test_what_is_skipped():
    model = torch.nn.ModuleList([torch.nn.GRU(4, 6), torch.nn.RNNBase("GRU", 4, 6)])
    model[0].forward = lambda x: x
    changed = ours.accelerate(model)
    assert changed == 0 and list(changed.skipped) == ["0", "1"]
    assert repr(ours.accelerate(torch.nn.Linear(2, 2))) == "0 modules changed"
    for wrong in (None, "model", torch.nn.GRU):
        with pytest.raises(TypeError, match=r"model: expected a torch[.]nn[.]Module, got"):
            ours.accelerate(wrong)
        with pytest.raises(TypeError, match=r"model: expected a torch[.]nn[.]Module, got"):
            ours.restore(wrong)


def test_a_parametrized_module_there_and_back():
    x = torch.randn(5, 3, 4)
    module = torch.nn.GRU(4, 6)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    expected = module(x)[0]
    assert ours.accelerate(module) == 1 and isinstance(module, ours.GRU) and parametrize.is_parametrized(module)
    torch.testing.assert_close(module(x)[0], expected)
    module(x)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original0.grad.abs().max() > 0 and not module.fallbacks
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is ours.GRU
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    ours.restore(module)
    assert not isinstance(module, ours.GRU)
    torch.testing.assert_close(module(x)[0], expected)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is torch.nn.GRU
    torch.testing.assert_close(module(x)[0], expected)


def test_patch():
    with ours.patch():
        inside = Model()
        mine = Cooperative(4, 6)
    outside = Model()
    assert [type(layer) for layer in inside.layers] == [ours.GRU, ours.LSTM, ours.RNN]
    assert [type(layer) for layer in outside.layers] == [torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN]
    assert isinstance(mine, ours.LSTM) and isinstance(mine, Cooperative)
    with pytest.raises(ZeroDivisionError), ours.patch():
        1 / 0  # noqa: B018
    assert type(torch.nn.GRU(4, 6)) is torch.nn.GRU
    with ours.patch(), pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        torch.nn.GRU(4, 0)


def test_training_is_the_same():
    """Through an optimiser, as a user trains."""
    losses = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = Model().double()
        if fast:
            ours.accelerate(model)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        x = torch.randn(4, 3, 20, dtype=torch.float64)
        for _ in range(10):
            optimiser.zero_grad()
            loss = (model(x) - 1).pow(2).mean()
            loss.backward()
            optimiser.step()
        losses.append(loss)
    assert abs(losses[0] - losses[1]) < 1e-12


# --- seeing gradients ---------------------------------------------------------------------------------------------------------------


def by_functions(kind, module, x, d_out, **options):
    """The tape and the gradients of the package's functions, on the module's first layer."""
    prefix, weights = kind.lower(), [weight.detach().numpy() for weight in module.parameters()]
    lengths = options.pop("lengths", None)
    tape = getattr(fastbptt, f"{prefix}_forward")(x.detach().numpy(), None, *weights[:4], lengths=lengths)[2]
    return tape, getattr(fastbptt, f"{prefix}_backward")(tape, d_out.numpy(), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [("value", 0.05), ("norm", 0.1)], ids=str)
def test_clip_step(kind, clip):
    module = getattr(ours, kind)(4, 6, dtype=torch.float64)
    x, d_out = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, 6, dtype=torch.float64)
    module.clip_step = clip
    got = torch.autograd.grad(module(x)[0], [x, *module.parameters()], d_out)
    _, expected = by_functions(kind, module, x, d_out, clip_step=clip)
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(got, [expected.x, *expected[2:6]], strict=True))
    module.clip_step = None
    unclipped = torch.autograd.grad(module(x)[0], [x, *module.parameters()], d_out)
    assert not torch.allclose(got[0], unclipped[0])


def test_clip_step_is_never_left_out_in_silence():
    module = ours.GRU(4, 6)
    for wrong, error in ((1.0, TypeError), (("size", 1), ValueError), (("norm", -1), ValueError)):
        with pytest.raises(error, match="clip_step"):
            module.clip_step = wrong
    module.clip_step = "norm", 1.0
    x = torch.randn(5, 3, 4, requires_grad=True)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"clip_step: .* which cannot clip: autocast"):
        module(x)
    with torch.no_grad(), torch.autocast("cpu"):
        module(x)
    with pytest.raises(RuntimeError, match=r"clip_step: .* no derivative"):
        torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize(("kind", "options"), CELLS)
def test_gradient_flow_of_a_module(kind, options):
    module = getattr(ours, kind)(4, 6, 2, bidirectional=True, dtype=torch.float64, **options)
    x, d_out = torch.randn(9, 3, 4, dtype=torch.float64), torch.randn(9, 3, 2 * options.get("proj_size", 6), dtype=torch.float64)
    with ours.record(module) as recording:
        (module(x)[0] * d_out).sum().backward()
    with torch.no_grad():
        module.weight_hh_l1.zero_()  # what is recorded stays
    names = ["weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"]
    for reverse in (False, True):
        flow = recording.gradient_flow(1, reverse=reverse)
        assert flow.log10_state_norm.shape == (10, 3) and np.isfinite(flow.log10_state_norm[1:]).all()
        grad = module.get_parameter(names[1] + "_reverse" * reverse).grad
        assert np.allclose(flow.lag_gradients().sum(axis=0), grad.numpy(), rtol=0, atol=1e-12)
    (module(x)[0] * d_out).sum().backward()  # not recorded any more


def test_gradient_flow_of_a_packed_batch():
    module = ours.LSTM(4, 6, dtype=torch.float64)
    x, d_out, lengths = torch.randn(7, 3, 4, dtype=torch.float64), torch.randn(7, 3, 6, dtype=torch.float64), [7, 4, 2]
    with ours.record(module) as recording:
        out, _ = module(pack_padded_sequence(x, lengths))
        (out.data * pack_padded_sequence(d_out, lengths).data).sum().backward()
    tape, _ = by_functions("LSTM", module, x, d_out, lengths=np.array(lengths))
    for row, length in enumerate(lengths):
        expected = fastbptt.gradient_flow(tape.row(row), d_out.numpy()[:length, row : row + 1])
        got = recording.gradient_flow(row=row)
        assert np.array_equal(got.log10_state_norm, expected.log10_state_norm) and np.array_equal(got.by_lag, expected.by_lag)
    with pytest.raises(ValueError, match="row: expected one of the 3 rows"):
        recording.gradient_flow()
    with pytest.raises(IndexError, match=r"^row: expected a row"):
        recording.gradient_flow(row=3)


def test_nothing_recorded():
    module = ours.GRU(4, 6)
    with ours.record(module) as recording, torch.autocast("cpu"):
        module(torch.randn(5, 3, 4))[0].float().sum().backward()
    with pytest.raises(RuntimeError, match=r"layer 0: no backward pass has been recorded; .*autocast"):
        recording.gradient_flow()
    with pytest.raises(RuntimeError, match="layer 1, reverse: no backward pass"):
        recording.gradient_flow(1, reverse=True)
    with pytest.raises(TypeError, match=r"module: expected a recurrent module of fastbptt.torch, got GRU"), ours.record(torch.nn.GRU(2, 2)):
        pass


def test_the_page():
    """Its code runs, and its table has the reasons that there are."""
    page = Path(__file__).parent.parent / "docs" / "pytorch.md"
    if not page.exists():
        pytest.skip("this is not a checkout")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(code, names)
    for module in (gate, modules, function):
        for reason in re.findall(r'(?:return|reason =) "([^"]+)"', Path(module.__file__).read_text()):
            assert f"`{reason}`" in page.read_text() or " that is no plain tensor" in reason or " that are no plain" in reason, reason


# --- threads and processes ----------------------------------------------------------------------------------------------------------


def test_threads_of_torch_are_respected():
    """Set to 1, no helper starts; and the package's own number stays what it was."""
    run_python(
        """
import threading, torch, fastbptt, fastbptt.torch, os
fastbptt.set_num_threads(2)
def threads(): return len(os.listdir("/proc/self/task"))
module, x = fastbptt.torch.GRU(64, 128), torch.randn(20, 32, 64)
torch.set_num_threads(1)
with torch.no_grad():
    before = threads()
    module(x)
    assert threads() == before and fastbptt.get_num_threads() == 2
    torch.set_num_threads(2)
    module(x)
    assert threads() > before and not module.fallbacks
"""
    )


def test_forks():
    """A hundred children, after forward and backward passes on several threads in the parent, each with passes of its own."""
    run_python(
        """
import os, torch, fastbptt.torch
torch.set_num_threads(2)
fastbptt.set_num_threads(2)
module, x = fastbptt.torch.GRU(32, 32), torch.randn(20, 32, 32)
def work():
    module.zero_grad()
    out, _ = module(x)
    out.sum().backward()
    return module.weight_hh_l0.grad
expected = work().clone()
for _ in range(100):
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(work(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(work(), expected)
assert not module.fallbacks
""",
        timeout=100,
    )


def test_import_of_the_package_leaves_torch_alone():
    run_python("import sys, fastbptt; assert 'torch' not in sys.modules")


def test_import_in_any_mode():
    run_python(
        """
import torch
with torch.inference_mode(), torch.device("meta"):
    import fastbptt.torch
module = fastbptt.torch.GRU(4, 6, dtype=torch.float64)
out, _ = module(torch.randn(5, 3, 4, dtype=torch.float64))
out.mul_(2).sum().backward()
assert not module.fallbacks
"""
    )


def test_without_torch():
    run_python(
        """
import sys
sys.modules["torch"] = None
try:
    import fastbptt.torch
except ImportError as error:
    assert "fastbptt[torch]" in str(error), error
else:
    raise AssertionError
"""
    )


# --- Contexts, copies and options that overlap ---------------------------------------------------------------------------


def test_patches_that_overlap_end_with_the_last():
    one, two = fastbptt.torch.patch(), fastbptt.torch.patch()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert isinstance(torch.nn.GRU(2, 2), fastbptt.torch.GRU)
    two.__exit__(None, None, None)
    assert type(torch.nn.GRU(2, 2)) is torch.nn.GRU


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda changed: pickle.loads(pickle.dumps(changed))])
def test_what_was_changed_can_be_copied(copied):
    changed = copied(fastbptt.torch.accelerate(torch.nn.ModuleList([torch.nn.GRU(2, 2)])))
    assert changed == 1 and changed.skipped == {}


def test_clipping_stays_in_copies_but_not_in_pickles():
    module = fastbptt.torch.GRU(3, 4)
    module.clip_step = "norm", 1e-3
    assert copy.deepcopy(module).clip_step == ("norm", 1e-3)
    other = pickle.loads(pickle.dumps(module))
    fastbptt.torch.accelerate(other)
    assert other.clip_step is None


def test_a_record_within_another():
    module, x = fastbptt.torch.GRU(3, 8), torch.randn(5, 2, 3)
    with fastbptt.torch.record(module) as outer:
        with fastbptt.torch.record(module) as inner:
            module(x)[0].sum().backward()
        module(x)[0].sum().backward()
    assert inner.gradient_flow().by_lag.shape == outer.gradient_flow().by_lag.shape
    for row, error in ((2, IndexError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^row: expected"):
            outer.gradient_flow(row=row)
