"""The C interface, by a package that is really compiled against it (`consumer/`): the bits of the Python functions, statuses, threads, versions."""

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from consumers import (
    DECLARATIONS,
    assert_guarded,
    fields_of,
    give_workspace,
    import_from,
    installed_once,
    named,
    needs_a_compiler,
    results_of,
    rooms_for_results,
)
from problems import CELLS, ONE_OF_EACH, arrays_of, assert_results_same_bits, random_problem
from processes import run_python
from test_projection import projected
from test_ragged import ragged
from tolerances import DTYPES, assert_same_bits

import fastbptt
import fastbptt.cython_api

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "c_interface.md"
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [(5, 3, 4, 7), (1, 1, 1, 1), (40, 37, 5, 16), (20, 2, 6, 150)]  # T, B, I, H


def example():
    return re.search(r"^```cython\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1] if PAGE.exists() else ""


@pytest.fixture(scope="session")
def target(tmp_path_factory, worker_id):
    """The folder into which the package has been installed."""
    needs_a_compiler()
    base = tmp_path_factory.getbasetemp()
    return installed_once(base if worker_id == "master" else base.parent, example())


@pytest.fixture(scope="session")
def calls(target):
    return import_from(target, "calls")


@pytest.fixture(scope="session")
def worker_id(request):
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


# --- The bits of the Python functions ---------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_the_python_functions(calls, cell, shape, dtype, threads):
    for n in (1, 3):
        threads(n)
        for tokens in (False, True):
            problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens, biases=(n == 1, True))
            assert_results_same_bits(results_of(calls, problem, n), problem.results(fastbptt))


@EACH_DTYPE
@pytest.mark.parametrize("what", ["lengths", "resets", "both"])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_ragged_batches(calls, cell, what, dtype):
    for shape in SHAPES:
        for often in (0.2, 1.0):
            problem = ragged(cell, *shape, what=what, dtype=dtype, often=often)
            assert_results_same_bits(results_of(calls, problem), problem.results(fastbptt))


@EACH_DTYPE
@pytest.mark.parametrize("cut", [False, True])
def test_a_projection(calls, cut, dtype):
    for shape in ((5, 3, 4, 7, 2), (40, 33, 6, 40, 30), (20, 2, 6, 250, 130)):
        problem = projected(*shape, dtype=dtype.type, lengths=cut, resets=cut)
        assert_results_same_bits(results_of(calls, problem, 2), problem.results(fastbptt))


@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_what_is_not_given_is_zero_and_what_is_not_wanted_is_not_written(calls, cell):
    problem = random_problem(cell, biases=(False, False))
    problem.state = problem.d_state = problem.d_out = None
    fields = fields_of(problem)
    rooms = rooms_for_results(fields)
    for name in ("dx", "db_ih", "db_hh", "dh0", "dc0", "out", "h_n", "c_n"):
        rooms.pop(name, None)
    call = calls.Call(**fields, **rooms)
    memory = give_workspace(call, ("forward", "backward"), calls.CALLS)
    assert (call.run("forward"), call.run("backward")) == (0, 0)
    assert_guarded(memory)
    out, _, _ = problem.forward(fastbptt)
    assert_same_bits("h", rooms["h"][1:], out)
    assert not rooms["dw_ih"].any() and not rooms["dw_hh"].any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru", "projected"])
def test_a_workspace_is_enough_however_rows_are_cut(calls, cell, threads):
    """Nothing is written behind what was asked for, with many pieces and without d_out, whose zeros have to be somewhere."""
    for shape in ((7, 5, 3, 6), (40, 33, 6, 40), (300, 3, 2, 9)):
        problem = projected(*shape, 4) if cell == "projected" else random_problem(cell, *shape)
        problem.d_out = None
        for often in (0.1, 1.0):
            problem.options = {"resets": np.random.default_rng(0).random(shape[:2]) < often}
            assert_results_same_bits(results_of(calls, problem, threads), problem.results(fastbptt))


