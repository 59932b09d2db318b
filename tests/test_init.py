"""Starts: how parameters are spread, and that they depend on the seed alone."""

import numpy as np
import pytest
from tolerances import DTYPES

import fastbptt
from fastbptt.init import STARTS

EVERY_START = pytest.mark.parametrize("name", STARTS)


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


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM])
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
