"""The page on fleets says what came of its example: its code runs, to the numbers that it tells."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"
if not (DOCS / "make_fleet.py").exists():
    pytest.skip("this is not a checkout", allow_module_level=True)
FOUND = json.loads((DOCS / "fleet.json").read_text())


@pytest.fixture
def maker(monkeypatch):
    """What make_fleet.py defines."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(DOCS))
    yield runpy.run_path(str(DOCS / "make_fleet.py"))
    sys.modules.pop("bandits", None)


def test_the_page(maker):
    assert maker["page"](FOUND) == (DOCS / "fleet.md").read_text()
    picture = (DOCS / "fleet.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_the_example(maker):
    history, held_out, own = maker["learn"](10)
    assert np.allclose(history.mean(axis=1), FOUND["first"][:10], rtol=1e-3)
    assert held_out.shape == own.shape == (165,) and np.isclose(own.mean(), FOUND["own"], rtol=1e-6)
    assert (held_out > 0.9 * own).all()
    assert history.shape == (10, 165) and (np.diff(history.mean(axis=1)) < 0).all()
