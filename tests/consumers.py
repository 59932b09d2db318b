"""A package that compiles against fastbptt, built and installed once for all tests, and problems as its calls take them."""

import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from problems import arrays_of
from processes import PATIENCE

import fastbptt
from fastbptt.cells import CELLS, NONLINEARITIES

HERE = Path(__file__).parent
PACKAGE = Path(fastbptt.__file__).parent
DECLARATIONS = [PACKAGE / "cython_api.pxd", PACKAGE / "_kernels" / "interface.pxd"]


def newer_declarations(folder):
    """Those of this fastbptt, with a version that is to come."""
    for file in DECLARATIONS:
        copy = folder / "fastbptt" / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        (copy.parent / "__init__.py").touch()
        copy.write_text(file.read_text().replace("    API_MINOR = 0 ", "    API_MINOR = 9 "))
    return folder


def install(folder, example=""):
    """Build the package in a folder, with a module of the documentation's, and install it into another."""
    source, target = folder / "source", folder / "target"
    shutil.copytree(HERE / "consumer", source)
    if example:
        (source / "bptt_consumer" / "example.pyx").write_text(example)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    variables = os.environ | {"FASTBPTT_NEWER": str(newer_declarations(folder / "newer")), "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [*command, "--no-build-isolation", "--target", target, source],
        env=variables, capture_output=True, text=True, timeout=600 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return target


def installed_once(base, example):
    """Where the first process that comes by has installed it."""
    folder = base / "consumer"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + 600 * PATIENCE
        while not (folder / "done").exists():
            assert not (folder / "failed").exists() and time.monotonic() < until, "the consumer could not be built: see the other test"
            time.sleep(0.2)
        return folder / "target"
    try:
        target = install(folder, example)
    except BaseException:
        (folder / "failed").touch()
        raise
    (folder / "done").touch()
    return target


def import_from(target, name):
    if str(target) not in sys.path:
        sys.path.append(str(target))
    return importlib.import_module(f"bptt_consumer.{name}")


def needs_a_compiler():
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    if not shutil.which(os.environ.get("CC", "cc").split()[0]):
        pytest.skip("needs a C compiler")


# --- Problems ---------------------------------------------------------------------------------------------------------


def fields_of(problem, **others):
    """A test's problem (`problems.py`) as the fields of the struct: sizes, inputs, weights, states and cotangents."""
    x, row, dtype = problem.x, problem.cell.row, problem.w_ih.dtype
    T, B = x.shape[:2]
    w_hr, options = getattr(problem, "w_hr", None), problem.options
    P, H = problem.w_hh.shape[1], problem.w_hh.shape[1] if w_hr is None else w_hr.shape[1]
    fields = {"dtype": dtype.itemsize, "cell": row.number, "T": T, "B": B, "I": problem.w_ih.shape[1], "H": H, "P": P}
    fields["activation"] = NONLINEARITIES[problem.cell.options.get("nonlinearity", "tanh")].number
    fields["tokens" if x.ndim == 2 else "x"] = x
    fields |= {name: getattr(problem, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "d_out")} | {"w_hr": w_hr}
    if problem.leak is not None:
        fields["leak"] = np.full(H, problem.leak, dtype) if np.ndim(problem.leak) == 0 else problem.leak
    fields |= dict(zip(("h0", "c0"), problem.state or ())) | dict(zip(("d_h_n", "d_c_n"), problem.d_state or ()))
    if "lengths" in options:
        fields["lengths"] = options["lengths"].astype(np.int64)
    if "resets" in options:
        fields["resets"] = options["resets"].view(np.uint8)
    return {name: value for name, value in (fields | others).items() if value is not None}


def rooms_for_results(fields, tape=True):
    """Arrays for all that the two calls return, NaN to begin with, and for the tape."""
    T, B, I, H, P = (fields[name] for name in "TBIHP")
    cell = list(CELLS.values())[fields["cell"]]
    N, dtype, lstm = len(cell.gates) * H, {4: np.float32, 8: np.float64}[fields["dtype"]], len(cell.states) == 2
    slots = 2 * T if "resets" in fields else T + 1
    shapes = {"out": (T, B, P), "h_n": (B, P), "dh0": (B, P), "dw_ih": (N, I), "dw_hh": (N, P), "db_ih": (N,), "db_hh": (N,)}
    shapes |= {"dx": (T, B, I)} if "x" in fields else {}
    shapes |= {"c_n": (B, H), "dc0": (B, H)} if lstm else {}
    shapes |= {"dw_hr": (P, H)} if "w_hr" in fields else {}
    if tape:
        shapes |= {"h": (slots, B, P)} | ({"c": (slots, B, H)} if lstm else {})
        shapes |= {"gates": (T, B, N)} if cell.tape_gates or "leak" in fields else {}
        shapes |= {"m": (T, B, H)} if cell.reset_after else {}
    return {name: np.full(shape, np.nan, dtype) for name, shape in shapes.items()}


def give_workspace(call, names, number):
    """Exactly as many bytes as are asked for, between guards, for each of these calls; the array."""
    needed = max(call.workspace_bytes(number[name]) for name in names)
    assert needed > 0
    memory = np.full(needed + 128, 0xA5, np.uint8)
    call.set(workspace=memory[64:], workspace_size=needed)
    return memory


def assert_guarded(memory):
    assert (memory[:64] == 0xA5).all() and (memory[-64:] == 0xA5).all(), "written outside of the workspace"


def results_of(calls, problem, threads=1):
    """All that both calls return, by the names of `Problem.results`."""
    fields = fields_of(problem)
    rooms = rooms_for_results(fields)
    call = calls.Call(**fields, **rooms, threads=threads)
    memory = give_workspace(call, ("forward", "backward"), calls.CALLS)
    assert call.run("forward") == 0 and call.run("backward") == 0
    assert_guarded(memory)
    return named(problem, rooms)


def named(problem, rooms):
    """Of the arrays that were filled, the results, by the names of `Problem.results`."""
    results = {"out": rooms["out"]} | {f"final state {i}": rooms[name] for i, name in enumerate(("h_n", "c_n")) if name in rooms}
    results["d_x"] = rooms.get("dx")
    results |= {f"d_{name}": rooms[f"d{name}"] for name in ("w_ih", "w_hh")}
    results |= {f"d_{name}": None if getattr(problem, name) is None else rooms[f"d{name}"] for name in ("b_ih", "b_hh")}
    results |= {"d_w_hr": rooms["dw_hr"]} if "dw_hr" in rooms else {}
    states = len(arrays_of(problem.state)) or problem.cell.states
    return results | {f"d_initial_state {i}": rooms[name] for i, name in zip(range(states), ("dh0", "dc0"))}
