"""Chooses, at import, the instruction-set level whose kernels this process will run.

The choice asks ``cpu`` (compiled for the oldest processor) and never imports a module to find out: a module built for AVX may use it in
its own start-up code. ``FASTBPTT_ISA`` overrides the choice, downwards only.
"""

import os
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from . import cpu

LEVELS = {"x86-64-v4": "v4", "x86-64-v3": "v3", "baseline": "baseline", "scalar": "scalar"}  # best first; the short name is the module's
DTYPES = (np.dtype(np.float64), np.dtype(np.float32))


def built(short):
    """Whether a level's kernels are there."""
    return find_spec(f"{__name__}._{short}_float64") is not None


def _choose():
    """The level's name, and why it is this one."""
    usable = [name for name, short in LEVELS.items() if built(short) and cpu.runs(short)]
    asked = os.environ.get("FASTBPTT_ISA", "").strip()
    if not asked:
        return usable[0], "the best level that is built and that this processor and operating system support"
    for name in usable:
        if asked in (name, LEVELS[name]):
            return name, f"FASTBPTT_ISA={asked}"
    known = asked in LEVELS or asked in LEVELS.values()
    complaint = "is not supported by this processor or not built" if known else "is no instruction-set level"
    raise ImportError(f"FASTBPTT_ISA={asked!r} {complaint}; here it can be one of: {', '.join(usable)}")


level, reason = _choose()

#: The kernels by dtype.
kernels = {dtype: import_module(f"{__name__}._{LEVELS[level]}_{dtype.name}") for dtype in DTYPES}
