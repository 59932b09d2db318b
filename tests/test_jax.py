"""`fastbptt.jax`: outputs and gradients are those of `lax.scan`, and the bits are our functions', under whatever JAX does to a function."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from problems import CELLS, ONE_OF_EACH, WEIGHTS, arrays_of, assert_results_same_bits, random_problem, results_by_name
from processes import run_python
from test_projection import projected
from test_ragged import ragged
from tolerances import DTYPES, assert_same_bits

import fastbptt

jax = pytest.importorskip("jax")
jnp, lax = jax.numpy, jax.lax

import fastbptt.jax  # noqa: E402
from fastbptt._kernels import xla  # noqa: E402
from fastbptt.jax import target  # noqa: E402

pytestmark = pytest.mark.one_level
PAGE = Path(__file__).parent.parent / "docs" / "jax.md"
SHAPE = 5, 3, 4, 7  # T, B, I, H
NONLINEARITIES = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "identity": lambda a: a}


@pytest.fixture(autouse=True)
def x64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# --- The same by scan -------------------------------------------------------------------------------------------------


def step(cell, nonlinearity, leak, w_hr, h, c, a, m):
    """One step from a = W_ih x + b_ih and m = W_hh h + b_hh."""
    if cell == "rnn":
        new = NONLINEARITIES[nonlinearity](a + m)
        return (new if leak is None else (1 - leak) * h + leak * new), None
    a, m = (jnp.split(each, 3 if cell == "gru" else 4, axis=-1) for each in (a, m))
    if cell == "gru":
        r, z = jax.nn.sigmoid(a[0] + m[0]), jax.nn.sigmoid(a[1] + m[1])
        return (1 - z) * jnp.tanh(a[2] + r * m[2]) + z * h, None
    i, f, g, o = (squash(p + q) for squash, p, q in zip((jax.nn.sigmoid, jax.nn.sigmoid, jnp.tanh, jax.nn.sigmoid), a, m))
    c = f * c + i * g
    h = o * jnp.tanh(c)
    return (h if w_hr is None else h @ w_hr.T), c


def by_scan(cell, x, state, w_ih, w_hh, b_ih=None, b_hh=None, *, w_hr=None, leak=None, lengths=None, resets=None, nonlinearity="tanh"):
    T, B = x.shape[:2]
    if x.ndim == 2:
        x = jax.nn.one_hot(x, w_ih.shape[1], dtype=w_ih.dtype)
    H = w_hh.shape[1] if w_hr is None else w_hr.shape[1]
    h, c = state if isinstance(state, tuple) else (state, None)
    h = jnp.zeros((B, w_hh.shape[1])) if h is None else h
    c = jnp.zeros((B, H)) if c is None else c
    b_ih, b_hh = (0.0 if b is None else b for b in (b_ih, b_hh))
    lengths = jnp.full(B, T) if lengths is None else lengths
    resets = jnp.zeros((T, B), bool) if resets is None else resets

    def one(carry, now):
        t, x, reset = now
        h, c = (jnp.where(reset[:, None], 0.0, each) for each in carry)
        new_h, new_c = step(cell, nonlinearity, leak, w_hr, h, c, x @ w_ih.T + b_ih, h @ w_hh.T + b_hh)
        there = (t < lengths)[:, None]
        new = jnp.where(there, new_h, carry[0]), carry[1] if new_c is None else jnp.where(there, new_c, carry[1])
        return new, jnp.where(there, new_h, 0.0)

    (h, c), out = lax.scan(one, (h, c), (jnp.arange(T), x, resets))
    return out, (h, c) if cell == "lstm" else h


def random_configuration(seed):
    """A problem of a random cell, shape and options."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, 4))
    cell = [*CELLS, "projected"][seed % (len(CELLS) + 1)]
    if cell == "projected":
        cut, reset = (bool(each) for each in rng.random(2) < 0.5)
        return projected(*shape[:3], shape[3] + 1, int(rng.integers(1, shape[3] + 1)), lengths=cut, resets=reset)
    what = [None, "lengths", "resets", "both"][int(rng.integers(4))]
    biases = tuple(bool(each) for each in rng.random(2) < 0.7)
    problem = random_problem(cell, *shape, tokens=rng.random() < 0.3, biases=biases, seed=seed)
    if what:
        problem.options = ragged(cell, *shape, what=what).options
    if rng.random() < 0.3:
        problem.state = None
    return problem


