"""Several layers, and layers of two directions: against the reference put together by hand, PyTorch, and what is promised of all layers."""

import copy
import os
import pickle
import re

import numpy as np
import pytest
from problems import CELLS, arrays_of
from tolerances import DTYPES, TOLERANCES, assert_close, assert_same_bits

import fastbptt
import fastbptt.reference
from fastbptt._checks import contiguous
from fastbptt._kernels import kernels
from fastbptt.layers import LAYERS
from fastbptt.stacks import Tapes

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def normal(rng, *shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def width(layer):
    """The numbers of a direction's output."""
    return getattr(layer, "proj_size", 0) or layer.hidden_size


# --- The oracle: `fastbptt.reference`, once for each direction ---------------------------------------------------------


class Reading:
    """The order in which a direction reads the steps of each row: reverse directions from the row's own last step on."""

    def __init__(self, T, B, lengths, resets, reverse):
        self.T, self.B, self.lengths = T, B, lengths
        self.order = [[*range(T if lengths is None else lengths[b])] for b in range(B)]
        self.resets = np.zeros((T, B), bool)
        for b, order in enumerate(self.order):
            if reverse:
                order.reverse()
            for s, t in enumerate(order):
                if resets is not None:
                    self.resets[s, b] = (resets[t + 1, b] if s else False) if reverse else resets[t, b]

    def read(self, array):
        out = np.zeros_like(array)
        for b, order in enumerate(self.order):
            for s, t in enumerate(order):
                out[s, b] = array[t, b]
        return out

    def put_back(self, array):
        out = np.zeros_like(array)
        for b, order in enumerate(self.order):
            for s, t in enumerate(order):
                out[t, b] = array[s, b]
        return out


def by_hand(layer, x, state, d_out, d_state, lengths, resets, kept=(), scale=1.0, clip_step=None):
    """Outputs, last states and all gradients of a layer, by name; ``kept`` is what dropout has let through between layers."""
    cell, D = layer._cell, 2 if layer.bidirectional else 1
    forward, backward = (getattr(fastbptt.reference, f"{cell}_{way}") for way in ("forward", "backward"))
    options = {"nonlinearity": layer.nonlinearity, "leak": layer.leak} if cell == "rnn" else {}
    T, B = x.shape[:2]
    readings = [Reading(T, B, lengths, resets, reverse) for reverse in (False, True)[:D]]

    def suffix(k):
        return f"l{k // D}{'_reverse' if k % D else ''}"

    def part(state, k):
        return None if state is None else tuple(p[k] for p in state) if isinstance(state, tuple) else state[k]

    tapes, lasts = [], []
    for number in range(layer.num_layers):
        if number and kept and kept[number - 1] is not None:
            x = x * kept[number - 1] * scale
        outs = []
        for side, reading in enumerate(readings):
            k = len(tapes)
            weights = [layer.params.get(f"{name}_{suffix(k)}") for name in NAMES[:4]]
            if width(layer) < layer.hidden_size:
                options["w_hr"] = layer.params[f"weight_hr_{suffix(k)}"]
            out, last, tape = forward(reading.read(x), part(state, k), *weights, lengths=lengths, resets=readings[side].resets, **options)
            outs.append(reading.put_back(out))
            lasts.append(last)
            tapes.append(tape)
        x = np.concatenate(outs, axis=2)
    results, d_initial = {"out": x}, [None] * len(tapes)
    for number in reversed(range(layer.num_layers)):
        below = 0
        for side, reading in enumerate(readings):
            k, W = number * D + side, width(layer)
            d = None if d_out is None else reading.read(d_out[..., side * W : (side + 1) * W])
            with np.errstate(invalid="ignore"):  # the reference divides by the norm before it looks whether that is 0
                grads = backward(tapes[k], d, part(d_state, k), clip_step=clip_step)
            below = below if grads.x is None else below + reading.put_back(grads.x)
            d_initial[k] = grads.state
            for name, g in zip(NAMES, grads[2:]):
                if g is not None:
                    results[f"{name}_{suffix(k)}"] = g
        if number and kept and kept[number - 1] is not None:
            below = below * kept[number - 1] * scale
        d_out = below
    results["dx"] = None if np.isscalar(d_out) else d_out
    for title, states in (("last", lasts), ("d_initial", d_initial)):
        for i, parts in enumerate(zip(*map(arrays_of, states))):
            results[f"{title} {i}"] = np.stack(parts)
    return results


def results_of(layer, x, state, d_out, d_state, clip_step=None, need_dx=True, **ragged):
    """The same of the layer itself."""
    layer.zero_grad()
    out, last = layer(x, state, **ragged)
    dx, d_initial = layer.backward(d_out, d_state, clip_step=clip_step, need_dx=need_dx)
    results = {"out": out, "dx": dx} | {name: g.copy() for name, g in layer.grads.items()}
    for title, states in (("last", last), ("d_initial", d_initial)):
        results |= {f"{title} {i}": part for i, part in enumerate(arrays_of(states))}
    return results


def random_layer(rng, dropout):
    """A layer of any kind: of more than one direction, or with a projection."""
    cell = CELLS[rng.choice([*CELLS])]
    layers, two = [(1, True), (2, False), (2, True), (3, False), (3, True)][rng.integers(5)]
    I, H = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    leak = {"scalar": {"leak": 0.3}, "per unit": {"leak": 1 - rng.random(H)}, None: {}}[cell.leak]
    if cell.prefix == "lstm" and H > 1 and rng.integers(2):
        leak, layers = {"proj_size": int(rng.integers(1, H))}, max(1, layers - 1)
    bias, dropout = bool(rng.integers(4)), dropout if layers > 1 else 0.0
    layer = LAYERS[cell.prefix](I, H, layers, bidirectional=two, bias=bias, dropout=dropout, rng=rng, **cell.options, **leak)
    layer.flat_params *= 1.5
    return layer


def random_state(rng, layer, B):
    K = layer.num_layers * (2 if layer.bidirectional else 1)
    parts = [normal(rng, K, B, W, dtype=layer.dtype) for W in (width(layer), layer.hidden_size)[: 2 if layer._cell == "lstm" else 1]]
    return tuple(parts) if len(parts) == 2 else parts[0]


@pytest.mark.parametrize("trial", range(240))
def test_against_the_reference(trial):
    rng = np.random.default_rng(trial)
    layer = random_layer(rng, dropout=0.4 if trial % 3 == 0 else 0.0)
    T, B, I, D = int(rng.integers(0, 7)), int(rng.integers(1, 5)), layer.input_size, 2 if layer.bidirectional else 1
    x = rng.integers(0, I, (T, B)) if trial % 5 == 0 else normal(rng, T, B, I)
    lengths = rng.integers(0, T + 1, B) if trial % 4 in (1, 3) else None
    resets = rng.random((T, B)) < 0.3 if trial % 4 in (2, 3) else None
    state, d_state = (random_state(rng, layer, B) if rng.integers(3) else None for _ in range(2))
    d_out = normal(rng, T, B, D * width(layer)) if rng.integers(5) else None
    clip_step = [None, None, ("norm", 1.0), ("value", 0.3)][rng.integers(4)]

    replay = copy.deepcopy(layer)
    replay(x, state, lengths=lengths, resets=resets)
    tapes = replay.take_tape()
    kept, scale = getattr(tapes, "kept", ()), getattr(tapes, "scale", 1.0)  # of a stack
    hot = np.eye(I)[x] if x.ndim == 2 else x
    expected = by_hand(layer, hot, state, d_out, d_state, lengths, resets, kept, scale, clip_step)
    got = results_of(layer, x, state, d_out, d_state, clip_step, lengths=lengths, resets=resets)
    if x.ndim == 2:
        assert got.pop("dx") is None and expected.pop("dx") is not None
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(name, got[name], value, 1e-12, max(1.0, np.abs(value).max(initial=0)))


@pytest.mark.parametrize("trial", range(12))
def test_batch_first_turns_inputs_and_outputs_round(trial):
    rng = np.random.default_rng(trial)
    layer = random_layer(rng, dropout=0.4)
    turned, I, W = copy.deepcopy(layer), layer.input_size, width(layer) * (2 if layer.bidirectional else 1)
    turned.batch_first = True
    x, state, d_out, d_state = normal(rng, 5, 3, I), random_state(rng, layer, 3), normal(rng, 5, 3, W), random_state(rng, layer, 3)
    lengths, resets = (rng.integers(0, 6, 3), rng.random((5, 3)) < 0.3) if trial % 2 else (None, None)
    expected = results_of(layer, x, state, d_out, d_state, lengths=lengths, resets=resets)
    of_rows = {"lengths": lengths, "resets": None if resets is None else resets.T}
    got = results_of(turned, x.swapaxes(0, 1), state, d_out.swapaxes(0, 1), d_state, **of_rows)
    for name, value in expected.items():
        assert_same_bits(name, got[name], value.swapaxes(0, 1) if name in ("out", "dx") else value)


# --- PyTorch -----------------------------------------------------------------------------------------------------------


@pytest.mark.one_level
@EACH_DTYPE
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # that they are slow in float32
@pytest.mark.parametrize("start", range(0, 210, 15))
def test_against_torch(start, dtype, torch):
    for trial in range(start, start + 15):
        try:
            compare_with_torch(trial, dtype, torch)
        except Exception as error:
            error.add_note(f"trial {trial}")
            raise


def compare_with_torch(trial, dtype, torch):
    rng = np.random.default_rng([trial, 1])
    name = ["rnn", "gru", "lstm"][trial % 3]
    I, H, L = (int(rng.integers(1, high)) for high in (6, 9, 4))
    two, bias, batch_first = (bool(rng.integers(2)) for _ in range(3))
    options = {"nonlinearity": ["tanh", "relu"][rng.integers(2)]} if name == "rnn" else {}
    options |= {"bias": bias, "batch_first": batch_first, "bidirectional": two}
    if name == "lstm" and H > 1:
        options["proj_size"] = int(rng.integers(0, H))
    torch.manual_seed(trial)
    module = getattr(torch.nn, name.upper())(I, H, L, dtype=getattr(torch, dtype.name), **options)
    layer = LAYERS[name](I, H, L, dtype=dtype, **options)
    theirs = {key: p.numpy() for key, p in module.state_dict().items()}
    assert [(key, p.shape) for key, p in theirs.items()] == [(key, p.shape) for key, p in layer.params.items()]
    layer.load_state_dict(theirs)
    T, B = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    lengths = rng.integers(1, T + 1, B) if trial % 2 else None
    shape = (B, T) if batch_first else (T, B)
    x, d_out = normal(rng, *shape, I, dtype=dtype), normal(rng, *shape, width(layer) * (2 if two else 1), dtype=dtype)
    state, d_state = (random_state(rng, layer, B) for _ in range(2))
    got = results_of(layer, x, state, d_out, d_state, lengths=lengths)

    their_x, *their_state = (torch.from_numpy(array).requires_grad_() for array in (x, *arrays_of(state)))
    packed = their_x
    if lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(their_x, torch.from_numpy(lengths), batch_first, enforce_sorted=False)
    out, last = module(packed, tuple(their_state) if name == "lstm" else their_state[0])
    if lengths is not None:
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first, total_length=T)
    torch.autograd.backward([out, *arrays_of(last)], [torch.from_numpy(d) for d in (d_out, *arrays_of(d_state))])
    expected = {"out": out.detach(), "dx": their_x.grad} | {key: p.grad for key, p in module.named_parameters()}
    expected |= {f"last {i}": part.detach() for i, part in enumerate(arrays_of(last))}
    expected |= {f"d_initial {i}": part.grad for i, part in enumerate(their_state)}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if dtype == np.float64:
            assert_close(key, got[key], value.numpy(), TOLERANCES[dtype].torch)
        else:
            torch.testing.assert_close(torch.from_numpy(np.array(got[key])), value, msg=lambda text, key=key: f"{key}: {text}")


