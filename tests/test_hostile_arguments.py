"""Every argument of every public function, class and method, each with every value that nobody should give it.

What comes of it is a result, or an error of a documented kind that names the argument, and nothing is changed then. The arguments are read
off the signatures: a new one is covered by being there.
"""

import copy
import inspect
import re
import warnings

import numpy as np
import pytest

import fastbptt
from fastbptt import cells, init, layers, pictures, tasks

DOCUMENTED = (TypeError, ValueError, IndexError, KeyError, RuntimeError, FloatingPointError, MemoryError, OSError)


class Unspeakable:
    """Every attribute and method raises."""

    def __repr__(self, *_, **__):
        raise ZeroDivisionError

    __str__ = __bool__ = __len__ = __iter__ = __eq__ = __array__ = __index__ = __float__ = __repr__
    __hash__ = object.__hash__


class OddInt(int):
    """An int whose methods do not tell its value."""

    def __repr__(self):
        raise ZeroDivisionError("repr")

    def __index__(self):
        return -(2**70)

    __int__ = __float__ = __index__

    def __lt__(self, other):
        return False

    __gt__ = __lt__


class OddStr(str):
    def __repr__(self):
        raise ZeroDivisionError("repr")


def endless():
    nested = []
    nested.append(nested)
    return nested


HOSTILE = {
    "None": lambda: None,
    "nothing in a list": lambda: [],
    "nothing in a dict": lambda: {},
    "empty text": lambda: "",
    "text": lambda: "x",
    "odd text": lambda: "\x1b]0;\x07\ud800\0" * 1000,
    "text of its own": lambda: OddStr("tanh"),
    "bytes": lambda: b"tanh",
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "nan": lambda: np.nan,
    "-inf": lambda: -np.inf,
    "inf": lambda: np.inf,
    "2**62": lambda: 2**62,
    "-(2**63)": lambda: -(2**63),
    "10**400": lambda: 10**400,
    "more digits than Python shows": lambda: 10**5000,
    "uint64": lambda: np.uint64(2**64 - 1),
    "float16": lambda: np.float16(0.5),
    "longdouble": lambda: np.longdouble("1e4000"),
    "complex": lambda: 1j,
    "True": lambda: True,
    "bool_": lambda: np.bool_(False),
    "an int of its own": lambda: OddInt(3),
    "bfloat16": lambda: "bfloat16",
    "records": lambda: np.dtype("f8,f4"),
    "matrix": lambda: matrix([[1, 2]]),
    "float matrix": lambda: matrix([[1.0, 2.0]]),
    "0-d": lambda: np.array(1.0),
    "0-d bool": lambda: np.array(True),
    "bools": lambda: np.ones(2, bool),
    "ints": lambda: np.arange(4),
    "unsigned": lambda: np.ones((5, 3), np.uint64),
    "too large tokens": lambda: np.full((5, 3), 2**62),
    "objects": lambda: np.array([None, "x"], object),
    "texts": lambda: np.array(["a", "b"]),
    "times": lambda: np.array(["2020-01-01"], "M8[D]"),
    "float16s": lambda: np.ones((5, 3, 4), np.float16),
    "complexes": lambda: np.ones((5, 3, 4), complex),
    "masked": lambda: np.ma.ones((5, 3, 4)),
    "another shape": lambda: np.ones((2, 3, 5, 7)),
    "single": lambda: np.ones((5, 3, 4), np.float32),
    "empty": lambda: np.ones((0, 3)),
    "huge": lambda: np.broadcast_to(0.0, (2**40, 2**17, 4)),
    "huge tokens": lambda: np.broadcast_to(0, (2**40, 2**17)),
    "set": lambda: {1, 2},
    "dict of None": lambda: {None: 1, "a": 2},
    "dict of unspeakables": lambda: {Unspeakable(): Unspeakable()},
    "list": lambda: [1.0, None],
    "unspeakables": lambda: [Unspeakable(), OddInt(3)],
    "pair": lambda: (np.ones((1, 3, 7)), None),
    "pair of nothing": lambda: (None, "x"),
    "range": lambda: range(3),
    "list in itself": endless,
    "generator": lambda: (i for i in range(2)),
    "iterator": lambda: iter(()),
    "type": lambda: int,
    "module": lambda: np,
    "function": lambda: len,
    "object": lambda: object(),
    "unspeakable": Unspeakable,
    "memory": lambda: memoryview(b"abc"),
    "another layer": lambda: fastbptt.Linear(7, 2, rng=0),
    "no tape": lambda: fastbptt.Tape(),
}


