"""Builds the kernels: one source, a module for every element type and instruction-set level. Everything else is in pyproject.toml."""

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("fastbptt", "_kernels")

# Levels of each processor, and their compiler flags, as `cpu.pyx` knows them. `scalar` is a check on the others.
EVERYWHERE = {"scalar": []}
LEVELS = {
    "x86_64": {"baseline": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]},
    "aarch64": {"neon": []},
}
ANY_OTHER = {"baseline": []}  # vectors of 16 bytes, which the compiler makes of what there is
SAME_AS = {"amd64": "x86_64", "arm64": "aarch64"}
DTYPES = ["float64", "float32"]

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}
if os.environ.get("FASTBPTT_DEBUG"):
    DIRECTIVES.update(boundscheck=True, wraparound=True, initializedcheck=True)
SANITIZERS = os.environ.get("FASTBPTT_SANITIZE")  # such as "address,undefined"
TRANSLATE_ALL = "FASTBPTT_DEBUG" in os.environ  # if only to "": Cython goes by the files' dates, and does not see other directives

# For GCC and Clang, nothing else. -ffast-math is left out on purpose: it breaks NaN checks, and linking with it changes the
# whole process's arithmetic. What the limited API leaves out must not compile: called undeclared, it returns half a pointer.
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", "-g0", "-Werror=implicit-function-declaration"]
LINK_FLAGS = [] if sys.platform == "win32" else ["-pthread"]  # helpers are POSIX threads
if SANITIZERS:
    FLAGS += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    LINK_FLAGS += [f"-fsanitize={SANITIZERS}"]


# One wheel for CPython 3.11 and all later: the limited API of 3.11. Free-threaded builds have none, and Cython's line tracing, which
# coverage of .pyx files needs, is not made for it: FASTBPTT_LIMITED_API=0 builds for this Python only.
LIMITED_API = (
    sys.implementation.name == "cpython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and os.environ.get("FASTBPTT_LIMITED_API", "1") != "0"
)
MACROS = [("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []


class BuildExt(build_ext):
    """Compiles on all cores, and leaves one build of a module in a checkout: Python would take one for its own version before another."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for extension in self.extensions:
            built = Path(self.get_ext_filename(extension.name))
            for other in built.parent.glob(f"{built.name.partition('.')[0]}.*{built.suffix}"):
                if other != built:
                    other.unlink()

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.use_clang_cl()
        super().build_extensions()

    def use_clang_cl(self):
        """In place of Microsoft's compiler, which has no vector types, and takes flags that it does not know for nothing. Untried."""
        clang = os.environ.get("CC", "")
        if Path(clang).stem.lower() != "clang-cl" or not shutil.which(clang):
            raise SystemExit(
                f"CC: expected clang-cl, since Microsoft's compiler has no vector types, got {clang!r}; or build with MinGW's GCC: "
                "python setup.py build_ext --compiler=mingw32 bdist_wheel"
            )
        self.compiler.initialize()
        self.compiler.cc = shutil.which(clang)
        for extension in self.extensions:
            extension.extra_compile_args = [f"/clang:{flag}" for flag in extension.extra_compile_args]


def kernel_module(level, flags, dtype):
    """The extension for one level and dtype, from a stub that includes the common source under a name of its own."""
    name = f"_{level}_{dtype}"
    stub = KERNELS / f"{name}.pyx"
    text = 'include "kernels.pxi"\n'
    if not stub.exists() or stub.read_text() != text:
        stub.write_text(text)
    macros = MACROS + [(f"FASTBPTT_{option.upper()}", "1") for option in (level, dtype) if option in ("scalar", "float32")]
    return Extension(
        f"fastbptt._kernels.{name}",
        [str(stub)],
        define_macros=macros,
        py_limited_api=LIMITED_API,
        extra_compile_args=FLAGS + flags,
        extra_link_args=LINK_FLAGS,
        depends=[str(path) for pattern in ("*.pxi", "*.h") for path in KERNELS.glob(pattern)],
    )


def processors():
    """What is compiled for, which need not be what compiles. There are two in what macOS calls a universal binary."""
    names = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", "")) if sys.platform == "darwin" else []
    if not names:
        name = sysconfig.get_platform().rpartition("-")[2]
        names = ["arm64", "x86_64"] if name == "universal2" else [name]
    return names


def levels():
    """Each level's flags; in a universal binary they are for one processor's half only."""
    names = processors()
    flags = dict(EVERYWHERE)
    for name in names:
        for level, own in LEVELS.get(SAME_AS.get(name.lower(), name), ANY_OTHER).items():
            flags[level] = own if len(names) == 1 else [word for flag in own for word in (f"-Xarch_{name}", flag)]
    return flags


def plain_module(source):
    """An extension for any processor."""
    return Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        define_macros=MACROS,
        py_limited_api=LIMITED_API,
        extra_compile_args=FLAGS,
        extra_link_args=LINK_FLAGS,
    )


extensions = [plain_module(source) for source in [Path("fastbptt", "cython_api.pyx"), *sorted(KERNELS.glob("[!_]*.pyx"))]]
extensions += [kernel_module(level, flags, dtype) for level, flags in levels().items() for dtype in DTYPES]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1, force=TRANSLATE_ALL),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
