"""Make the wheel and the sdist, check them, and run the tests on the wheel as installed: one command before a release.

    pip install -e ".[release]" && python benchmarks/wheel.py --out dist
    python benchmarks/wheel.py --short     # built once, and a few tests for each Python: what .ci/run does

HEAD is built, in two folders. GCC compiles; zig, a package like any other, links, since it knows what glibc 2.28 had, however new the one
here is. The wheel's bytes depend on the compiler, whose version is printed. Every check is a line of the table at the end; the status is 1
if any fails.
"""

import argparse
import gzip
import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 28)
MEGABYTES = 5
IMPORT_MS = 25  # that `import fastbptt` may add to NumPy's
OLDEST_NUMPY = {"3.11": "1.26.*", "3.12": "1.26.*", "3.13": "2.1.*"}  # that has a wheel for that Python, our floor being 1.26
# modules that any x86-64 processor must be able to run
BASELINE = ("cython_api", *(source.stem for source in sorted(ROOT.glob("fastbptt/_kernels/[!_]*.pyx"))), "_scalar_", "_baseline_")
SHORT_TESTS = [
    "test_levels.py::test_what_the_processor_can_do",
    *("test_core.py", "test_chunks.py", "test_memory.py", "test_optim.py", "test_losses.py", "test_clipping.py"),
]
COMPILERS = re.compile(r"(.*-)?(cc|c\+\+|c[89]9|gcc|g\+\+|clang|clang\+\+|tcc|zig|cython|cythonize)(-[\d.]+)?$")
SMOKE = """
import numpy as np, fastbptt
layer = fastbptt.LSTM(3, 5, rng=0)
out, state = layer(np.ones((4, 2, 3)))
layer.backward(out)
assert np.isfinite(layer.flat_grads).all() and layer.flat_grads.any()
print(fastbptt.show_config(mode="dicts")["isa"])
"""
CONSUMER = """
import numpy as np, fastbptt
from bptt_consumer import calls
rng = np.random.default_rng(0)
x, w_ih, w_hh = rng.standard_normal((5, 2, 3)), rng.standard_normal((16, 3)), rng.standard_normal((16, 4))
out = np.empty((5, 2, 4))
call = calls.Call(dtype=8, cell=2, T=5, B=2, I=3, H=4, P=4, x=x, w_ih=w_ih, w_hh=w_hh, out=out)
workspace = np.empty(call.workspace_bytes(calls.CALLS["forward"]), np.uint8)
assert call.set(workspace=workspace, workspace_size=workspace.size).run("forward") == 0
assert np.array_equal(out, fastbptt.lstm_forward(x, None, w_ih, w_hh)[0])
print(calls.version())
"""
checks = []  # (what, whether it passed, what was seen)


def check(what, passed, seen=""):
    checks.append((what, bool(passed), str(seen)))
    print(f"{'ok  ' if passed else 'FAIL'} {what}: {seen}", flush=True)


def run(*command, **options):
    """The result, with both outputs in ``stdout``."""
    return subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def must(*command, **options):
    result = run(*command, **options)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{result.stdout[-5000:]}")
    return result.stdout


def missing_tools():
    """What has to be installed first, and what brings it."""
    packages = ["abi3audit", "auditwheel", "build", "Cython", "elftools", "setuptools", "twine", "ziglang"]
    lacking = [f'the Python package {name}: pip install -e ".[release]"' for name in packages if not find_spec(name)]
    programs = {"gcc": "gcc", "git": "git", "objdump": "binutils", "patchelf": "patchelf", "qemu-x86_64": "qemu-user"}
    return lacking + [f"{name}: Debian's package {package}" for name, package in programs.items() if not shutil.which(name)]


# --- Building ---------------------------------------------------------------------------------------------------------


def linker(folder):
    """A command that links against glibc's interface of that version, and fails for a symbol that it does not have."""
    script = folder / "link"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc -target x86_64-linux-gnu.{GLIBC[0]}.{GLIBC[1]} "$@"\n')
    script.chmod(0o755)
    return script


