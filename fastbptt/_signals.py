"""What Ctrl-C must not cut in two, and the exit status after it."""

import signal


def in_one_go(function, *columns):
    """Call ``function``, which is none of Python's own code, with each row of arguments: Ctrl-C comes before the first call or after the last.

    Python looks at signals between its own instructions; here is none between the calls.
    """
    return list(map(function, *columns))


def status_of(stop):
    """The exit status after a KeyboardInterrupt: 128 + the signal's number, which is its argument unless Python has raised it, on Ctrl-C."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)
