"""What the commands have in common: what was given, what is needed for it, and how things are said."""

import sys
from contextlib import contextmanager, suppress
from importlib import import_module


def given(options, names):
    """Those options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


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


def say(what, text):
    """Print a heading, and behind it a text, which may have several lines."""
    print(f"{what:11}", str(text).replace("\n", "\n" + " " * 12), flush=True)


@contextmanager
def working(on):
    """Say, while it lasts, what is being worked on: to a terminal at standard error, and to nobody else."""
    terminal = sys.stderr if sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty() else None
    line = f"{'working':11} {on} ..."
    _show(terminal, line)
    try:
        yield
    finally:
        _show(terminal, "\r" + " " * len(line) + "\r")


def _show(terminal, text):
    if terminal is not None:
        with suppress(OSError):  # a terminal that has gone stops no work
            print(text, end="", file=terminal, flush=True)


def fail(error, status):
    """Say in one line what went wrong; return the status."""
    print(f"fastbptt: error: {_one_line(error)}", file=sys.stderr)
    return status


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        error = f"not enough memory: {error}" if str(error) else "not enough memory"
    return " ".join(str(error).split())