# --- What is promised of all layers -------------------------------------------------------------------------------------


def problem(name, *, T=40, B=7, I=5, H=33, L=2, dtype=np.float64, seed=0, **options):
    """A layer, and arguments of `results_of`."""
    rng = np.random.default_rng(seed)
    layer = LAYERS[name](I, H, L, dtype=dtype, rng=seed, **options)
    x, d_out = normal(rng, T, B, I, dtype=dtype), normal(rng, T, B, H * (2 if layer.bidirectional else 1), dtype=dtype)
    return layer, [x, random_state(rng, layer, B), d_out, random_state(rng, layer, B)]


@EACH_DTYPE
@EACH_LAYER
@pytest.mark.parametrize("ragged", [False, True], ids=["rectangle", "ragged"])
def test_the_same_bits_on_any_number_of_threads(name, ragged, dtype, threads):
    layer, arguments = problem(name, B=19, H=40, bidirectional=True, dropout=0.2, dtype=dtype)
    rng = np.random.default_rng(0)
    given = {"lengths": rng.integers(0, 41, 19), "resets": rng.random((40, 19)) < 0.1} if ragged else {}
    start = layer.rng.bit_generator.state
    expected = None
    for n in (1, 2, 3, 5, 1):
        threads(n)
        layer.rng.bit_generator.state = start
        got = results_of(layer, *arguments, **given)
        expected = expected or got
        for key, value in expected.items():
            assert_same_bits(key, got[key], value)