def arguments_of(problem):
    """Those of a function of `fastbptt.jax`: what gradients are of, and all else."""
    moving = {name: getattr(problem, name) for name in WEIGHTS}
    moving |= {"w_hr": getattr(problem, "w_hr", None), "state": problem._state(problem.state)}
    fixed = problem.all_options()
    fixed.pop("w_hr", None)
    if problem.x.ndim == 3:
        moving["x"] = problem.x
    else:
        fixed = fixed | {"x": problem.x}
    return {name: value for name, value in moving.items() if value is not None or name == "state"}, fixed


def value_and_gradients(function, problem, transform=lambda function: function):
    """All that comes out, by the names of `Problem.results`."""
    moving, fixed = arguments_of(problem)
    cotangents = problem.d_out, problem._state(problem.d_state)

    def run(moving):
        return function(**moving, **fixed)

    def both(moving):
        results, back = jax.vjp(transform(run), moving)
        return results, back(cotangents)[0]

    (out, state), gradients = jax.jit(both)(moving)
    grads = SimpleNamespace(**{name: gradients.get(name) for name in ("x", "state", *WEIGHTS, "w_hr")})
    named = {name: value if value is None else np.asarray(value) for name, value in results_by_name(out, state, grads).items()}
    return {name: value for name, value in named.items() if value is not None}


def ours(problem):
    return getattr(fastbptt.jax, problem.cell.prefix)


def check_against_scan(seed):
    problem = random_configuration(seed)
    got = value_and_gradients(ours(problem), problem)
    expected = value_and_gradients(partial(by_scan, problem.cell.prefix), problem)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12 * max(1.0, np.abs(value).max()), err_msg=f"{name}, {seed}")


@pytest.mark.parametrize("seed", range(len(CELLS) + 1))
def test_outputs_and_gradients_are_those_of_scan(seed):
    check_against_scan(seed)


# --- The bits of our functions, however it is called ------------------------------------------------------------------


def from_functions(problem):
    results = problem.results(fastbptt)
    if problem.state is None:
        results = {name: value for name, value in results.items() if "initial" not in name}
    return {name: value for name, value in results.items() if value is not None}


TRANSFORMS = {"jit": jax.jit, "remat": jax.checkpoint, "jit of remat": lambda function: jax.jit(jax.checkpoint(function))}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_the_bits_of_the_functions(cell, dtype):
    for problem in (random_problem(cell, *SHAPE, dtype=dtype), ragged(cell, *SHAPE, what="both", dtype=dtype)):
        assert_results_same_bits(value_and_gradients(ours(problem), problem), from_functions(problem))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_same_bits_under(transform):
    for problem in (random_problem("lstm"), ragged("gru", *SHAPE, what="both"), random_problem("gru", tokens=True)):
        assert_results_same_bits(value_and_gradients(ours(problem), problem, TRANSFORMS[transform]), from_functions(problem))


def test_without_jit_and_twice():
    problem = random_problem("lstm")
    moving, fixed = arguments_of(problem)
    results, back = jax.vjp(lambda moving: fastbptt.jax.lstm(**moving, **fixed), moving)
    assert_same_bits("out", np.asarray(results[0]), problem.forward(fastbptt)[0])
    gradients = [back((problem.d_out, problem._state(problem.d_state)))[0] for _ in range(2)]
    for name, value in gradients[0].items():
        for one, other in zip(arrays_of(value), arrays_of(gradients[1][name])):
            assert_same_bits(name, np.asarray(one), np.asarray(other))


