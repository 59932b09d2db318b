"""Fleets: each net as the reference has it, with bits that depend on nothing outside, and errors that name what is wrong."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, PLAIN, assert_results_close, assert_results_same_bits, random_problem, results_by_name
from test_clip_step import limit_in_the_middle
from test_gradients import oracle
from tolerances import DTYPES, assert_same_bits, bound

import fastbptt
from fastbptt import fleet
from fastbptt._kernels import kernels

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EACH_CELL = pytest.mark.parametrize("cell", CELLS)
ONE_CELL_OF_EACH = pytest.mark.parametrize("cell", ONE_OF_EACH)
SMALL, LARGE = (
    (7, 3, 4, 1),
    (7, 3, 4, 33),
)  # T, B, I, H: side by side in vectors at any level that has them, and a net for itself at any level


def lanes(dtype):
    return kernels[np.dtype(dtype)].lanes()


def enough(shape, dtype):
    """Nets for two groups, if they are small."""
    return lanes(dtype) + 1 if shape[3] < 33 else 2


def problems(cell, K, T, B, I, H, *, shared_x=False, lengths=None, **options):
    """K nets. ``lengths`` are those of each, (K, B), or of all, (B,)."""
    nets = [random_problem(cell, T, B, I, H, seed=k, **options) for k in range(K)]
    if isinstance(nets[0].leak, float):
        nets = [replace(net, leak=nets[0].leak) for net in nets]
    if shared_x:
        nets = [replace(net, x=nets[0].x) for net in nets]
    if lengths is not None:
        nets = [replace(net, options={"lengths": of_net}) for net, of_net in zip(nets, np.broadcast_to(lengths, (K, B)))]
    return nets


def stack(arrays):
    return None if arrays[0] is None else np.stack(arrays)


def parts(states):
    """A fleet's state, of the states of its nets."""
    if states[0] is None:
        return None
    stacked = tuple(stack(part) for part in zip(*states))
    return stacked if len(stacked) > 1 else stacked[0]