def build(source, out, compiler, link):
    """Make the sdist of a clone, and have pip make the wheel of that alone, offline; the two files."""
    must("git", "clone", "--quiet", ROOT, source)
    settings = os.environ | {"CC": compiler, "LDSHARED": f"{link} -shared -Wl,-s", "CFLAGS": "", "LDFLAGS": ""}
    must(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source, env=settings, umask=0o022)
    sdist = next(out.glob("*.tar.gz"))
    forget_times(sdist, int(os.environ["SOURCE_DATE_EPOCH"]))
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", out]
    must(sys.executable, "-m", "pip", "wheel", *offline, sdist, env=settings, umask=0o022)
    return sdist, next(out.glob("*.whl"))


def forget_times(sdist, epoch):
    """Write an archive anew, with one time for all of its files, and without who made them; setuptools leaves that to others."""
    with tarfile.open(sdist) as archive:
        files = [(member, archive.extractfile(member).read()) for member in archive if member.isfile()]
    with gzip.GzipFile(sdist, "wb", mtime=epoch) as packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in sorted(files, key=lambda file: file[0].name):
            plain = tarfile.TarInfo(member.name)
            plain.size, plain.mtime, plain.mode = len(content), epoch, 0o755 if member.mode & 0o100 else 0o644
            archive.addfile(plain, io.BytesIO(content))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- Checking the files -----------------------------------------------------------------------------------------------


def repaired(wheel, out):
    """The wheel under the name that says which systems it is for."""
    must(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, wheel)
    return next(out.glob("*.whl"))


def check_name(wheel):
    shown = must(sys.executable, "-m", "auditwheel", "show", wheel)
    tag = re.search(r"manylinux_(\d+)_(\d+)_x86_64", shown)
    check(f"manylinux_{GLIBC[0]}_{GLIBC[1]} or older", tag and tuple(map(int, tag.groups())) <= GLIBC, tag and tag[0])
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".libs/" in name]
    check("no external library", not libraries, ", ".join(libraries) or "none")
    check("one abi3 wheel for CPython 3.11 and later", "-cp311-abi3-" in wheel.name, wheel.name)


def check_files(wheel, sdist):
    for path, tool in ((wheel, "abi3audit"), (wheel, "twine"), (sdist, "twine")):
        command = ["abi3audit", "--strict", "--summary", path] if tool == "abi3audit" else ["twine", "check", "--strict", path]
        result = run(sys.executable, "-m", *command, env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"})
        lines = result.stdout.strip().splitlines()
        last = re.sub(r"\x1b\[\d+m|\S*/", "", lines[-1]) if lines else "nothing to complain of"
        check(f"{' '.join(command[:-1])} {path.suffix}", result.returncode == 0, last)
    for path in (wheel, sdist):
        check(f"size of {path.suffix}", path.stat().st_size < MEGABYTES * 1e6, f"{path.stat().st_size / 1e6:.2f} MB")


def check_modules(wheel, folder):
    """Which instructions and which folders are in the compiled modules."""
    from elftools.elf.elffile import ELFFile

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    modules = sorted(folder.glob("fastbptt/**/*.so"))
    searched, paths = [], []
    for module in modules:
        with module.open("rb") as file:
            tags = [tag.entry.d_tag for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags()]
        paths += [module.name] if {"DT_RPATH", "DT_RUNPATH"} & set(tags) or str(ROOT).encode() in module.read_bytes() else []
        searched.append((module.name, vex_instructions(module)))
    check("no search path or folder in the modules", not paths, ", ".join(paths) or f"{len(modules)} modules")
    low = {name: count for name, count in searched if name.startswith(BASELINE)}
    high = {name: count for name, count in searched if name not in low}
    expected = sum(2 if name.endswith("_") else 1 for name in BASELINE)  # a level has a module for each precision
    check(
        "no VEX or EVEX instruction in dispatcher and baseline",
        len(low) == expected and not any(low.values()),
        f"{sum(low.values())} in {len(low)}",
    )
    check("the same search finds them in the other levels", high and all(high.values()), f"{sum(high.values())} in {len(high)}")


def vex_instructions(module):
    """How many instructions have a VEX or EVEX prefix: names that begin with v, and those that know wide or mask registers."""
    count = 0
    for line in must("objdump", "-d", "--no-show-raw-insn", module).splitlines():
        words = line.partition(":\t")[2].split()
        if words and (
            re.match(r"v(?!er[rw]\b|m)|vm(?!call|launch|resume|xo|ptr|read|write|clear|func)", words[0])
            or re.search(r"%([yz]mm|k[0-7])", line)
        ):
            count += 1
    return count


# --- Checking it as installed -----------------------------------------------------------------------------------------


def interpreter(version):
    """A Python of this version: on the PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python")), *filter(None, [shutil.which(f"python{version}")])]
    for path in reversed(found):
        if run(path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip() == version:
            return path
    return None


def programs_but_compilers(folder):
    """A folder that stands for the PATH, without what compiles."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*"):
            link = folder / program.name
            if not COMPILERS.match(program.name) and not program.name.startswith(("python", "pip")) and not link.exists():
                link.symlink_to(program)
    return folder


