"""Bad arguments and faults: each ends in an exception that names the argument, what was expected and what came; never in a crash."""

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from problems import CELLS, GATED, PLAIN, arrays_of, assert_results_same_bits, histories, random_problem
from processes import run_python
from tolerances import DTYPES

import fastbptt
from fastbptt import cells

OPTIONAL = ("h0", "b_ih", "b_hh", "d_out", "d_state")


class Call:
    """The arguments of one cell's two functions in one precision, by the names that errors give them; each may be changed."""

    def __init__(self, cell, dtype):
        self.problem = p = random_problem(cell, dtype=dtype)  # T=5, B=3, I=4, H=7
        self.prefix, self.dtype, self.gates = p.cell.prefix, np.dtype(dtype), p.cell.gates
        names = ("h0", "d_state") if p.cell.states == 1 else ("state", "d_state")
        initial, final = ({name: part[0]} if p.cell.states == 1 else {f"{name}[{i}]": array for i, array in enumerate(part)}
                          for name, part in zip(names, (p.state, p.d_state)))  # fmt: skip
        self.forward_arguments = {"x": p.x, **initial, "w_ih": p.w_ih, "w_hh": p.w_hh, "b_ih": p.b_ih, "b_hh": p.b_hh}
        if p.cell.leak:
            self.forward_arguments["leak"] = p.leak
        self.backward_arguments = {"d_out": p.d_out, **final}

    def __repr__(self):
        return f"{self.prefix}-{self.dtype}"

    def forward(self, **changes):
        return getattr(fastbptt, f"{self.prefix}_forward")(**paired(self.forward_arguments | changes))

    def backward(self, tape=None, **changes):
        return getattr(fastbptt, f"{self.prefix}_backward")(tape or self.forward()[2], **paired(self.backward_arguments | changes))

    def with_(self, name, value):
        return self.backward(**{name: value}) if name in self.backward_arguments else self.forward(**{name: value})

    def good(self, name):
        return (self.forward_arguments | self.backward_arguments)[name]

    @property
    def names(self):
        return [*self.forward_arguments, *self.backward_arguments]


def paired(arguments):
    """What is called state[0] and state[1] as one argument, a pair."""
    pairs = {name[:-3]: (array, arguments[f"{name[:-3]}[1]"]) for name, array in arguments.items() if name.endswith("[0]")}
    return {name: array for name, array in arguments.items() if not name.endswith("]")} | pairs


CALLS = [Call(cell, dtype) for cell in PLAIN for dtype in DTYPES]
RNN = CALLS[0]
GOOD, FORWARD, BACKWARD = RNN.problem, RNN.forward_arguments, RNN.backward_arguments
forward, backward, call, good = RNN.forward, RNN.backward, RNN.with_, RNN.good

EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=repr)
EVERY_ARGUMENT = pytest.mark.parametrize(("call", "name"), [(call, name) for call in CALLS for name in call.names], ids=str)


# --- 1: things that are no arrays -------------------------------------------------------------------------------------


class ArrayLike:
    def __array__(self, *_, **__):
        return np.ones(3)


@EVERY_ARGUMENT
@pytest.mark.parametrize(
    "thing",
    [[1.0], (), "array", 3, 2.5, b"bytes", {}, ArrayLike(), np.float64(2), memoryview(b"x"), object()],
    ids=lambda v: type(v).__name__,
)
def test_no_array(call, name, thing):
    with pytest.raises(TypeError, match=f"^{re.escape(name)}: expected a NumPy array, got "):
        call.with_(name, thing)


@EVERY_CALL
@pytest.mark.parametrize("name", ["x", "w_ih", "w_hh"])
def test_none_where_an_array_is_due(call, name):
    with pytest.raises(TypeError, match=f"^{name}: expected a NumPy array, got NoneType$"):
        call.with_(name, None)


@EVERY_ARGUMENT
def test_a_torch_tensor(call, name, torch):
    with pytest.raises(TypeError, match=f"^{re.escape(name)}: expected a NumPy array, got Tensor"):
        call.with_(name, torch.from_numpy(call.good(name)))


# --- 2: shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (5, 3, 5), r"\(5, 3, 4\)"),
        ("x", (5, 3), r"\(T, B, 4\)"),
        ("x", (4,), r"\(T, B, 4\)"),
        ("x", (), r"\(T, B, 4\)"),
        ("x", (5, 3, 4, 1), r"\(T, B, 4\)"),
        ("x", (5, 3, 0), r"\(5, 3, 4\)"),
        ("h0", (7, 3), r"\(3, 7\)"),
        ("h0", (1, 3, 7), r"\(3, 7\)"),
        ("h0", (7,), r"\(3, 7\)"),
        ("h0", (), r"\(3, 7\)"),
        ("w_ih", (4, 7), r"\(7, I\)"),
        ("w_ih", (14, 4), r"\(7, I\)"),
        ("w_ih", (7,), r"\(7, I\)"),
        ("w_ih", (7, 0), r"\(7, I\) with I >= 1"),
        ("w_ih", (7, 4, 1), r"\(7, I\)"),
        ("w_hh", (7, 8), r"\(H, H\)"),
        ("w_hh", (14, 7), r"\(H, H\)"),
        ("w_hh", (49,), r"\(H, H\)"),
        ("w_hh", (0, 0), r"\(H, H\) with H >= 1"),
        ("w_hh", (), r"\(H, H\)"),
        ("b_ih", (8,), r"\(7,\)"),
        ("b_ih", (1, 7), r"\(7,\)"),
        ("b_ih", (), r"\(7,\)"),
        ("b_hh", (1,), r"\(7,\)"),
        ("b_hh", (7, 1), r"\(7,\)"),
        ("d_out", (4, 3, 7), r"\(5, 3, 7\)"),
        ("d_out", (3, 5, 7), r"\(5, 3, 7\)"),
        ("d_out", (5, 3, 4), r"\(5, 3, 7\)"),
        ("d_out", (5, 21), r"\(5, 3, 7\)"),
        ("d_state", (3, 4), r"\(3, 7\)"),
        ("d_state", (1, 3, 7), r"\(3, 7\)"),
        ("d_state", (21,), r"\(3, 7\)"),
    ],
    ids=str,
)
def test_shapes(name, shape, expected):
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"^{name}: expected .*{expected}.*, got .*{got}"):
        call(name, np.zeros(shape))