def matrix(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.matrix(values)


class World:
    """Valid arguments by name, new for every call, and access to all that a call could change."""

    def __init__(self, prefix="rnn"):
        rng = np.random.default_rng(0)
        self.make = layers.LAYERS[prefix]
        self.layer = self.make(4, 7, rng=0)
        self.linear = fastbptt.Linear(7, 2, rng=0)
        x, d_out = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 7))
        self.reader = fastbptt.TruncatedBPTT(self.layer, 5)
        self.reader.forward(x)
        self.stream = self.layer.stream(3)
        self.artbp = fastbptt.ARTBP(self.layer, 0.5, rng=0)
        self.artbp.forward(x)
        self.linear(d_out)
        self.layer(x)
        weights = dict(zip(("w_ih", "w_hh", "b_ih", "b_hh"), self.layer.params.values()))
        cell = cells.CELLS[prefix]
        state = cell.state([np.ones((3, 7)) for _ in cell.states])
        self.tape = getattr(fastbptt, f"{prefix}_forward")(x, state, **weights)[2]
        self.layer.flat_grads[:] = 1
        self.params, self.step_grads = {"a": np.ones(3), "b": np.ones((2, 2))}, {"a": np.ones(3), "b": np.ones((2, 2))}
        self.optimisers = {
            "SGD": fastbptt.SGD(self.params, momentum=0.9),
            "RMSprop": fastbptt.RMSprop(self.params, centered=True),
            "Adam": fastbptt.Adam(self.params, amsgrad=True),
        }
        for optimiser in self.optimisers.values():
            optimiser.step(self.step_grads)
        self.task = tasks.temporal_order(10)
        self.flow = fastbptt.gradient_flow(self.tape, d_out)
        self.good = weights | {
            "x": x, "h0": state, "state": state, "d_out": d_out, "d_state": state, "tape": self.tape, "leak": None, "nonlinearity": "tanh",
            "input_size": 4, "hidden_size": 7, "num_layers": 2, "in_features": 7, "out_features": 2, "rng": 0, "dtype": np.float64,
            "grads": [np.ones(3), np.full(2, 2.0)], "max_norm": 1.0, "norm_type": 2.0, "nonfinite": "zero", "clip_value": 1.0,
            "logits": np.ones((5, 3, 4)), "targets": np.ones((5, 3), int), "mask": None, "outputs": np.ones((1, 3, 4)), "loss": 1.0,
            "layers_or_params": {"a": np.ones(3)}, "layer": self.layer, "h": 4, "h_prime": 2, "probability": 0.1, "rnn": self.layer, "readout": self.linear,
            "length": 12, "size": 3, "steps": 2, "b": 1, "mode": "dicts", "k": 2, "n": fastbptt.get_num_threads(), "path": "no-such/a.png",
            "flow": self.flow, "flows": {"one": self.flow}, "since": 1, "until": None, "start": 1, "stop": 4,
            "batch_size": 3, "x_t": x[0], "rows": 1,
        }  # fmt: skip

    def everything(self):
        """The bytes of all arrays that a call could have written into."""
        arrays = [self.layer.flat_params, self.layer.flat_grads, self.linear.flat_params, self.linear.flat_grads]
        arrays += [*self.params.values(), *self.step_grads.values(), *self.good["grads"], *(self.good[name] for name in ("x", "d_out"))]
        arrays += [array for optimiser in self.optimisers.values() for array in optimiser.state_dict().values()]
        arrays.append(np.array(self.stream.state))
        kept = (
            self.layer._kept,
            self.linear._kept,
            self.reader._kept,
            self.reader._windows,
            self.reader.state,
            self.artbp._windows,
            self.artbp._since_cut,
        )
        return [array.tobytes() for array in arrays], [id(part) for part in kept], self.layer.training, fastbptt.get_num_threads()


