"""Python in a process of its own, with the package and the helpers of these tests at hand."""

import os
import subprocess
import sys
from pathlib import Path

import fastbptt

PATIENCE = float(os.environ.get("FASTBPTT_TEST_PATIENCE", 1))  # what time limits are multiplied by, where all is slow
PATH = os.pathsep.join([str(Path(fastbptt.__file__).parents[1]), str(Path(__file__).parent)])


def environment(**variables):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTBPTT_")}
    return env | {"PYTHONPATH": PATH} | {name: str(value) for name, value in variables.items()}


def current_level():
    """The instruction-set level of this process, for a child that is to run at the same one."""
    return {"FASTBPTT_ISA": fastbptt.show_config(mode="dicts")["isa"]}


def run_python(code, *arguments, timeout=300, check=True, **variables):
    """Run ``code`` to its end, which is sooner than in ``timeout`` seconds unless it hangs; its standard output, or with ``check=False`` the whole result."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(**(current_level() | variables)),
        capture_output=True,
        text=True,
        timeout=timeout * PATIENCE,
        cwd=Path(__file__).parent,
    )
    if not check:
        return result
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout
