"""The tests of the kernels at the levels that are not this process's, each in a process of its own, while the rest of the suite runs."""

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import environment

import fastbptt

CONFIG = fastbptt.show_config(mode="dicts")
USABLE = [name for name, state in CONFIG["isa_levels"].items() if state == "usable"]
OTHERS = [level for level in USABLE if level != CONFIG["isa"]]
KERNEL_TESTS = [
    "test_gradients.py",
    "test_bits.py",
    "test_bounds.py",
    "test_early_stop.py",
    "test_core.py",
    "test_ragged.py",
    "test_clip_step.py",
    "test_jvp.py",
    "test_projection.py",
    "test_math.py",
    "test_chunks.py",
    "test_clipping.py",
    "test_losses.py",
    "test_optim.py",
    "test_layers.py",
]


class Run(subprocess.Popen):
    """A level's run; what it prints is in the file ``output``."""

    def __init__(self, level: str, output: Path) -> None:
        self.output = output
        with output.open("w") as file:
            super().__init__(
                [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not one_level", *KERNEL_TESTS],
                cwd=Path(__file__).parent,
                env=environment(FASTBPTT_ISA=level, FASTBPTT_TEST_SHAPES=40, FASTBPTT_TEST_POINTS=40_000),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


@contextmanager
def runs(folder):
    """All of them, by level; they are killed if they are no longer wanted."""
    with ExitStack() as stack:
        yield {level: stack.enter_context(Run(level, folder / level)) for level in OTHERS}
