"""Starts: how parameters are spread, and that they depend on the seed alone."""

import numpy as np
import pytest
from tolerances import DTYPES

import fastbptt
from fastbptt import cells, layers
from fastbptt.init import MATRICES, STARTS

EVERY_START = pytest.mark.parametrize("name", MATRICES)


def started(name, make=fastbptt.RNN, H=50, dtype=np.float64, seed=0):
    rnn, readout = make(6, H, dtype=dtype, rng=1), fastbptt.Linear(H, 4, dtype=dtype, rng=2)
    STARTS[name].draw(rnn, readout, np.random.default_rng(seed))
    return rnn.params, readout.params


def radius(w):
    return np.abs(np.linalg.eigvals(w)).max()


@pytest.mark.parametrize(("name", "std"), [("basic-tanh", 0.1), ("sigmoid", 0.01), ("smart-tanh", 0.01), ("identity", 0.001)])
def test_weights_are_normal_and_biases_zero(name, std):
    rnn, readout = started(name, H=200)
    drawn = [rnn["weight_ih_l0"], readout["weight"]] + ([rnn["weight_hh_l0"]] if name in ("basic-tanh", "sigmoid") else [])
    for w in drawn:
        assert w.mean() == pytest.approx(0, abs=5 * std / np.sqrt(w.size)) and w.std() == pytest.approx(std, rel=5 / np.sqrt(2 * w.size))
        assert (w**4).mean() / std**4 == pytest.approx(3, abs=1)
    assert not any(p.any() for params in (rnn, readout) for name, p in params.items() if "bias" in name)


@pytest.mark.parametrize("H", [1, 7, 15, 16, 50, 100])
def test_the_smart_start(H):
    w, _ = started("smart-tanh", H=H)
    w = w["weight_hh_l0"]
    assert ((w != 0).sum(axis=0) == min(15, H)).all()  # W_hh h: a column is what goes out of a unit
    assert radius(w) == pytest.approx(0.95, rel=1e-12)
    assert H <= 16 or len(set((w != 0).sum(axis=1))) > 1


def test_the_basic_start_has_the_radius_of_random_matrices():
    radii = [radius(started("basic-tanh", seed=seed)[0]["weight_hh_l0"]) for seed in range(20)]
    assert np.mean(radii) == pytest.approx(0.1 * np.sqrt(50), rel=0.08)


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_the_orthogonal_start(make):
    rnn, readout = started("orthogonal", make, H=9)
    gates = rnn["weight_hh_l0"].reshape(-1, 9, 9)
    for gate in gates:
        assert np.allclose(gate @ gate.T, np.eye(9), atol=1e-14)
    assert len(gates) == 1 or not np.allclose(gates[0], gates[1])
    before, readout_before = started("default", make, H=9)
    assert all(np.array_equal(rnn[name], before[name]) for name in rnn if name != "weight_hh_l0")
    assert all(np.array_equal(readout[name], readout_before[name]) for name in readout)


def test_orthogonal_matrices_are_spread_evenly():
    """Haar measure: the traces of many have mean 0 and variance 1."""
    traces = [np.trace(started("orthogonal", H=5, seed=seed)[0]["weight_hh_l0"]) for seed in range(400)]
    assert np.mean(traces) == pytest.approx(0, abs=0.25) and np.var(traces) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("make", layers.LAYERS.values())
def test_the_gaussian_start(make):
    rnn, readout = started("gaussian", make, H=200)
    before, readout_before = started("default", make, H=200)
    gates = rnn["weight_hh_l0"].reshape(-1, 200, 200)
    assert [radius(gate) for gate in gates] == pytest.approx([1] * len(gates), abs=0.1)
    assert gates.std() == pytest.approx(1 / np.sqrt(200), rel=0.02) and (gates**4).mean() * 200**2 == pytest.approx(3, abs=0.2)
    assert all(np.array_equal(rnn[name], before[name]) for name in rnn if name != "weight_hh_l0")
    assert all(np.array_equal(readout[name], readout_before[name]) for name in readout)