def public_calls():
    """(name, signature, the call in a world, its own valid arguments) of everything public."""
    for name in fastbptt.__all__:
        thing = getattr(fastbptt, name)
        if inspect.ismodule(thing) or isinstance(thing, str) or name in ("Tape", "Gradients", "LyapunovSpectrum", "VanishingCondition"):
            continue  # tuples of results, and what forward passes make
        prefix = next((cell for cell in cells.CELLS if name.lower().startswith(cell)), "rnn")
        own = {"targets": np.ones((5, 3, 4)), "outputs": np.ones((5, 3, 4))} if name == "mean_squared_error" else {}
        own |= {"k": None} if name == "gradient_flossing" else {}
        own |= {"tape": True} if name.endswith("_forward") else {}
        yield name, prefix, inspect.signature(thing), lambda world, thing=thing: thing, own
    for prefix in cells.CELLS:
        for name in ("forward", "backward", "train", "load_state_dict", "gradients_through"):
            own = {"state": None, "mode": True}
            yield method(f"{prefix}.{name}", prefix, "layer", name, own | state_of_layer(name))
        for name in ("reset", "forward", "backward"):
            yield method(f"TruncatedBPTT.{name} of {prefix}", prefix, "reader", name, {"state": None})
            yield method(f"ARTBP.{name} of {prefix}", prefix, "artbp", name, {"state": None})
        for name in ("step", "reset"):
            yield method(f"Stream.{name} of {prefix}", prefix, "stream", name, {})
        for name in ("last", "row"):
            yield method(f"Tape.{name} of {prefix}", prefix, "tape", name, {})
    for name in ("forward", "backward", "load_state_dict"):
        own = {"x": np.ones((5, 3, 7)), "d_out": np.ones((5, 3, 2)), "state": lambda world: world.linear.state_dict()}
        yield method(f"Linear.{name}", "rnn", "linear", name, own)
    for optimiser in ("SGD", "RMSprop", "Adam"):
        for name in ("step", "load_state_dict"):
            own = {"grads": lambda world: world.step_grads, "state": lambda world, o=optimiser: world.optimisers[o].state_dict()}
            bound = getattr(getattr(fastbptt, optimiser), name)
            yield f"{optimiser}.{name}", "rnn", without_self(bound), lambda w, o=optimiser, name=name: getattr(w.optimisers[o], name), own
    for name, start in init.STARTS.items():
        yield f"init {name}", "rnn" if start.plain else "lstm", inspect.signature(start.draw), lambda world, draw=start.draw: draw, {}
    for name in tasks.__all__:
        if name not in ("TASKS", "Task", "Baseline"):
            make = getattr(tasks, name)
            yield name, "rnn", inspect.signature(make), lambda world, make=make: make, {}
    for name in ("batch", "loss", "wrong"):
        yield method(f"Task.{name}", "rnn", "task", name, {"targets": np.ones((1, 3), int)})
    for name in ("plot_flow", "plot_comparison"):
        draw = getattr(pictures, name)
        yield name, "rnn", inspect.signature(draw), lambda world, draw=draw: draw, {}
    yield method("GradientFlow.plot", "rnn", "flow", "plot", {})


def state_of_layer(name):
    return {"state": lambda world: world.layer.state_dict()} if name == "load_state_dict" else {}


def method(title, prefix, owner, name, own):
    signature = without_self(getattr(type(getattr(World(prefix), owner)), name))
    return title, prefix, signature, lambda world: getattr(getattr(world, owner), name), own


def without_self(function):
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


CALLS = {title: rest for title, *rest in public_calls()}
ARGUMENTS = [(title, name) for title, (_, signature, *_) in CALLS.items() for name in signature.parameters]


def arguments_of(title, world):
    """Valid ones for all that have no default or are known by name."""
    _, signature, _, own = CALLS[title]
    found = {}
    for name, parameter in signature.parameters.items():
        if name in own:
            found[name] = own[name](world) if callable(own[name]) else own[name]
        elif name in world.good:
            found[name] = world.good[name]
        else:
            assert parameter.default is not parameter.empty, f"{title} has a new argument, {name}: give World a good value of it"
    return found


@pytest.mark.parametrize("title", [title for title in CALLS if "plot" not in title])
def test_good_arguments_are_good(title, capsys):
    """Otherwise the test below would see another error."""
    world = World(CALLS[title][0])
    CALLS[title][2](world)(**arguments_of(title, world))


@pytest.mark.parametrize(("title", "name"), ARGUMENTS, ids=str)
def test_hostile_arguments(title, name, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "save", lambda *_: None)  # a picture takes long, and all is checked before
    prefix, signature, call, _ = CALLS[title]
    world = World(prefix)
    before, threads = world.everything(), fastbptt.get_num_threads()
    for what, make in HOSTILE.items():
        if title == "set_num_threads" and what in ("more digits than Python shows", "unspeakable"):
            continue  # what comes of these is Python's
        error = error_of(call(world), arguments_of(title, world) | {name: make()})
        if error is None:
            fastbptt.set_num_threads(threads)
            world = World(prefix)
            before = world.everything()
            continue
        message = str(error.args[0]) if error.args else ""
        report = f"{what}: {type(error).__name__}: {message}"
        assert type(error) in DOCUMENTED or isinstance(error, OSError), report
        # an array that is right in itself is told by the shape of another, to which it does not fit
        assert re.match("|".join({name, *signature.parameters, "state"}), message) or isinstance(error, OSError), report
        assert len(message) < 1000 and message.isprintable(), report
        assert world.everything() == before, f"{report}: something has changed"


def error_of(call, arguments):
    try:
        with np.errstate(all="ignore"):
            call(**arguments)
    except Exception as error:
        return error


FLAGS = [
    (title, name)
    for title, (_, signature, *_) in CALLS.items()
    for name, parameter in signature.parameters.items()
    if isinstance(parameter.default, bool)
]


