"""The pages say what is so: their links lead somewhere, their code runs, their commands are understood, their numbers agree."""

import doctest
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import fastbptt
from fastbptt.app.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))}
if not PAGES:
    pytest.skip("this is not a checkout", allow_module_level=True)
README = (ROOT / "README.md").read_text()


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Where links into a page can lead: its headings, as GitHub writes them in an address."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        led_to = page.parent / file if file else page
        assert target.startswith("https://") or led_to.exists(), target
        assert not anchor or anchor in anchors(led_to), target


@pytest.mark.parametrize("name", ["backward", "conventions"])
def test_the_console_sessions(name):
    failed, tried = doctest.testfile(str(ROOT / "docs" / f"{name}.md"), module_relative=False)
    assert tried > 5 and not failed


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_commands(page):
    for command in re.findall(r"^fastbptt .*", "".join(blocks(page.read_text(), "sh")), re.MULTILINE):
        build_parser().parse_args(shlex.split(command, comments=True)[1:])
    for script in re.findall(r"python (\w+/\w+\.py)", page.read_text()):
        assert (ROOT / script).exists(), script


def test_the_front_door():
    assert len(README.splitlines()) < 150
    for name in ("train", "test"):
        (command,) = re.findall(rf"^<!-- {name} command -->\n```sh\n(.*)\n```$", README, re.MULTILINE)
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_the_index_is_complete():
    index = README.partition("## The interface")[2]
    assert set(fastbptt.__all__) - set(re.findall(r"`(\w+)`", index)) == {"__version__"}


def test_the_example():
    names = {}
    exec(blocks(README, "python")[0], names)
    assert np.square(names["out"] - 0.5).mean() < 0.25  # where it began


@pytest.mark.one_level
def test_the_example_in_pytorch(torch):
    """From the same parameters and inputs, both loops come to the same."""
    (setup, loop), (their_setup, their_loop) = (code.split("\nfor ") for code in blocks(README, "python"))
    ours, theirs = {}, {}
    exec(setup, ours)
    exec(their_setup, theirs)
    theirs["layer"].load_state_dict({name: torch.from_numpy(value) for name, value in ours["layer"].state_dict().items()})
    theirs["x"] = torch.from_numpy(ours["x"])
    exec(f"for {loop}", ours)
    exec(f"for {their_loop}", theirs)
    assert np.allclose(ours["out"], theirs["out"].detach().numpy(), rtol=0, atol=1e-6)


def test_the_summary_is_that_of_the_results():
    row = r"^\| (\w+, float\d+, forward.*?) \|"
    ratios = {}
    for layer, ratio in re.findall(row + r".*\| \**([\d.]+)x[^|]*\| \d+% \|$", PAGES["benchmarks/RESULTS.md"].read_text(), re.MULTILINE):
        ratios.setdefault(layer, []).append(float(ratio))
    summary = re.findall(row + r" (\d+) \| ([\d.]+)x \| \**([\d.]+)x.* \| ([\d.]+)x \|$", README, re.MULTILINE)
    assert [layer for layer, *_ in summary] == list(ratios)
    for layer, *numbers in summary:
        each = ratios[layer]
        assert np.allclose([float(number) for number in numbers], [len(each), mean(each), min(each), max(each)], atol=0.015), layer
    every = [ratio for each in ratios.values() for ratio in each]
    assert (
        f"**{mean(every):.1f} times as fast as the better of PyTorch and JAX**: the geometric mean of {len(every)} points, from " in README
    )
    assert f" {min(every):.2f} to {max(every):.1f} times; slower at {sum(ratio < 1 for ratio in every)} of them. " in README


def mean(ratios):
    return math.exp(np.log(ratios).mean())
