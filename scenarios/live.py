"""Counts of a load as it goes, for the live view; nothing here is judged.

Latencies count from the intended start. Each second has an HDR histogram, and the last few are summed for
the percentiles shown; histograms of several processes add up exactly.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec
from hdrh.histogram import HdrHistogram

from scenarios.history import Status

TRADES = frozenset({"buy_amount", "buy_shares", "sell"})
WINDOW_S = 5
MICROSECONDS_MAX = 600_000_000
DIGITS = 2


class Tally(msgspec.Struct, kw_only=True):
    """What one process has counted since its load began; `histogram` is of the second just ended."""

    users: int = 0
    in_flight: int = 0
    trades: int = 0
    ok: int = 0
    fail: int = 0
    info: int = 0
    histogram: str = ""


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, MICROSECONDS_MAX, DIGITS)


class Live:
    """The counts of one process. `abandoned` tells its clients to make no further attempt."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.abandoned = False
        self._tally = Tally()
        self._second = _histogram()

    def count(self, action: str, outcome: str, latency_ns: int) -> None:
        """Count one completed attempt; latency from its intended start."""
        tally = self._tally
        if outcome == "ok":
            tally.ok += 1
            if action in TRADES:
                tally.trades += 1
        elif outcome == "fail":
            tally.fail += 1
        else:
            tally.info += 1
        self._second.record_value(min(max(latency_ns // 1000, 1), MICROSECONDS_MAX))

    def restart(self) -> None:
        """Forget the set-up: the load begins now."""
        self._tally = Tally()
        self._second.reset()

    def take(self, users: int) -> Tally:
        """The counts so far with the last second's histogram, which begins anew."""
        tally = msgspec.structs.replace(
            self._tally,
            users=users,
            in_flight=self.in_flight,
            histogram=self._second.encode().decode("ascii"),
        )
        self._second.reset()
        return tally


class Overview:
    """The counts of all processes together, second after second."""

    def __init__(self) -> None:
        self._newest: dict[str, Tally] = {}
        self._seconds: deque[HdrHistogram] = deque(maxlen=WINDOW_S)
        self._second = _histogram()

    def add(self, writer: str, tally: Tally) -> None:
        """Take in what one process counted."""
        self._newest[writer] = tally
        if tally.histogram:
            self._second.decode_and_add(tally.histogram)

    @property
    def users(self) -> int:
        """Users of all processes, as each told last."""
        return sum(tally.users for tally in self._newest.values())

    def status(self, phase: str) -> Status:
        """The row for the live view; closes the second."""
        self._seconds.append(self._second)
        self._second = _histogram()
        window = _histogram()
        for second in self._seconds:
            window.add(second)
        tallies = list(self._newest.values())
        return Status(
            time_ns=time.monotonic_ns(),
            users=self.users,
            in_flight=sum(tally.in_flight for tally in tallies),
            trades=sum(tally.trades for tally in tallies),
            ok=sum(tally.ok for tally in tallies),
            fail=sum(tally.fail for tally in tallies),
            info=sum(tally.info for tally in tallies),
            p50_ms=window.get_value_at_percentile(50) / 1000 if window.get_total_count() else 0.0,
            p99_ms=window.get_value_at_percentile(99) / 1000 if window.get_total_count() else 0.0,
            phase=phase,
        )