def test_with_jit_disabled():
    problem = random_problem("gru")
    moving, fixed = arguments_of(problem)
    with jax.disable_jit():
        gradient = jax.grad(lambda moving: fastbptt.jax.gru(**moving, **fixed)[0].sum())(moving)
    problem.d_out, problem.d_state = np.ones_like(problem.d_out), None
    assert_same_bits("w_hh", np.asarray(gradient["w_hh"]), problem.results(fastbptt)["d_w_hh"])


def test_integers_of_32_bits_without_x64():
    jax.config.update("jax_enable_x64", False)
    problem = ragged("gru", *SHAPE, what="both", dtype=np.dtype(np.float32))
    problem.x = np.random.default_rng(0).integers(0, SHAPE[2], SHAPE[:2])
    moving, fixed = arguments_of(problem)
    out, _ = fastbptt.jax.gru(**moving, **fixed)
    assert_same_bits("out", np.asarray(out), problem.forward(fastbptt)[0])


def test_inside_a_scan():
    """As truncated backpropagation goes, from part to part; and what is not asked for is not computed."""
    problem = random_problem("lstm", 12)
    weights = [getattr(problem, name) for name in WEIGHTS]

    def loss(weights, parts):
        def part(state, x):
            out, state = fastbptt.jax.lstm(x, state, *weights)
            return state, (out**2).sum()

        return lax.scan(part, problem.state, parts)[1].sum()

    whole = jax.grad(lambda weights: (fastbptt.jax.lstm(problem.x, problem.state, *weights)[0] ** 2).sum())(weights)
    for got, expected in zip(jax.jit(jax.grad(loss))(weights, problem.x.reshape(3, 4, 3, 4)), whole):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


# --- vmap -------------------------------------------------------------------------------------------------------------


def batch_of(problem, n=4):
    """Inputs, initial states, and what else has rows, of n calls."""
    rng = np.random.default_rng(1)
    there = {"x": np.stack([rng.permutation(problem.x, axis=1) for _ in range(n)]), "state": problem._state(problem.state)}
    there["state"] = jax.tree.map(lambda array: np.stack([rng.permutation(array) for _ in range(n)]), there["state"])
    return there | {name: np.stack([rng.permutation(array) for _ in range(n)]) for name, array in problem.options.items()}


@pytest.mark.parametrize("cell", ["gru", "ragged"])
def test_vmap_with_shared_weights(cell):
    problem = ragged("lstm", *SHAPE, what="both") if cell == "ragged" else random_problem(cell)
    weights, batch, run = {name: getattr(problem, name) for name in WEIGHTS}, batch_of(problem), ours(problem)

    def loss(weights, each):
        out, state = run(**weights, **each)
        return (out**2).sum() + sum((part**3).sum() for part in arrays_of(state))

    def one_by_one(function):
        each = [jax.tree.map(lambda array, k=k: array[k], batch) for k in range(4)]
        return jax.tree.map(lambda *parts: np.stack(parts), *[function(weights, part) for part in each])

    def assert_close(got, expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, expected)

    assert_close(jax.vmap(loss, (None, 0))(weights, batch), one_by_one(loss))
    gradient = jax.grad(loss)
    assert_close(jax.jit(jax.vmap(gradient, (None, 0)))(weights, batch), one_by_one(gradient))
    together = jax.jit(jax.grad(lambda weights: jax.vmap(loss, (None, 0))(weights, batch).sum()))
    summed = jax.tree.map(lambda array: array.sum(0), one_by_one(gradient))
    assert_close(together(weights), summed)
    one_call = re.findall(r"fastbptt_(\w+)\[", str(jax.make_jaxpr(together)(weights)))
    assert one_call == ["forward", "backward"], "all rows in one call each"


