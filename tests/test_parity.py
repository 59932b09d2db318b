"""The reference and the fast functions take the same arguments."""

import inspect
from pathlib import Path

import pytest
from problems import CELLS
from processes import run_python

import fastbptt
import fastbptt.reference

NAMES = sorted({f"{cell.prefix}_{half}" for cell in CELLS.values() for half in ("forward", "backward", "jvp")})


def public_functions(module, suffixes=("_forward", "_backward", "_jvp")):
    return {name for name in dir(module) if name.endswith(suffixes) and not name.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_signatures_agree(name):
    fast, reference = (inspect.signature(getattr(module, name)).parameters.values() for module in (fastbptt, fastbptt.reference))
    fast, reference = ([(p.name, p.kind, p.default) for p in parameters] for parameters in (fast, reference))
    assert fast == reference


def test_every_fast_function_has_a_reference_and_a_row_here():
    assert public_functions(fastbptt) == public_functions(fastbptt.reference) == set(NAMES)


def test_all_names_exist_and_have_docstrings():
    for name in fastbptt.__all__:
        assert getattr(fastbptt, name).__doc__, name


def test_pictures_are_there_when_asked_for():
    """And not before: nobody who trains a net should wait for them."""
    run_python("import sys, fastbptt; assert 'fastbptt.pictures' not in sys.modules; fastbptt.pictures.plot_flow")
    assert "pictures" in dir(fastbptt)
    with pytest.raises(AttributeError, match="module 'fastbptt' has no attribute 'picture'"):
        fastbptt.picture  # noqa: B018


def test_reference_uses_no_kernels():
    source = inspect.getsource(fastbptt.reference)
    assert "_kernels" not in source and "_checks" not in source


def test_reference_and_table_of_cells_need_no_kernels():
    """Nor anything else of the package but what a backward pass returns: the package's own ``__init__``, which loads all, is kept out."""
    run_python(
        """
import sys, types

sys.modules["fastbptt"] = package = types.ModuleType("fastbptt")
package.__path__ = [sys.argv[1]]
import fastbptt.cells, fastbptt.reference

needed = "cells", "reference", "results", "_typing"  # the last is names for type checkers
assert {name for name in sys.modules if name.startswith("fastbptt.")} == {f"fastbptt.{name}" for name in needed}
""",
        Path(fastbptt.__file__).parent,
    )
