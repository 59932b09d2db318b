"""A package that compiles against fastbptt, as a stranger's would. It is linked to nothing of fastbptt's.

FASTBPTT_NEWER, if set, is a folder with the declarations of a newer fastbptt: the module ``newer`` is compiled against those.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = {"define_macros": [("Py_LIMITED_API", "0x030B0000")], "py_limited_api": True, "extra_compile_args": ["-O1"]}


def module(name, **options):
    return cythonize(Extension(f"bptt_consumer.{name}", [f"bptt_consumer/{name}.pyx"], **FLAGS), language_level=3, **options)


modules = [extension for path in Path("bptt_consumer").glob("*.pyx") if path.stem != "newer" for extension in module(path.stem)]
if "FASTBPTT_NEWER" in os.environ:
    modules += module("newer", include_path=[os.environ["FASTBPTT_NEWER"]])
setup(ext_modules=modules, options={"bdist_wheel": {"py_limited_api": "cp311"}})