def test_vmap_of_some_arguments():
    """Whatever its axis; what has none is the same for all."""
    problem = ragged("lstm", *SHAPE, what="both")
    (h0, c0), weights = problem._state(problem.state), [getattr(problem, name) for name in WEIGHTS]
    many = np.stack([c0, 2 * c0], axis=2)
    got = jax.vmap(lambda c0: fastbptt.jax.lstm(problem.x, (h0, c0), *weights, **problem.options), in_axes=2)(many)
    for k in range(2):
        one = fastbptt.jax.lstm(problem.x, (h0, many[..., k]), *weights, **problem.options)
        jax.tree.map(lambda a, b, k=k: assert_same_bits("result", np.asarray(a[k]), np.asarray(b)), got, one)


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_of_none(shared):
    """Of an axis of length 0, as JAX's own functions take it."""
    weights, axes = (zeros(21, 4) if shared else zeros(0, 21, 4), zeros(21, 7)), (0, None if shared else 0)

    def loss(x, w_ih):
        out, state = fastbptt.jax.gru(x, None, w_ih, weights[1])
        return out.sum() + state.sum(), out

    gradient, out = jax.vmap(jax.grad(loss, has_aux=True), axes)(zeros(0, 5, 3, 4), weights[0])
    assert gradient.shape == (0, 5, 3, 4) and out.shape == (0, 5, 3, 7)


def test_vmap_of_weights_and_of_gradients_with_respect_to_outputs():
    problem = random_problem("gru")
    many = np.stack([problem.w_hh, 2 * problem.w_hh])

    def last(w_hh):
        return fastbptt.jax.gru(problem.x, None, problem.w_ih, w_hh)[1][0]

    got = jax.vmap(last)(many)
    for one, w_hh in zip(got, many):
        assert_same_bits("state", np.asarray(one), np.asarray(last(w_hh)))
    rows = jax.jacrev(last)(problem.w_hh)
    assert_same_bits("a row", np.asarray(rows[2]), np.asarray(jax.grad(lambda w_hh: last(w_hh)[2])(problem.w_hh)))


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_training_loop_has_the_losses_of_scan():
    """With Adam of optax, where that is installed, or else by hand."""
    try:
        import optax
    except ModuleNotFoundError:
        optax = None
    problem = random_problem("lstm", 8, 4, 3, 6)
    optimiser = optax.adam(1e-2) if optax else None

    def losses(run):
        def loss(weights):
            out, _ = run(problem.x, None, *weights)
            return ((out - problem.d_out) ** 2).mean()

        @jax.jit
        def update(weights, state):
            value, gradients = jax.value_and_grad(loss)(weights)
            if optimiser is None:
                return value, [weight - d for weight, d in zip(weights, gradients)], state
            steps, state = optimiser.update(gradients, state)
            return value, optax.apply_updates(weights, steps), state

        weights = [jnp.asarray(getattr(problem, name)) for name in WEIGHTS]
        state = optimiser.init(weights) if optimiser else None
        values = []
        for _ in range(30):
            value, weights, state = update(weights, state)
            values.append(float(value))
        return values

    got = losses(fastbptt.jax.lstm)
    np.testing.assert_allclose(got, losses(partial(by_scan, "lstm")), rtol=1e-11)
    assert got[-1] < 0.9 * got[0]


# --- What is refused --------------------------------------------------------------------------------------------------