@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm"])
def test_a_workspace_is_enough_for_rows_without_steps(calls, cell):
    """With resets they are no pieces at all: one piece in a batch of many rows, whose inputs are wide."""
    for T, B, I, H in ((64, 64, 50, 6), (32, 32, 200, 1)):
        for length in (1, T):
            problem = random_problem(cell, T, B, I, H)
            problem.options |= {"lengths": np.array([length] + [0] * (B - 1)), "resets": np.zeros((T, B), bool)}
            assert_results_same_bits(results_of(calls, problem), problem.results(fastbptt))


def test_a_workspace_grows_with_the_steps(calls):
    """And no faster, however often states are reset."""
    sizes = []
    for T in (100, 400):
        problem = random_problem("lstm", T, 16, 32, 32)
        problem.options = {"resets": np.ones((T, 16), bool)}
        fields = fields_of(problem)
        sizes.append(calls.Call(**fields, **rooms_for_results(fields)).workspace_bytes(calls.CALLS["backward"]))
    assert sizes[1] < 4 * sizes[0]


@pytest.mark.parametrize(("clip", "kind"), [("value", 1), ("norm", 2)])
def test_clipping_inside_the_backward_pass(calls, clip, kind):
    problem = random_problem("lstm")
    fields = fields_of(problem, clip=kind, clip_limit=0.25)
    rooms = rooms_for_results(fields)
    call = calls.Call(**fields, **rooms)
    give_workspace(call, ("forward", "backward"), calls.CALLS)
    assert (call.run("forward"), call.run("backward")) == (0, 0)
    assert_results_same_bits(named(problem, rooms), problem.results(fastbptt, clip_step=(clip, 0.25)))


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_with_packed_weights(calls, cell, tokens, dtype):
    for shape in ((6, 1, 8, 8), (4, 3, 5, 33)):
        problem = random_problem(cell, *shape, dtype=dtype, tokens=tokens)
        out, state, _ = problem.forward(fastbptt)
        call, rooms = stepper(calls, problem)
        memory = give_workspace(call, ("step",), calls.CALLS)
        for t, x in enumerate(problem.x):
            call.set(**{"tokens" if tokens else "x": np.ascontiguousarray(x)})
            assert call.run("step") == 0
            assert_same_bits("out", rooms[0], out[t])
        assert_guarded(memory)
        for room, last in zip(rooms, arrays_of(state)):
            assert_same_bits("state", room, last)


def stepper(calls, problem):
    """A call for the steps of a problem, from its initial state on, and the arrays of its state."""
    rooms = [part.copy() for part in problem.state]
    fields = fields_of(problem) | {"T": 1}
    for name, room in zip("hc", rooms):
        fields |= {f"{name}0": room, f"{name}_n": room}
    call = calls.Call(**fields)
    packed = np.empty(call.packed_bytes() + 128, np.uint8)
    packed[:] = 0xA5
    call.set(packed=packed[64:], packed_size=packed.size - 128)
    assert call.run("pack") == 0
    assert_guarded(packed)
    return call, rooms


def test_a_forward_pass_with_packed_weights(calls):
    problem = random_problem("gru")
    fields = fields_of(problem)
    rooms = rooms_for_results(fields, tape=False)
    call = calls.Call(**fields, out=rooms["out"])
    packed = np.empty(call.packed_bytes(), np.uint8)
    call.set(packed=packed, packed_size=packed.size)
    assert call.run("pack") == 0
    call.set(w_ih=None, w_hh=None, b_ih=None, b_hh=None)
    give_workspace(call, ("forward",), calls.CALLS)
    assert call.run("forward") == 0
    assert_same_bits("out", rooms["out"], problem.forward(fastbptt)[0])


@EACH_DTYPE
@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, np.inf])
def test_clipping_by_norm(calls, p, dtype):
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-30, 1e30, 0.0, np.nan):
        arrays = [(scale * rng.standard_normal(n)).astype(dtype) for n in (5, 40_000, 0, 16_385)]
        expected = [array.copy() for array in arrays]
        status, norm = calls.clip_norm(dtype.itemsize, arrays, 0.5, p)
        assert status == 0
        assert_same_bits("norm", np.array(norm), np.array(fastbptt.clip_grad_norm_(expected, 0.5, p, nonfinite="skip")))
        for got, value in zip(arrays, expected):
            assert_same_bits("array", got, value)


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_many_threads_at_once_that_python_does_not_know(calls, n):
    problems = [random_problem("lstm", 30, 16, 8, 40, seed=seed, dtype=np.float32) for seed in range(6)]
    rooms = [rooms_for_results(fields_of(problem)) for problem in problems]
    made = [calls.Call(**fields_of(problem), **room, threads=n) for problem, room in zip(problems, rooms)]
    kept = [give_workspace(call, ("forward", "backward"), calls.CALLS) for call in made]
    for _ in range(5):
        assert calls.on_threads(made, "forward") == calls.on_threads(made, "backward") == [0] * len(made)
    for problem, room, memory in zip(problems, rooms, kept):
        assert_guarded(memory)
        assert_results_same_bits(named(problem, room), problem.results(fastbptt))


def test_beside_python_threads(calls):
    """The GIL is free during a call: others work meanwhile, and get their own bits."""
    problem = random_problem("gru", 50, 8, 8, 64)
    expected, failures = problem.results(fastbptt), []

    def work():
        try:
            for _ in range(10):
                assert_results_same_bits(results_of(calls, problem, 2), expected)
                assert_results_same_bits(problem.results(fastbptt), expected)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_signals_wait_for_python(target):
    """A signal that comes during a call is Python's business, after it: the call goes on to its end."""
    code = f"""
import signal, sys, time
sys.path.append({str(target)!r})
import numpy as np
from bptt_consumer import calls
from consumers import fields_of, give_workspace, rooms_for_results
from problems import random_problem
problem = random_problem("lstm", 60, 32, 64, 256, dtype=np.float32)
fields = fields_of(problem)
rooms = rooms_for_results(fields)
call = calls.Call(**fields, **rooms)
memory = give_workspace(call, ("forward", "backward"), calls.CALLS)
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(np.isfinite(rooms["db_hh"]).all()))  # what is written last
assert call.run("forward") == 0
signal.setitimer(signal.ITIMER_REAL, 0.005)
status = call.run("backward")
while not seen:
    time.sleep(0.01)
print(status, *seen)
"""
    assert run_python(code).split() == ["0", "True"]


# --- Statuses ---------------------------------------------------------------------------------------------------------


def complete(calls, cell="lstm", **others):
    """A call that lacks nothing, and what it refers to."""
    problem = random_problem(cell)
    fields = fields_of(problem)
    call = calls.Call(**fields, **rooms_for_results(fields))
    give_workspace(call, ("forward", "backward"), calls.CALLS)
    return call.set(**others)


