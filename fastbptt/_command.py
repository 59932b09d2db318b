"""What the commands have in common: what was given, what is needed for it, and how things are said."""

import signal
import sys
import warnings
from argparse import ArgumentTypeError
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# What steers a terminal, or turns the order of its letters: all controls but line breaks and tabs; the marks that override directions.
_STEERING = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {point: ascii(chr(point))[1:-1] for point in _STEERING if chr(point) not in "\n\t"}
LONGEST = 500  # characters of an error's line


class PictureError(Exception):
    """A picture that could not be drawn, for whatever reason Matplotlib, its fonts, LaTeX or the disk had."""


def file_name(text):
    """A file's or directory's name, for the parser. An empty one, as of a shell's variable that is not set, is none."""
    if not text:
        raise ArgumentTypeError("expected a name, got ''")
    return text


def file_path(text):
    """The same, as a path."""
    return Path(file_name(text))


def given(options, names):
    """Those options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


@contextmanager
def memory_for(options, *names):
    """Where there is not enough memory, MemoryError says which of the named options, that of sizes, were given."""
    try:
        yield
    except MemoryError as error:
        sizes = [f"--{name.replace('_', '-')} {value}" for name, value in given(options, names).items()]
        raise MemoryError("; with ".join(filter(None, (f"{error}", ", ".join(sizes))))) from None


def require(extra, *packages):
    """ImportError, in words, if any of an extra's packages is missing; the core of fastbptt needs none of them."""
    missing = [name for name in packages if not _importable(name)]
    if missing:
        raise ImportError(f'{" and ".join(missing)} missing: pip install "fastbptt[{extra}]"')


def _importable(name):
    try:
        import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def drawing(path):
    """Whatever goes wrong within is a `PictureError` in one line; warnings are for those who program pictures, and are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = one_line(error) if isinstance(error, OSError | MemoryError) else f"{path}: no picture: {_first_line(error)}"
        raise PictureError(reason) from error


def show(text):
    """Print a text that may come from a file or the command line: nothing in it steers the terminal."""
    print(printable(text), flush=True)


def say(what, text):
    """Print a heading, and behind it a text, which may have several lines."""
    show(f"{what:11} " + str(text).replace("\n", "\n" + " " * 12))


@contextmanager
def working(on):
    """Say, while it lasts, what is being worked on: to a terminal at standard error, and to nobody else."""
    line = f"{'working':11} {on} ..."
    _show_briefly(line)
    try:
        yield
    finally:
        _show_briefly("\r" + " " * len(line) + "\r")


def _show_briefly(text):
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def fail(error, status):
    """Say in one line what went wrong; return the status."""
    print(f"fastbptt: error: {_shortened(printable(one_line(error)))}", file=sys.stderr, flush=True)
    return status


def status_of(stop):
    """The exit status after a KeyboardInterrupt: 128 + the signal's number, which is its argument unless Python has raised it, on Ctrl-C."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def printable_name(name):
    """A file's name, or what has one in it, in one line: with escapes for line breaks and tabs, too."""
    return printable(str(name)).replace("\n", r"\n").replace("\t", r"\t")


def printable(text):
    """The text, with escapes like \\x1b for the characters that would steer a terminal."""
    return text.translate(_ESCAPES)


def one_line(error):
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        error = f"not enough memory: {error}" if str(error) else "not enough memory"
    return " ".join(str(error).split())


def _shortened(line):
    """The line's beginning and end, where what it is about and what can be done stand."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