@EACH_DTYPE
@EACH_LAYER
def test_a_row_keeps_its_bits_whatever_else_is_in_the_batch(name, dtype):
    layer, (x, state, d_out, d_state) = problem(name, bidirectional=True, dtype=dtype)
    lengths = np.array([40, 13, 0, 7, 39, 1, 22])
    whole = results_of(layer, x, state, d_out, d_state, lengths=lengths)
    of_row = [lambda s, b=b: tuple(p[:, [b]] for p in s) if isinstance(s, tuple) else s[:, [b]] for b in range(7)]
    for b, n in enumerate(lengths):
        alone = results_of(layer, x[:n, [b]], of_row[b](state), d_out[:n, [b]], of_row[b](d_state))
        for key in ("out", "dx"):
            assert_same_bits(key, whole[key][:n, [b]], alone[key])
            assert not whole[key][n:, b].any()
        for key in (key for key in whole if key.split()[0] in ("last", "d_initial")):
            assert_same_bits(key, whole[key][:, [b]], alone[key])


@EACH_LAYER
def test_pieces_between_resets_are_sequences_of_their_own(name):
    layer, (x, state, _, _) = problem(name, T=9, B=2, H=6, L=1, bidirectional=True)
    resets = np.zeros((9, 2), bool)
    resets[4] = True
    whole, last = layer(x, state, resets=resets)

    def half(side):
        return tuple(p * side for p in state) if isinstance(state, tuple) else state * side

    forward_only, reverse_only = np.array([1.0, 0.0]).reshape(2, 1, 1), np.array([0.0, 1.0]).reshape(2, 1, 1)
    early, early_last = layer(x[:4], half(forward_only))
    late, late_last = layer(x[4:], half(reverse_only))
    assert_same_bits("out", whole, np.concatenate([early, late]))
    for part, first, second in zip(*map(arrays_of, (last, early_last, late_last))):
        assert_same_bits("forward", part[0], second[0])
        assert_same_bits("reverse", part[1], first[1])


@EACH_LAYER
def test_what_is_behind_a_rows_end_is_never_looked_at(name):
    layer, (x, state, d_out, d_state) = problem(name, T=6, B=4, H=5, bidirectional=True)
    lengths, resets = np.array([6, 2, 0, 4]), np.random.default_rng(0).random((6, 4)) < 0.3
    expected = results_of(layer, x, state, d_out, d_state, lengths=lengths, resets=resets)
    behind = np.arange(6)[:, None] >= lengths
    x[behind] = d_out[behind] = np.nan
    got = results_of(layer, x, state, d_out, d_state, lengths=lengths, resets=resets | behind)
    for key, value in expected.items():
        assert_same_bits(key, got[key], value)
    tokens = np.where(behind, 99, 1)
    assert np.isfinite(layer(tokens, lengths=lengths)[0]).all()


@EACH_LAYER
def test_two_layers_are_one_above_the_other(name):
    """The bits of layers that are called one by one, without copies between them."""
    layer, (x, state, d_out, d_state) = problem(name)
    got = results_of(layer, x, state, d_out, d_state)
    below, above = (LAYERS[name](n, 33) for n in (5, 33))
    for k, single in enumerate((below, above)):
        single.load_state_dict({f"{key[:-1]}0": p for key, p in layer.params.items() if key.endswith(str(k))})

    def part(s, k):
        return tuple(p[k] for p in s) if isinstance(s, tuple) else s[k]

    middle, _ = below(x, part(state, 0))
    out, _ = above(middle, part(state, 1))
    d_middle, _ = above.backward(d_out, part(d_state, 1))
    dx, _ = below.backward(d_middle, part(d_state, 0))
    assert_same_bits("out", got["out"], out)
    assert_same_bits("dx", got["dx"], dx)
    assert_same_bits("grads", layer.flat_grads, np.concatenate([below.flat_grads, above.flat_grads]))
    layer(x)
    tapes = layer.take_tape()
    assert np.shares_memory(tapes[1].x, tapes[0].h)


