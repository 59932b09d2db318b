"""What a release relies on: one version, sources that build against any NumPy, and a workflow that runs only what it names."""

import datetime
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastbptt

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "CITATION.cff").exists(), reason="this is not a checkout")
PLACES = ("CHANGELOG.md", "CITATION.cff", "fastbptt/_version.py")


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return pytest.importorskip("release")


@pytest.fixture
def checkout(tmp_path):
    """A repository of the files that say the version."""
    if not (ROOT / "fastbptt").exists():
        pytest.skip("the package is installed elsewhere")
    for place in PLACES:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    return tmp_path


def test_one_version(release):
    section, date, _ = release.newest_section((ROOT / "CHANGELOG.md").read_text())
    assert section == release.cited_version(ROOT) == fastbptt.__version__
    assert date == "Unreleased" or datetime.date.fromisoformat(date)


@pytest.mark.parametrize(
    ("place", "old", "new", "complaint"),
    [
        ("CHANGELOG.md", r"## \[.*?\]", "## [0.1.9]", "CHANGELOG.md says 0.1.9"),
        ("CHANGELOG.md", r"(?m)^- .*\n|^  .*\n", "", "nothing is said"),
        ("CITATION.cff", r"(?m)^version: .*", "version: 0.1.9", "CITATION.cff says 0.1.9"),
    ],
)
def test_a_version_said_otherwise(release, checkout, place, old, new, complaint):
    file = checkout / place
    file.write_text(re.sub(old, new, file.read_text()))
    assert any(complaint in said for said in release.disagreements(checkout))
    assert any("not committed" in said for said in release.obstacles(checkout))


def test_the_date(release, checkout):
    if release.newest_section((checkout / "CHANGELOG.md").read_text())[1] != "Unreleased":
        pytest.skip("this version has its date")
    assert release.obstacles(checkout) == []
    release.set_date(checkout, "2030-01-02")
    assert release.newest_section((checkout / "CHANGELOG.md").read_text())[1] == "2030-01-02"
    assert 'date-released: "2030-01-02"' in (checkout / "CITATION.cff").read_text()
    assert release.disagreements(checkout) == []
    assert any("has a date" in said for said in release.obstacles(checkout))


def test_no_cimport_of_numpy():
    """Its C structures differ from version to version: modules that were compiled against one say "dtype size changed" to another."""
    sources = [path for folder in ("fastbptt", "tests", "docs") for path in (ROOT / folder).rglob("*.p[yx]?") if path.suffix != ".pyc"]
    if not (ROOT / "fastbptt").exists():
        pytest.skip("the package is installed elsewhere")
    assert any(path.suffix == ".pxi" for path in sources)
    pattern = re.compile(r"^\s*(cimport\s+numpy|from\s+numpy\S*\s+cimport|cimport\s.*\bnumpy\b)", re.MULTILINE)
    assert pattern.search("from numpy cimport ndarray") and pattern.search("    cimport numpy as np")
    assert [str(path) for path in sources if pattern.search(path.read_text())] == []


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_actions_are_pinned(workflow):
    uses = re.findall(r"uses: (.+)", workflow.read_text())
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
