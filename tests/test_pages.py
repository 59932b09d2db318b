"""The pages say what is so: their links lead somewhere, their code runs, their commands are understood, their numbers agree."""

import doctest
import math
import re
import runpy
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
GUIDE = "docs/gradients.md"  # has tests of its own
SESSIONS = [name for name, page in PAGES.items() if ">>> " in page.read_text() and name != GUIDE and ".template" not in name]
PACKAGE = Path(fastbptt.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("_kernels/*.[ph]*"))}
needs_sources = pytest.mark.skipif("_kernels/pool.pyx" not in SOURCES, reason="a wheel has no sources of its modules")
HOW_IT_WORKS = (ROOT / "docs/how_it_works.md").read_text()


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
        led_to = (page.parent / file).resolve() if file else page
        if led_to.is_relative_to(ROOT / "fastbptt"):  # which may be installed elsewhere
            led_to = PACKAGE / led_to.relative_to(ROOT / "fastbptt")
        assert target.startswith("https://") or led_to.exists(), target
        assert not anchor or anchor in anchors(led_to), target


@pytest.mark.parametrize("name", SESSIONS)
def test_the_console_sessions(name):
    failed, tried = doctest.testfile(str(PAGES[name]), module_relative=False)
    assert tried > 5 and not failed


def test_no_code_is_left_out():
    """Every block of Python is a session, or has a test that runs it as it stands."""
    run_elsewhere = {
        "README.md",
        "docs/from_elsewhere.md",
        GUIDE,
        "docs/fleet.md",
        "docs/pytorch.md",
        "docs/jax.md",
        "docs/c_interface.md",
        "docs/machines.md",
    }
    for name, page in PAGES.items():
        for block in blocks(page.read_text(), "python"):
            assert name in run_elsewhere or ".template" in name or (name in SESSIONS and block.startswith(">>> ")), block


@pytest.mark.one_level
@pytest.mark.parametrize("package", ["PyTorch", "JAX", "NumPy"])
def test_the_same_elsewhere(package):
    """Its assertions say that both come to the same."""
    module = pytest.importorskip({"PyTorch": "torch"}.get(package, package.lower()))
    if package == "PyTorch":
        module.set_num_threads(1)
    section = PAGES["docs/from_elsewhere.md"].read_text().partition(f"## From {package}\n")[2].partition("\n## ")[0]
    (code,) = blocks(section, "python")
    assert code.count("assert ") == 2
    exec(code, {})


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_commands(page):
    for command in re.findall(r"^fastbptt .*", "".join(blocks(page.read_text(), "sh")), re.MULTILINE):
        build_parser().parse_args(shlex.split(command, comments=True)[1:])
    for script in re.findall(r"python (\w+/\w+\.py)", page.read_text()):
        assert (ROOT / script).exists(), script


@needs_sources
@pytest.mark.parametrize("name", ["backward", "how_it_works"])
def test_what_is_quoted_of_the_kernels(name):
    """Lines of C and Cython, and constants, stand there as they stand here."""
    page = PAGES[f"docs/{name}.md"]
    sources = [path.read_text() for path in SOURCES.values()]
    lines = ["\n".join(line.strip() for line in source.splitlines()) for source in sources]
    for block in blocks(page.read_text(), "c(?:ython)?"):
        quoted = "\n".join(line.strip() for line in block.strip().splitlines())
        assert any(quoted in source for source in lines), block
    for constant in re.findall(r"`([A-Z][A-Z_0-9]+ = [^`]+)`", page.read_text()):
        assert any(re.search(rf"\b{re.escape(constant)}(?!\w)", source) for source in sources), constant


@needs_sources
def test_the_files_of_the_kernels_are_there():
    for name in re.findall(r"`(?:_kernels/)?(\w+\.(?:pxi|pyx|h))`", HOW_IT_WORKS):
        assert f"_kernels/{name}" in SOURCES, name


