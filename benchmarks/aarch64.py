"""Builds the kernels for aarch64 on a machine of another kind, and runs their tests there under qemu.

    python benchmarks/aarch64.py                      the tests of the kernels, at every level
    python benchmarks/aarch64.py tests/test_math.py   or whatever pytest is to be told
    python benchmarks/aarch64.py --build              no tests

It runs on Debian 12. It needs the packages qemu-user and gcc-aarch64-linux-gnu, a Python with what `pyproject.toml` builds with, git, and
the archives of packages: Python for aarch64 comes from Debian's, NumPy and pytest from Python's. Nothing is installed on this machine; all
of it stands below ``--folder``, and what is there already is not fetched or built again. Nothing here measures speed: qemu translates
instructions.

What qemu cannot show: it runs aarch64's loads and stores in the order that this machine keeps, which on x86-64 is stricter than ARM's.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "python3.11"
WHEELS = ["numpy", "pytest", "hypothesis", "mpmath"]
PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"]
TESTS = """gradients math bounds bits clipping clip_step losses optim core ragged jvp projection cells lyapunov jacobians exact_products
    early_stop memory chunks layers levels"""
LEVELS = ["neon", "scalar"]
MODEST = {"FASTBPTT_TEST_SHAPES": "40", "FASTBPTT_TEST_POINTS": "20000", "FASTBPTT_TEST_PATIENCE": "10"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "aarch64", help="where everything is put (%(default)s)")
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc", help="such as 'clang --target=aarch64-linux-gnu' (%(default)s)")
    parser.add_argument("--build", action="store_true", help="build only")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs of pytest beside each other, of those of all files (%(default)s)")
    options, arguments = parser.parse_known_args()
    for tool in ("apt-get", "dpkg-deb", "git", "qemu-aarch64", shlex.split(options.compiler)[0]):
        if not shutil.which(tool):
            sys.exit(f"there is no {tool} here; on Debian: apt-get install qemu-user gcc-aarch64-linux-gnu git")
    folder = options.folder.resolve()
    system, tree = folder / "system", folder / "tree"
    if not (system / "complete").exists():
        shutil.rmtree(system, ignore_errors=True)
        unpack_debian(system, folder / "apt")
        install_wheels(system)
        (system / "complete").touch()
    python = wrapper(system)
    copy_sources(tree)
    build(system, tree, options.compiler)
    print(run(python, "-m", "fastbptt", "info", cwd=tree, capture_output=True, text=True).stdout)
    if not options.build:
        sys.exit(test(python, tree, arguments, options.jobs))


def run(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, **options)


def unpack_debian(system, apt):
    """Debian's Python for arm64 with all that it needs, from where this machine's own packages come, into folders of its own."""
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": apt,
        "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
        "Debug::NoLocking": "true",
    }
    command = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    run(*command, "update")
    run(*command, "install", "-y", "--download-only", "--no-install-recommends", PYTHON, f"lib{PYTHON}-dev", "libstdc++6")
    for package in sorted((apt / "archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, system)


def install_wheels(system):
    site = system / "usr" / "lib" / "python3" / "dist-packages"
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    version = PYTHON.removeprefix("python")
    options = ["-q", "--only-binary=:all:", "--python-version", version, *platforms]
    run(sys.executable, "-m", "pip", "install", "--target", site, *options, *WHEELS)


def wrapper(system):
    """Python under qemu as a program of this machine, so that tests can start it too."""
    script = system / "usr" / "bin" / "python-under-qemu"
    python = system / "usr" / "bin" / PYTHON
    script.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L {shlex.quote(str(system))} -0 "$0" {shlex.quote(str(python))} "$@"\n')
    script.chmod(0o755)
    return script


def copy_sources(tree):
    """The files that git has or would have, with their dates, so that only what has changed is built again."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, tree / name
        if source.is_file() and not (target.exists() and target.stat().st_mtime == source.stat().st_mtime):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def build(system, tree, compiler):
    """By setup.py, which this Python runs with the other one's settings."""
    settings = tree.parent / "settings"
    settings.mkdir(exist_ok=True)
    name = "_sysconfigdata__aarch64-linux-gnu"
    shutil.copy(system / "usr" / "lib" / PYTHON / f"{name}.py", settings)
    headers = system / "usr" / "include" / PYTHON
    command = f"{compiler} --sysroot={shlex.quote(str(system))}"
    environment = {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "_PYTHON_SYSCONFIGDATA_NAME": name,
        "PYTHONPATH": str(settings),
        "CC": command,
        "LDSHARED": f"{command} -shared",
        "CFLAGS": f"-I{shlex.quote(str(headers))}",
    }
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, env=os.environ | environment)


def test(python, tree, arguments, jobs):
    """File by file, at each level, ``jobs`` of them at a time; or as ``arguments`` say. How many runs of pytest failed."""
    command = [str(python), "-m", "pytest", "-q", "-rfE", "--tb=short"]
    environment = os.environ | MODEST
    if arguments:
        return int(subprocess.run(command + arguments, cwd=tree, env=environment).returncode != 0)

    def failed(run_of):
        level, file = run_of
        start = time.monotonic()
        words = [*command, file, "-m", "not one_level and not slow"]
        result = subprocess.run(words, cwd=tree, env=environment | {"FASTBPTT_ISA": level}, capture_output=True, text=True)
        if result.returncode:
            print(result.stdout[-20_000:], result.stderr[-5000:], sep="\n")
        minutes = (time.monotonic() - start) / 60
        print(f"{level:7} {file:30} {result.stdout.strip().splitlines()[-1]} ({minutes:.1f} minutes)", flush=True)
        return result.returncode != 0

    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(failed, [(level, f"tests/test_{name}.py") for name in TESTS.split() for level in LEVELS]))


if __name__ == "__main__":
    main()
