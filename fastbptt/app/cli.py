"""The command ``fastbptt``: what it understands, and what becomes of errors.

Exit status: 0; 1 if a run failed, or what it was to show or write could not be; 2 if what was asked for cannot be done; 129 after SIGHUP,
130 after Ctrl-C, 143 after SIGTERM.
"""

import argparse
import sys
from contextlib import redirect_stderr, redirect_stdout

from .. import _kernels
from .._config import show_config
from .._version import __version__
from .flow.command import add_flow
from .interruption import status_of
from .messages import fail, one_line
from .streams import Stream, occupy_descriptors
from .train.command import add_train


def main(argv=None):
    """Run the command.

    Parameters
    ----------
    argv : list of str or None
        The arguments; None means those that the process was given.

    Returns
    -------
    int
        The exit status.
    """
    occupy_descriptors()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    with redirect_stdout(Stream(sys.stdout)) as out, redirect_stderr(Stream(sys.stderr)):
        status = _obey(argv)
        out.flush()
        if out.error is not None and status not in (1, 2):
            return fail(f"standard output: {one_line(out.error)}; what else there was to show is lost", status or 1)
        return status


def _obey(argv):
    try:
        options = build_parser().parse_args(argv)
        try:
            _kernels.require()
        except ImportError as error:
            return fail(error, 2)
        return options.command(options)
    except SystemExit as stop:
        return stop.code
    except KeyboardInterrupt as stop:
        return fail("interrupted", status_of(stop))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        sys.exit(fail(f"{message} (see {self.prog} --help)", 2))


def build_parser():
    parser = Parser(prog="fastbptt", description="Backpropagation through time on the CPU, as fast as the processor allows.")
    parser.add_argument("--version", action="version", version=f"fastbptt {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    add_train(commands)
    add_flow(commands)
    info = commands.add_parser("info", help="show what this process runs on", description="Show which kernels were chosen, and why.")
    info.set_defaults(command=show_info)
    return parser


def show_info(_):
    show_config()
    return 0