@EACH_DTYPE
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_rows_that_are_moved(dtype, n, threads):
    """Between the halves of an array, and from the end to the start: as NumPy does it, on any number of threads."""
    threads(n)
    rng = np.random.default_rng(n)
    for T, B, W in ((0, 2, 3), (3, 0, 3), (3, 2, 0), (1, 1, 1), (4, 3, 1), (5, 3, 7), (70, 20, 33), (200, 1, 512)):
        both, other = normal(rng, T, B, 2 * W, dtype=dtype), normal(rng, T, B, W, dtype=dtype)
        expected = both.copy()
        expected[..., W:] = other[::-1]
        expected[..., :W] += other[:, ::-1]
        kernels[dtype].move_rows(other[::-1], both[..., W:])
        kernels[dtype].move_rows(other[:, ::-1], both[..., :W], True)
        assert_same_bits("both", both, expected)
        whole = contiguous("x", both[::-1, :, W:])
        assert whole.flags.c_contiguous
        assert_same_bits("whole", whole, both[::-1, :, W:])
    for source, target in ((other[:, :, ::-1], other), (other, other[:, :, ::-1]), (other[1:], other), (other[..., 1:], other)):
        with pytest.raises(ValueError, match="source, target: expected"):
            kernels[dtype].move_rows(source, target)


@EACH_DTYPE
def test_d_out_of_any_layout(dtype):
    rng = np.random.default_rng(0)
    layer = fastbptt.GRU(3, 4, 2, bidirectional=True, dtype=dtype, rng=0)
    x, d_out = normal(rng, 9, 5, 3, dtype=dtype), normal(rng, 9, 5, 8, dtype=dtype)
    shifted = np.frombuffer(bytearray(d_out.nbytes + 1), dtype, d_out.size, 1).reshape(d_out.shape)
    shifted[...] = d_out
    results = []
    for given in (d_out, np.asfortranarray(d_out), d_out[::-1].copy()[::-1], np.repeat(d_out, 2, axis=2)[..., ::2], shifted):
        layer.zero_grad()
        layer(np.asfortranarray(x) if results else x)
        dx, state = layer.backward(given)
        results.append([dx, state, layer.flat_grads.copy()])
    for other in results[1:]:
        for name, mine, theirs in zip(("dx", "state", "grads"), other, results[0]):
            assert_same_bits(name, mine, theirs)


@EACH_LAYER
@pytest.mark.parametrize("n", [1, 2])
def test_a_reverse_direction_that_has_nothing_left_to_add(name, n, threads):
    """Where no gradient goes from step to step, it is through with a loss at its end long before its start, where the other one has dx."""
    threads(n)
    layer, (x, _, d_out, _) = problem(name, T=1500, B=2, L=1, bidirectional=True)
    for suffix in ("l0", "l0_reverse"):
        layer.params[f"weight_hh_{suffix}"][...] = 0
    d_out[20:, :, 33:] = 0
    expected = by_hand(layer, x, None, d_out, None, None, None)
    got = results_of(layer, x, None, d_out, None)
    for key, value in expected.items():
        assert_close(key, got[key], value, 1e-12)


@EACH_DTYPE
def test_zeros_have_one_sign_on_any_number_of_threads(dtype, threads):
    """What underflows to -0 in one direction's dx, and gets nothing from the other, whose pass has ended early."""
    layer = fastbptt.RNN(5, 16, bidirectional=True, dtype=dtype, rng=0)
    layer.flat_params[...] = 0
    tiny = 1e-30 if dtype == np.float32 else 1e-200
    layer.params["weight_ih_l0"][...] = -tiny
    x, d_out = np.ones((2000, 4, 5), dtype), np.zeros((2000, 4, 32), dtype)
    d_out[:, :, :16] = tiny
    for n, options in ((1, {}), (2, {}), (3, {}), (1, {"memory_budget": 10**7})):
        threads(n)
        layer(x, **options)
        assert_same_bits("dx", layer.backward(d_out)[0], np.zeros_like(x))


@EACH_LAYER
@pytest.mark.parametrize("given", ["lengths", "resets"])
def test_what_another_thread_writes_between_two_directions_is_not_seen(name, given, monkeypatch):
    layer, (x, state, d_out, d_state) = problem(name, bidirectional=True)
    options = {"lengths": np.array([40, 13, 0, 7, 39, 1, 22]), "resets": np.zeros((40, 7), bool)}
    expected = results_of(layer, x, state, d_out, d_state, **options)
    real, written = fastbptt.layers.begin_forward, []

    def writing(*arguments, **way):
        options[given][...] = 1
        written.append(given)
        return real(*arguments, **way)

    monkeypatch.setattr("fastbptt.layers.begin_forward", writing)
    got = results_of(layer, x, state, d_out, d_state, **options)
    assert len(written) == 4
    for key, value in expected.items():
        assert_same_bits(key, got[key], value)


def test_tapes_that_do_not_belong_together():
    layer = fastbptt.RNN(3, 4, bidirectional=True, rng=0)

    def tapes_of(T, **options):
        layer(np.ones((T, 2, 3)), **options)
        return layer.take_tape()

    def mixed(a, b):
        return layer.gradients_through(Tapes([a[0], b[1]], a.kept, a.scale), None, np.ones((2, 2, 4)))

    with pytest.raises(ValueError, match="tape: expected the tapes of one forward pass, got some of other sizes"):
        mixed(tapes_of(3), tapes_of(60))
    whole, short = tapes_of(3, lengths=np.array([3, 2])), tapes_of(3, lengths=np.array([1, 2]))
    with pytest.raises(RuntimeError, match="tape: its lengths are not those of the forward pass"):
        mixed(short, whole)
    for array in (whole[0].lengths, tapes_of(3, resets=np.array([[False, True]] * 3))[1].resets):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.setflags(write=True)
    copied = pickle.loads(pickle.dumps(whole))
    copied[0].lengths[...] = 0
    with pytest.raises(RuntimeError, match="tape: its lengths are not those of the forward pass"):
        layer.gradients_through(copied, None, np.ones((2, 2, 4)))


