"""Release what is checked out: check it, date it, make and check the wheels, tag it; then say what is left to do by hand.

pip install -e ".[release,lint]"
python benchmarks/release.py --check      # only says what stands in the way
python benchmarks/release.py
"""

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = """
{tag} is tagged here, and in dist/ are its sdist and its wheel for Linux on x86-64. By hand:

1. git push origin main {tag}: .github/workflows/wheels.yml makes all wheels, and waits.
2. Look at its jobs. A platform whose tests fail is left out by its line in the workflow, and the README says so.
3. Agree to the deployment `pypi` on GitHub, which publishes. (Once before the first release: make that environment, with yourself
   as its reviewer, and name workflow and environment to the package index as a trusted publisher.)
4. pip install fastbptt=={version} in a fresh environment; fastbptt info; fastbptt train.
5. Set the next version in fastbptt/_version.py and CITATION.cff, and begin its section of CHANGELOG.md: ## [version] - Unreleased.
"""


def version_of(root):
    return re.search(r'__version__ = "(.+)"', (root / "fastbptt" / "_version.py").read_text())[1]


def newest_section(changelog):
    """Version, date and text of the first section."""
    return re.search(r"^## \[(.+?)\] - (.+)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE).groups()


def cited_version(root):
    return re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)[1]


def disagreements(root):
    """Where the version is said otherwise than in `_version.py`."""
    version = version_of(root)
    section, _, text = newest_section((root / "CHANGELOG.md").read_text())
    said = {"CHANGELOG.md": section, "CITATION.cff": cited_version(root)}
    found = [f"{where} says {other}, _version.py {version}" for where, other in said.items() if other != version]
    return found + ([] if re.search(r"^- ", text, re.MULTILINE) else [f"CHANGELOG.md: nothing is said about {section}"])


def git(root, *command):
    return subprocess.run(["git", "-C", root, *command], check=True, capture_output=True, text=True).stdout.strip()


def obstacles(root):
    found = disagreements(root)
    version = version_of(root)
    if dirty := git(root, "status", "--porcelain"):
        found.append(f"changes that are not committed:\n{dirty}")
    if (branch := git(root, "branch", "--show-current")) != "main":
        found.append(f"the branch is {branch or 'none'}, not main")
    if git(root, "tag", "--list", f"v{version}"):
        found.append(f"v{version} is tagged already")
    if newest_section((root / "CHANGELOG.md").read_text())[1] != "Unreleased":
        found.append(f"CHANGELOG.md has a date for {version} already")
    return found


def set_date(root, today):
    """In the changelog and the citation."""
    changelog, citation = root / "CHANGELOG.md", root / "CITATION.cff"
    version = version_of(root)
    changelog.write_text(changelog.read_text().replace(f"## [{version}] - Unreleased", f"## [{version}] - {today}", 1))
    undated = re.sub(r"^date-released: .*\n", "", citation.read_text(), flags=re.MULTILINE)
    citation.write_text(undated.replace(f"version: {version}\n", f'version: {version}\ndate-released: "{today}"\n', 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what stands in the way")
    options = parser.parse_args()
    if found := obstacles(ROOT):
        sys.exit("\n".join(["Not to be released yet:", *found]))
    version = version_of(ROOT)
    if options.check:
        print(f"Nothing stands in the way of {version}.")
        return
    before = git(ROOT, "rev-parse", "HEAD")
    set_date(ROOT, datetime.date.today().isoformat())
    git(ROOT, "commit", "--all", "--message", f"Release {version}")
    try:
        for command in ([ROOT / ".ci" / "run"], [sys.executable, ROOT / "benchmarks" / "wheel.py", "--out", ROOT / "dist"]):
            subprocess.run(command, cwd=ROOT, check=True)
    except BaseException:
        git(ROOT, "reset", "--keep", before)
        raise
    git(ROOT, "tag", "--annotate", f"v{version}", "--message", f"fastbptt {version}")
    print(BY_HAND.format(tag=f"v{version}", version=version))


if __name__ == "__main__":
    main()
