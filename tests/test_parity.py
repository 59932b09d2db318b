"""The reference and the fast functions take the same arguments."""

import inspect

import pytest
from problems import CELLS

import fastbptt
import fastbptt.reference

NAMES = sorted({f"{cell.prefix}_{half}" for cell in CELLS.values() for half in ("forward", "backward")})


def public_functions(module, suffixes=("_forward", "_backward")):
    return {name for name in dir(module) if name.endswith(suffixes) and not name.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_signatures_agree(name):
    assert inspect.signature(getattr(fastbptt, name)) == inspect.signature(getattr(fastbptt.reference, name))


def test_every_fast_function_has_a_reference_and_a_row_here():
    assert public_functions(fastbptt) == public_functions(fastbptt.reference) == set(NAMES)


def test_all_names_exist_and_have_docstrings():
    for name in fastbptt.__all__:
        assert getattr(fastbptt, name).__doc__, name


def test_reference_uses_no_kernels():
    source = inspect.getsource(fastbptt.reference)
    assert "_kernels" not in source and "_checks" not in source