def zeros(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


REFUSED = [
    ({"x": [1.0]}, TypeError, "x: expected a JAX or NumPy array, got list"),
    ({"x": zeros(5, 3)}, ValueError, r"x: expected shape \(T, B, 4\), or integer tokens .*, got \(5, 3\)"),
    ({"x": zeros(0, 3, 4)}, ValueError, "x: expected .* T and B at least 1"),
    ({"x": zeros(5, 3, 6)}, ValueError, r"x: expected shape \(5, 3, 4\), got \(5, 3, 6\)"),
    ({"x": zeros(5, 3, 4, dtype=np.int32)}, ValueError, r"x: expected tokens of shape \(T, B\)"),
    ({"x": zeros(5, 3, 4, dtype=np.float32)}, TypeError, "x: expected dtype float64 like w_ih, got float32"),
    ({"w_ih": zeros(28, 4, dtype=np.float16)}, TypeError, "w_ih: expected dtype float32 or float64, got float16"),
    ({"w_ih": zeros(27, 4)}, ValueError, r"w_ih: expected shape \(28, I\)"),
    ({"w_hh": zeros(28, 6)}, ValueError, r"w_hh: expected shape \(4\*H, H\)"),
    ({"w_hh": zeros(28, 7, dtype=np.float32)}, TypeError, "w_hh: expected dtype float64 like w_ih"),
    ({"b_ih": zeros(7)}, ValueError, r"b_ih: expected shape \(28,\), got \(7,\)"),
    ({"b_hh": 0.0}, TypeError, "b_hh: expected a JAX or NumPy array, got 0.0"),
    ({"w_hr": zeros(7, 7)}, ValueError, "w_hr: expected shape .* 1 <= P < H"),
    ({"w_hr": zeros(2, 7)}, ValueError, r"w_hh: expected shape \(28, 2\)"),
    ({"state": zeros(3, 7)}, TypeError, "state: expected a pair of arrays or None"),
    ({"state": (zeros(3, 7), zeros(2, 7))}, ValueError, r"state\[1\]: expected shape \(3, 7\), got \(2, 7\)"),
    ({"lengths": zeros(2, dtype=int)}, ValueError, r"lengths: expected shape \(3,\)"),
    ({"lengths": zeros(3)}, TypeError, "lengths: expected integers, got dtype float64"),
    ({"resets": zeros(3, 5, dtype=bool)}, ValueError, r"resets: expected shape \(5, 3\)"),
    ({"resets": zeros(5, 3, dtype=int)}, TypeError, "resets: expected dtype bool, got int64"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), REFUSED, ids=lambda value: "-".join(value) if isinstance(value, dict) else None)
def test_wrong_arguments_while_traced(wrong, kind, message):
    right = {"x": zeros(5, 3, 4), "state": None, "w_ih": zeros(28, 4), "w_hh": zeros(28, 7)} | wrong
    arrays = {name: value for name, value in right.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in right.items() if name not in arrays}
    with pytest.raises(kind, match=f"^{message}"):
        jax.jit(lambda arrays: fastbptt.jax.lstm(**arrays, **others)).trace(arrays)


def test_wrong_options_of_an_rnn():
    arguments = zeros(5, 3, 4), None, zeros(7, 4), zeros(7, 7)
    with pytest.raises(ValueError, match=r"^nonlinearity: expected one of"):
        fastbptt.jax.rnn(*arguments, nonlinearity="gelu")
    with pytest.raises(ValueError, match=r"^leak: expected a number above 0"):
        fastbptt.jax.rnn(*arguments, leak=2.0)
    with pytest.raises(ValueError, match=r"^leak: expected shape \(7,\)"):
        fastbptt.jax.rnn(*arguments, leak=jnp.ones(6))
    with pytest.raises(NotImplementedError, match=r"^leak: there is no gradient of it"):
        jax.grad(lambda leak: fastbptt.jax.rnn(*arguments, leak=leak)[0].sum())(0.5)


def test_wrong_values_when_it_runs():
    w_ih, w_hh = zeros(21, 4), zeros(21, 7)
    for value in (-1, 4, 1 << 40):
        with pytest.raises(jax.errors.JaxRuntimeError, match="x: expected tokens from 0 to I - 1"):
            fastbptt.jax.gru(np.full((5, 3), value), None, w_ih, w_hh)[0].block_until_ready()
    for value in (-1, 6):
        with pytest.raises(jax.errors.JaxRuntimeError, match="lengths: expected numbers of steps from 0 to T"):
            fastbptt.jax.gru(zeros(5, 3, 4), None, w_ih, w_hh, lengths=np.full(3, value))[0].block_until_ready()


def test_wrong_values_in_a_program_that_has_run_before():
    run = jax.jit(lambda x: fastbptt.jax.gru(x, None, zeros(21, 4), zeros(21, 7))[0])
    for _ in range(2):
        run(np.full((5, 3), 3)).block_until_ready()
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="x: expected tokens from 0 to I - 1"):
        run(np.full((5, 3), 4)).block_until_ready()
    assert not run(np.full((5, 3), 3)).any()