def forward(nets, *, shared_x=False, lengths=None, **options):
    first = nets[0]
    x = first.x if shared_x else stack([net.x for net in nets])
    weights = [stack([getattr(net, name) for net in nets]) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    if first.leak is not None:
        options["leak"] = first.leak if isinstance(first.leak, float) else stack([net.leak for net in nets])
    if lengths is not None:
        options["lengths"] = lengths
    options = first.cell.options | {name: value for name, value in first.options.items() if name != "lengths"} | options
    return getattr(fleet, f"{first.cell.prefix}_forward")(x, parts([net.state for net in nets]), *weights, **options)


def backward(nets, tape, **options):
    d_out, d_state = stack([net.d_out for net in nets]), parts([net.d_state for net in nets])
    return getattr(fleet, f"{nets[0].cell.prefix}_backward")(tape, d_out, d_state, **options)


def results(nets, *, clip_step=None, **options):
    """Of each net, all that the two calls return, by name."""
    out, state, tape = forward(nets, **options)
    grads = backward(nets, tape, clip_step=clip_step)
    return [results_by_name(*of_net(k, out, state, grads)) for k in range(len(nets))]


def of_net(k, out, state, grads):
    def pick(value):
        if isinstance(value, fastbptt.Gradients):
            return fastbptt.Gradients(*(pick(part) for part in value))
        return tuple(pick(part) for part in value) if isinstance(value, tuple) else None if value is None else value[k]

    return out[k], pick(state), pick(grads)


def assert_right(nets, got, **options):
    """The first net, the last, and one between."""
    for k in sorted({0, len(nets) // 2, len(nets) - 1}):
        net = nets[k]
        assert {array.dtype for array in got[k].values() if array is not None} == {net.w_ih.dtype}
        assert_results_close(got[k], oracle(net, **options), bound(net.w_ih.dtype, net.K, len(net.x)))


# --- Right ------------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("shape", [SMALL, (300, 2, 3, 2), (5, 6, 1, 9), LARGE], ids=str)
@EACH_CELL
def test_against_the_reference(cell, shape, dtype):
    nets = problems(cell, enough(shape, dtype), *shape, dtype=dtype, gain=0.5)  # with more, 300 steps may leave float32's range
    assert_right(nets, results(nets))


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True], ids=["vectors", "tokens"])
@pytest.mark.parametrize("shared_x", [False, True], ids=["own x", "one x"])
@pytest.mark.parametrize("lengths", ["none", "of each", "of all"])
@pytest.mark.parametrize(
    ("cell", "shape"), [(cell, shape) for shape in [(20, 5, 3, 1), (9, 5, 2, 33)] for cell in ("gru", "lstm")], ids=str
)
def test_inputs_and_lengths(cell, shape, lengths, shared_x, tokens, dtype):
    K, rng = enough(shape, dtype), np.random.default_rng(0)
    given = {"none": None, "of each": rng.integers(0, shape[0] + 1, (K, shape[1])), "of all": np.array([0, 3, shape[0], 3, 7])}[lengths]
    nets = problems(cell, K, *shape, dtype=dtype, tokens=tokens, shared_x=shared_x, lengths=given)
    assert_right(nets, results(nets, shared_x=shared_x, lengths=given))


@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_without_biases(cell, shape, biases):
    nets = problems(cell, 3, *shape, biases=biases)
    assert_right(nets, results(nets))


@pytest.mark.parametrize("lengths", [None, np.array([[3, 0], [7, 7], [2, 5]])], ids=["", "lengths"])
def test_a_projection(lengths):
    rng = np.random.default_rng(0)
    nets = [
        replace(
            net,
            state=(net.state[0][:, :2], net.state[1]),
            d_state=(net.d_state[0][:, :2], net.d_state[1]),
            w_hh=np.ascontiguousarray(net.w_hh[:, :2]),
            d_out=net.d_out[..., :2],
            options={**net.options, "w_hr": rng.standard_normal((2, 5))},
        )
        for net in problems("lstm", 3, 7, 2, 3, 5, lengths=lengths)
    ]
    got = results(nets, lengths=lengths, w_hr=stack([net.options["w_hr"] for net in nets]))
    assert_right(nets, got)
    for net, of_one in zip(nets, got):
        assert_results_same_bits(of_one, net.results(fastbptt))


@EACH_DTYPE
@pytest.mark.parametrize("kind", ["value", "norm"])
@pytest.mark.parametrize("lengths", [None, np.array([7, 0, 4])], ids=["", "lengths"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_clip_step(cell, shape, lengths, kind, dtype):
    nets = problems(cell, 3, *shape, dtype=dtype, lengths=lengths, gain=2.0)
    clip_step = limit_in_the_middle(nets[0], kind)
    got = results(nets, lengths=lengths, clip_step=clip_step)
    assert_right(nets, got, clip_step=clip_step)
    assert not np.array_equal(got[0]["d_w_hh"], results(nets, lengths=lengths)[0]["d_w_hh"])


@EACH_DTYPE
@pytest.mark.parametrize("lengths", [None, np.array([[7, 0, 4]] * 2 + [[7, 7, 7]])], ids=["", "lengths"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@ONE_CELL_OF_EACH
def test_the_tape(cell, shape, lengths, dtype):
    nets = problems(cell, 3, *shape, dtype=dtype, lengths=lengths)
    tape = forward(nets, lengths=lengths)[2]
    for k, net in enumerate(nets):
        expected = net.astype(np.float64).forward(fastbptt)[2]
        for name in ("h", "c", "gates", "m"):
            array = getattr(tape, name)
            assert (array is None) == (getattr(expected, name) is None), name
            if array is not None:
                np.testing.assert_allclose(
                    array[k], getattr(expected, name), rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12, err_msg=name
                )
                assert not array.flags.writeable
    assert tape.shape == (3, *shape[:2], shape[3]) and len(tape) == shape[0]
    assert repr(tape) == f"<{nets[0].cell.prefix} fleet tape: 3 nets, 7 steps, 3 rows, {shape[3]} units, {dtype}>"


@pytest.mark.parametrize("ragged", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("shape", [SMALL, LARGE, (2, 9, 4, 1), (2, 9, 4, 33)], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_what_is_not_wanted(cell, shape, ragged):
    T, B = shape[:2]
    lengths = np.random.default_rng(0).integers(0, T + 1, B) if ragged else None
    nets = problems(cell, 3, *shape, lengths=lengths)
    out, state, tape = forward(nets, lengths=lengths)
    assert not out.flags.writeable
    for last_only in (False, True):
        untaped, same_state, none = forward(nets, lengths=lengths, tape=False, last_only=last_only)
        assert none is None and (untaped is None) == last_only
        for one, other in zip(*(part if isinstance(part, tuple) else (part,) for part in (same_state, state))):
            assert_same_bits("state", one, other)
        if not last_only:
            assert_same_bits("out", untaped, out)
            assert untaped.flags.writeable
    grads, without = backward(nets, tape), backward(nets, tape, need_dx=False)
    assert without.x is None
    assert_same_bits("d_w_ih", without.w_ih, grads.w_ih)
    last = forward(nets, lengths=lengths, last_only=True)[2]
    silent = [replace(net, d_out=None) for net in nets]
    assert_same_bits("d_w_hh", backward(silent, last).w_hh, backward(silent, tape).w_hh)
    with pytest.raises(
        ValueError, match=rf"^d_out: expected None, as the forward pass had last_only=True, got ndarray of shape \(3, {T}, {B}, "
    ):
        backward(nets, last)


@pytest.mark.one_level
@pytest.mark.parametrize("name", sorted({f"{cell.prefix}_{half}" for cell in CELLS.values() for half in ("forward", "backward")}))
def test_signatures_are_those_of_one_net(name):
    """But for what fleets do not have."""
    of_fleet, of_one = (inspect.signature(getattr(module, name)).parameters.values() for module in (fleet, fastbptt))
    lacking = {"resets", "memory_budget", "carry"}
    assert [(p.name, p.kind, p.default) for p in of_fleet] == [(p.name, p.kind, p.default) for p in of_one if p.name not in lacking]
    assert getattr(fleet, name).__doc__


# --- Bits -------------------------------------------------------------------------------------------------------------


@EACH_DTYPE
@ONE_CELL_OF_EACH
def test_nets_that_are_not_small_have_the_bits_of_one_net_alone(cell, dtype):
    lengths = np.array([[9, 9, 9, 9], [0, 3, 9, 3], [1, 2, 0, 0]])
    for given in (None, lengths):
        nets = problems(cell, 3, 9, 4, 4, 33, dtype=dtype, lengths=given)
        for net, got in zip(nets, results(nets, lengths=given)):
            assert_results_same_bits(got, net.results(fastbptt))


@EACH_DTYPE
@pytest.mark.parametrize("ragged", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("shape", [(300, 2, 4, 1), LARGE], ids=str)
@ONE_CELL_OF_EACH
def test_companions_and_threads(cell, shape, ragged, dtype, threads):
    K, rng = 2 * enough(shape, dtype) - 1, np.random.default_rng(0)
    lengths = rng.integers(0, shape[0] + 1, (K, shape[1])) if ragged else None
    nets = problems(cell, K, *shape, dtype=dtype, lengths=lengths)
    threads(1)
    expected = results(nets, lengths=lengths)
    for n in (2, 3):
        threads(n)
        for got, same in zip(results(nets, lengths=lengths), expected):
            assert_results_same_bits(got, same)
    some = [K - 1, 3 % K, 0]
    for got, k in zip(results([nets[k] for k in some], lengths=None if lengths is None else lengths[some]), some):
        assert_results_same_bits(got, expected[k])
    for k in some:
        (got,) = results([nets[k]], lengths=None if lengths is None else lengths[k])
        assert_results_same_bits(got, expected[k])


def test_few_long_nets_are_shared_by_threads(threads):
    nets = problems("gru", 2, 40, 8, 40, 150)
    threads(1)
    expected = results(nets)
    threads(4)
    for got, same in zip(results(nets), expected):
        assert_results_same_bits(got, same)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@pytest.mark.parametrize("cell", PLAIN)
def test_lengths_that_say_nothing_and_what_stands_behind_a_row(cell, shape):
    T, B = shape[:2]
    nets = problems(cell, 3, *shape)
    expected = results(nets)
    for lengths in (np.full(B, T), np.full((3, B), T)):
        for got, same in zip(results(nets, lengths=lengths), expected):
            assert_results_same_bits(got, same)
    lengths = np.array([[T, 2, 0], [1, 1, T], [T, T, T]])
    expected = results(nets, lengths=lengths)
    behind = np.arange(T)[:, None] >= lengths[:, None]
    spoilt = [replace(net, x=net.x.copy(), d_out=net.d_out.copy()) for net in nets]
    for net, there_not in zip(spoilt, behind):
        net.x[there_not] = net.d_out[there_not] = np.nan
    for got, same, there_not in zip(results(spoilt, lengths=lengths), expected, behind):
        assert_results_same_bits(got, same)
        assert not got["out"][there_not].any() and not got["d_x"][there_not].any()


@EACH_DTYPE
@pytest.mark.parametrize("states", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("lengths", [None, np.array([7, 0, 4])], ids=["", "lengths"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@ONE_CELL_OF_EACH
def test_on_dirty_memory(cell, shape, lengths, states, dtype, dirty_memory):
    nets = problems(cell, 3, *shape, dtype=dtype, lengths=lengths)
    if not states:
        nets = [replace(net, state=None, d_state=None) for net in nets]
    expected = results(nets, lengths=lengths)
    dirty_memory()
    for got, same in zip(results(nets, lengths=lengths), expected):
        assert_results_same_bits(got, same)
    for tape in (True, False):
        state = forward(nets, lengths=lengths, tape=tape, last_only=True)[1]
        for k, net in enumerate(expected):
            for i, array in enumerate(state if isinstance(state, tuple) else (state,)):
                assert_same_bits("final state", array[k], net[f"final state {i}"])


@pytest.mark.parametrize(
    ("place", "bad"),
    [("x", np.nan), ("w_ih", np.inf), ("w_hh", np.nan), ("b_ih", np.inf), ("d_out", np.inf), ("state", np.nan), ("d_state", np.nan)],
)
@pytest.mark.parametrize("lengths", [None, np.array([[7, 0, 4]] * 3)], ids=["", "lengths"])
@pytest.mark.parametrize("cell", PLAIN)
def test_what_is_not_finite_stays_in_its_net(cell, lengths, bad, place):
    nets = problems(cell, 3, *SMALL, lengths=lengths)
    expected = results(nets, lengths=lengths)
    array = getattr(nets[1], place)
    array = (array[0] if place.endswith("state") else array).copy()
    array[(0,) * array.ndim] = bad
    key = (place, 0) if place.endswith("state") else place
    with np.errstate(all="ignore"):
        got = results([nets[0], nets[1].with_array(key, array), nets[2]], lengths=lengths)
        alone = nets[1].with_array(key, array).results(fastbptt)
    for k in (0, 2):
        assert_results_same_bits(got[k], expected[k])
    for name, value in alone.items():
        assert np.array_equal(np.isfinite(got[1][name]), np.isfinite(value)), name


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.one_level
@EACH_DTYPE
def test_clipping_each_net_for_itself(dtype):
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal((5, *shape)).astype(dtype) for shape in ((3, 4), (2,), ())]
    grads[0][1] *= 100
    grads[1][3, 1] = np.nan
    before = [array.copy() for array in grads]
    with pytest.raises(FloatingPointError, match=r"^grads: the norm of net 3 is nan; of 1 of 5 nets it is not finite$"):
        fleet.clip_grad_norm_(grads, 2.0)
    for array, same in zip(grads, before):
        assert_same_bits("grads", array, same)
    for nonfinite in ("skip", "zero"):
        grads = [array.copy() for array in before]
        norms = fleet.clip_grad_norm_(grads, 2.0, nonfinite=nonfinite)
        assert norms.shape == (5,) and norms.dtype == np.float64 and np.isnan(norms[3])
        for k in range(5):
            alone = [array[k : k + 1].copy() for array in before]
            norm = fastbptt.clip_grad_norm_(alone, 2.0, nonfinite=nonfinite)
            assert norm == norms[k] or k == 3
            for array, same in zip(grads, alone):
                assert_same_bits("grads", array[k : k + 1], same)
    assert not any(array[3].any() for array in grads)
    assert fleet.clip_grad_norm_(np.ones((0, 3), dtype), 1.0).shape == (0,)


@pytest.mark.one_level
@EACH_DTYPE
@pytest.mark.parametrize(("kind", "options"), [("Adam", {"amsgrad": True}), ("RMSprop", {"momentum": 0.5, "centered": True})])
def test_optimisers(kind, options, dtype):
    rng, rates = np.random.default_rng(0), np.array([0.1, 0.0, 0.01, 0.3])
    start = {"w": rng.standard_normal((4, 2, 3)).astype(dtype), "b": rng.standard_normal((4, 2)).astype(dtype)}
    together, alike = ({name: array.copy() for name, array in start.items()} for _ in range(2))
    alone = [{name: array[k].copy() for name, array in start.items()} for k in range(4)]
    of_fleet = getattr(fleet, kind)(together, lr=rates, **options)
    of_alike = getattr(fleet, kind)(alike, lr=0.1, **options)
    each = [getattr(fastbptt, kind)(params, lr=float(rate), **options) for params, rate in zip(alone, rates)]
    for step in range(3):
        grads = {name: rng.standard_normal(array.shape).astype(dtype) for name, array in start.items()}
        if step == 1:
            grads["b"][2] = np.nan
        of_fleet.step(grads)
        of_alike.step(grads)
        for k, optimiser in enumerate(each):
            optimiser.step({name: np.ascontiguousarray(array[k]) for name, array in grads.items()})
    for name in start:
        for k in range(4):
            assert_same_bits(name, together[name][k], alone[k][name])
        assert_same_bits(name, alike[name][0], alone[0][name])
        assert np.isfinite(together[name][[0, 1, 3]]).all()
    np.testing.assert_array_equal(of_fleet.lr, rates)
    of_fleet.lr = 0.5
    assert of_fleet.lr == 0.5
    other = getattr(fleet, kind)(together, lr=rates, **options)
    other.load_state_dict(of_fleet.state_dict())
    assert other.steps == 3


# --- Nothing, and what is refused -------------------------------------------------------------------------------------


@pytest.mark.one_level
@pytest.mark.parametrize(("K", "T", "B"), [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("cell", PLAIN)
def test_nothing(cell, K, T, B):
    gates, states = CELLS[cell].gates, CELLS[cell].states
    rng, prefix = np.random.default_rng(0), CELLS[cell].prefix
    given = [rng.standard_normal((K, B, 4)) for _ in range(states)]
    state = given[0] if states == 1 else tuple(given)
    for x in (np.zeros((K, T, B, 2)), np.zeros((T, B, 2)), np.zeros((K, T, B), int)):
        weights = np.zeros((K, gates * 4, 2)), np.zeros((K, gates * 4, 4))
        out, last, tape = getattr(fleet, f"{prefix}_forward")(x, state, *weights)
        grads = getattr(fleet, f"{prefix}_backward")(tape, np.ones((K, T, B, 4)), state)
        assert out.shape == (K, T, B, 4) and tape.h.shape == (K, T + 1, B, 4)
        assert_same_bits("tape.h", tape.h[:, 0], given[0])
        for got in (last, grads.state):
            for part, same in zip((got,) if states == 1 else got, given):
                assert_same_bits("state", part, same)
        assert grads.w_hh.shape == (K, gates * 4, 4) and not grads.w_hh.any()
        assert grads.x is None if x.dtype.kind == "i" else grads.x.shape == (K, T, B, 2)


def gru(**changes):
    """A call with one argument changed."""
    arguments = {"x": (5, 3, 4), "h0": (2, 3, 6), "w_ih": (2, 18, 4), "w_hh": (2, 18, 6), "b_ih": (2, 18), "b_hh": (2, 18)}
    arguments = {name: np.zeros(shape) for name, shape in arguments.items()} | changes
    return fleet.gru_forward(**arguments)


@pytest.mark.one_level
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": np.zeros((3, 5, 3, 4))}, ValueError, "x: expected shape (2, 5, 3, 4), got (3, 5, 3, 4)"),
        ({"x": np.zeros((5, 3, 7))}, ValueError, "x: expected shape (5, 3, 4), got (5, 3, 7)"),
        ({"x": np.zeros((5, 3))}, ValueError, "x: expected shape (2, T, B, 4) or (T, B, 4), got (5, 3)"),
        ({"x": np.zeros(5, int)}, ValueError, "x: expected tokens of shape (2, T, B) or (T, B), got (5,)"),
        ({"x": np.zeros((3, 5, 3), int)}, ValueError, "x: expected shape (2, 5, 3), got (3, 5, 3)"),
        ({"x": np.full((5, 3), 4)}, IndexError, "x: expected tokens from 0 to 3, got 4"),
        ({"x": np.zeros((5, 3, 4), np.float32)}, TypeError, "x: expected dtype float64 like the other arrays of this call, got float32"),
        ({"x": [[[0.0]]]}, TypeError, "x: expected a NumPy array, got list"),
        ({"h0": np.zeros((3, 6))}, ValueError, "h0: expected shape (2, 3, 6), got (3, 6)"),
        ({"h0": np.zeros((3, 3, 6))}, ValueError, "h0: expected shape (2, 3, 6), got (3, 3, 6)"),
        (
            {"w_ih": np.zeros((3, 18, 4))},
            ValueError,
            "w_ih: expected shape (2, 18, I) with I >= 1 to go with w_hh (2, 18, 6), got (3, 18, 4)",
        ),
        ({"w_ih": np.zeros((18, 4))}, ValueError, "w_ih: expected shape (2, 18, I) with I >= 1 to go with w_hh (2, 18, 6), got (18, 4)"),
        ({"w_ih": np.zeros((2, 18, 4), int)}, TypeError, "w_ih: expected dtype float64 or float32 in native byte order, got int64"),
        ({"w_hh": np.zeros((18, 6))}, ValueError, "w_hh: expected shape (K, 3*H, H) with H >= 1, got (18, 6)"),
        ({"w_hh": np.zeros((2, 17, 6))}, ValueError, "w_hh: expected shape (K, 3*H, H) with H >= 1, got (2, 17, 6)"),
        (
            {"w_hh": np.zeros((2, 18, 6), np.float32)},
            TypeError,
            "w_hh: expected dtype float64 like the other arrays of this call, got float32",
        ),
        ({"b_ih": np.zeros((3, 18))}, ValueError, "b_ih: expected shape (2, 18), got (3, 18)"),
        ({"b_hh": np.zeros(18)}, ValueError, "b_hh: expected shape (2, 18), got (18,)"),
        ({"lengths": np.zeros((3, 3), int)}, ValueError, "lengths: expected shape (2, 3) or (3,), got (3, 3)"),
        ({"lengths": np.full((2, 3), 6)}, ValueError, "lengths: expected numbers of steps from 0 to 5, got 6"),
        ({"lengths": np.zeros(3)}, TypeError, "lengths: expected integers, got dtype float64"),
        ({"tape": "no"}, TypeError, "tape: expected True or False, got 'no'"),
        ({"last_only": 2}, TypeError, "last_only: expected True or False, got 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forward_refuses(changes, kind, message):
    with pytest.raises(kind) as error:
        gru(**changes)
    assert str(error.value) == message


@pytest.mark.one_level
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda tape, d: fleet.gru_backward(tape, d[:1]), ValueError, "d_out: expected shape (2, 5, 3, 6), got (1, 5, 3, 6)"),
        (lambda tape, d: fleet.gru_backward(tape, d[0]), ValueError, "d_out: expected shape (2, 5, 3, 6), got (5, 3, 6)"),
        (lambda tape, d: fleet.gru_backward(tape, d, d[0]), ValueError, "d_state: expected shape (2, 3, 6), got (5, 3, 6)"),
        (
            lambda tape, d: fleet.gru_backward(tape, d.astype(np.float32)),
            TypeError,
            "d_out: expected dtype float64 like the other arrays of this call, got float32",
        ),
        (lambda tape, d: fleet.gru_backward(tape, d, need_dx="no"), TypeError, "need_dx: expected True or False, got 'no'"),
        (
            lambda tape, d: fleet.gru_backward(tape, d, clip_step=1.0),
            TypeError,
            'clip_step: expected ("value", c), ("norm", c) or None, got 1.0',
        ),
        (lambda tape, d: fleet.gru_backward(None, d), TypeError, "tape: expected the tape of fleet.gru_forward, got NoneType"),
        (lambda tape, d: fleet.gru_backward(fleet.Tape(), d), TypeError, "tape: expected the tape of fleet.gru_forward, got Tape"),
        (
            lambda tape, d: fleet.rnn_backward(tape, d),
            ValueError,
            "tape: expected the tape of fleet.rnn_forward, got that of fleet.gru_forward",
        ),
        (lambda tape, d: fastbptt.gru_backward(tape, d), TypeError, "tape: expected the tape of gru_forward, got Tape"),
    ],
)
def test_backward_refuses(call, kind, message):
    tape = gru()[2]
    with pytest.raises(kind) as error:
        call(tape, np.zeros((2, 5, 3, 6)))
    assert str(error.value) == message


@pytest.mark.one_level
@pytest.mark.filterwarnings("ignore:Setting the shape")
def test_a_tape_whose_arrays_were_resized():
    x = np.zeros((5, 3, 4))
    tape = gru(x=x)[2]
    x.shape = 5, 4, 3
    with pytest.raises(RuntimeError, match=r"^tape: an array of the forward pass was reshaped or resized before the backward pass$"):
        fleet.gru_backward(tape, None)


@pytest.mark.one_level
@pytest.mark.parametrize(
    ("leak", "kind", "message"),
    [
        (0.0, ValueError, "leak: expected a number above 0 and at most 1, got 0.0"),
        (np.full((2, 1), 0.5), ValueError, "leak: expected shape (2, 3), got (2, 1)"),
        (np.full(3, 0.5), ValueError, "leak: expected shape (2, 3), got (3,)"),
        (np.full((2, 3), 2.0), ValueError, "leak: expected numbers above 0 and at most 1"),
    ],
)
def test_leaks_that_are_refused(leak, kind, message):
    with pytest.raises(kind) as error:
        fleet.rnn_forward(np.zeros((5, 3, 4)), None, np.zeros((2, 3, 4)), np.zeros((2, 3, 3)), leak=leak)
    assert str(error.value) == message


@pytest.mark.one_level
def test_a_projection_that_is_refused():
    for w_hr, w_hh, message in [
        (
            np.zeros((3, 2, 5)),
            np.zeros((2, 20, 2)),
            "w_hh: expected shape (3, 20, 2), (K, 4*H, P) to go with w_hr (3, 2, 5), got (2, 20, 2)",
        ),
        (np.zeros((2, 5, 5)), np.zeros((2, 20, 5)), "w_hr: expected shape (K, P, H) with 1 <= P < H, got (2, 5, 5)"),
    ]:
        with pytest.raises(ValueError, match="w_") as error:
            fleet.lstm_forward(np.zeros((5, 3, 4)), None, np.zeros((2, 20, 4)), w_hh, w_hr=w_hr)
        assert str(error.value) == message


@pytest.mark.one_level
@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda w: fleet.clip_grad_norm_([w, np.ones((3, 2))], 1.0), ValueError, "grads[1]: expected 2 nets, as grads[0] has, got 3"),
        (lambda w: fleet.clip_grad_norm_([w, w], 1.0), ValueError, "grads[1]: overlaps grads[0]; each array must have memory of its own"),
        (lambda w: fleet.clip_grad_norm_(w.T, 1.0), ValueError, "grads: expected a C-contiguous, aligned and writeable array"),
        (lambda w: fleet.clip_grad_norm_([], 1.0), ValueError, "grads: expected at least one array, got none"),
        (
            lambda w: fleet.clip_grad_norm_([w, np.ones((2, 2), np.float32)], 1.0),
            TypeError,
            "grads[1]: expected dtype float64 like the first, got float32",
        ),
        (lambda w: fleet.clip_grad_norm_(w, -1.0), ValueError, "max_norm: expected a number at least 0, got -1.0"),
        (lambda w: fleet.Adam([w, np.ones((3, 2))]), ValueError, "params[1]: expected 2 nets, as params[0] has, got 3"),
        (lambda w: fleet.Adam(w, lr=np.ones(3)), ValueError, "lr: expected a number or shape (2,), one for each net, got (3,)"),
        (lambda w: fleet.Adam(w, lr=np.array([1.0, -1.0])), ValueError, "lr[1]: expected a number at least 0, got -1.0"),
        (lambda w: fleet.RMSprop(w, lr=np.array(["a", "b"])), TypeError, "lr: expected numbers, got dtype <U1"),
        (lambda w: fleet.RMSprop(np.array(1.0)), ValueError, "params: expected an array with a leading axis of nets, got shape ()"),
        (lambda w: fleet.Adam(fastbptt.GRU(2, 3)), TypeError, "params: expected arrays with a leading axis of nets, got GRU"),
    ],
)
def test_training_refuses(call, kind, message):
    w = np.ones((2, 3))
    with pytest.raises(kind) as error:
        call(w)
    assert str(error.value) == message
    assert (w == 1).all()