@EACH_LAYER
def test_without_dx(name):
    layer, arguments = problem(name, T=5, bidirectional=True)
    expected = results_of(layer, *arguments)
    got = results_of(layer, *arguments, need_dx=False)
    assert got.pop("dx") is None and expected.pop("dx") is not None
    for key, value in expected.items():
        assert_same_bits(key, got[key], value)


def test_in_evaluation_mode_nothing_is_kept():
    layer, (x, state, d_out, _) = problem("lstm")
    layer.eval()
    layer(x, state)
    for call in (lambda: layer.backward(d_out), layer.take_tape):
        with pytest.raises(RuntimeError, match="no forward pass in training mode"):
            call()


# --- Dropout ------------------------------------------------------------------------------------------------------------


def test_dropout_leaves_the_mean():
    layer = fastbptt.RNN(3, 64, 2, nonlinearity="identity", dropout=0.25, bias=False, rng=0)
    x = normal(np.random.default_rng(0), 50, 8, 3) * 0.1
    layer(x)
    tapes = layer.take_tape()
    (kept,) = tapes.kept
    share = 1 - kept.mean()
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / kept.size) and kept.shape == (50, 8, 64)
    np.testing.assert_array_equal(tapes[1].x, np.where(kept, tapes[0].h[1:] * (1 / 0.75), 0))
    layer.eval()
    expected = layer(x)[0]
    layer.train()
    draws = [layer(x)[0] for _ in range(200)]
    error = (np.mean(draws, axis=0) - expected) / (np.std(draws, axis=0) / np.sqrt(len(draws)))
    assert abs(error.mean()) < 0.02 and 0.9 < error.std() < 1.1


def test_dropout_is_drawn_from_the_layers_own_generator():
    a, b, c = (fastbptt.GRU(3, 8, 3, dropout=0.5, rng=seed) for seed in (1, 1, 2))
    plain = fastbptt.GRU(3, 8, 3, rng=1)
    np.testing.assert_array_equal(a.flat_params, plain.flat_params)
    x = normal(np.random.default_rng(0), 5, 2, 3)
    first = a(x)[0]
    second = a(x)[0]
    assert (first != second).any()
    for other in (copy.deepcopy(b), pickle.loads(pickle.dumps(b)), b):
        np.testing.assert_array_equal(other(x)[0], first)
        np.testing.assert_array_equal(other(x)[0], second)
    c.load_state_dict(a.state_dict())
    assert (c(x)[0] != first).any()
    for layer in (a, c):
        layer.eval()
    np.testing.assert_array_equal(a(x)[0], c(x)[0])
    np.testing.assert_array_equal(a(x)[0], plain(x)[0])
    a.train().dropout = 0.0
    np.testing.assert_array_equal(a(x)[0], plain(x)[0])
    fastbptt.GRU(3, 8, 3, dropout=0.5, rng=np.random.RandomState(0))(x)


def test_one_layer_has_no_dropout():
    for make in (fastbptt.RNN, fastbptt.LSTM):
        with pytest.warns(UserWarning, match=r"^dropout: it is between layers, so that 0.5 has no effect with num_layers=1$") as caught:
            layer = make(3, 4, dropout=0.5, rng=0)
        assert caught[0].filename == __file__
        x = normal(np.random.default_rng(0), 5, 2, 3)
        np.testing.assert_array_equal(layer(x)[0], make(3, 4, rng=0)(x)[0])


# --- Copies, saving, looking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
@EACH_LAYER
def test_copies(name, copy_of):
    layer, arguments = problem(name, T=4, H=6, bidirectional=True, dropout=0.3)
    other = copy_of(layer)
    expected = results_of(layer, *arguments)
    got = results_of(other, *arguments)
    for key, value in expected.items():
        assert_same_bits(key, got[key], value)
    assert not np.shares_memory(other.flat_params, layer.flat_params) and other.rng is not layer.rng


def test_names_shapes_and_order():
    layer = fastbptt.LSTM(3, 5, 2, bidirectional=True)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(layer.params) == [f"{name}_{suffix}" for suffix in suffixes for name in names]
    assert layer.params["weight_ih_l0_reverse"].shape == (20, 3) and layer.params["weight_ih_l1_reverse"].shape == (20, 10)
    assert list(fastbptt.GRU(3, 5, 2, bias=False).params) == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
    other = fastbptt.LSTM(3, 5, num_layers=2, bidirectional=True, rng=7)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other.flat_params, layer.flat_params)
    with pytest.raises(KeyError, match=r"missing .*weight_ih_l2"):
        fastbptt.LSTM(3, 5, 3, bidirectional=True).load_state_dict(layer.state_dict())
    assert (layer.num_layers, layer.bidirectional, layer.bias, layer.dropout) == (2, True, True, 0.0)