def test_integers_that_jax_would_cut():
    """Without x64, 2^32 + 1 is 1 to JAX."""
    jax.config.update("jax_enable_x64", False)
    x, w_ih, w_hh = zeros(5, 3, 4, dtype=np.float32), zeros(21, 4, dtype=np.float32), zeros(21, 7, dtype=np.float32)
    for value in ((1 << 32) + 1, -(1 << 32)):
        with pytest.raises(ValueError, match=rf"^x: expected integers of 32 bits, as jax_enable_x64 is off, got {value} to "):
            fastbptt.jax.gru(np.full((5, 3), value), None, w_ih, w_hh)
        with pytest.raises(ValueError, match=r"^lengths: expected integers of 32 bits"):
            fastbptt.jax.gru(x, None, w_ih, w_hh, lengths=np.full(3, value))
    fastbptt.jax.gru(np.full((5, 3), 3), None, w_ih, w_hh, lengths=np.full(3, 5, np.uint64))


def test_second_derivatives_and_forward_mode():
    x, w_ih, w_hh = zeros(5, 3, 4), zeros(7, 4), zeros(7, 7)

    def loss(w_hh):
        return fastbptt.jax.rnn(x, None, w_ih, w_hh)[0].sum()

    for second in (jax.hessian(loss), jax.jit(jax.grad(lambda w: jax.grad(loss)(w).sum()))):
        with pytest.raises(NotImplementedError, match=r"^fastbptt\.jax\.rnn: there are no second derivatives"):
            second(w_hh)
    for forward in (lambda w: jax.jvp(loss, (w,), (w,)), jax.jacfwd(loss), jax.jit(lambda w: jax.jvp(loss, (w,), (w,)))):
        with pytest.raises(NotImplementedError, match=r"^fastbptt\.jax\.rnn: there is no forward mode"):
            forward(w_hh)


def test_other_platforms():
    lowered = jax.jit(jax.grad(lambda w_hh: fastbptt.jax.rnn(zeros(5, 3, 4), None, zeros(7, 4), w_hh)[0].sum())).trace(zeros(7, 7))
    with pytest.raises(NotImplementedError, match=r"^fastbptt\.jax\.rnn: it runs on the CPU alone, got platform cuda"):
        lowered.lower(lowering_platforms=("cuda",))


# --- XLA's interface --------------------------------------------------------------------------------------------------


class Version(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("start", ctypes.c_void_p), ("major", ctypes.c_int), ("minor", ctypes.c_int))


class Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", Version), ("traits", ctypes.c_uint32))


class MetadataExtension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p), ("metadata", ctypes.POINTER(Metadata))
    )  # fmt: skip


class Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("start", ctypes.c_void_p), ("version", Version),
        ("internal", ctypes.c_void_p), ("create_error", ctypes.c_void_p),
    )  # fmt: skip


class CallFrame(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("api", ctypes.POINTER(Api)),
        ("rest", ctypes.c_byte * 256),
    )  # fmt: skip