class Environment:
    """A virtual environment with the wheel in it, and what its tests need; no compiler is on its PATH."""

    def __init__(self, folder, python, wheel, requirements, programs):
        must(python, "-m", "venv", folder)
        self.python = folder / "bin" / "python"
        # what is this shell's; OPENBLAS_CORETYPE would have NumPy run a processor's instructions that qemu's has not
        ours = {name for name in os.environ if name in ("CC", "PYTHONPATH") or name.startswith(("FASTBPTT_", "OPENBLAS_"))}
        self.variables = {name: value for name, value in os.environ.items() if name not in ours}
        self.variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{programs}"
        must(self.python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel, *requirements, env=self.variables)
        self.numpy = self.says("import numpy; print(numpy.__version__)")

    def says(self, code, *before):
        return must(*before, self.python, "-I", "-c", code, env=self.variables).split()[-1]

    def package(self):
        return Path(self.says("import fastbptt; print(fastbptt.__file__)")).parent


def tests_without_sources(source, folder):
    """All that a checkout has but the package."""
    shutil.copytree(
        source, folder, ignore=lambda place, names: {"fastbptt", "setup.py", ".git"} & set(names) if Path(place) == source else ()
    )
    return folder


def consumer(environment, source, folder):
    """The wheel of a package that is compiled against ours as installed: one for all Pythons, too."""
    shutil.copytree(source / "tests" / "consumer", folder / "source")
    variables = environment.variables | {"PATH": os.environ["PATH"]}
    must(environment.python, "-m", "pip", "install", "--quiet", "cython>=3.1", "setuptools>=77", env=variables)
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", folder]
    must(environment.python, "-m", "pip", "wheel", "--quiet", *offline, folder / "source", env=variables)
    return next(folder.glob("*.whl"))


def check_consumer(name, environment, wheel):
    must(environment.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, env=environment.variables)
    done = run(environment.python, "-I", "-c", CONSUMER, env=environment.variables)
    check(f"a package that was compiled against it, {name}", done.returncode == 0, done.stdout.strip().splitlines()[-1:])


