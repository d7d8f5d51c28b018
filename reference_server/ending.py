"""The end of a command that goes on until a signal: it finishes what it does, and waits for nothing more."""

from __future__ import annotations

import select
import signal
import socket


class Ending:
    """SIGTERM and SIGINT ask for the end. Made and used by the main thread, once a process.

    Why not a threading.Event: a handler that sets one hangs when the signal came just as it was waited for.
    """

    def __init__(self, *, grace_s: float | None = None) -> None:
        """`grace_s`: that long after the signal comes SIGALRM, which ends a process that has no handler."""
        self.asked = False
        self._grace_s = grace_s
        # The byte that Python writes at a signal ends the wait, also when it came before the wait began.
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def wait(self, timeout_s: float) -> None:
        """Return when the end is asked for, or after so many seconds."""
        if not self.asked:
            select.select([self._woken], [], [], timeout_s)

    def _ask(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.asked = True
        if self._grace_s is not None:
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)