@needs_sources
def test_where_to_look():
    table = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| (`[^|]+`) \|$", HOW_IT_WORKS.partition("## 12. Where to look")[2], re.MULTILINE)
    assert len(table) > 10
    for files, functions in table:
        text = "\n".join(SOURCES[file].read_text() for file in re.findall(r"`([^`]+)`", files))
        for function in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"^(?:c?p?def|static)\b.*\b{function}\(", text, re.MULTILINE), (files, function)


def test_the_tiles():
    """The page's table of tiles is what the macros come to."""
    simd, tile = SOURCES["_kernels/simd.h"].read_text(), SOURCES["_kernels/tile.h"].read_text()
    vectors = re.search(r"#define TILE_VECTORS\(R\) (.+)", tile)[1].replace("/", "//")
    vectors = re.sub(r"\(R\) > 2 \? (.+) : 8\)\)$", r"(\1 if R > 2 else 8)))", vectors)
    rows, accumulators = (re.search(rf"#define {name} \((.+)\)", simd)[1].replace("/", "//") for name in ("TILE_ROWS", "ACCUMULATORS"))
    for registers in (16, 32):
        names = {"REGISTERS": registers, "LEAST": min}
        names["ACCUMULATORS"] = eval(accumulators, names)
        expected = [str(eval(vectors, names, {"R": R})) for R in range(1, eval(rows, names) + 1)]
        row = re.search(rf"^\| vectors, of {registers} registers \|(.+)\|$", HOW_IT_WORKS, re.MULTILINE)[1]
        assert row.replace("|", " ").split() == expected


def test_the_figures():
    figures = runpy.run_path(str(ROOT / "docs" / "make_figures.py"))["FIGURES"]
    assert {path.name for path in (ROOT / "docs").glob("*.svg")} == figures.keys()
    for name, draw in figures.items():
        assert (ROOT / "docs" / name).read_text() == draw(), f"{name} is not what docs/make_figures.py draws now: run it"


def test_the_promises():
    promises = re.findall(r"^\| [^|]+ \| (`test_.+`) \|$", PAGES["docs/promises.md"].read_text(), re.MULTILINE)
    assert len(promises) > 30
    for file, test in re.findall(r"`(\w+\.py)::(\w+)`", " ".join(promises)):
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{test}"


def on_the_site():
    """What the pages of the interface show, by full name; all members of a module as "module.*"."""
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        module = last = ""
        for directive, argument, members in re.findall(r"^(?:\.\. ([\w:]+):: (\S+)|   :members:(.*))$", page.read_text(), re.MULTILINE):
            if directive in ("automodule", "currentmodule"):
                module = argument
            if directive == "automodule":
                yield module
            elif directive in ("autofunction", "autoclass", "py:data"):
                yield f"{module}.{argument}"
            elif not directive and last == "automodule":
                yield from (f"{module}.{member.strip()}" for member in (members or "*").split(","))
            last = directive or last


@pytest.mark.parametrize(
    "name", ["fastbptt", *(f"fastbptt.{name}" for name in ("fleet", "torch", "contrib.sb3", "init", "tasks", "pictures", "reference"))]
)
def test_every_public_name_is_on_the_site(name):
    module = pytest.importorskip(name, exc_type=ImportError)
    public = getattr(module, "__all__", None) or [
        key for key, value in vars(module).items() if not key.startswith("_") and getattr(value, "__module__", "") == name
    ]
    if name == "fastbptt.reference":  # what else there is is for those who read it
        public = [key for key in public if key.endswith(("_forward", "_backward", "_jvp"))]
    shown = {*on_the_site(), "fastbptt.__version__"}
    assert public and (f"{name}.*" in shown or shown.issuperset(f"{name}.{key}" for key in public))


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
        f"**{mean(every):.1f} times as fast as the best of PyTorch, JAX and ONNX Runtime**: the geometric mean of {len(every)} points, from "
        in README
    )
    assert f" {min(every):.2f} to {max(every):.1f} times; slower at {sum(ratio < 1 for ratio in every)} of them. " in README


def mean(ratios):
    return math.exp(np.log(ratios).mean())
