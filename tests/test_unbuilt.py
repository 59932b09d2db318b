"""A checkout where not all kernels are built, or none: what needs none works, and using one raises an error that says how to build."""

import itertools
import shutil
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from processes import run_python

import fastbptt
from fastbptt._kernels import PLAIN

PACKAGE = Path(fastbptt.__file__).parent
WORDS = "no kernels are built here for this Python; in a checkout of fastbptt, this builds them: pip install -e ."

CHILD = """
import sys
import numpy as np
import fastbptt
import fastbptt.reference
from fastbptt.app import cli
from fastbptt.gradients import frames, linearised
from problems import CELLS, random_problem

assert fastbptt.__file__.startswith(sys.argv[1])
for cell in CELLS:
    for tokens in (False, True):
        results = random_problem(cell, 5, 2, 3, 4, tokens=tokens).results(fastbptt.reference)
        assert {"out", "d_w_hh"} <= results.keys() and all(np.isfinite(result).all() for result in results.values() if result is not None)

x, w, out = np.ones((2, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
layer = fastbptt.RNN(1, 1)
uses = {
    "rnn_forward": lambda: fastbptt.rnn_forward(x, None, w, w),
    "gru_forward": lambda: fastbptt.gru_forward(x, None, np.ones((3, 1)), np.ones((3, 1))),
    "lstm_forward": lambda: fastbptt.lstm_forward(x, None, np.ones((4, 1)), np.ones((4, 1))),
    "rnn_jvp": lambda: fastbptt.rnn_jvp(fastbptt.Tape("rnn", x, w, w, None, None, None, "tanh", np.ones((3, 1, 1)), _shape=(2, 1, 1))),
    "layer": lambda: layer(x),
    "load_state_dict": lambda: layer.load_state_dict(layer.state_dict()),
    "init": lambda: fastbptt.init.identity(layer),
    "Linear": lambda: fastbptt.Linear(1, 1)(x),
    "SGD": lambda: fastbptt.SGD(layer, lr=1.0).step(),
    "Adam": lambda: fastbptt.Adam(layer, lr=1.0).step(),
    "clip_grad_norm_": lambda: fastbptt.clip_grad_norm_(w, 0.5),
    "clip_grad_value_": lambda: fastbptt.clip_grad_value_(w, 0.5),
    "total_norm": lambda: fastbptt.total_norm(w),
    "softmax_cross_entropy": lambda: fastbptt.softmax_cross_entropy(np.ones((1, 2)), np.zeros(1, int)),
    "set_num_threads": lambda: fastbptt.set_num_threads(1),
    "get_num_threads": fastbptt.get_num_threads,
    "show_config": fastbptt.show_config,
    "product": lambda: linearised.product(w, w),
    "random_frame": lambda: frames.random_frame(1, 1, 1),
}
for name, use in uses.items():
    try:
        use()
    except ImportError as error:
        assert str(error) == sys.argv[2], (name, error)
    else:
        raise AssertionError(name)
for arguments in (["info"], ["train"], ["flow"]):
    assert cli.main(arguments) == 2
"""


def test_nothing_is_built(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "fastbptt", ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__"))
    here = Path(__file__).parent
    result = run_python(CHILD, tmp_path, WORDS, check=False, PYTHONPATH=f"{tmp_path}:{here}")
    assert result.stderr == 3 * f"fastbptt: error: {WORDS}\n"
    assert (result.returncode, result.stdout) == (0, "")


names = (f"kernels_{i}" for i in itertools.count())
COMMON = tuple(f"{name}.py" for name in PLAIN)
SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def partly_built(tmp_path, monkeypatch):
    """The package of kernels under another name, with these files as its modules."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("FASTBPTT_ISA", raising=False)

    def load(*files):
        folder = tmp_path / next(names)
        folder.mkdir()
        shutil.copy(PACKAGE / "_kernels" / "__init__.py", folder)
        for file in files:
            (folder / file).write_text("def runs(level): return True\n" if file == "cpu.py" else "")
        return import_module(folder.name)

    yield load
    for name in [name for name in sys.modules if name.startswith("kernels_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("cpu.py",),
        COMMON,
        ("cpu.py", "memory.py", "_v3_float64.py", "_v3_float32.py"),
        (*COMMON, "_v3_float64.py"),
        (*COMMON, "_v3_float32.py", "_scalar_float64.py"),
        tuple(f"{file[:-3]}.cpython-30-some-other.so" for file in (*COMMON, "_v3_float64.py", "_v3_float32.py")),
    ],
)
def test_too_little_is_built(partly_built, files):
    kernels = partly_built(*files)
    assert kernels.level is None and list(kernels.kernels) == list(kernels.DTYPES)
    for module in (*(getattr(kernels, name) for name in PLAIN), *kernels.kernels.values()):
        with pytest.raises(ImportError, match="no kernels are built here"):
            module.whatever(1, by_name=2)


def test_a_level_that_lacks_a_dtype_is_not_chosen(partly_built):
    kernels = partly_built(*COMMON, "_v4_float64.py", "_v3_float64.py", "_v3_float32.py", "_scalar_float32.py")
    assert kernels.level == "x86-64-v3" and not kernels.built("v4") and not kernels.built("scalar")
    assert kernels.require() is None


def test_a_module_that_is_broken_is_another_matter(partly_built):
    with pytest.raises(ImportError) as raised:
        partly_built(f"cpu{SUFFIX}")
    assert "no kernels are built" not in str(raised.value)
