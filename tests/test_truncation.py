"""BPTT(h; h'): which steps a gradient reaches, and the bias of truncation."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import arrays_of
from tolerances import DTYPES, TOLERANCES, assert_close

import fastbptt
from fastbptt import cells, layers


def scalar_layer(w, nonlinearity="identity"):
    """x_t = w x_{t-1}, without input: the gradient of x_T by w is T w^(T-1) x_0, one equal share from every step."""
    layer = fastbptt.RNN(1, 1, nonlinearity=nonlinearity, bias=False)
    layer.flat_params[:] = [0, w]
    return layer


def random_run(T=24, B=3, I=4, H=7, seed=0, make=fastbptt.RNN, dtype=np.float64, **options):
    rng = np.random.default_rng(seed)
    layer = make(I, H, rng=seed, dtype=dtype, **options)
    layer.flat_params *= 2
    x, d_out, *state = (rng.standard_normal(shape).astype(dtype) for shape in ((T, B, I), (T, B, H), (1, B, H), (1, B, H)))
    cell = cells.CELLS[layer._cell]
    return layer, x, d_out, cell.state(state[: len(cell.states)])


def fresh_like(layer):
    """Another layer with the same parameters."""
    options = {name: getattr(layer, name) for name in ("nonlinearity", "leak") if hasattr(layer, name)}
    other = type(layer)(layer.input_size, layer.hidden_size, dtype=layer.dtype, **options)
    other.load_state_dict(layer.state_dict())
    return other


EACH_LAYER = pytest.mark.parametrize(
    ("make", "dtype"),
    [(make, dtype) for make in (functools.partial(fastbptt.RNN, leak=0.3), *layers.LAYERS.values()) for dtype in DTYPES],
    ids=lambda v: str(v) if isinstance(v, np.dtype) else "leaky" if isinstance(v, functools.partial) else v.__name__,
)


def read(reader, x, d_out, window):
    """Forward and backward through all of x, window by window; out and dx put together."""
    outs, dxs = [], []
    for start in range(0, len(x), window):
        outs.append(reader.forward(x[start : start + window]))
        dxs.append(reader.backward(d_out[start : start + window]))
    return np.concatenate(outs), np.concatenate(dxs)


@pytest.mark.parametrize("w", [1.0, 0.5, 2.0, -1.0])
@pytest.mark.parametrize(("h", "h_prime"), [(1, 1), (5, 5), (10, 5), (13, 4), (20, 1), (40, 8), (40, 40), (99, 10)])
def test_the_bias_of_a_linear_unit_is_h_over_T(w, h, h_prime):
    """A loss at T alone. Its true gradient is a sum of T equal terms, of which h steps back are h."""
    T, x0 = 40, 3.0
    layer = scalar_layer(w)
    reader = fastbptt.TruncatedBPTT(layer, h, h_prime)
    reader.reset(np.full((1, 1, 1), x0))
    starts = range(0, T, h_prime)
    for start in starts:
        out = reader.forward(np.zeros((min(h_prime, T - start), 1, 1)))
        last = start == starts[-1]
        d_out = np.zeros_like(out)
        d_out[-1] = last
        reader.backward(d_out)
    reach = min(h, T)
    assert out[-1] == w**T * x0
    assert layer.grads["weight_hh_l0"][0, 0] == reach * w ** (T - 1) * x0
    assert layer.grads["weight_hh_l0"][0, 0] / (T * w ** (T - 1) * x0) == pytest.approx(reach / T, rel=1e-15)


def test_steps_back_need_no_backward_pass_of_their_own():
    """Windows without a backward pass of their own are gone back through, too."""
    layer = scalar_layer(1.0)
    reader = fastbptt.TruncatedBPTT(layer, h=10, h_prime=2)
    reader.reset(np.ones((1, 1, 1)))
    for _ in range(10):
        out = reader.forward(np.zeros((2, 1, 1)))
    reader.backward(np.array([0.0, 1.0]).reshape(out.shape))
    assert layer.grads["weight_hh_l0"][0, 0] == 10


@EACH_LAYER
@pytest.mark.parametrize("window", [1, 6, 8, 24])
def test_h_equal_to_h_prime_is_plain_windows(window, make, dtype):
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.TruncatedBPTT(layer, window)
    reader.reset(h0)
    out, dx = read(reader, x, d_out, window)
    same, state = fresh_like(layer), h0
    for start in range(0, 24, window):
        piece = slice(start, start + window)
        expected, state = same(x[piece], state)
        np.testing.assert_array_equal(out[piece], expected)
        np.testing.assert_array_equal(dx[piece], same.backward(d_out[piece])[0])
    np.testing.assert_array_equal(layer.flat_grads, same.flat_grads)
    for carried, part in zip(arrays_of(reader.state), arrays_of(state), strict=True):
        np.testing.assert_array_equal(carried, part)


@EACH_LAYER
def test_plain_windows_of_any_lengths(make, dtype):
    """With ``reset(state)`` before each, nothing older is gone back through."""
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader, same, state = fastbptt.TruncatedBPTT(layer, 9), fresh_like(layer), h0
    for start, end in itertools.pairwise([0, 9, 10, 17, 20, 24]):
        reader.reset(state)
        reader.forward(x[start:end])
        dx = reader.backward(d_out[start:end])
        _, state = same(x[start:end], state)
        np.testing.assert_array_equal(dx, same.backward(d_out[start:end])[0])
    np.testing.assert_array_equal(layer.flat_grads, same.flat_grads)


@EACH_LAYER
@pytest.mark.parametrize(("h", "h_prime"), [(24, 1), (24, 5), (24, 24), (100, 7), (10**9, 3)])
def test_h_of_the_whole_length_is_full_bptt(h, h_prime, make, dtype):
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.TruncatedBPTT(layer, h, h_prime)
    reader.reset(h0)
    out, _ = read(reader, x, d_out, h_prime)
    full = fresh_like(layer)
    expected, _ = full(x, h0)
    full.backward(d_out)
    np.testing.assert_array_equal(out, expected)
    for name, g in layer.grads.items():
        assert_close(name, g, full.grads[name], 500 * TOLERANCES[dtype].eps)


@EACH_LAYER
def test_a_loss_of_the_last_state(make, dtype):
    """Its gradient goes back through all windows in reach, on top of that of the outputs."""
    layer, x, _, h0 = random_run(make=make, dtype=dtype)
    d_state = random_run(make=make, dtype=dtype, seed=1)[3]
    reader = fastbptt.TruncatedBPTT(layer, 100, 8)
    reader.reset(h0)
    for start in (0, 8):
        reader.forward(x[start : start + 8])
    out, tape = reader.forward(x[16:]), reader.tape
    assert np.shares_memory(tape.h, out)
    dx = reader.backward(None, d_state)
    assert reader.tape is None
    full = fresh_like(layer)
    full(x, h0)
    expected, _ = full.backward(None, d_state)
    assert_close("dx", dx, expected[16:], 500 * TOLERANCES[dtype].eps)
    for name, g in layer.grads.items():
        assert_close(name, g, full.grads[name], 500 * TOLERANCES[dtype].eps)


def go_back_by_hand(layer, x, d_out, states, start, end, h):
    """Add the gradients of the outputs from start to end, taken back through the last h steps before the end and cut there."""
    first = max(0, end - h)
    layer(x[first:end], states[first])
    d = d_out[first:end].copy()
    d[: start - first] = 0
    layer.backward(d)


@EACH_LAYER
@pytest.mark.parametrize(("h", "h_prime", "window"), [(8, 4, 4), (9, 4, 4), (7, 3, 3), (10, 4, 3), (6, 1, 1), (12, 8, 5), (5, 3, 2)])
def test_gradients_are_the_sum_of_those_cut_h_steps_back(h, h_prime, window, make, dtype):
    """Each window's loss, taken back on its own through a sequence that starts h steps before the window's end."""
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.TruncatedBPTT(layer, h, h_prime)
    reader.reset(h0)
    read(reader, x, d_out, window)
    cut, stepper = fresh_like(layer), fresh_like(layer)
    states = [h0]
    for t in range(24):
        states.append(stepper(x[t : t + 1], states[-1])[1])
    for start in range(0, 24, window):
        end = min(24, start + window)
        go_back_by_hand(cut, x, d_out, states, start, end, h)
    for name, g in layer.grads.items():
        assert_close(name, g, cut.grads[name], 500 * TOLERANCES[dtype].eps)
    full = fresh_like(layer)
    full(x, h0)
    full.backward(d_out)
    assert np.abs(full.flat_grads - layer.flat_grads).max() > 1e-5 * np.abs(full.flat_grads).max()


def test_how_far_a_gradient_goes_does_not_depend_on_h_prime():
    """After windows of 3 and 1 steps as after any others."""
    for h_prime in (3, 4):
        layer = scalar_layer(1.0)
        reader = fastbptt.TruncatedBPTT(layer, 4, h_prime)
        reader.reset(np.ones((1, 1, 1)))
        reader.forward(np.zeros((3, 1, 1)))
        reader.backward(np.zeros((3, 1, 1)))
        reader.forward(np.zeros((1, 1, 1)))
        reader.backward(np.ones((1, 1, 1)))
        assert layer.grads["weight_hh_l0"][0, 0] == 4


@pytest.mark.parametrize("seed", range(60))
def test_any_windows_of_any_reach(seed):
    """Each window's loss, if it has one, goes back on its own through a sequence that starts h steps before the window's end."""
    rng = np.random.default_rng(seed)
    make = list(layers.LAYERS.values())[seed % len(layers.LAYERS)]
    layer, x, d_out, h0 = random_run(make=make, seed=seed)
    h = int(rng.integers(1, 12))
    h_prime = int(rng.integers(1, h + 1))
    reader, cut, stepper = fastbptt.TruncatedBPTT(layer, h, h_prime), fresh_like(layer), fresh_like(layer)
    reader.reset(h0)
    states, end = [h0], 0
    for t in range(24):
        states.append(stepper(x[t : t + 1], states[-1])[1])
    while end < 24:
        start, end = end, min(24, end + int(rng.integers(0, h_prime + 1)))
        reader.forward(x[start:end])
        if rng.random() < 0.3:
            continue
        reader.backward(d_out[start:end])
        go_back_by_hand(cut, x, d_out, states, start, end, h)
    for name, g in layer.grads.items():
        assert_close(name, g, cut.grads[name], 1e-11)


@EACH_LAYER
def test_reset_cuts_the_past_off(make, dtype):
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.TruncatedBPTT(layer, 20, 4)
    read(reader, x[:12], d_out[:12], 4)
    layer.zero_grad()
    reader.reset(h0)
    out, dx = read(reader, x[12:16], d_out[12:16], 4)
    fresh = fresh_like(layer)
    np.testing.assert_array_equal(out, fresh(x[12:16], h0)[0])
    np.testing.assert_array_equal(dx, fresh.backward(d_out[12:16])[0])
    np.testing.assert_array_equal(layer.flat_grads, fresh.flat_grads)
    reader.reset()
    assert reader.state is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bias_of_a_cell_that_keeps_everything(dtype):
    """With f = 1, i and g fixed, c_t = c_{t-1} + i g: the gradient of c_T by the bias of g is one equal share from every step."""
    T = 40
    for h, h_prime in ((10, 5), (20, 1), (13, 4)):
        layer = fastbptt.LSTM(1, 1, dtype=dtype)
        layer.flat_params[:] = 0
        layer.params["bias_ih_l0"][:] = [0, 1e4, 0, 1e4]  # i = 1/2, f = 1, g = 0, o = 1
        reader = fastbptt.TruncatedBPTT(layer, h, h_prime)
        for start in range(0, T, h_prime):
            out = reader.forward(np.zeros((min(h_prime, T - start), 1, 1), dtype))
            d_out = np.zeros_like(out)
            d_out[-1] = start + h_prime >= T
            reader.backward(d_out)
        assert layer.grads["bias_ih_l0"][2] == h / 2  # c = 0, so h_T = c_T up to the third order; i g'(0) = 1/2


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_batch_first_and_tokens(make):
    tokens = np.arange(36).reshape(3, 12) * 7 % 4
    d_out = np.random.default_rng(0).standard_normal((3, 12, 7))
    by_row, by_step = make(4, 7, rng=0, batch_first=True), make(4, 7, rng=0)
    for layer, turn in ((by_row, np.asarray), (by_step, lambda array: array.swapaxes(0, 1))):
        reader = fastbptt.TruncatedBPTT(layer, 9, 4)
        for start in range(0, 12, 4):
            reader.forward(turn(tokens[:, start : start + 4]))
            assert reader.backward(turn(d_out[:, start : start + 4])) is None
    np.testing.assert_array_equal(by_row.flat_grads, by_step.flat_grads)
    assert by_row.flat_grads.any()


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_old_windows_are_let_go(make):
    import weakref

    layer, x, d_out, _ = random_run(make=make)
    reader = fastbptt.TruncatedBPTT(layer, 8, 4)
    references = []
    for start in range(0, 24, 4):
        out = reader.forward(x[start : start + 4])
        references.append(weakref.ref(out.base))
        reader.backward(d_out[start : start + 4])
        del out
    assert [r() is not None for r in references] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("h", "h_prime", "window", "kept"), [(10, 10, 10, 1), (8, 4, 4, 2), (9, 4, 4, 3), (8, 4, 3, 3), (1, 1, 1, 1), (5, 2, 1, 5)]
)
@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_windows_that_are_only_read_are_let_go_too(make, h, h_prime, window, kept):
    """The backward pass that comes at last is as if the sequence had begun h steps before its end."""
    import weakref

    layer, x, d_out, h0 = random_run(T=60, make=make)
    reader = fastbptt.TruncatedBPTT(layer, h, h_prime)
    reader.reset(h0)
    references = []
    for start in range(0, 60, window):
        if start % 4 == 0:
            reader.forward(x[:0])
        if start == 60 // window * window - h // window * window:
            state = reader.state
        out = reader.forward(x[start : start + window])
        references.append(weakref.ref(out.base))
        del out
        assert sum(r() is not None for r in references) <= kept
    assert sum(r() is not None for r in references) == kept
    if h % window == 0:
        reader.backward(d_out[-window:])
        cut = fresh_like(layer)
        cut(x[-h:], state)
        d = np.zeros_like(d_out[-h:])
        d[-window:] = d_out[-window:]
        cut.backward(d)
        for name, g in layer.grads.items():
            assert_close(name, g, cut.grads[name], 1e-12)


@pytest.mark.parametrize("layer", [None, fastbptt.Linear(3, 4), 5, "RNN", fastbptt.RNN, np.ones(3)], ids=lambda v: type(v).__name__)
def test_what_is_no_recurrent_layer(layer):
    with pytest.raises(TypeError, match=f"^layer: expected one of {', '.join(kind.__name__ for kind in layers.LAYERS.values())}, got "):
        fastbptt.TruncatedBPTT(layer, 5)


def test_order_of_calls():
    layer, x, d_out, _ = random_run()
    reader = fastbptt.TruncatedBPTT(layer, 8, 4)
    with pytest.raises(RuntimeError, match=r"TruncatedBPTT.backward: no forward pass"):
        reader.backward(d_out[:4])
    reader.forward(x[:4])
    with pytest.raises(ValueError, match=r"d_out: expected shape \(4, 3, 7\), got \(5, 3, 7\)"):
        reader.backward(d_out[:5])
    assert not layer.flat_grads.any()
    reader.backward(d_out[:4])
    with pytest.raises(RuntimeError, match=r"TruncatedBPTT.backward: no forward pass"):
        reader.backward(d_out[:4])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "h: expected an integer of at least 1, got 0"),
        ((5, 0), ValueError, "h_prime: expected an integer of at least 1, got 0"),
        ((5, 6), ValueError, "h_prime: expected at most h = 5, got 6"),
        ((2.5,), TypeError, "h: expected an integer, got 2.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbptt.TruncatedBPTT(fastbptt.RNN(4, 7), *arguments)


def test_too_long_a_window():
    reader = fastbptt.TruncatedBPTT(fastbptt.RNN(4, 7), 8, 4)
    with pytest.raises(ValueError, match="x: expected at most h_prime = 4 steps, got 5"):
        reader.forward(np.ones((5, 3, 4)))
    with pytest.raises(TypeError, match="x: expected a NumPy array, got list"):
        reader.forward([[[0.0] * 4]])
    with pytest.raises(ValueError, match="x: expected shape"):
        reader.forward(np.array(1.0))


def test_reading_in_evaluation_mode():
    """No tape is kept, and the forward pass is as usual."""
    layer, x, d_out, _h0 = random_run()
    reader = fastbptt.TruncatedBPTT(layer, 8, 4)
    expected = reader.forward(x[:4])
    reader.reset()
    layer.eval()
    np.testing.assert_array_equal(reader.forward(x[:4]), expected)
    with pytest.raises(RuntimeError, match="no forward pass"):
        reader.backward(d_out[:4])


@EACH_LAYER
def test_nothing_goes_back_past_a_window_in_evaluation_mode(make, dtype):
    """Its steps are not there to go back through: without them, gradients of older windows would be wrong."""
    layer, x, d_out, h0 = random_run(make=make, dtype=dtype)
    reader = fastbptt.TruncatedBPTT(layer, 12, 4)
    reader.reset(h0)
    read(reader, x[:8], d_out[:8], 4)
    reader.forward(x[8:12])
    layer.eval()
    reader.forward(x[12:16])
    layer.train()
    with pytest.raises(RuntimeError, match="no forward pass in training mode"):
        reader.backward(d_out[12:16])
    assert reader.tape is None
    state, cut = reader.state, fresh_like(layer)
    layer.zero_grad()
    _, dx = read(reader, x[16:], d_out[16:], 4)
    cut(x[16:], state)
    assert_close("dx", dx[4:], cut.backward(d_out[16:])[0][4:], 500 * TOLERANCES[dtype].eps)
    for name, g in layer.grads.items():
        assert_close(name, g, cut.grads[name], 500 * TOLERANCES[dtype].eps)


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_a_state_that_is_assigned_starts_a_sequence(make):
    layer, x, d_out, h0 = random_run(make=make)
    first_two = tuple(part[:, :2].copy() for part in h0) if isinstance(h0, tuple) else h0[:, :2].copy()
    for state, rows in ((None, 3), (h0, 3), (first_two, 2), (None, 1)):  # of any number of rows
        reader = fastbptt.TruncatedBPTT(layer, 20, 4)
        read(reader, x[:12], d_out[:12], 4)
        reader.forward(x[:4])
        layer.zero_grad()
        reader.state = state
        assert reader.state is state and reader.tape is None
        with pytest.raises(RuntimeError, match="no forward pass"):
            reader.backward(d_out[:4])
        fresh = fresh_like(layer)
        out, dx = read(reader, x[12:16, :rows], d_out[12:16, :rows], 4)
        np.testing.assert_array_equal(out, fresh(x[12:16, :rows], state)[0])
        np.testing.assert_array_equal(dx, fresh.backward(d_out[12:16, :rows])[0])
        np.testing.assert_array_equal(layer.flat_grads, fresh.flat_grads)
    before = reader.state
    with pytest.raises((TypeError, ValueError), match=r"^state"):
        reader.state = np.ones((1, 3, 6))
    assert reader.state is before


def test_another_thread_may_not_go_back():
    layer, x, d_out, _ = random_run()
    reader = fastbptt.TruncatedBPTT(layer, 8, 4)
    reader.forward(x[:4])
    with (
        ThreadPoolExecutor(1) as other,
        pytest.raises(RuntimeError, match=r"^TruncatedBPTT.backward: the last forward pass was another thread's"),
    ):
        other.submit(reader.backward, d_out[:4]).result()
    assert not layer.flat_grads.any()
    reader.backward(d_out[:4])


def test_a_forward_pass_that_fails_leaves_the_sequence_as_it_was():
    layer, x, d_out, h0 = random_run()
    reader, other = (fastbptt.TruncatedBPTT(same, 8, 4) for same in (layer, fresh_like(layer)))
    for one in (reader, other):
        one.reset(h0)
        read(one, x[:8], d_out[:8], 4)
    for wrong in (np.ones((4, 3, 5)), np.full((4, 3), 99), np.ones((4, 2, 4)), np.ones((4, 3, 4), np.float32)):
        with pytest.raises((ValueError, TypeError, IndexError)):
            reader.forward(wrong)
    for one in (reader, other):
        read(one, x[8:], d_out[8:], 4)
    np.testing.assert_array_equal(layer.flat_grads, other.layer.flat_grads)


def test_what_is_no_state_is_refused_at_once():
    for layer, name in ((fastbptt.GRU(4, 7), "state"), (fastbptt.LSTM(4, 7), "state")):
        reader = fastbptt.TruncatedBPTT(layer, 8, 4)
        for wrong in ("x", np.ones((1, 3, 6)), np.ones(7), [np.ones((1, 3, 7))], np.ones((1, 3, 7), int)):
            with pytest.raises((TypeError, ValueError), match=f"^{name}"):
                reader.reset(wrong)
            assert reader.state is None


@pytest.mark.parametrize("name", ["layer", "h", "h_prime"])
def test_what_is_fixed(name):
    reader = fastbptt.TruncatedBPTT(fastbptt.RNN(4, 7), 8, 4)
    with pytest.raises(AttributeError, match=f"'{name}' of 'TruncatedBPTT' object has no setter"):
        setattr(reader, name, getattr(reader, name))