@EACH_LAYER
def test_gradient_flow_of_each_direction(name):
    """Its tape, and the gradient at its outputs, in the order of its own time."""
    layer, (x, state, d_out, d_state) = problem(name, T=12, B=3, H=6, bidirectional=True)
    layer(x, state)
    tapes = layer.take_tape()
    assert isinstance(tapes, tuple) and len(tapes) == 4
    grads = layer.gradients_through(tapes, d_out, d_state)
    back = getattr(fastbptt, f"{name}_backward")
    for k, (tape, d, direction) in enumerate(zip(tapes, grads.d_outs, grads.directions)):
        part = tuple(p[k] for p in d_state) if isinstance(d_state, tuple) else d_state[k]
        d = np.ascontiguousarray(d)
        expected = back(tape, d, part)
        for got, value in zip(direction[2:], expected[2:]):
            assert_same_bits("grads", got, value)
        flow = fastbptt.gradient_flow(tape, d, part)
        norm = np.linalg.norm(np.concatenate(arrays_of(expected.state), axis=1), axis=1)
        np.testing.assert_allclose(flow.log10_state_norm[0], np.log10(norm), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(tapes[1].x, x[::-1])
    np.testing.assert_array_equal(tapes[3].x, np.concatenate([tapes[0].h[1:], tapes[1].h[:0:-1]], axis=2)[::-1])


def test_what_is_not_finite_is_named_with_layer_and_direction():
    for layer_of_it, reverse in ((0, False), (0, True), (1, False), (1, True)):
        layer, (x, state, d_out, _) = problem("gru", T=5, B=2, H=4, bidirectional=True)
        suffix = f"l{layer_of_it}{'_reverse' if reverse else ''}"
        layer.params[f"weight_hh_{suffix}"][0, 0] = np.nan
        layer(x, state)
        layer.backward(d_out)
        named = f"layer {layer_of_it}{', reverse (steps are counted from the end)' if reverse else ''}: w_hh[0, 0] is nan"
        with pytest.raises(FloatingPointError, match=re.escape(named)):
            fastbptt.clip_grad_norm_(layer, 1.0)
    layer, (x, state, d_out, _) = problem("lstm", T=5, B=2, H=4)
    d_out[3, 1, 2] = np.inf
    layer(x, state)
    layer.backward(d_out)
    with pytest.raises(FloatingPointError, match=r"layer 1: d_out\[3, 1, 2\] is inf"):
        fastbptt.clip_grad_norm_(layer, 1.0)
    layer.zero_grad()
    layer(x * np.nan, state)
    layer.backward(np.ones_like(d_out))
    with pytest.raises(FloatingPointError, match=r"layer 0: x\[0, 0, 0\] is nan"):
        fastbptt.clip_grad_norm_(layer, 1.0)


def test_saved_to_a_file_and_loaded(tmp_path):
    layer, path = fastbptt.LSTM(3, 5, 2, bidirectional=True, dtype=np.float32, rng=0), tmp_path / "lstm.safetensors"
    layer.save(path)
    content = path.read_bytes()
    layer.save(str(path))
    assert path.read_bytes() == content and [*tmp_path.iterdir()] == [path]
    for dtype in DTYPES:
        other = fastbptt.LSTM(3, 5, 2, bidirectional=True, dtype=dtype, rng=1)
        other.load(path)
        np.testing.assert_array_equal(other.flat_params, layer.flat_params)
    other = fastbptt.GRU(3, 5)
    before = other.flat_params.copy()
    with pytest.raises(KeyError, match=r"state: missing \[\], unexpected .*l0_reverse"):
        other.load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"^{path}: damaged safetensors file: its header promises .* bytes, and it has "):
        other.load(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=f"^{path}: not a safetensors file$"):
        other.load(path)
    with pytest.raises(FileNotFoundError):
        other.load(tmp_path / "missing")
    with pytest.raises(TypeError, match=r"^path: expected a str or a path, got 3$"):
        other.save(3)
    with pytest.raises(ValueError, match=r"^path: expected a file, got the directory "):
        other.save(tmp_path)
    with pytest.raises(FileNotFoundError):
        other.save(tmp_path / "missing" / "file")
    np.testing.assert_array_equal(other.flat_params, before)


def test_any_number_of_layers_is_saved(tmp_path):
    layer, other = fastbptt.RNN(1, 1, 4000, rng=0), fastbptt.RNN(1, 1, 4000, rng=1)
    layer.save(tmp_path / "file")
    other.load(tmp_path / "file")
    assert_same_bits("parameters", other.flat_params, layer.flat_params)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        fastbptt.GRU(2, 3).save(tmp_path / "nowhere" / "file")
    assert str(error.value).endswith(f"nowhere{os.sep}file'")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda tapes: pickle.loads(pickle.dumps(tapes))])
def test_the_tapes_of_a_stack_can_be_copied(copied):
    layer = fastbptt.GRU(2, 3, 2, dropout=0.5, rng=0)
    out, _ = layer(np.ones((4, 2, 2)))
    tapes = layer.take_tape()
    expected, got = (layer.gradients_through(each, np.ones_like(out)) for each in (tapes, copied(tapes)))
    assert_same_bits("dx", got.x, expected.x)


@pytest.mark.parametrize("start", ["orthogonal", "gaussian", "sparse"])
def test_starts_with_square_matrices_refuse_a_projection(start):
    layer = fastbptt.LSTM(5, 7, proj_size=3, rng=0)
    before = layer.flat_params.copy()
    with pytest.raises(ValueError, match="rnn: expected a layer without projection, whose W_hh is square for each gate, got proj_size=3"):
        fastbptt.init.STARTS[start].draw(layer, None, np.random.default_rng(0))
    assert_same_bits("parameters", layer.flat_params, before)


def test_a_readout_is_saved_too(tmp_path):
    layer, other = fastbptt.Linear(3, 5, rng=0), fastbptt.Linear(3, 5, rng=1)
    layer.save(tmp_path / "linear")
    other.load(tmp_path / "linear")
    np.testing.assert_array_equal(other.flat_params, layer.flat_params)