@EVERY_START
def test_the_matrix_is_of_the_kind_that_is_drawn(name):
    """After the radius is taken out, what is left of the two has the same spread of entries and of singular values."""

    def spread(w):
        w = w / radius(w)
        return [(w != 0).mean(), *(np.mean(w**k) * len(w) ** (k // 2) for k in (2, 4)), *np.percentile(np.linalg.svd(w)[1], (10, 50, 90))]

    start, rng = STARTS[name], np.random.default_rng(1)
    matrices = [start.matrix(60, rng) for _ in range(20)]
    drawn = [started(name, H=60, seed=seed)[0]["weight_hh_l0"] for seed in range(20)]
    if name == "default":
        drawn = [fastbptt.RNN(6, 60, rng=seed).params["weight_hh_l0"] for seed in range(20)]
    np.testing.assert_allclose(*(np.mean([spread(w) for w in each], axis=0) for each in (matrices, drawn)), rtol=0.15)
    assert start.radius is None or [radius(w) for w in matrices] == pytest.approx([start.radius] * 20)


def test_the_identity_start():
    assert np.array_equal(started("identity")[0]["weight_hh_l0"], np.eye(50))


@EVERY_START
@pytest.mark.parametrize("dtype", DTYPES)
def test_seeds(name, dtype):
    one, same, other = (started(name, dtype=dtype, seed=seed) for seed in (0, 0, 3))
    for part in range(2):
        for key in one[part]:
            assert one[part][key].dtype == dtype and np.array_equal(one[part][key], same[part][key])
    assert name == "default" or not all(np.array_equal(one[part][key], other[part][key]) for part in range(2) for key in one[part])


@EVERY_START
def test_a_readout_is_not_needed(name):
    rnn = fastbptt.RNN(6, 20, bias=False, rng=0)
    STARTS[name].draw(rnn)
    assert np.isfinite(rnn.flat_params).all()


class Odd(np.random.Generator):
    """A generator whose normal numbers are all the same."""

    def __init__(self, value):
        super().__init__(np.random.PCG64(0))
        self.value = value

    def normal(self, loc, scale, size):
        return np.full(size, self.value)


@EVERY_START
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"rnn": None}, TypeError, "rnn: expected (an|one of) RNN"),
        ({"rnn": fastbptt.Linear(3, 4)}, TypeError, "rnn: expected (an|one of) RNN.*, got Linear"),
        ({"rnn": fastbptt.RNN}, TypeError, "rnn: expected (an|one of) RNN.*, got type"),
        ({"readout": 3.5}, TypeError, "readout: expected a Linear or None, got 3.5"),
        ({"readout": np.ones(3)}, TypeError, "readout: expected a Linear or None, got ndarray"),
        ({"readout": fastbptt.RNN(3, 4)}, TypeError, "readout: expected a Linear or None, got RNN"),
        ({"rng": -1}, ValueError, "rng: expected an integer of at least 0, got -1"),
        ({"rng": "x"}, TypeError, "rng: expected None, an integer"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_start_checks_before_it_writes(name, wrong, error, message):
    rnn, readout = fastbptt.RNN(3, 4, rng=0), fastbptt.Linear(4, 2, rng=0)
    before = rnn.flat_params.copy(), readout.flat_params.copy()
    with pytest.raises(error, match=f"^{message}"):
        STARTS[name].draw(**{"rnn": rnn, "readout": readout, "rng": 0} | wrong)
    np.testing.assert_array_equal(rnn.flat_params, before[0])
    np.testing.assert_array_equal(readout.flat_params, before[1])


@EVERY_START
@pytest.mark.parametrize("make", [layer for name, layer in layers.LAYERS.items() if cells.CELLS[name].gated])
def test_which_starts_suit_gated_cells(name, make):
    rnn = make(3, 4, rng=0)
    before = rnn.flat_params.copy()
    if STARTS[name].gated:
        STARTS[name].draw(rnn, rng=0)
        return
    with pytest.raises(TypeError, match=f"^rnn: expected an RNN, got {make.__name__}$"):
        STARTS[name].draw(rnn, rng=0)
    np.testing.assert_array_equal(rnn.flat_params, before)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_the_smart_start_of_a_matrix_without_a_radius(value):
    rnn, readout = fastbptt.RNN(3, 20, rng=0), fastbptt.Linear(20, 2, rng=0)
    before = rnn.flat_params.copy(), readout.flat_params.copy()
    with pytest.raises(ValueError, match=r"^rng: what it drew has a spectral radius of (0.0|nan), which cannot be scaled to 0.95$"):
        STARTS["smart-tanh"].draw(rnn, readout, Odd(value))
    np.testing.assert_array_equal(rnn.flat_params, before[0])
    np.testing.assert_array_equal(readout.flat_params, before[1])


# --- The starts of gates' biases, and those with numbers of their own -----------------------------------------------


def biases(layer):
    return [layer.params[name].reshape(-1, layer.hidden_size) for name in ("bias_ih_l0", "bias_hh_l0")]


@pytest.mark.parametrize(("make", "keeper"), [(fastbptt.LSTM, 1), (fastbptt.GRU, 1)])
def test_the_forget_bias(make, keeper):
    layer, before = make(3, 5, rng=0), make(3, 5, rng=0)
    fastbptt.init.forget_bias(layer, bias=2.5)
    b_ih, b_hh = biases(layer)
    assert (b_ih[keeper] == 2.5).all() and not b_hh[keeper].any()
    for new, old in zip(biases(layer), biases(before)):
        np.testing.assert_array_equal(np.delete(new, keeper, axis=0), np.delete(old, keeper, axis=0))
    np.testing.assert_array_equal(layer.params["weight_hh_l0"], before.params["weight_hh_l0"])


@pytest.mark.parametrize("make", [fastbptt.LSTM, fastbptt.GRU])
def test_chrono(make):
    """e^b_f is even between 1 and T_max - 1, and b_i = -b_f."""
    layer = make(3, 4000, rng=0)
    fastbptt.init.chrono(layer, rng=1, longest=51)
    b_ih, b_hh = biases(layer)
    times = np.exp(b_ih[1])
    assert times.min() >= 1 and times.max() <= 50 and not b_hh[1].any()
    assert times.mean() == pytest.approx(25.5, abs=1) and times.std() == pytest.approx(49 / np.sqrt(12), rel=0.05)
    if make is fastbptt.LSTM:
        np.testing.assert_array_equal(b_ih[0], -b_ih[1])
        assert not b_hh[0].any()


@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0])
def test_the_gain_of_a_gaussian_start(gain):
    layer = fastbptt.RNN(3, 300, rng=0)
    fastbptt.init.gaussian(layer, rng=1, gain=gain)
    assert radius(layer.params["weight_hh_l0"]) == pytest.approx(gain, rel=0.1)


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_the_sparse_start(make):
    layer = make(3, 40, rng=0)
    fastbptt.init.sparse(layer, rng=1, radius=1.2)
    for gate in layer.params["weight_hh_l0"].reshape(-1, 40, 40):
        assert ((gate != 0).sum(axis=0) == 15).all() and radius(gate) == pytest.approx(1.2, rel=1e-12)


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
def test_xavier(make):
    layer, readout = make(50, 100, rng=0), fastbptt.Linear(100, 20, rng=0)
    fastbptt.init.xavier(layer, readout, rng=1)
    for p, inputs, outputs in (
        (layer.params["weight_ih_l0"], 50, 100),
        (layer.params["weight_hh_l0"], 100, 100),
        (readout.params["weight"], 100, 20),
    ):
        bound = np.sqrt(6 / (inputs + outputs))
        assert 0.98 * bound < np.abs(p).max() <= bound and p.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not layer.params["bias_ih_l0"].any() and not readout.params["bias"].any()


