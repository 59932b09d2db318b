"""Ctrl-C, SIGTERM and SIGHUP: work is finished before they end it, and the exit status says which one it was."""

import signal
import threading
import time

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interruption:
    """Within it, Ctrl-C, SIGTERM and SIGHUP only leave word, so that the update at hand is finished; repeated after a second, they interrupt.

    They do so by a KeyboardInterrupt that has the number of the first one. What is ignored, as SIGHUP is under nohup, stays so.
    """

    PATIENCE = 1.0  # seconds; some programs send a signal twice

    def __init__(self):
        self.signal = 0
        self._heeded = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def heed(self):
        """From now on, the first one interrupts at once, also if it has come already."""
        self._heeded = True
        if self.signal:
            raise KeyboardInterrupt(self.signal)

    def _note(self, number, _):
        now = time.monotonic()
        if not self.signal:
            self.signal, self._at = number, now
            interrupts = self._heeded
        else:
            interrupts = now - self._at > self.PATIENCE
        if interrupts:
            raise KeyboardInterrupt(self.signal)


def status_of(stop):
    """The exit status after a KeyboardInterrupt: 128 + the signal's number, which is its argument unless Python has raised it, on Ctrl-C."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)