@pytest.mark.one_level
def test_what_torch_has_saved(torch, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    module, layer = torch.nn.GRU(3, 5, 2, bidirectional=True), fastbptt.GRU(3, 5, 2, bidirectional=True, dtype=np.float32)
    save_file(module.state_dict(), tmp_path / "gru.safetensors")
    layer.load(tmp_path / "gru.safetensors")
    for name, p in module.state_dict().items():
        np.testing.assert_array_equal(layer.params[name], p.numpy())


@pytest.mark.parametrize(
    ("name", "start"),
    [(name, start) for name in LAYERS for start, kind in fastbptt.init.STARTS.items() if (kind.plain if name == "rnn" else kind.gated)],
)
def test_starts_of_each_layer_and_direction(name, start):
    layer, kind = LAYERS[name](4, 9, 2, bidirectional=True, rng=0), fastbptt.init.STARTS[start]
    before = copy.deepcopy(layer)
    kind.draw(layer, None, 1)
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    drawn = [layer.params[f"{'weight_hh' if kind.matrix else 'bias_ih'}_{suffix}"] for suffix in suffixes]
    if start in ("identity", "forget-bias"):
        assert all(np.array_equal(p[9:18] if name != "rnn" else p, drawn[0][9:18] if name != "rnn" else np.eye(9)) for p in drawn)
    else:
        assert all((a != b).any() for k, a in enumerate(drawn) for b in drawn[:k])
    for suffix in suffixes:
        for w in np.split(layer.params[f"weight_hh_{suffix}"], len(layer.params["weight_hh_l0"]) // 9):
            if start == "orthogonal":
                np.testing.assert_allclose(w @ w.T, np.eye(9), atol=1e-12)
            if start == "sparse":
                assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(0.95)
    assert np.array_equal(layer.flat_params, before.flat_params) == (start == "default")


# --- Truncation ------------------------------------------------------------------------------------------------------------


@EACH_LAYER
def test_plain_windows_are_one_sequence_that_is_cut(name):
    layer, (x, _, d_out, _) = problem(name, T=12, B=3, H=6, L=3)
    reader = fastbptt.TruncatedBPTT(layer, 6)
    outs = []
    for start in (0, 6):
        outs.append(reader.forward(x[start : start + 6]))
        assert len(reader.tape) == 3
        reader.backward(d_out[start : start + 6])
    got = layer.flat_grads.copy()
    layer.zero_grad()
    state = None
    for start in (0, 6):
        out, state = layer(x[start : start + 6], state)
        assert_same_bits("out", outs[start // 6], out)
        layer.backward(d_out[start : start + 6])
    assert_same_bits("grads", got, layer.flat_grads)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@EACH_LAYER
def test_a_long_reach_is_the_whole_gradient(name, dropout):
    """With h as long as the sequence, the windows' gradients add up to that of all losses: of the last steps alone with a shorter one."""
    layer, (x, _, d_out, _) = problem(name, T=12, B=3, H=6, L=2, dropout=dropout)
    ragged = {"resets": np.random.default_rng(1).random((12, 3)) < 0.1}
    start = layer.rng.bit_generator.state
    reader = fastbptt.TruncatedBPTT(layer, 12, 4)
    for t in range(0, 12, 4):
        reader.forward(x[t : t + 4], resets=ragged["resets"][t : t + 4])
        reader.backward(d_out[t : t + 4])
    got = {key: g.copy() for key, g in layer.grads.items()}
    layer.zero_grad()
    layer.rng.bit_generator.state = start  # what is drawn for all steps at once is what is drawn window by window
    layer(x, **ragged)
    layer.backward(d_out)
    for key, g in layer.grads.items():
        assert_close(key, got[key], g, 1e-12)

    layer.zero_grad()
    layer.rng.bit_generator.state = start
    reader = fastbptt.TruncatedBPTT(layer, 7, 4)
    for t in range(0, 12, 4):
        reader.forward(x[t : t + 4])
    reader.backward(d_out[8:])
    got = {key: g.copy() for key, g in layer.grads.items()}
    layer.zero_grad()
    layer.rng.bit_generator.state = start
    layer(x)
    tapes = layer.take_tape().last(7)
    late = np.concatenate([np.zeros((3, 3, 6)), d_out[8:]])
    for direction, suffix in zip(layer.gradients_through(tapes, late).directions, ("l0", "l1")):
        assert_close(suffix, got[f"weight_hh_{suffix}"], direction.w_hh, 1e-12)
        assert_close(suffix, got[f"weight_ih_{suffix}"], direction.w_ih, 1e-12)


def test_artbp_of_a_stack_is_without_bias():
    layer, (x, _, d_out, _) = problem("gru", T=6, B=64, I=2, H=3, L=2)
    layer(x)
    layer.backward(d_out)
    expected = layer.flat_grads.copy()
    draws = []
    for seed in range(150):
        layer.zero_grad()
        reader = fastbptt.ARTBP(layer, 0.2, rng=seed)
        for t in (0, 3):
            reader.forward(x[t : t + 3])
            reader.backward(d_out[t : t + 3])
        draws.append(layer.flat_grads.copy())
    error = (np.mean(draws, axis=0) - expected) / (np.std(draws, axis=0) / np.sqrt(len(draws)) + 1e-9)
    assert np.abs(error).max() < 4.5 and 0.6 < np.sqrt(np.mean(error**2)) < 1.4


# --- Bad arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastbptt.GRU(3, 4, 0), ValueError, "num_layers: expected an integer of at least 1, got 0"),
        (lambda: fastbptt.RNN(3, 4, 2.0), TypeError, "num_layers: expected an integer, got 2.0"),
        (lambda: fastbptt.RNN(3, 4, True), TypeError, "num_layers: expected an integer, got True"),
        (lambda: fastbptt.LSTM(3, 4, 10**9), ValueError, "num_layers: expected an integer of at most 65536, got 1000000000"),
        (lambda: fastbptt.LSTM(3, 10**8, 1000), MemoryError, "input_size, hidden_size, num_layers: no memory for"),
        (lambda: fastbptt.GRU(3, 4, 2, dropout=1.0), ValueError, "dropout: expected a number of at least 0 and below 1, got 1.0"),
        (lambda: fastbptt.GRU(3, 4, 2, dropout=-0.1), ValueError, "dropout: expected a number of at least 0 and below 1, got -0.1"),
        (lambda: fastbptt.GRU(3, 4, 2, dropout=float("nan")), ValueError, "dropout: expected a number of at least 0 and below 1, got nan"),
        (lambda: fastbptt.GRU(3, 4, 2, dropout="0.5"), TypeError, "dropout: expected a number, got '0.5'"),
        (lambda: fastbptt.GRU(3, 4, 2, bidirectional=2), TypeError, "bidirectional: expected True or False, got 2"),
        (lambda: fastbptt.RNN(3, 4, 2, bias=None), TypeError, "bias: expected True or False, got NoneType"),
        (lambda: fastbptt.RNN(3, 4, 2, "tanh"), TypeError, "positional argument"),
        (lambda: fastbptt.GRU(3, 4, proj_size=2), TypeError, "unexpected keyword argument 'proj_size'"),
        (
            lambda: fastbptt.LSTM(3, 4, proj_size=4),
            ValueError,
            "proj_size: expected a number below hidden_size=4, or 0 for no projection, got 4",
        ),
        (lambda: fastbptt.LSTM(3, 4, proj_size=-1), ValueError, "proj_size: expected an integer of at least 0, got -1"),
        (lambda: fastbptt.LSTM(3, 4, proj_size=2.0), TypeError, "proj_size: expected an integer, got 2.0"),
        (
            lambda: fastbptt.TruncatedBPTT(fastbptt.GRU(3, 4, bidirectional=True), 5),
            ValueError,
            "layer: expected one direction, got a bidirectional layer, whose reverse direction begins where the sequence ends",
        ),
        (lambda: fastbptt.ARTBP(fastbptt.GRU(3, 4, 2, bidirectional=True), 0.1), ValueError, "layer: expected one direction, got a bidir"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer, x, s: layer(x, s[:3]), ValueError, "state: expected shape (4, 2, 4), got (3, 2, 4)"),
        (lambda layer, x, s: layer(x, s[0]), ValueError, "state: expected shape (4, 2, 4), got (2, 4)"),
        (lambda layer, x, s: layer(x, s[:, :1]), ValueError, "state: expected shape (4, 2, 4), got (4, 1, 4)"),
        (lambda layer, x, s: layer(x, s.astype(np.float32)), TypeError, "state: expected dtype float64"),
        (lambda layer, x, s: layer(x[..., :2], s), ValueError, "x: expected shape (5, 2, 3), got (5, 2, 2)"),
        (lambda layer, x, s: layer(x, s, lengths=np.array([5, 6])), ValueError, "lengths: expected numbers of steps from 0 to 5, got 6"),
        (lambda layer, x, s: layer(x, s, lengths=np.array([5, -1])), ValueError, "lengths: expected numbers of steps from 0 to 5, got -1"),
        (lambda layer, x, s: layer(x, s, lengths=np.array([5.0, 2])), TypeError, "lengths: expected integers, got dtype float64"),
        (lambda layer, x, s: layer(x, s, lengths=np.array([5])), ValueError, "lengths: expected shape (2,), got (1,)"),
        (lambda layer, x, s: layer(x, s, resets=np.zeros((5, 2))), TypeError, "resets: expected dtype bool, got float64"),
        (lambda layer, x, s: layer(x, s, resets=np.zeros((5, 1), bool)), ValueError, "resets: expected shape (5, 2), got (5, 1)"),
    ],
)
def test_bad_inputs(call, error, message):
    layer = fastbptt.GRU(3, 4, 2, bidirectional=True)
    with pytest.raises(error, match="^" + re.escape(message)):
        call(layer, np.ones((5, 2, 3)), np.ones((4, 2, 4)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones((5, 2, 4)),), ValueError, "d_out: expected shape (5, 2, 8), got (5, 2, 4)"),
        ((np.ones((5, 2, 8), np.float32),), TypeError, "d_out: expected dtype float64 like the other arrays of this call, got float32"),
        (([1.0],), TypeError, "d_out: expected a NumPy array, got list"),
        ((None, np.ones((2, 2, 4))), ValueError, "d_state: expected shape (4, 2, 4), got (2, 2, 4)"),
        ((None, np.ones((2, 4))), ValueError, "d_state: expected shape (4, 2, 4), got (2, 4)"),
    ],
)
def test_a_backward_pass_that_fails_adds_nothing(arguments, error, message):
    layer = fastbptt.GRU(3, 4, 2, bidirectional=True)
    layer(np.ones((5, 2, 3)))
    with pytest.raises(error, match="^" + re.escape(message)):
        layer.backward(*arguments)
    assert not layer.flat_grads.any()
    layer.backward(np.ones((5, 2, 8)))
    assert layer.flat_grads.any()
    with pytest.raises(RuntimeError, match="no forward pass"):
        layer.backward(np.ones((5, 2, 8)))


def test_tapes_that_are_not_a_stacks_own():
    layer, other = fastbptt.GRU(3, 4, 2), fastbptt.GRU(3, 4)
    for each in (layer, other):
        each(np.ones((5, 2, 3)))
    tapes, tape = layer.take_tape(), other.take_tape()
    for wrong in (tape, tuple(tapes), None):
        with pytest.raises(TypeError, match=r"^tape: expected the 2 tapes that take_tape returned, got "):
            layer.gradients_through(wrong, None)
    with pytest.raises(TypeError, match=r"^tape: expected the tape of gru_forward, got Tapes"):
        other.gradients_through(tapes, None)
    with pytest.raises(TypeError, match=r"^tape: expected"):
        fastbptt.gradient_flow(tapes, np.ones((5, 2, 4)))