def test_starts_go_through_all_parts_of_a_layer():
    """By their names; a layer of two directions is put together here."""

    class Both(fastbptt.LSTM):
        params = None

        def __init__(self):
            one, other = fastbptt.LSTM(2, 20, rng=0), fastbptt.LSTM(2, 20, rng=0)
            self._hidden_size, self._dtype = 20, np.dtype(float)
            self.params = one.params | {f"{name}_reverse": p for name, p in other.params.items()}

    for name, start in STARTS.items():
        if start.gated and name != "default":
            layer = Both()
            start.draw(layer, rng=1)
            spoken_of = ("weight_hh_l0",) if start.matrix else ("bias_ih_l0", "bias_hh_l0")
            for part in spoken_of:
                both = layer.params[part], layer.params[f"{part}_reverse"]
                assert not any(np.array_equal(p, fastbptt.LSTM(2, 20, rng=0).params[part]) for p in both), name
            assert name == "forget-bias" or not np.array_equal(layer.params[spoken_of[0]], layer.params[f"{spoken_of[0]}_reverse"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastbptt.init.chrono(fastbptt.RNN(2, 3)), TypeError, "rnn: expected a GRU or LSTM, whose gates have biases, got RNN"),
        (lambda: fastbptt.init.forget_bias(fastbptt.GRU(2, 3, bias=False)), ValueError, "rnn: expected a layer with biases"),
        (lambda: fastbptt.init.chrono(fastbptt.GRU(2, 3), longest=1.5), ValueError, "longest: expected a number at least 2 .*, got 1.5"),
        (lambda: fastbptt.init.forget_bias(fastbptt.GRU(2, 3), bias=np.nan), ValueError, "bias: expected a number at least .*, got nan"),
        (lambda: fastbptt.init.gaussian(fastbptt.GRU(2, 3), gain=-1), ValueError, "gain: expected a number at least 0 .*, got -1"),
        (lambda: fastbptt.init.sparse(fastbptt.GRU(2, 3), radius=True), TypeError, "radius: expected a number, got True"),
    ],
)
def test_bad_numbers_of_a_start(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
