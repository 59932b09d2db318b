"""Chooses, at import, the instruction-set level whose kernels this process will run.

The choice asks ``cpu`` (compiled for the oldest processor) and never imports a module to find out: a module built for AVX may use it in
its own start-up code. ``FASTBPTT_ISA`` overrides the choice, downwards only.

Where nothing is built, everything can be imported still, and what needs no kernels works; each use of one raises ImportError.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

# Best first; the short name is the module's. No processor has all of them.
LEVELS = {"x86-64-v4": "v4", "x86-64-v3": "v3", "neon": "neon", "baseline": "baseline", "scalar": "scalar"}
DTYPES = (np.dtype(np.float64), np.dtype(np.float32))


def built(short: str) -> bool:
    """Whether a level's kernels are there, for every dtype."""
    return all(find_spec(f"{__name__}._{short}_{dtype.name}") is not None for dtype in DTYPES)


def _choose() -> tuple[str, str]:
    """The level's name, and why it is this one."""
    usable = [name for name, short in LEVELS.items() if built(short) and cpu.runs(short)]
    if not usable:
        raise ModuleNotFoundError("no level is built")
    asked = os.environ.get("FASTBPTT_ISA", "").strip()
    if not asked:
        return usable[0], "the best level that is built and that this processor and operating system support"
    for name in usable:
        if asked in (name, LEVELS[name]):
            return name, f"FASTBPTT_ISA={asked}"
    known = asked in LEVELS or asked in LEVELS.values()
    complaint = "is not supported by this processor or not built" if known else "is no instruction-set level"
    raise ImportError(f"FASTBPTT_ISA={asked!r} {complaint}; here it can be one of: {', '.join(usable)}")


class _NotBuilt:
    """Stands for a module that is not built; its functions, whatever their names, say so."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return require


def require(*_: object, **__: object) -> None:
    """ImportError, with the command that helps, where the kernels are not built."""
    if level is None:
        raise ImportError("no kernels are built here for this Python; in a checkout of fastbptt, this builds them: pip install -e .")


#: The modules that are compiled for any processor.
PLAIN = "cpu", "chunks", "memory", "pieces", "pool", "tensors"
#: These, and the kernels by dtype; the chosen level's name, None if nothing is built, and why it is this one.
kernels: dict[np.dtype[Any], Any]
level: str | None
reason: str | None
if TYPE_CHECKING:
    from . import chunks as chunks
    from . import cpu as cpu
    from . import memory as memory
    from . import pieces as pieces
    from . import pool as pool
    from . import tensors as tensors
try:
    if not TYPE_CHECKING:
        cpu, chunks, memory, pieces, pool, tensors = (import_module(f"{__name__}.{name}") for name in PLAIN)
    level, reason = _choose()
    kernels = {dtype: import_module(f"{__name__}._{LEVELS[level]}_{dtype.name}") for dtype in DTYPES}
except ModuleNotFoundError:
    level = reason = None
    if not TYPE_CHECKING:
        cpu = chunks = memory = pieces = pool = tensors = _NotBuilt()
    kernels = dict.fromkeys(DTYPES, _NotBuilt())