@pytest.mark.parametrize(("title", "name"), FLAGS, ids=str)
def test_a_flag_is_true_or_false(title, name):
    """Or 1 or 0; whatever else Python takes for true is more likely another argument."""
    prefix, _, call, _ = CALLS[title]
    extra = {"momentum": 0.5} if name == "nesterov" else {}
    for value in (True, False, np.True_, np.False_, 1, 0, np.int64(1)):
        world = World(prefix)
        call(world)(**arguments_of(title, world) | extra | {name: value})
    world = World(prefix)
    before = world.everything()
    for value in (None, 2, -1, 1.0, "", "yes", [], np.ones(1, bool), np.array(True), np.ones(2), Unspeakable(), OddInt(2)):
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got "):
            call(world)(**arguments_of(title, world) | extra | {name: value})
    assert world.everything() == before


SEEDS = [0, 2**200, np.uint8(3), [1, 2], (2**70, 0), np.arange(3), np.random.SeedSequence(1), np.random.PCG64(1), np.random.default_rng(1)]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: type(seed).__name__)
def test_a_seed_is_what_it_is_to_numpy(seed):
    expected = fastbptt.Linear(3, 4, rng=np.random.default_rng(copy.deepcopy(seed))).flat_params
    np.testing.assert_array_equal(fastbptt.Linear(3, 4, rng=copy.deepcopy(seed)).flat_params, expected)


@pytest.mark.parametrize(
    ("seed", "error"),
    [
        (-1, ValueError), (1.5, TypeError), ("x", TypeError), (True, TypeError), ([1, -1], ValueError), ([0.5], TypeError), ([[1], [2]], TypeError),
        (endless(), TypeError), (matrix([[1, 2]]), TypeError), (np.ones((1, 2), int), TypeError), (np.array(-3), ValueError), ({1}, TypeError),
        (np.ma.arange(3), TypeError), (np.ones(2), TypeError), (np.array(1.5), TypeError), (np.array(True), TypeError),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_seed(seed, error):
    """NumPy crashes the interpreter on a matrix as a seed; here it is refused before."""
    for call in (
        lambda: fastbptt.RNN(3, 4, rng=seed),
        lambda: fastbptt.Linear(3, 4, rng=seed),
        lambda: tasks.adding(10).batch(seed, 2),
        lambda: init.orthogonal(fastbptt.GRU(3, 4), rng=seed),
    ):
        with pytest.raises(error, match=r"^rng"):
            call()


@pytest.mark.parametrize("make", [fastbptt.RNN, fastbptt.GRU, fastbptt.LSTM, fastbptt.Linear])
@pytest.mark.parametrize("sizes", [(2**62, 1), (1, 2**62), (2**31, 2**31), (2**40, 2**40), (10**30, 2), (2, 10**400)], ids=range(6))
def test_sizes_beyond_memory(make, sizes):
    names = list(inspect.signature(make).parameters)[:2]
    with pytest.raises((MemoryError, ValueError), match="|".join(names)):
        make(*sizes)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.longdouble, object], ids=lambda kind: kind.__name__)
def test_a_number_may_be_an_array_without_axes(kind):
    one = np.array(1, kind)
    assert fastbptt.perplexity(one) == np.e and fastbptt.perplexity(np.array(np.inf)) == np.inf
    assert fastbptt.clip_grad_norm_(np.array([3.0, 4.0]), one) == 5
    optimiser = fastbptt.SGD(np.ones(3), lr=one)
    np.testing.assert_array_equal(fastbptt.Linear(3, 4, rng=np.array(5)).flat_params, fastbptt.Linear(3, 4, rng=5).flat_params)
    assert type(optimiser.lr) is float and optimiser.lr == 1
    assert (fastbptt.RNN(3, 4, leak=one).leak == 1).all()
    for wrong, error in ((np.array(True), TypeError), (np.array(1j), TypeError), (np.array(None), TypeError), (np.ma.array(1.0), TypeError),
                         (np.ones(1), TypeError), (np.array(-1, kind), ValueError), (np.array(10**400), ValueError)):  # fmt: skip
        with pytest.raises(error, match=r"^lr: expected a number"):
            optimiser.lr = wrong
    assert optimiser.lr == 1


def test_long_values_are_cut_short_in_messages():
    with pytest.raises(ValueError, match=r"^max_norm: expected a number that float64 has room for, got 1000.*\.\.\.$") as caught:
        fastbptt.clip_grad_norm_(np.ones(3), 10**400)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"^nonlinearity: expected one of .*, got '\\x1b\]0;") as caught:
        fastbptt.RNN(3, 4, nonlinearity="\x1b]0;" * 1000)
    assert len(str(caught.value)) < 200
