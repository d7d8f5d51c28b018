"""The chain's clock: wall-clock time and an offset, never before the last block."""

from __future__ import annotations

import time


class ClockError(Exception):
    """A time that the next block cannot have."""


class Clock:
    """Gives each block its timestamp, in whole seconds since 1970."""

    def __init__(self, offset_s: int = 0) -> None:
        self.offset_s = offset_s
        self._next_timestamp: int | None = None

    def increase(self, seconds: int) -> int:
        """Go ahead by so many seconds for good; the offset there is now."""
        self.offset_s += seconds
        return self.offset_s

    def set_next(self, timestamp: int, *, parent_timestamp: int) -> None:
        """Have the next block at this time, and go on from there; raises ClockError."""
        if timestamp < parent_timestamp:
            raise ClockError(f"Timestamp error: {timestamp} is lower than previous block's timestamp")
        self._next_timestamp = timestamp

    def stamp(self, parent_timestamp: int) -> int:
        """The timestamp of a block that is made now."""
        now = int(time.time())
        if self._next_timestamp is not None:
            self.offset_s = self._next_timestamp - now
            self._next_timestamp = None
        return max(parent_timestamp, now + self.offset_s)