BROKEN = [
    ("WRONG_STRUCT", {"size": 0}),
    ("WRONG_STRUCT", {"size": 8}),
    ("WRONG_STRUCT", {"size": 1 << 20}),
    ("UNKNOWN_DTYPE", {"dtype": 0}),
    ("UNKNOWN_DTYPE", {"dtype": 2}),
    ("UNKNOWN_CELL", {"cell": 3}),
    ("UNKNOWN_CELL", {"cell": -1}),
    ("UNKNOWN_ACTIVATION", {"activation": 4}),
    ("UNKNOWN_ACTIVATION", {"activation": -1}),
    ("WRONG_THREADS", {"threads": 0}),
    ("WRONG_THREADS", {"threads": 257}),
    *[("WRONG_SIZES", {name: value}) for name in "TBIHP" for value in (0, -1, -(1 << 62))],
    ("WRONG_SIZES", {"P": 8}),
    ("TOO_LARGE", {"T": 1 << 62}),
    ("TOO_LARGE", {"B": (1 << 63) - 1}),
    ("TOO_LARGE", {"I": 1 << 60}),
    ("TOO_LARGE", {"H": 1 << 61, "P": 1 << 61}),
    ("MISSING_ARRAY", {"x": None}),
    ("MISSING_ARRAY", {"w_ih": None}),
    ("MISSING_ARRAY", {"w_hh": None}),
    ("MISSING_ARRAY", {"workspace": None}),
    ("UNEXPECTED_ARRAY", {"tokens": np.zeros((5, 3), np.int64)}),
    ("UNEXPECTED_ARRAY", {"leak": np.ones(7)}),
    ("MISALIGNED_ARRAY", {"w_hh": 4097}),
    ("MISALIGNED_ARRAY", {"h0": 4100}),
    ("WRONG_LENGTH", {"lengths": np.array([5, 6, 0])}),
    ("WRONG_LENGTH", {"lengths": np.array([5, -1, 0])}),
    ("WRONG_TOKEN", {"x": None, "dx": None, "tokens": np.full((5, 3), 4)}),
    ("WRONG_TOKEN", {"x": None, "dx": None, "tokens": np.full((5, 3), -1)}),
    ("SMALL_WORKSPACE", {"workspace_size": 0}),
    ("SMALL_WORKSPACE", {"workspace_size": -1}),
]
BROKEN_BACKWARD = [
    *[("MISSING_ARRAY", {name: None}) for name in ("h", "c", "gates", "dw_ih", "dw_hh")],
    ("UNEXPECTED_ARRAY", {"x": None, "tokens": np.zeros((5, 3), np.int64)}),
    ("WRONG_CLIP", {"clip": 3}),
    ("WRONG_CLIP", {"clip": -1}),
    ("WRONG_CLIP", {"clip": 1, "clip_limit": 0.0}),
    ("WRONG_CLIP", {"clip": 2, "clip_limit": np.nan}),
]


