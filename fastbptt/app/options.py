"""The commands' options: how they are declared, which of them were given, and what is refused."""

from argparse import ArgumentTypeError
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# What may be wrong with what was asked for
REFUSALS = (ImportError, MemoryError, OSError, OverflowError, TypeError, ValueError)


def add_option(group, name, default, help, **how):
    """Declare an option, whose help ends with its default, in words."""
    group.add_argument(f"--{name}", help=f"{help} (default: {default})", **how)


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


def refuse(options, names, reason):
    """ValueError, which names the option, if one of these was given."""
    for name in given(options, sorted(names)):
        raise ValueError(f"{name.replace('_', '-')}: {reason}")


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
