"""Standard output and standard error, which may fail: what cannot be shown is lost, but not the work that it was to tell of."""

import errno
import os
from contextlib import suppress


class Stream:
    """A text stream that takes whatever it is given, and shows it as long as that can be.

    Parameters
    ----------
    stream : text stream or None
        None is one that was closed when the process began.

    Attributes
    ----------
    error : Exception or None
        Why something could not be shown.
    """

    def __init__(self, stream):
        self.error = None
        self._stream = stream

    def write(self, text):
        if self._stream is None:
            self.error = OSError(errno.EBADF, "closed")
        else:
            self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        if self._stream is not None:
            self._try(self._stream.flush)

    def isatty(self):
        return self._stream is not None and self.error is None and self._stream.isatty()

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def _try(self, function, *arguments):
        if self.error is None:
            try:
                function(*arguments)
            except (OSError, ValueError) as error:
                self.error = error
                self._let_go()

    def _let_go(self):
        """What the stream still holds goes nowhere when the process ends, instead of failing once more."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def occupy_descriptors():
    """Let the numbers of closed standard streams lead nowhere: a file that is opened next would get one, and what a library prints."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
