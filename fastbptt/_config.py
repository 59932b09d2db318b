"""What this process runs on: the version, the instruction-set level, the threads. Importing it sets the number of threads."""

from __future__ import annotations

import os
import platform
from typing import Any, Literal, overload

import numpy as np

from . import _checks, _kernels
from ._kernels import cpu, pool
from ._version import __version__

THREADS_VARIABLE = "FASTBPTT_NUM_THREADS"
get_num_threads, set_num_threads = pool.get_num_threads, pool.set_num_threads


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print which kernels were chosen and why, and how many threads a call may use.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print, or to return a dict, as `numpy.show_config` does.

    Returns
    -------
    dict or None

    Raises
    ------
    TypeError, ValueError
        If ``mode`` is neither.

    Examples
    --------
    >>> import fastbptt
    >>> sorted(fastbptt.show_config(mode="dicts"))
    ['dtypes', 'isa', 'isa_levels', 'isa_reason', 'lanes', 'num_threads', 'num_threads_reason', 'numpy', 'platform', 'python', 'version']
    """
    if not isinstance(mode, str) or mode not in ("stdout", "dicts"):
        error = ValueError if isinstance(mode, str) else TypeError
        raise error(f"mode: expected 'stdout' or 'dicts', got {_checks.describe(mode)}")
    _kernels.require()
    config: dict[str, Any] = {
        "version": __version__,
        "isa": _kernels.level,
        "isa_reason": _kernels.reason,
        "isa_levels": {name: _level_state(short) for name, short in _kernels.LEVELS.items() if short in cpu.LEVELS},
        "lanes": {dtype.name: module.lanes() for dtype, module in _kernels.kernels.items()},
        "dtypes": [dtype.name for dtype in _kernels.kernels],
        "num_threads": get_num_threads(),
        "num_threads_reason": _threads_reason,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {state}" for key, state in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        print(f"{name:19} {value}")
    return None


def _level_state(short: str) -> str:
    return "not built" if not _kernels.built(short) else "usable" if cpu.runs(short) else "not supported here"


def _usable_cores() -> int:
    """Cores in this process's affinity mask, or fewer if its cgroup has a smaller quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota
    return cores


def _start_threads() -> str:
    asked = os.environ.get(THREADS_VARIABLE, "").strip()
    if not asked:
        set_num_threads(min(256, _usable_cores()))
        return "the cores that this process may use"
    try:
        set_num_threads(int(asked))
    except ValueError:
        raise ImportError(f"{THREADS_VARIABLE}: expected a number of threads from 1 to 256, got {asked!r}") from None
    return f"{THREADS_VARIABLE}={asked}"


_threads_reason = None if _kernels.level is None else _start_threads()