@EVERY_CALL
def test_wrong_numbers_of_gates(call):
    """In particular those of another cell; the message says how many gates are expected."""
    G, H = call.gates, 7
    for gates in {1, 2, 3, 4, 5} - {G}:
        expected = rf"({'' if G == 1 else f'{G}*'}H, H) with H >= 1, got ({gates * H}, {H})"
        with pytest.raises(ValueError, match=f"^{re.escape(f'w_hh: expected shape {expected}')}"):
            call.forward(w_hh=np.zeros((gates * H, H), call.dtype))
        with pytest.raises(ValueError, match=rf"^w_ih: expected shape \({G * H}, I\) .* got \({gates * H}, 4\)"):
            call.forward(w_ih=np.zeros((gates * H, 4), call.dtype))
        for name in ("b_ih", "b_hh"):
            with pytest.raises(ValueError, match=rf"^{name}: expected shape \({G * H},\), got \({gates * H},\)"):
                call.with_(name, np.zeros(gates * H, call.dtype))
    with pytest.raises(ValueError, match=r"^w_hh: expected shape"):
        call.forward(w_hh=np.zeros((H, G * H + 1), call.dtype))


@EVERY_CALL
def test_shapes_of_the_arguments_of_each_cell(call):
    """One row, one unit or one step too many, or an axis missing."""
    for name in call.names:
        right = call.good(name)
        for axis in range(right.ndim):
            shape = [n + (i == axis) for i, n in enumerate(right.shape)]
            if (name, axis) in {("x", 0), ("x", 1), ("w_ih", 1)}:
                continue  # then it is another that does not fit
            with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected shape .*, got .*{re.escape(str(tuple(shape)))}"):
                call.with_(name, np.zeros(shape, call.dtype))
        with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected shape"):
            call.with_(name, np.zeros(right.shape[1:], call.dtype))
        with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected shape"):
            call.with_(name, np.zeros((1, *right.shape), call.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "state",
    [
        lambda h, c: h,
        lambda h, c: np.stack([h, c]),
        lambda h, c: (h,),
        lambda h, c: (h, c, c),
        lambda h, c: (),
        lambda h, c: {"h": h, "c": c},
        lambda h, c: "hc",
        lambda h, c: 2,
        lambda h, c: iter((h, c)),
    ],
    ids=["an array", "a stacked array", "one", "three", "empty", "dict", "string", "number", "iterator"],
)
def test_the_state_of_an_lstm_is_a_pair(state, dtype):
    problem = random_problem("lstm", dtype=dtype)
    weights = problem.w_ih, problem.w_hh
    with pytest.raises(TypeError, match=r"^state: expected a pair of arrays or None, got "):
        fastbptt.lstm_forward(problem.x, state(*problem.state), *weights)
    out, _, tape = fastbptt.lstm_forward(problem.x, None, *weights)
    with pytest.raises(TypeError, match=r"^d_state: expected a pair of arrays or None, got "):
        fastbptt.lstm_backward(tape, out, state(*problem.d_state))


@pytest.mark.parametrize("cell", [cell for cell in PLAIN if CELLS[cell].states == 1])
def test_the_state_of_the_others_is_not(cell):
    problem = random_problem(cell)
    pair = (problem.state[0],) * 2
    with pytest.raises(TypeError, match=r"^h0: expected a NumPy array, got tuple"):
        getattr(fastbptt, f"{problem.cell.prefix}_forward")(problem.x, pair, problem.w_ih, problem.w_hh)
    _, _, tape = problem.forward(fastbptt)
    with pytest.raises(TypeError, match=r"^d_state: expected a NumPy array, got tuple"):
        getattr(fastbptt, f"{problem.cell.prefix}_backward")(tape, None, pair)


def test_no_units_and_no_inputs():
    with pytest.raises(ValueError, match=r"^w_hh: expected shape \(H, H\) with H >= 1, got \(0, 0\)"):
        forward(w_hh=np.zeros((0, 0)), w_ih=np.zeros((0, 4)), h0=None, b_ih=None, b_hh=None)
    with pytest.raises(ValueError, match=r"^w_ih: expected shape \(7, I\) with I >= 1"):
        forward(w_ih=np.zeros((7, 0)), x=np.zeros((5, 3, 0)))


# --- 3: types of elements ---------------------------------------------------------------------------------------------

WRONG = [np.float16, np.longdouble, np.int64, np.uint8, np.complex128, np.bool_, object, "U3", "M8[s]", ">f8", ">f4", [("re", float)]]


@EVERY_ARGUMENT
@pytest.mark.parametrize("dtype", WRONG, ids=str)
def test_dtypes(call, name, dtype):
    if name == "x" and np.dtype(dtype).kind in "iu":
        pytest.skip("integers are tokens")
    expected = "float64 or float32 in native byte order" if name == "w_ih" else f"{call.dtype} like the other arrays of this call"
    with pytest.raises(TypeError, match=f"^{re.escape(name)}: expected dtype {expected}, got"):
        call.with_(name, np.zeros(call.good(name).shape, dtype))


@EVERY_ARGUMENT
def test_mixed_precision(call, name):
    """w_ih sets the precision; if it is the one that differs, the first of the others is named."""
    other = next(dtype for dtype in DTYPES if dtype != call.dtype)
    culprit, right, wrong = ("x", other, call.dtype) if name == "w_ih" else (re.escape(name), call.dtype, other)
    with pytest.raises(TypeError, match=f"^{culprit}: expected dtype {right} like the other arrays of this call, got {wrong}$"):
        call.with_(name, call.good(name).astype(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_precision_of_a_leak_for_each_unit(dtype):
    call = Call("leaky-relu-units", dtype)
    other = next(d for d in DTYPES if d != dtype)
    with pytest.raises(TypeError, match=f"^leak: expected dtype {dtype} like the other arrays of this call, got {other}$"):
        call.forward(leak=call.good("leak").astype(other))


@EVERY_CALL
def test_mixed_precision_elsewhere(call):
    other = next(dtype for dtype in DTYPES if dtype != call.dtype)
    right, wrong = np.ones(3, call.dtype), np.ones(3, other)
    for clip in (fastbptt.clip_grad_norm_, fastbptt.clip_grad_value_):
        with pytest.raises(TypeError, match=rf"^grads\[1\]: expected dtype {call.dtype} like the first, got {other}$"):
            clip([right, wrong], 0.5)
    assert (right == 1).all() and (wrong == 1).all()
    with pytest.raises(TypeError, match=rf"^grads\[0\]: expected dtype {call.dtype} like the other arrays of this call, got {other}$"):
        fastbptt.SGD(right, lr=0.1).step(wrong)
    layer = fastbptt.Linear(4, 7, dtype=call.dtype)
    with pytest.raises(TypeError, match=f"^x: expected dtype {call.dtype}.*, got {other}$"):
        layer(np.ones((2, 4), other))
    y = layer(np.ones((2, 4), call.dtype))
    with pytest.raises(TypeError, match=f"^d_out: expected dtype {call.dtype}.*, got {other}$"):
        layer.backward(y.astype(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestLeak:
    @pytest.mark.parametrize("value", [0, 0.0, -0.1, -1, 1.0000001, 2, np.nan, np.inf, -np.inf, np.float32(-0.5), -0.0])
    def test_out_of_range(self, value, dtype):
        with pytest.raises(ValueError, match=r"^leak: expected a number above 0 and at most 1, got "):
            Call("leaky-tanh", dtype).forward(leak=value)
        with pytest.raises(ValueError, match=r"^leak: expected a number above 0 and at most 1, got "):
            fastbptt.RNN(4, 7, leak=value, dtype=dtype)

    @pytest.mark.parametrize("value", [0.0, -0.5, 1.001, np.nan, np.inf])
    @pytest.mark.parametrize("unit", [0, 6])
    def test_one_unit_out_of_range(self, unit, value, dtype):
        leak = np.full(7, 0.5, dtype)
        leak[unit] = value
        with pytest.raises(ValueError, match=r"^leak: expected numbers above 0 and at most 1"):
            Call("leaky-tanh", dtype).forward(leak=leak)
        with pytest.raises(ValueError, match=r"^leak: expected numbers above 0 and at most 1"):
            fastbptt.RNN(4, 7, leak=leak, dtype=dtype)

    @pytest.mark.parametrize("shape", [(1,), (6,), (8,), (1, 7), (3, 7), (7, 1), (0,)], ids=str)
    def test_shapes(self, shape, dtype):
        with pytest.raises(ValueError, match=rf"^leak: expected shape \(7,\), got {re.escape(str(shape))}"):
            Call("leaky-tanh", dtype).forward(leak=np.full(shape, 0.5, dtype))

    @pytest.mark.parametrize("value", ["0.5", [0.5] * 7, (0.5,), True, 0.5j, b"1", {}, object()], ids=lambda v: type(v).__name__)
    def test_types(self, value, dtype):
        with pytest.raises(TypeError, match=r"^leak: expected "):
            Call("leaky-tanh", dtype).forward(leak=value)

    @pytest.mark.parametrize("wrong", [np.float16, np.longdouble, np.int64, np.bool_, complex, object], ids=str)
    def test_dtypes(self, wrong, dtype):
        with pytest.raises(TypeError, match=f"^leak: expected dtype {dtype} like the other arrays of this call, got"):
            Call("leaky-tanh", dtype).forward(leak=np.ones(7, wrong))

    def test_a_masked_array(self, dtype):
        with pytest.raises(TypeError, match=r"^leak: expected a plain NumPy array, got a masked one"):
            Call("leaky-tanh", dtype).forward(leak=np.ma.masked_array(np.full(7, 0.5, dtype)))

    def test_a_tiny_leak_does_no_harm(self, dtype):
        for tiny in (np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal):
            out, _, _ = Call("leaky-tanh", dtype).forward(leak=float(tiny))
            np.testing.assert_allclose(out[-1], random_problem("leaky-tanh", dtype=dtype).state[0], rtol=1e-6)


def test_a_leak_that_rounds_to_zero():
    for run in (lambda leak: Call("leaky-tanh", np.float32).forward(leak=leak), lambda leak: fastbptt.RNN(4, 7, leak=leak, dtype="f4")):
        with pytest.raises(ValueError, match=r"^leak: expected a number above 0 in float32, got 1e-50$"):
            run(1e-50)


@pytest.mark.parametrize("cell", GATED)
def test_options_of_the_rnn_alone(cell):
    call = Call(cell, np.float64)
    for option in ({"leak": 0.5}, {"nonlinearity": "tanh"}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            call.forward(**option)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (np.full((5, 3), 4), IndexError, "^x: expected tokens from 0 to 3, got 4$"),
        (np.full((5, 3), -1), IndexError, "^x: expected tokens from 0 to 3, got -1$"),
        (np.full((5, 3), 2**64 - 1, np.uint64), IndexError, "^x: expected tokens from 0 to 3, got 18446744073709551615$"),
        (np.full((5, 3), -(2**63)), IndexError, "^x: expected tokens from 0 to 3, got -9223372036854775808$"),
        (np.zeros((5, 3, 4), int), ValueError, r"^x: expected tokens of shape \(T, B\), got \(5, 3, 4\)"),
        (np.zeros(5, int), ValueError, r"^x: expected tokens of shape \(T, B\), got \(5,\)"),
        (np.zeros((5, 3), bool), (TypeError, ValueError), "^x: expected "),
        (np.ma.masked_array(np.zeros((5, 3), int)), TypeError, "^x: expected a plain NumPy array"),
    ],
)
@EVERY_CALL
def test_tokens(call, tokens, error, message):
    with pytest.raises(error, match=message):
        call.forward(x=tokens)


# --- 7, 8: overlaps and subclasses ------------------------------------------------------------------------------------


def test_one_array_as_two_arguments_is_fine():
    w = GOOD.w_hh
    square = random_problem("rnn-tanh", I=7)
    expected = replace(square, w_ih=w.copy(), w_hh=w.copy(), b_ih=GOOD.b_ih.copy(), b_hh=GOOD.b_ih.copy()).results(fastbptt)
    assert_results_same_bits(replace(square, w_ih=w, w_hh=w, b_ih=GOOD.b_ih, b_hh=GOOD.b_ih).results(fastbptt), expected)


def test_out_as_its_own_gradient():
    out, _, tape = forward()
    assert_results_same_bits(backward(tape, d_out=out)._asdict(), backward(tape, d_out=out.copy())._asdict())


@EVERY_ARGUMENT
def test_masked_arrays(call, name):
    message = f"{name}: expected a plain NumPy array, got a masked one; fill it first, e.g. {name}.filled(0)"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call.with_(name, np.ma.masked_array(call.good(name)))


class Liar(np.ndarray):
    """An array whose Python attributes are not those of its memory."""

    shape = property(lambda self: (500, 300, 70))
    ndim = property(lambda self: 3)
    size = property(lambda self: 10**9)
    dtype = property(lambda self: np.dtype(np.float32))
    flags = property(lambda self: np.zeros(1).flags)


@EVERY_ARGUMENT
def test_the_attributes_of_a_subclass_are_not_believed(call, name):
    assert_results_same_bits(call_results(call, **{name: call.good(name).view(Liar)}), call_results(call))


def call_results(call, **changes):
    forward = {name: value for name, value in changes.items() if name in call.forward_arguments}
    out, _, tape = call.forward(**forward)
    return {"out": out} | flattened(call.backward(tape, **{name: value for name, value in changes.items() if name not in forward}))


LIARS = """
import fastbptt, numpy as np
from test_bad_input import Liar
def lie(*shape, dtype=float): return np.ones(shape, dtype).view(Liar)
x, w, u = np.ones((5, 3, 4)), np.ones((7, 4)), np.eye(7)
out, _, tape = fastbptt.rnn_forward(lie(5, 3, 4), lie(3, 7), lie(7, 4), lie(7, 7), lie(7), lie(7), leak=lie(7))
right = fastbptt.rnn_forward(x, np.ones((3, 7)), w, np.ones((7, 7)), np.ones(7), np.ones(7), leak=np.ones(7))[0]
np.testing.assert_array_equal(out, right)
fastbptt.rnn_backward(tape, lie(5, 3, 7), lie(3, 7))
layer, readout = fastbptt.RNN(4, 7), fastbptt.Linear(7, 2)
out, state = layer(lie(5, 3, 4), lie(1, 3, 7))
layer.backward(lie(5, 3, 7), lie(1, 3, 7))
readout.backward(np.ones_like(readout(lie(5, 3, 7))))
assert layer.flat_grads.any() and readout.flat_grads.any()
layer.load_state_dict({name: p.view(Liar) for name, p in layer.params.items()})
fastbptt.softmax_cross_entropy(lie(5, 3, 4), lie(5, 3, dtype=int), mask=lie(5, 3, dtype=bool))
for clip in (fastbptt.clip_grad_norm_, fastbptt.clip_grad_value_):
    g = lie(5, 3)
    clip([np.ones(3), g], 0.5)
    assert (np.asarray(g) < 1).all()
assert fastbptt.total_norm(lie(100)) == 10
for make in (fastbptt.SGD, fastbptt.RMSprop, fastbptt.Adam):
    p = lie(5, 3)
    optimiser = make(p, lr=0.1)
    optimiser.step(lie(5, 3))
    assert (np.asarray(p) < 1).all()
    optimiser.load_state_dict({name: np.asarray(a).view(Liar) if a.ndim else a for name, a in optimiser.state_dict().items()})
reader = fastbptt.TruncatedBPTT(layer, 5)
reader.forward(lie(5, 3, 4))
reader.backward(lie(5, 3, 7))
"""


def test_subclasses_that_lie_about_themselves():
    run_python(LIARS)


# --- 11: sizes --------------------------------------------------------------------------------------------------------


def huge(*shape, dtype=float):
    """An array of any size in eight bytes."""
    return np.broadcast_to(np.zeros(1, dtype), shape)


@pytest.mark.parametrize(
    "changes",
    [
        {"x": huge(2**40, 2**17, 4), "h0": None},
        {"x": huge(2**20, 2**20, 4), "h0": None},
        {"w_ih": huge(7, 2**50), "x": huge(1, 1, 2**50), "h0": None},
        {"x": np.zeros((0, 2**57, 4)), "h0": None},
        {"x": np.zeros((0, 2**57, 4)), "h0": huge(2**57, 7)},
    ],
    ids=range(5),
)
def test_sizes_beyond_memory(changes):
    with pytest.raises((MemoryError, ValueError)):
        forward(**changes)


def test_a_long_sequence_of_no_rows():
    out, h_n, tape = forward(x=np.zeros((2**40, 0, 4)), h0=None)
    assert out.shape == (2**40, 0, 7) and h_n.shape == (0, 7)
    assert fastbptt.rnn_backward(tape, out).x.shape == (2**40, 0, 4)


def test_tokens_beyond_memory_end_at_once():
    code = """
import fastbptt, numpy as np
w = np.ones((7, 7))
try: fastbptt.rnn_forward(np.broadcast_to(np.zeros(1, int), (2**40, 1)), None, w, w)
except (MemoryError, ValueError): pass
else: raise SystemExit("no error")
"""
    run_python(code)


# --- 13: NaN and infinity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "state", "d_out", "d_state"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(6, 9, 4, 7), (40, 20, 30, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nonfinite_row_stays_in_its_row(cell, where, bad, shape, dtype):
    clean = random_problem(cell, *shape, dtype=dtype)
    expected = clean.results(fastbptt)
    row, step = 5, 3
    dirty = copy.deepcopy(clean)
    array = getattr(dirty, where)
    (array[0][row] if isinstance(array, tuple) else array[step, row])[1] = bad
    got = dirty.results(fastbptt)
    others = np.arange(shape[1]) != row
    for name in ("out", "d_x"):
        np.testing.assert_array_equal(got[name][:, others], expected[name][:, others], err_msg=name)
    for name in (f"{name} {i}" for name in ("final state", "d_initial_state") for i in range(CELLS[cell].states)):
        np.testing.assert_array_equal(got[name][others], expected[name][others], err_msg=name)
    if where == "x":
        np.testing.assert_array_equal(got["out"][:step], expected["out"][:step])
    if where == "d_out":
        np.testing.assert_array_equal(got["d_x"][step + 1 :], expected["d_x"][step + 1 :])
    if np.isnan(bad) and CELLS[cell].options.get("nonlinearity") != "relu":  # a unit at rest lets no gradient through, NaN neither
        assert np.isnan(got["d_w_hh"]).any()
        assert np.isnan(got["out"]).any() == (where in ("x", "state"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nonfinite_weights_neither_hang_nor_trap(cell, name, bad, dtype):
    problem = copy.deepcopy(random_problem(cell, 40, 20, 30, 33, dtype=dtype))
    getattr(problem, name).flat[0] = bad
    got = problem.results(fastbptt)
    if np.isnan(bad) and CELLS[cell].options.get("nonlinearity") != "relu":
        assert np.isnan(got["out"][-1]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nonfinite_states_are_those_of_the_reference(cell, dtype):
    problem = copy.deepcopy(random_problem(cell, dtype=dtype))
    problem.x[1, 0, 2], problem.x[2, 1, 0], problem.x[1, 2, 3] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        expected = problem.astype(float).forward(fastbptt.reference)[0]
    np.testing.assert_allclose(problem.forward(fastbptt)[0], expected, rtol=500 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)


# --- 14, 16: exploding and vanishing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_exploding_net_overflows_to_infinity_or_nan(dtype):
    problem = random_problem("rnn-identity", T=4000, B=2, I=2, H=3, gain=5, dtype=dtype)
    got = problem.results(fastbptt)
    assert not np.isfinite(got["out"][-1]).any() and not np.isfinite(got["d_w_hh"]).all()


def powers(dtype, T):
    """1/2, 1/4 ... down through the subnormal numbers to 0, and how many of them are not 0."""
    expected = np.ldexp(1.0, -np.arange(1, T + 1)).astype(dtype)
    lowest = {8: 1074, 4: 149}[dtype.itemsize]
    assert (expected > 0).sum() == lowest < T - 5
    return expected, lowest


SUBNORMAL = pytest.mark.parametrize(("dtype", "T"), list(zip(sorted(DTYPES, key=str), [160, 1100])), ids=str)


@SUBNORMAL
@pytest.mark.parametrize("way", ["weights", "leak", "leak for each unit"])
@pytest.mark.parametrize("H", [1, 7, 16, 150])
def test_subnormal_states_are_exact(H, way, dtype, T):
    """h_t = h_{t-1} / 2 runs down through all subnormal numbers, and so does the gradient on its way back."""
    h0 = np.ones((2, H), dtype)
    leak = {"weights": None, "leak": 0.5, "leak for each unit": np.full(H, 0.5, dtype)}[way]
    w_hh = np.eye(H, dtype=dtype) / 2 if leak is None else np.zeros((H, H), dtype)
    x, w_ih = np.zeros((T, 2, 1), dtype), np.zeros((H, 1), dtype)
    out, _, tape = fastbptt.rnn_forward(x, h0, w_ih, w_hh, nonlinearity="identity", leak=leak)
    expected, lowest = powers(dtype, T)
    np.testing.assert_array_equal(out, np.broadcast_to(expected[:, None, None], out.shape))
    for steps in (lowest - 74, lowest - 14, lowest, lowest + 1):
        grads = fastbptt.rnn_backward(tape.last(steps), None, h0)
        np.testing.assert_array_equal(grads.state, np.full((2, H), expected[steps - 1]))


@SUBNORMAL
@pytest.mark.parametrize("H", [1, 7, 16])
@pytest.mark.parametrize("cell", GATED)
def test_subnormal_states_of_gated_cells_are_exact(cell, H, dtype, T):
    """Without weights z of a GRU and f of an LSTM are 1/2, and nothing is added: the state that they keep is halved at every step."""
    G, row = CELLS[cell].gates, CELLS[cell].row
    x, w_ih, w_hh = np.zeros((T, 2, 1), dtype), np.zeros((G * H, 1), dtype), np.zeros((G * H, H), dtype)
    one = np.ones((2, H), dtype)
    only_kept = row.state([None] * (len(row.states) - 1) + [one])  # h, or c
    expected, lowest = powers(dtype, T)
    _, _, tape = getattr(fastbptt, f"{cell}_forward")(x, only_kept, w_ih, w_hh)
    kept = histories(tape)[-1]
    if tape.c is not None:
        with np.errstate(under="ignore"):
            np.testing.assert_allclose(tape.h[1:], 0.5 * np.tanh(tape.c[1:]), rtol=1e-6, atol=2 * np.finfo(dtype).smallest_subnormal)
    np.testing.assert_array_equal(kept[1:], np.broadcast_to(expected[:, None, None], kept[1:].shape))
    for steps in (lowest - 74, lowest - 14, lowest, lowest + 1):
        gradient = arrays_of(getattr(fastbptt, f"{cell}_backward")(tape.last(steps), None, only_kept).state)[-1]
        np.testing.assert_array_equal(gradient, np.full((2, H), expected[steps - 1]))


@SUBNORMAL
@pytest.mark.parametrize("H", [5, 33])
def test_a_decaying_net_is_that_of_the_reference(H, dtype, T):
    """Rounding to the grid of the subnormal numbers is the same in one precision, element by element, since nothing is added up."""
    rng = np.random.default_rng(0)
    decay = rng.uniform(0.3, 0.7, H).astype(dtype)
    h0, d = rng.standard_normal((3, H)).astype(dtype), rng.standard_normal((3, H)).astype(dtype)
    arguments = np.zeros((T, 3, 1), dtype), h0, np.zeros((H, 1), dtype), np.diag(decay)
    got, _, tape = fastbptt.rnn_forward(*arguments, nonlinearity="identity")
    expected, _, their_tape = fastbptt.reference.rnn_forward(*arguments, nonlinearity="identity")
    assert ((np.abs(expected) > 0) & (np.abs(expected) < np.finfo(dtype).tiny)).any()
    np.testing.assert_array_equal(got, expected)
    for steps in range(T // 3, T, T // 7):
        mine = fastbptt.rnn_backward(tape.last(steps), None, d)
        _, _, their_tape = fastbptt.reference.rnn_forward(np.zeros((steps, 3, 1), dtype), h0, *arguments[2:], nonlinearity="identity")
        np.testing.assert_array_equal(mine.state, fastbptt.reference.rnn_backward(their_tape, None, d).state)


# --- 21, 22: what happens between forward and backward ----------------------------------------------------------------


@EVERY_CALL
def test_an_array_resized_between_forward_and_backward(call):
    N = call.gates * 7
    for name, shapes in {
        "x": [(5, 3, 5), (1, 3, 4), (0, 0, 0), (60,), (500, 30, 4)],
        "w_ih": [(N, 5), (1, 1), (N * 4,), (N - 1, 4)],
        "w_hh": [(N, 1), (1, 1), (N * 7,), (N + 7, 7), (70, 70)],
    }.items():
        for shape in shapes:
            arrays = {key: value.copy() for key, value in call.forward_arguments.items()}
            _, _, tape = call.forward(**arrays)
            arrays[name].resize(shape, refcheck=False)
            message = r"^tape: an array of the forward pass was reshaped or resized before the backward pass$"
            with pytest.raises(RuntimeError, match=message):
                call.backward(tape)


TAPES = pytest.mark.parametrize(
    "call", [Call(cell, dtype) for cell in ("leaky-tanh", "leaky-relu-units", *PLAIN) for dtype in DTYPES], ids=repr
)


@TAPES
@pytest.mark.parametrize("name", ["h", "c", "gates", "m", "leak", "x", "w_ih", "w_hh"])
def test_an_array_of_the_tape_resized(call, name):
    """NumPy lets whoever owns an array's memory do so, even to a read-only array."""
    array = getattr(call.forward()[2], name)
    if array is None:
        pytest.skip("this cell has none")
    shape = array.shape
    for other in {(1,) * len(shape), (*shape[:-1], 1), tuple(reversed(shape)), (4000, *shape[1:]), (0,), ()} - {shape}:
        _, _, tape = call.forward(**{key: value.copy() for key, value in call.forward_arguments.items() if isinstance(value, np.ndarray)})
        getattr(tape, name).resize(other, refcheck=False)
        with pytest.raises(RuntimeError, match=r"^tape: an array of the forward pass was reshaped or resized before the backward pass$"):
            call.backward(tape)


@TAPES
def test_a_tape_cannot_be_given_other_arrays(call):
    _, _, tape = call.forward()
    expected = call.backward(tape)
    for name in ("cell", "shape", "nonlinearity", "x", "w_ih", "w_hh", "b_ih", "b_hh", "leak", "h", "c", "gates", "m"):
        before = getattr(tape, name)
        for value in (None, "rnn", (1, 1, 1), np.zeros((1, 1, 1)), before):
            with pytest.raises(AttributeError):
                setattr(tape, name, value)
        with pytest.raises(AttributeError):
            delattr(tape, name)
        assert getattr(tape, name) is before
    with pytest.raises(AttributeError):
        tape.another = 1
    assert_results_same_bits(flattened(call.backward(tape)), flattened(expected))


def flattened(grads):
    """Gradients by name; those of an LSTM's state one by one."""
    named = grads._asdict()
    state = named.pop("state")
    return named | ({"state": state} if isinstance(state, np.ndarray) else {f"state {i}": part for i, part in enumerate(state)})


@TAPES
@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda tape: pickle.loads(pickle.dumps(tape)), copy.copy], ids=["deep", "pickle", "copy"]
)
def test_a_copy_of_a_tape(call, copy_of):
    for changes in ({}, {"x": np.arange(15).reshape(5, 3) % 4}):
        _, _, tape = call.forward(**changes)
        for part in (tape, tape.last(3)):
            d_out = call.good("d_out")[: len(part)]
            assert_results_same_bits(flattened(call.backward(copy_of(part), d_out=d_out)), flattened(call.backward(part, d_out=d_out)))


@pytest.mark.parametrize("integer", [np.int64, np.int32])
def test_tokens_belong_to_the_tape(integer):
    """They are copied: later changes of the caller's array have no effect."""
    for change in (lambda tokens: tokens.fill(3), lambda tokens: tokens.resize((2, 3), refcheck=False), lambda tokens: tokens.fill(99)):
        tokens = (np.arange(15).reshape(5, 3) % 4).astype(integer)
        _, _, tape = forward(x=tokens)
        expected = backward(tape)
        change(tokens)
        assert_results_same_bits(backward(tape)._asdict(), expected._asdict())


@EVERY_CALL
def test_tokens_on_the_tape_cannot_be_written_to(call):
    _, _, tape = call.forward(x=np.arange(15).reshape(5, 3) % 4)
    for tokens in (tape.x, tape.last(3).x):
        with pytest.raises(ValueError, match="read-only"):
            tokens[...] = 10**9
        with pytest.raises(ValueError, match="WRITEABLE"):
            tokens.flags.writeable = True
        with pytest.raises(ValueError, match="own"):
            tokens.resize((500, 3), refcheck=False)


@EVERY_CALL
@pytest.mark.parametrize("token", [4, -1, 10**9, -(2**63)])
def test_tokens_on_the_copy_of_a_tape(call, token):
    _, _, tape = call.forward(x=np.arange(15).reshape(5, 3) % 4)
    other = copy.deepcopy(tape)
    other.x[2, 1] = token
    with pytest.raises(IndexError, match=f"^tape.x: expected tokens from 0 to 3, got {token}$"):
        call.backward(other)


CHANGED_TOKENS = """
import fastbptt, numpy as np
rng = np.random.default_rng(0)
tokens, w_ih, w_hh = rng.integers(0, 10, (50, 4)), rng.standard_normal((64, 10)), rng.standard_normal((64, 64)) / 20
out, _, tape = fastbptt.rnn_forward(tokens, None, w_ih, w_hh)
right = fastbptt.rnn_backward(tape, out)
tokens[3] = {value}
try: grads = fastbptt.rnn_backward(tape, out)
except (IndexError, RuntimeError) as error: assert "x" in str(error) or "token" in str(error), error
else: np.testing.assert_array_equal(grads.w_ih, right.w_ih)
"""


@pytest.mark.parametrize("value", [10, -1, 2**40])
def test_tokens_changed_between_forward_and_backward(value):
    """A reused buffer, or one padded late: an error, or the gradients of the tokens that were read; never a write out of bounds."""
    run_python(CHANGED_TOKENS.format(value=value))


RESIZED_LINEAR = """
import fastbptt, numpy as np
layer = fastbptt.Linear(4000, 3, rng=0)
x = np.ones((50, 4000))
y = layer(x)
x.resize({shape}, refcheck=False)
try: layer.backward(np.ones_like(y))
except (RuntimeError, ValueError): pass
else: raise SystemExit("no error")
assert not layer.flat_grads.any()
"""


@pytest.mark.parametrize("shape", [(50, 2), (50, 8000), (20, 4000), (1,)], ids=str)
def test_the_input_of_a_linear_layer_resized_before_backward(shape):
    run_python(RESIZED_LINEAR.format(shape=shape))


REPLACED_ARRAY = """
import fastbptt, numpy as np
layer = {layer}
x = np.ones((50, 10, next(iter(layer.params.values())).shape[1]))
try: layer.{arrays}[{name!r}] = np.ones({shape})
except TypeError as error: assert str(error).startswith({name!r}), error
else: print("replaced")
result = layer(x)
layer.backward(result[0] if isinstance(result, tuple) else result)
assert layer.flat_grads.any()
"""


@pytest.mark.parametrize("arrays", ["params", "grads"])
@pytest.mark.parametrize(
    ("layer", "name", "shape"),
    [
        ("fastbptt.Linear(4, 3)", "weight", (3000, 4000)),
        ("fastbptt.Linear(300, 200)", "weight", (1, 1)),
        ("fastbptt.Linear(400, 300)", "bias", (1,)),
        ("fastbptt.RNN(4, 7)", "weight_ih_l0", (3000, 4000)),
        ("fastbptt.RNN(4, 7)", "weight_hh_l0", (8, 8)),
        ("fastbptt.GRU(4, 7)", "bias_ih_l0", (1,)),
    ],
)
def test_an_array_of_a_layer_replaced_by_one_of_another_shape(layer, name, shape, arrays):
    assert run_python(REPLACED_ARRAY.format(layer=layer, arrays=arrays, name=name, shape=shape)) == ""


RESHAPED_PARAMETER = """
import fastbptt, numpy as np
layer = fastbptt.Linear(4, 3000)
layer.params["weight"].shape = {shape}
try: layer(np.ones((5, 4)))
except ValueError as error: assert "weight" in str(error), error
else: raise SystemExit("no error")
"""


@pytest.mark.parametrize("shape", [(1, 12_000), (12_000, 1), (12_000,)], ids=str)
def test_a_parameter_reshaped_in_place(shape):
    run_python(RESHAPED_PARAMETER.format(shape=shape))


BACKWARDS = pytest.mark.parametrize("cell", cells.CELLS)


@BACKWARDS
@pytest.mark.parametrize("tape", [None, "tape", 3, (), np.zeros(3), object()], ids=lambda v: type(v).__name__)
def test_no_tape(tape, cell):
    with pytest.raises(TypeError, match=rf"^tape: expected the tape of {cell}_forward, got "):
        getattr(fastbptt, f"{cell}_backward")(tape, GOOD.d_out)


@BACKWARDS
def test_the_tape_of_the_reference(cell):
    with pytest.raises(TypeError, match=rf"^tape: expected the tape of {cell}_forward, got Tape"):
        getattr(fastbptt, f"{cell}_backward")(GOOD.forward(fastbptt.reference)[2], GOOD.d_out)


@BACKWARDS
def test_an_empty_tape(cell):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"^tape: expected the tape of {cell}_forward"):
        getattr(fastbptt, f"{cell}_backward")(fastbptt.Tape(), GOOD.d_out)


@BACKWARDS
def test_the_tape_of_another_cell(cell):
    for call in CALLS:
        if call.prefix != cell:
            with pytest.raises(ValueError, match=rf"^tape: expected the tape of {cell}_forward, got that of {call.prefix}_forward"):
                getattr(fastbptt, f"{cell}_backward")(call.forward()[2], None)


def test_the_tape_of_another_call():
    _, _, tape = random_problem("rnn-tanh", T=6).forward(fastbptt)
    with pytest.raises(ValueError, match=r"^d_out: expected shape \(6, 3, 7\), got \(5, 3, 7\)"):
        fastbptt.rnn_backward(tape, GOOD.d_out)


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [("cosine", ValueError), ("Tanh", ValueError), ("", ValueError), (None, TypeError), (np.tanh, TypeError), ([], TypeError)],
)
def test_nonlinearities(value, error):
    with pytest.raises(error, match=r"^nonlinearity: expected one of 'tanh', 'relu', 'sigmoid', 'identity', got "):
        forward(nonlinearity=value)


def test_unknown_and_missing_arguments():
    for arguments in ({"leek": 0.5}, {"nonlinearitee": "tanh"}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            forward(**arguments)
    with pytest.raises(TypeError, match="required positional argument"):
        fastbptt.rnn_forward(GOOD.x, None, GOOD.w_ih)


def test_show_config(capsys):
    assert fastbptt.show_config() is None
    printed = capsys.readouterr().out
    config = fastbptt.show_config(mode="dicts")
    assert all(name in printed for name in config) and config["isa"] in printed
    with pytest.raises(ValueError, match=r"^mode: expected 'stdout' or 'dicts', got 'json'"):
        fastbptt.show_config("json")


def test_after_all_errors_the_next_call_is_right():
    expected = GOOD.results(fastbptt)
    for name in (*FORWARD, *BACKWARD):
        for bad in (3, np.zeros((2, 2)), np.zeros(good(name).shape, np.float16)):
            with pytest.raises((TypeError, ValueError)):
                call(name, bad)
    assert_results_same_bits(GOOD.results(fastbptt), expected)


# --- Anything at all --------------------------------------------------------------------------------------------------

FUZZ = """
import sys
import numpy as np, fastbptt
seed, count = map(int, sys.argv[1:])
rng = np.random.default_rng(seed)
ALLOWED = (TypeError, ValueError, IndexError, KeyError, RuntimeError, FloatingPointError, MemoryError, OverflowError)
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33]
DTYPES = [float] * 12 + [np.float32, np.float16, np.longdouble, complex, int, np.int8, np.uint64, bool, object, ">f8", "U2", "M8[s]"]

def pick(choices):
    return choices[rng.integers(len(choices))]

def any_array():
    shape = tuple(pick(SIZES) for _ in range(rng.integers(0, 5)))
    array = np.resize(rng.standard_normal(9) * pick([1, 0, 1e300, 1e-310, np.nan]), shape)
    with np.errstate(all="ignore"):
        return spoil(array.astype(pick(DTYPES)))

def spoil(array):
    what = rng.integers(12)
    if what == 0: return array.T
    if what == 1: return array[..., ::-1] if array.ndim else array
    if what == 2: return np.asfortranarray(array)
    if what == 3: return np.broadcast_to(array[..., :1], array.shape) if array.ndim and array.shape[-1] else array
    if what == 4: array = array.copy(); array.flags.writeable = False; return array
    if what == 5 and array.dtype == float:
        memory = np.empty(array.nbytes + 1, np.uint8)[1:].view(float).reshape(array.shape)
        memory[...] = array
        return memory
    if what == 6: return np.ma.masked_array(array)
    return array

def anything():
    things = [None, 0, -1, 2**70, 1.5, np.nan, np.inf, "x", "tanh", b"", [], [1.0], (), {}, object(), True, np.float64(1)]
    return pick(things + [any_array] * 3)

def maybe(good, chance):
    value = anything() if rng.random() < chance else good
    return value() if value is any_array else spoil(value) if isinstance(value, np.ndarray) and rng.random() < 0.2 else value

def one_set():
    T, B, I, H = (int(pick(SIZES)) for _ in range(4))
    H, I, c = max(H, 1), max(I, 1), pick([0.0, 0.05, 0.3])
    x = rng.integers(-1 if rng.random() < 0.1 else 0, I, (T, B)) if rng.random() < 0.3 else rng.standard_normal((T, B, I))
    weights = [rng.standard_normal(shape) for shape in ((H, I), (H, H), (H,), (H,))]
    state = rng.standard_normal((B, H))
    kind = rng.integers(12)
    if kind >= 8:
        dtype = pick([np.float64, np.float32])
        name, G = pick([(name, len(row.gates)) for name, row in fastbptt.cells.CELLS.items()])
        run, back = getattr(fastbptt, name + "_forward"), getattr(fastbptt, name + "_backward")
        def normal(*shape): return rng.standard_normal(shape).astype(dtype)
        def some_state(): return tuple(maybe(normal(B, H), c) for _ in range(2)) if len(fastbptt.cells.CELLS[name].states) == 2 else normal(B, H)
        x = x.astype(dtype) if x.dtype == float else x
        options = {"leak": maybe(pick([0.5, 1, rng.random(H).astype(dtype) / 2 + dtype(0.1)]), c)} if name == "rnn" and rng.integers(2) else {}
        shapes = ((G * H, I), (G * H, H), (G * H,), (G * H,))
        out, end, tape = run(maybe(x, c), maybe(some_state(), c), *(maybe(normal(*shape), c) for shape in shapes), **options)
        tape = maybe(tape.last(int(pick([1, 2, 9]))) if len(tape) and rng.random() < 0.2 else tape, c / 4)
        d_out = np.zeros_like(out) if rng.random() < 0.3 else out.copy()
        grads = back(tape, maybe(d_out[-len(tape):] if len(tape) else d_out, c), maybe(some_state(), c), need_dx=bool(rng.integers(2)))
        assert grads.w_hh.shape == (G * H, H) or c
        layer = pick([fastbptt.GRU, fastbptt.LSTM])(I, H, dtype=dtype, bias=bool(rng.integers(2)), rng=0)
        out, end = layer(maybe(x, c), maybe(None, c))
        layer.backward(maybe(out.copy(), c), maybe(end, c))
    elif kind <= 2:
        f = maybe(pick(["tanh", "relu", "sigmoid", "identity"]), c / 4)
        out, h_n, tape = fastbptt.rnn_forward(maybe(x, c), maybe(state, c), *(maybe(w, c) for w in weights), nonlinearity=f)
        assert out.shape == (T, B, H) or c
        tape = maybe(tape.last(int(pick([1, 2, 9]))) if len(tape) and rng.random() < 0.2 else tape, c / 4)
        if isinstance(x, np.ndarray) and x.flags.owndata and rng.random() < c / 4:
            x.resize(tuple(pick(SIZES) for _ in range(x.ndim)), refcheck=False)
        grads = fastbptt.rnn_backward(tape, maybe(out.copy(), c), maybe(h_n, c), need_dx=maybe(True, 0.3) is not None)
        assert grads.w_hh.shape == (H, H) or c
    elif kind == 3:
        layer = fastbptt.RNN(maybe(I, c / 4), maybe(H, c / 4), bias=bool(rng.integers(2)), batch_first=bool(rng.integers(2)), rng=0)
        out, end = layer(maybe(x, c), maybe(None, c))
        layer.backward(maybe(out.copy(), c), maybe(end, c))
        layer.load_state_dict(maybe({name: maybe(p, c) for name, p in layer.params.items()}, c))
        fastbptt.clip_grad_norm_(layer, maybe(1.0, c))
    elif kind == 4:
        layer = fastbptt.Linear(I, H, bias=bool(rng.integers(2)), rng=0)
        y = layer(maybe(rng.standard_normal((T, B, I)), c))
        layer.backward(maybe(y, c), need_dx=bool(rng.integers(2)))
    elif kind == 5:
        n = (T, B)
        loss, d = fastbptt.softmax_cross_entropy(maybe(rng.standard_normal((*n, H)), c), maybe(rng.integers(0, H, n), c),
                                                 mask=maybe(rng.random(n) < 0.5 if rng.integers(2) else None, c))
    elif kind == 6:
        grads = maybe([maybe(np.ascontiguousarray(w), c) for w in weights], c)
        fastbptt.total_norm(grads, maybe(2.0, c))
        fastbptt.clip_grad_norm_(grads, maybe(1.0, c), maybe(2.0, c), nonfinite=maybe("skip", c))
        fastbptt.clip_grad_value_(grads, maybe(0.5, c))
    else:
        make = pick([fastbptt.SGD, fastbptt.RMSprop, fastbptt.Adam])
        optimiser = make(maybe([maybe(w, c) for w in weights], c), lr=maybe(0.1, c))
        optimiser.step(maybe([maybe(w.copy(), c) for w in weights], c))
        optimiser.load_state_dict(maybe(optimiser.state_dict(), c))

done = 0
for number in range(count):
    state = rng.bit_generator.state
    try:
        one_set()
        done += 1
    except ALLOWED:
        pass
    except Exception as error:
        print(f"set {number} of seed {seed}: {type(error).__name__}: {error}")
        raise
print(done)
"""


@pytest.mark.parametrize("seed", range(4))
def test_random_arguments_never_crash(seed):
    """Many of the sets are valid, so that the code after the checks is reached too."""
    done = int(run_python(FUZZ, seed, 1000, FASTBPTT_NUM_THREADS=2))
    assert 300 < done < 900
