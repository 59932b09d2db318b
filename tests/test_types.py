"""Types: every public name has them, mypy accepts what users write, and the stubs say what the compiled modules do."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastbptt
from fastbptt._kernels import PLAIN

ROOT = Path(__file__).parent.parent
needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
pytestmark = pytest.mark.one_level
MODULES = (fastbptt.init, fastbptt.tasks, fastbptt.pictures, fastbptt.fleet)  # reference has a stub, which stubtest compares with it
ADDED_BY_CYTHON = r"""
.*\.__(reduce|setstate)_cython__
.*\.__(test|pyx_capi)__
.*\.__buffer__
"""


def public():
    """Public functions and methods, by name."""
    for owner in (fastbptt, *MODULES):
        for name in getattr(owner, "__all__", None) or [name for name in vars(owner) if not name.startswith("_")]:
            value = getattr(owner, name)
            if owner is not fastbptt and getattr(value, "__module__", None) != owner.__name__:
                continue
            if inspect.isfunction(value) and value.__module__.startswith("fastbptt"):
                yield f"{owner.__name__}.{name}", value
            elif inspect.isclass(value) and value.__module__.startswith("fastbptt"):
                for base in value.__mro__:
                    if base.__module__.startswith("fastbptt"):
                        yield from methods(base)


def methods(kind):
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", None) or member
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            yield f"{kind.__qualname__}.{name}", function


def test_every_public_function_is_annotated():
    functions = dict(public())
    assert len(functions) > 80
    incomplete = [
        name
        for name, function in functions.items()
        if inspect.signature(function).return_annotation is inspect.Signature.empty
        or any(
            parameter.annotation is parameter.empty and parameter.name != "self"
            for parameter in inspect.signature(function).parameters.values()
        )
    ]
    assert not incomplete


def run(*command):
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_mypy
def test_what_users_write():
    run("mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir", os.devnull, "tests/typing_examples.py")


@needs_mypy
@pytest.mark.skipif(not (ROOT / "fastbptt").exists(), reason="the package is installed elsewhere")
def test_the_package_itself():
    run("mypy", "--cache-dir", os.devnull)


@needs_mypy
def test_the_stubs(tmp_path):
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(ADDED_BY_CYTHON)
    modules = [f"fastbptt._kernels.{name}" for name in PLAIN]
    modules += ["fastbptt.cython_api", "fastbptt._kernels.xla", "fastbptt.reference"]
    run("mypy.stubtest", "--ignore-unused-allowlist", "--allowlist", allowed, *modules)


def test_the_package_says_that_it_has_types():
    assert (Path(fastbptt.__file__).parent / "py.typed").exists()