def run_tests(name, environment, folder, short, log):
    everywhere = f"testpaths=tests {shlex.quote(str(environment.package()))}"
    chosen = [f"tests/{file}" for file in SHORT_TESTS] if short else ["-o", everywhere]
    with log.open("w") as file:
        command = [environment.python, "-m", "pytest", "-q", "-ra", *chosen]
        status = subprocess.run(
            [*map(str, command)], cwd=folder, env=environment.variables, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    lines = log.read_text().strip().splitlines()
    check(f"tests, {name}", status == 0, lines[-1].strip("= ") if lines else "nothing said")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="build once, and run a few tests only, with the newest NumPy")
    parser.add_argument("--interpreters", nargs="*", default=list(OLDEST_NUMPY), help=f"default: {' '.join(OLDEST_NUMPY)}")
    parser.add_argument("--compiler", default="gcc", help="another one, to compare (default: gcc)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files and the logs of the tests go (default: dist)")
    options = parser.parse_args()
    os.environ["SOURCE_DATE_EPOCH"] = must("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if lacking := missing_tools():
        raise SystemExit("\n".join(["lacking:", *lacking]))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        make_and_check(Path(scratch), options)
    print("\n| check | | seen |\n| :-- | :-- | :-- |")
    for what, passed, seen in checks:
        print(f"| {what} | {'ok' if passed else '**fails**'} | {seen} |")
    failed = sum(not passed for _, passed, _ in checks)
    print(f"\n{len(checks) - failed} checks passed, {failed} failed")
    sys.exit(failed > 0)


def make_and_check(scratch, options):
    link = linker(scratch)
    print(must(options.compiler, "--version").splitlines()[0])
    source = scratch / "checkout"
    sdist, wheel = build(source, scratch / "built", options.compiler, link)
    wheel = repaired(wheel, scratch / "repaired")
    if not options.short:
        sdist2, wheel2 = build(scratch / "elsewhere" / "a longer name", scratch / "built again", options.compiler, link)
        wheel2 = repaired(wheel2, scratch / "repaired again")
        for one, other in ((sdist, sdist2), (wheel, wheel2)):
            check(f"two builds, one {one.suffix}", sha256(one) == sha256(other), sha256(one))
    check_name(wheel)
    for path in (sdist, wheel):
        shutil.copy(path, options.out)
    print(f"sha256 {sha256(wheel)} {wheel.name}")
    check_files(wheel, sdist)
    check_modules(wheel, scratch / "unpacked")

    programs = programs_but_compilers(scratch / "programs")
    tests = tests_without_sources(source, scratch / "tests")
    stranger = None
    for version in options.interpreters:
        python = interpreter(version)
        if python is None:
            check(f"Python {version}", options.short, "not on this machine")
            continue
        for numpy in [""] if options.short else ["", f"=={OLDEST_NUMPY[version]}"]:
            requirements = ["pytest", "hypothesis", "mpmath"] if options.short else [f"fastbptt[test] @ {wheel.as_uri()}"]
            folder = scratch / f"{version}{numpy.replace('*', 'x')}"
            environment = Environment(folder, python, wheel, [f"numpy{numpy}", *requirements], programs)
            name = f"Python {version}, NumPy {environment.numpy}"
            stranger = stranger or consumer(environment, source, scratch / "consumer")
            check_consumer(name, environment, stranger)
            if version == options.interpreters[0] and not numpy:
                check_as_installed(environment)
                if not options.short:  # CI asserts no time
                    check_import_time(environment)
            run_tests(name, environment, tests, options.short, options.out / f"tests-{version}-{environment.numpy}.txt")


def check_as_installed(environment):
    level = environment.says(SMOKE, shutil.which("qemu-x86_64"), "-cpu", "Nehalem")
    check("runs on a Nehalem", level == "baseline", level)


def check_import_time(environment):
    """With bytecode, as any import but the first has it."""
    variables = {name: value for name, value in environment.variables.items() if name != "PYTHONDONTWRITEBYTECODE"}
    bench = [environment.python, ROOT / "benchmarks" / "bench_import.py"]
    adds = min(float(re.search(r"adds (-?[\d.]+)", must(*bench, env=variables))[1]) for _ in range(3))  # others' work only adds
    check(f"import adds at most {IMPORT_MS} ms to NumPy's", adds <= IMPORT_MS, f"{adds} ms")


if __name__ == "__main__":
    main()