@pytest.mark.parametrize(
    ("functions", "name", "fields"),
    [(("forward", "backward"), *row) for row in BROKEN] + [(("backward",), *row) for row in BROKEN_BACKWARD],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_statuses(calls, functions, name, fields):
    for function in functions:
        call = complete(calls)
        assert call.run("forward") == 0
        assert call.set(**fields).run(function) == calls.STATUS[name], function


def test_one_byte_less(calls):
    for cell in ONE_OF_EACH:
        for function in ("forward", "backward"):
            call = complete(calls, cell)
            needed = call.workspace_bytes(calls.CALLS[function])
            assert call.run("forward") == 0
            assert call.set(workspace_size=needed - 1).run(function) == calls.STATUS["SMALL_WORKSPACE"]
            assert call.set(workspace_size=needed).run(function) == 0


def test_arrays_of_other_cells(calls):
    assert complete(calls, "gru", w_hr=np.ones((2, 7)), P=2).run("forward") == calls.STATUS["UNEXPECTED_ARRAY"]
    assert complete(calls, "gru", m=None).run("backward") == calls.STATUS["MISSING_ARRAY"]
    assert complete(calls, "leaky-tanh", gates=None).run("backward") == calls.STATUS["MISSING_ARRAY"]
    problem = projected(5, 3, 4, 7, 2)
    call = calls.Call(**fields_of(problem), **rooms_for_results(fields_of(problem)))
    give_workspace(call, ("forward", "backward"), calls.CALLS)
    assert call.set(P=7).run("forward") == calls.STATUS["WRONG_SIZES"]
    assert call.set(P=2, dw_hr=None).run("backward") == calls.STATUS["MISSING_ARRAY"]


def test_statuses_of_steps(calls):
    problem = random_problem("lstm", T=1)
    status = calls.STATUS

    def broken(**fields):
        call, _ = stepper(calls, problem)
        memory = give_workspace(call, ("step",), calls.CALLS)
        return call.set(**fields).run("step"), memory

    assert broken()[0] == status["OK"]
    assert broken(T=2)[0] == status["WRONG_SIZES"]
    assert broken(packed=None)[0] == broken(h_n=None)[0] == broken(c_n=None)[0] == broken(workspace=None)[0] == status["MISSING_ARRAY"]
    assert broken(lengths=np.ones(3, np.int64))[0] == broken(resets=np.ones(3, np.uint8))[0] == status["UNEXPECTED_ARRAY"]
    assert broken(packed=np.zeros(1 << 16, np.uint8))[0] == broken(packed_size=0)[0] == status["WRONG_PACKED"]
    assert broken(x=None, tokens=np.zeros(3, np.int64))[0] == broken(I=3)[0] == broken(H=5, P=5)[0] == status["WRONG_PACKED"]
    assert broken(dtype=4)[0] == status["WRONG_PACKED"]
    call, _ = stepper(calls, problem)
    needed = call.workspace_bytes(calls.CALLS["step"])
    memory = np.zeros(needed, np.uint8)
    assert call.set(workspace=memory, workspace_size=needed - 1).run("step") == status["SMALL_WORKSPACE"]
    assert call.set(workspace_size=needed).run("step") == status["OK"]
    assert call.set(packed_size=call.packed_bytes() - 1).run("pack") == status["WRONG_PACKED"]
    assert call.set(packed=None).run("pack") == status["MISSING_ARRAY"]


def test_statuses_of_sizes(calls):
    call, status = complete(calls), calls.STATUS
    assert call.workspace_bytes(3) == call.workspace_bytes(-1) == status["WRONG_CALL"]
    assert call.set(H=0).workspace_bytes(0) == call.workspace_bytes(1) == call.packed_bytes() == status["WRONG_SIZES"]
    assert call.set(dtype=1).workspace_bytes(0) == call.packed_bytes() == status["UNKNOWN_DTYPE"]
    assert calls.without_problem() == {status["WRONG_STRUCT"]}


def test_a_size_is_never_a_status(calls):
    """Of whatever numbers there may be: the bytes of a workspace are an integer that is not below 0, or it is said that they are too many."""
    status, any_length = calls.STATUS["TOO_LARGE"], np.array([1])
    for others in ({}, {"lengths": any_length}, {"x": None, "dx": None, "tokens": np.zeros(1, np.int64), "lengths": any_length}):
        for name in "TIH":
            call = complete(calls, H=8, P=8, T=1, B=1, **others)
            for function in ("forward", "backward", "step"):
                sizes = [
                    call.set(**{name: 1 << n} | ({"P": 1 << n} if name == "H" else {})).workspace_bytes(calls.CALLS[function])
                    for n in range(62)
                    if function != "step" or (name != "T" and "lengths" not in others)
                ]
                small = [size for size in sizes if size != status]
                assert all(size > 0 for size in small), (name, function)
                assert sizes == small + [status] * (len(sizes) - len(small)), (name, function)


def test_statuses_of_clipping(calls):
    status, array = calls.STATUS, np.ones(3)
    assert calls.clip_norm(3, [array], 1.0, 2.0)[0] == status["UNKNOWN_DTYPE"]
    for limit, p in ((-1.0, 2.0), (np.nan, 2.0), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan)):
        assert calls.clip_norm(8, [array], limit, p)[0] == status["WRONG_CLIP"]
    assert calls.clip_norm(8, [array], 1.0, 2.0, lengths=[-1])[0] == status["WRONG_SIZES"]
    assert calls.clip_norm(8, [0], 1.0, 2.0, lengths=[1])[0] == status["MISSING_ARRAY"]
    assert calls.clip_norm(8, [4097], 1.0, 2.0, lengths=[1])[0] == status["MISALIGNED_ARRAY"]
    assert calls.clip_norm(8, [], 1.0, 2.0) == (0, 0.0) and (array == 1).all()


def test_each_status_has_words(calls):
    words = {calls.describe(status) for status in calls.STATUS.values()}
    assert len(words) == len(calls.STATUS) and calls.describe(0) == "no error" and "version" in calls.describe(-1000)


