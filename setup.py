"""Builds the kernels: one source, a module for every element type and instruction-set level. Everything else is in pyproject.toml."""

import os
import platform
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("fastbptt", "_kernels")

# Level: its compiler flags, on x86-64. `scalar` is the fallback for compilers without vector types, and a check on the others.
LEVELS = {
    "scalar": [],
    "baseline": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
DTYPES = ["float64", "float32"]

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}
if os.environ.get("FASTBPTT_DEBUG"):
    DIRECTIVES.update(boundscheck=True, wraparound=True, initializedcheck=True)
SANITIZERS = os.environ.get("FASTBPTT_SANITIZE")  # such as "address,undefined"
TRANSLATE_ALL = "FASTBPTT_DEBUG" in os.environ  # if only to "": Cython goes by the files' dates, and does not see other directives

# For GCC and Clang; nothing else has been tried. -ffast-math is left out on purpose: it breaks NaN checks, and linking with it changes the
# whole process's arithmetic.
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", "-g0"]
LINK_FLAGS = []
if SANITIZERS:
    FLAGS += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    LINK_FLAGS += [f"-fsanitize={SANITIZERS}"]


class BuildExt(build_ext):
    """Compiles on all cores."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()


def kernel_module(level, dtype):
    """The extension for one level and dtype, from a stub that includes the common source under a name of its own."""
    name = f"_{level}_{dtype}"
    stub = KERNELS / f"{name}.pyx"
    text = 'include "kernels.pxi"\n'
    if not stub.exists() or stub.read_text() != text:
        stub.write_text(text)
    macros = [(f"FASTBPTT_{option.upper()}", "1") for option in (level, dtype) if option in ("scalar", "float32")]
    return Extension(
        f"fastbptt._kernels.{name}",
        [str(stub)],
        define_macros=macros,
        extra_compile_args=FLAGS + LEVELS[level],
        extra_link_args=LINK_FLAGS,
        depends=[str(path) for path in KERNELS.glob("*.pxi")] + [str(KERNELS / "simd.h")],
    )


def levels():
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [level for level, flags in LEVELS.items() if on_x86 or not flags]


def plain_module(name):
    """An extension for any processor."""
    source = str(KERNELS / f"{name}.pyx")
    return Extension(f"fastbptt._kernels.{name}", [source], extra_compile_args=FLAGS, extra_link_args=LINK_FLAGS)


extensions = [plain_module(name) for name in ("cpu", "chunks", "memory", "pool")]
extensions += [kernel_module(level, dtype) for level in levels() for dtype in DTYPES]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1, force=TRANSLATE_ALL),
    cmdclass={"build_ext": BuildExt},
)
