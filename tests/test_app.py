"""The program, `fastbptt.app`, stands on the library; the library knows nothing of it."""

import ast
import re
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest
from processes import run_python

import fastbptt

PACKAGE = Path(fastbptt.__file__).parent
MODULES = {
    ".".join(("fastbptt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NEEDED = {"fastbptt.torch": "torch", "fastbptt.contrib": "torch", "fastbptt.jax": "jax"}
LIBRARY = {name: path for name, path in MODULES.items() if name != "fastbptt.__main__" and not name.startswith("fastbptt.app")}


def imported(source, package):
    """What a module's source imports, also inside functions, and what it has a name for in a string, for ``import_module``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\.*\w+(\.\w+)*", node.value):
            yield resolve_name(node.value, package)


def of_the_program(names):
    return [name for name in names if f"{name}.".startswith("fastbptt.app.")]


def test_loading_the_library_loads_nothing_of_the_program():
    code = "import sys\nfrom importlib import import_module\nfor name in sys.argv[1:]: import_module(name)\nprint(*sys.modules)"
    lacking = tuple(name for name, needed in NEEDED.items() if not find_spec(needed))
    here = [name for name in LIBRARY if not name.startswith(lacking)]
    loaded = run_python(code, *here).split()
    assert set(here) <= set(loaded) and not of_the_program(loaded)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_nothing_of_the_program(name):
    path = LIBRARY[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert not of_the_program(imported(path.read_text(), package))


@pytest.mark.parametrize(
    "source",
    [
        "from ..app import cli",
        "from .. import app",
        "import fastbptt.app.cli",
        "from fastbptt.app.train.model import Model",
        "def late():\n    from ..app.flow import saved",
        'import_module("..app.flow", __name__)',
        '__import__("fastbptt.app")',
    ],
)
def test_such_an_import_is_found(source):
    assert of_the_program(imported(source, "fastbptt.gradients"))