# --- Versions ---------------------------------------------------------------------------------------------------------


def declared():
    """What the declarations say: functions by their C signatures, fields in their order, constants."""
    text = DECLARATIONS[1].read_text()
    fields = text.partition("cdef struct Problem:\n")[2].partition("\n\n")[0]
    return {
        "functions": {name: re.search(r'"(.*?)"', repr(capsule))[1] for name, capsule in fastbptt.cython_api.__pyx_capi__.items()},
        "fields": [re.sub(r" *#.*", "", line).strip() for line in fields.splitlines() if re.sub(r" *#.*", "", line).strip()],
        "constants": {name: int(value) for name, value in re.findall(r"^    ([A-Z][A-Z0-9_]*) = (-?\d+)", text, re.MULTILINE)},
    }


def frozen():
    """What each version had, the oldest first."""
    return json.loads((HERE / "c_interface.json").read_text())


def version_of(names):
    return f"{names['constants']['API_MAJOR']}.{names['constants']['API_MINOR']}"


def test_nothing_is_taken_away_within_a_major_version():
    now = declared()
    for version, then in frozen().items():
        if version.split(".")[0] == version_of(now).split(".")[0]:
            assert now["fields"][: len(then["fields"])] == then["fields"], version
            assert now["functions"].items() >= then["functions"].items(), version
            assert now["constants"].items() >= then["constants"].items() - {("API_MINOR", then["constants"]["API_MINOR"])}, version


def test_what_is_added_makes_a_new_version():
    version, last = list(frozen().items())[-1]
    now = declared()
    assert version_of(now) == version, "python tests/test_c_interface.py prints a new tests/c_interface.json"
    assert now == last, "what is added makes a new minor version, what is changed a new major one"


def test_the_version(calls):
    assert calls.version() == 1000 * calls.VERSION[0] + calls.VERSION[1]
    assert calls.max_threads() == fastbptt.get_num_threads()


def test_compiled_against_a_newer_version(target):
    with pytest.raises(ImportError, match=r"compiled against version 1\.9 of fastbptt's C interface, but .* installed has 1\.0$"):
        import_from(target, "newer")


# --- The example ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PAGE.exists(), reason="this is not a checkout")
def test_the_example_of_the_page(target):
    module = import_from(target, "example")
    problem = random_problem("lstm", biases=(False, False))
    problem.state, problem.d_state, problem.d_out = None, None, np.ones_like(problem.d_out)
    out, state, tape = problem.forward(fastbptt)
    expected = problem.backward(fastbptt, tape)
    norm = fastbptt.clip_grad_norm_([expected.w_ih, expected.w_hh], 0.5)
    dw_ih, dw_hh = np.empty_like(problem.w_ih), np.empty_like(problem.w_hh)
    assert module.gradient(problem.x, problem.w_ih, problem.w_hh, dw_ih, dw_hh, 0.5) == norm
    assert_same_bits("dw_ih", dw_ih, expected.w_ih)
    assert_same_bits("dw_hh", dw_hh, expected.w_hh)
    h, c = np.zeros((3, 7)), np.zeros((3, 7))
    stepper = module.Stepper(problem.w_ih, problem.w_hh, h, c)
    for x, h_t in zip(problem.x, out):
        stepper.step(x)
        assert_same_bits("h", h, h_t)
    assert_same_bits("c", c, state[1])
    with pytest.raises(ValueError, match="shapes"):
        stepper.step(problem.x[0, :2].copy())
    for wrong in (
        (problem.w_ih, problem.w_hh, h[:, :6].copy(), c),
        (problem.w_ih, problem.w_hh, h, c[:2]),
        (problem.w_ih[:27], problem.w_hh, h, c),
    ):
        with pytest.raises(ValueError, match="shapes"):
            module.Stepper(*wrong)


if __name__ == "__main__":
    print(json.dumps(frozen() | {version_of(declared()): declared()}, indent=1))
