"""Whose turn it is to compute, where only the newest question matters."""

import itertools
import threading
from contextlib import contextmanager

MOST_WAITING = 8


class OvertakenError(Exception):
    """Newer questions have taken this one's place."""


class Turns:
    """One at a time, the newest first. Of those who wait, only the newest of each asker's, and of all only the newest `MOST_WAITING`.

    Attributes
    ----------
    tickets : iterator of int
        A question is the newer the higher its ticket: who sees questions arrive in order can give them theirs, with ``next``.
    """

    def __init__(self):
        self.tickets = itertools.count()
        self._changed = threading.Condition()
        self._waiting = {}  # the ticket that each asker waits with
        self._last = None, -1  # who had the last turn, and with which ticket
        self._taken = False

    @contextmanager
    def turn(self, asker, ticket=None):
        """Wait for a turn, which lasts as long as the ``with`` statement; OvertakenError, at once, for a question that is to wait no more."""
        with self._changed:
            ticket = next(self.tickets) if ticket is None else ticket
            last = self._last[1] if self._last[0] == asker else -1
            if ticket < max(last, self._waiting.get(asker, -1)):
                raise OvertakenError
            self._waiting[asker] = ticket
            if len(self._waiting) > MOST_WAITING:
                del self._waiting[min(self._waiting, key=self._waiting.get)]
            self._changed.notify_all()
            while self._taken or ticket != max(self._waiting.values()):
                self._changed.wait()
                if self._waiting.get(asker) != ticket:
                    raise OvertakenError
            del self._waiting[asker]
            self._last, self._taken = (asker, ticket), True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
