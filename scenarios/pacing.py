"""When operations are due, and sleeping until then.

The schedule is wrk2's: each user has its own row of intended starts, fixed by the seed before anything is
sent. The next intended start is the last one plus an interval, whatever the system did meanwhile. A user
that is late starts at once, and its latency counts from the intended start, so a stall of the system is
seen by every operation that was due in it.

Why a timerfd: epoll waits in whole milliseconds, rounded up, so gevent.sleep oversleeps by half a
millisecond on average, which would be booked as latency of the system. A timerfd wakes epoll at the
nanosecond, and takes an absolute CLOCK_MONOTONIC time, so no error adds up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import time
from typing import Any

import gevent
from gevent.event import Event

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Schedule:
    """Intended starts of one user: intervals of 1/rate, each scaled by a seeded factor of 0.5 to 1.5."""

    __slots__ = ("_interval_ns", "_random", "next_ns")

    def __init__(self, *, rate_per_s: float, from_ns: int, seed: str) -> None:
        self._interval_ns = 1e9 / rate_per_s
        self._random = random.Random(seed).random
        # The first start is anywhere in the first interval: users that begin together do not march in step.
        self.next_ns = from_ns + int(self._interval_ns * self._random())

    def take(self) -> int:
        """The intended start that is due next, CLOCK_MONOTONIC nanoseconds; moves on to the one after it."""
        due_ns = self.next_ns
        self.next_ns = due_ns + int(self._interval_ns * (0.5 + self._random()))
        return due_ns

    def stand_still(self, for_ns: int) -> None:
        """Move everything that is still to come: the user spent this time on what is not the system's."""
        self.next_ns += for_ns


class _Span(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Span), ("value", _Span))


class Alarm:
    """Sleeps of one greenlet that end on time; use it as a context, for it holds a file descriptor."""

    def __init__(self) -> None:
        self._fd = -1
        self._rung = False
        self._watcher: Any = None
        self._bell = Event()
        if not sys.platform.startswith("linux"):
            return  # elsewhere gevent's own timers are as fine as the system's
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._setting = _Setting()
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._watcher = gevent.get_hub().loop.io(self._fd, 1)

    def sleep_until(self, due_ns: int) -> None:
        """Let other greenlets run until CLOCK_MONOTONIC reaches `due_ns`; returns at once when it has.

        A ring ends this sleep and every later one.
        """
        left_ns = due_ns - time.monotonic_ns()
        if self._rung or left_ns <= 0:
            return
        if self._fd < 0:
            self._bell.wait(left_ns / 1e9)
            return
        self._set(due_ns)
        gevent.get_hub().wait(self._watcher)
        with contextlib.suppress(BlockingIOError):  # a ring came between the expiry and this read
            os.read(self._fd, 8)

    def ring(self) -> None:
        """Wake the sleeper now, and let it sleep no more."""
        self._rung = True
        self._bell.set()
        if self._fd >= 0:
            self._set(1)  # a time long past

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd >= 0:
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Alarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(self, due_ns: int) -> None:
        self._setting.value.seconds, self._setting.value.nanoseconds = divmod(due_ns, 1_000_000_000)
        # Setting the time again also forgets an expiry that a killed sleep has left unread.
        if self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
