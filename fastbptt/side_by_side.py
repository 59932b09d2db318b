"""Two calls at a time: for the directions of a layer that reads a row or two, of which neither is worth sharing among threads.

The second call is another thread's, which waits for such calls as long as the process lives. If it does not come to it soon, as on a busy
machine, the first call's thread does both; so it does where another of the same process keeps the helper busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._kernels import pool

if TYPE_CHECKING:
    from queue import SimpleQueue


class Call:
    """One that a helper may take, and its owner may take back."""

    __slots__ = ("_call", "_done", "_error", "_free", "_result")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._free, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def take(self) -> bool:
        """Whether it is the taker's; of several who ask, one's."""
        return self._free.acquire(blocking=False)

    def run(self) -> None:
        try:
            self._result = pool.one_thread(self._call)
        except BaseException as error:  # it is the owner's
            self._error = error
        finally:
            self._done.release()

    def result(self) -> Any:
        """Run it if nobody has begun, or wait for who has."""
        if self.take():
            self.run()
        self._done.acquire()
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # its traceback has this frame


_calls: SimpleQueue[Call] | None = None


def both(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of two calls that have nothing to do with each other, each with one thread for its kernels.

    If the first raises, the second may be left undone, or be ended later: its result is of no use any more.
    """
    call, calls = Call(second), _queue()
    if calls is not None:
        calls.put(call)
    try:
        result = pool.one_thread(first)
    except BaseException:
        call.take()
        raise
    return result, call.result()


def _queue() -> SimpleQueue[Call] | None:
    """Where the helper waits; it is started by the first who wants it. None where no thread can be had, as when the process ends."""
    global _calls
    if _calls is None:
        from queue import SimpleQueue  # most processes have no use for it

        calls: SimpleQueue[Call] = SimpleQueue()
        try:
            threading.Thread(target=_help, args=(calls,), name="fastbptt", daemon=True).start()
        except RuntimeError:
            return None
        _calls = calls
    return _calls


def _help(calls: SimpleQueue[Call]) -> None:
    while True:
        call = calls.get()
        if call.take():
            call.run()
        del call  # which has arrays in it


def _forget() -> None:
    """In a forked child, where there is no helper."""
    global _calls
    _calls = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
