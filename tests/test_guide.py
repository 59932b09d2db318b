"""The guide says what was measured: its numbers are those of the saved results, its code runs, its commands are understood."""

import doctest
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from fastbptt.app.cli import build_parser

DOCS = Path(__file__).parent.parent / "docs"
if not (DOCS / "make_guide.py").exists():
    pytest.skip("this is not a checkout", allow_module_level=True)
GUIDE, RESULTS = (DOCS / "gradients.md").read_text(), json.loads((DOCS / "gradients.json").read_text())


@pytest.fixture
def maker(monkeypatch):
    """What make_guide.py defines."""
    monkeypatch.syspath_prepend(str(DOCS))
    yield runpy.run_path(str(DOCS / "make_guide.py"))
    sys.modules.pop("by_hand", None)


def test_the_numbers_are_those_that_were_measured(maker):
    assert maker["guide"](RESULTS) == GUIDE


def test_everything_was_measured(maker):
    assert RESULTS.keys() == maker["measurements"]().keys()


def test_what_is_quickly_measured_is_measured_again(maker):
    assert np.allclose(maker["descend"]("norm")["losses"], RESULTS["descents"]["norm"]["losses"], rtol=1e-3)
    assert np.allclose(maker["descend"]("none")["norms"], RESULTS["descents"]["none"]["norms"], rtol=1e-3)
    for name, found in maker["starts"]().items():
        assert np.allclose(found["log10 left"], RESULTS["starts"][name]["log10 left"], rtol=1e-6, atol=1e-6)
        assert found["verdict"] == RESULTS["starts"][name]["verdict"]


def test_the_console_sessions():
    failed, tried = doctest.testfile(str(DOCS / "gradients.md"), module_relative=False)
    assert tried > 5 and not failed


def test_the_loop_by_hand():
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "def learn" in block)
    assert code.strip() == (DOCS / "by_hand.py").read_text().strip()
    names = {}
    exec(code, names)
    wrong = names["learn"](lambda net: None, updates=3)
    assert 0.6 < wrong < 0.9 and wrong == names["learn"](lambda net: None, updates=3)


def test_the_commands():
    commands = set(re.findall(r"fastbptt (?:train|flow) --[^`\n]+", GUIDE))
    assert len(commands) > 10
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_the_pictures():
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", GUIDE)
    assert len(pictures) == 4
    for _, name in pictures:
        content = (DOCS / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 150_000