@pytest.fixture
def introduced():
    """What the handler says of itself to an XLA of a version."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handle = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(CallFrame))(get(xla.handler, None))

    def introduce(major, minor, there=True):
        metadata = Metadata(ctypes.sizeof(Metadata))
        extension = MetadataExtension(ctypes.sizeof(MetadataExtension), 1, None, ctypes.pointer(metadata))
        api = Api(ctypes.sizeof(Api), None, Version(24, None, major, minor))
        frame = CallFrame(ctypes.sizeof(CallFrame), ctypes.addressof(extension), ctypes.pointer(api) if there else None)
        assert handle(ctypes.byref(frame)) is None
        return metadata.version.major, metadata.version.minor

    before = xla.version() or xla.MADE_FOR
    yield introduce
    introduce(*before)


@pytest.mark.parametrize(("of_xla", "answer"), [((0, 3), (0, 3)), ((0, 1), (0, 1)), ((0, 9), (0, 3)), ((1, 0), (0, 3))])
def test_the_handler_introduces_itself(introduced, of_xla, answer):
    assert introduced(*of_xla) == answer and xla.version() == of_xla


def test_an_xla_that_does_not_introduce_itself(introduced):
    """As those of 0.1 do not."""
    assert introduced(0, 9, there=False) == (0, 1) == xla.version()


def test_an_unknown_major_version(introduced, monkeypatch, tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 1\n\n#define XLA_FFI_API_MINOR 4\n")
    with monkeypatch.context() as patch:
        patch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
        with pytest.raises(ImportError, match=r"expected version 0\.x of XLA's foreign function interface, but jaxlib .* has 1\.4"):
            target.register()
    introduced(2, 0)
    with pytest.raises(ImportError, match=r"has 2\.0"):
        jax.jit(lambda x: fastbptt.jax.rnn(x, None, zeros(7, 4), zeros(7, 7))).trace(zeros(6, 3, 4)).lower()


def test_the_installed_version():
    fastbptt.jax.rnn(zeros(5, 3, 4), None, zeros(7, 4), zeros(7, 7))
    assert target.installed_version() == xla.version()


def test_fewer_or_more_threads(threads):
    """Fewer than when a program was compiled, or more: the same bits, in the memory that it has."""
    problem = random_problem("lstm", 50, 32, 16, 48)
    moving, fixed = arguments_of(problem)
    expected = from_functions(problem)

    def both(moving):
        results, back = jax.vjp(lambda moving: fastbptt.jax.lstm(**moving, **fixed), moving)
        return results, back((problem.d_out, problem._state(problem.d_state)))[0]

    for first, then in ((1, 3), (3, 1)):
        threads(first)
        compiled = jax.jit(both).lower(moving).compile()
        threads(then)
        (out, _), gradients = compiled(moving)
        assert_same_bits("out", np.asarray(out), expected["out"])
        assert_same_bits("w_hh", np.asarray(gradients["w_hh"]), expected["d_w_hh"])


@pytest.mark.parametrize("n", [1, 2])
def test_subnormal_numbers(n, threads):
    """XLA's threads flush them to 0, and ours and theirs together did so here and there."""
    threads(n)
    arguments = [zeros(160, 64, 4), np.ones((64, 64)), np.ones((64, 4)), np.eye(64) / 2]
    arguments = [array.astype(np.float32) for array in arguments]
    run = jax.jit(partial(fastbptt.jax.rnn, nonlinearity="identity"))
    expected, _, tape = fastbptt.rnn_forward(*arguments, nonlinearity="identity")
    gradients = fastbptt.rnn_backward(tape, None, np.ones((64, 64), np.float32))
    assert (expected[140] > 0).all()
    for _ in range(3):
        assert_same_bits("out", np.asarray(run(*arguments)[0]), expected)
        got = jax.grad(lambda x, *others: run(x, *others)[1].sum())(*arguments)
        assert_same_bits("dx", np.asarray(got), gradients.x)
    two = jnp.float32(2.0) ** -100
    assert not jax.jit(lambda a: a * a * 2.0**60)(two).any(), "XLA's own numbers are as ever"


def test_from_many_threads():
    problems = [random_problem("gru", 30, 8, 8, 20, seed=seed) for seed in range(4)]
    run = jax.jit(lambda x, *weights: fastbptt.jax.gru(x, None, *weights)[0])

    def outputs(problem):
        return [np.asarray(run(problem.x, *[getattr(problem, name) for name in WEIGHTS])) for _ in range(5)]

    with ThreadPoolExecutor(4) as threads:
        for problem, outs in zip(problems, threads.map(outputs, problems)):
            problem.state = None
            for out in outs:
                assert_same_bits("out", out, problem.forward(fastbptt)[0])


@pytest.mark.skipif(not PAGE.exists(), reason="this is not a checkout")
def test_the_example_of_the_page():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "assert " in code
    exec(code, {})


def test_without_jax():
    code = "import sys; sys.modules['jax'] = None\ntry:\n    import fastbptt.jax\nexcept ImportError as error:\n    print(error)"
    assert run_python(code).startswith("fastbptt.jax needs JAX, which is not installed: pip install")


def test_it_is_imported_on_request_alone():
    code = "import sys, fastbptt; print(any('xla' in name or name.partition('.')[0] == 'jax' for name in sys.modules))"
    assert run_python(code).strip() == "False"
