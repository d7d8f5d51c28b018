"""The probe: reads the books once a second while the run goes on, a row of probes.jsonl each time.

    SEATRIAL_JUDGE_DSN=... python -m reports.probe RUN

A reading that fails, because PostgreSQL was killed, is frozen or too slow, is a row with `error`; the next
reading connects again and goes on from the last one that succeeded. Every reading has a deadline. SIGTERM and
SIGINT end the probe between two rows, never inside one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import psycopg

from reports.reading import Connection, Reading, Seen, read_books
from scenarios.history import JsonLines, Probe

DSN_VARIABLE = "SEATRIAL_JUDGE_DSN"
PERIOD_S = 1.0
CONNECT_TIMEOUT_S = 2
STATEMENT_TIMEOUT_MS = 3_000
# Above the two, which a frozen server does not keep.
READING_DEADLINE_S = 5.0


class _TooLate(Exception):
    """The deadline of a reading has passed."""


class _Stopped(BaseException):
    """Somebody asked the probe to end."""


def probe_command(judge_dsn: str, run: Path) -> list[str]:
    """How to start a probe of this run. By way of env, so that no password stays in the list of processes."""
    return ["/usr/bin/env", f"{DSN_VARIABLE}={judge_dsn}", sys.executable, "-m", "reports.probe", str(run)]


class Prober:
    """Takes readings one after another; what the last one saw is what the next one goes on from."""

    def __init__(self, judge_dsn: str) -> None:
        self._dsn = judge_dsn
        self._connection: Connection | None = None
        self._seen = Seen({}, {})

    def probe(self) -> Probe:
        """One reading within READING_DEADLINE_S; a failure is in the row."""
        time_ns = time.monotonic_ns()
        try:
            reading = self._read()
        except (psycopg.Error, _TooLate) as error:
            self.close()
            # The first line says what happened; the rest is PostgreSQL's advice.
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Probe(time_ns=time_ns, took_ms=_ms_since(time_ns), error=text)
        self._seen = reading.seen
        return Probe(
            time_ns=time_ns,
            snapshot=reading.snapshot,
            took_ms=_ms_since(time_ns),
            results=reading.results,
            entries=reading.entries,
        )

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self) -> Reading:
        signal.setitimer(signal.ITIMER_REAL, READING_DEADLINE_S)
        try:
            if self._connection is None:
                self._connection = _connect(self._dsn)
            return read_books(self._connection, self._seen)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _connect(dsn: str) -> Connection:
    connection = psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="seatrial probe",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
    )
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def _ms_since(time_ns: int) -> float:
    return round((time.monotonic_ns() - time_ns) / 1e6, 2)


def probe_until_stopped(judge_dsn: str, run: Path) -> None:
    """Append a row a second until a signal ends this process; raises OSError when the disk refuses."""
    prober = Prober(judge_dsn)
    next_s = time.monotonic()
    try:
        with JsonLines(run / "probes.jsonl") as file:
            while True:
                file.append(prober.probe())
                next_s = max(next_s + PERIOD_S, time.monotonic())
                time.sleep(max(next_s - time.monotonic(), 0.0))  # the period; a signal ends it
    except _Stopped:
        return
    finally:
        prober.close()


def _on_stop(_: int, __: FrameType | None) -> None:
    raise _Stopped


def _on_alarm(_: int, __: FrameType | None) -> None:
    raise _TooLate(f"no reading within {READING_DEADLINE_S:.0f} s")


def main() -> int:
    """The command line: one argument, the run directory."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.probe", description="Read the books once a second."
    )
    parser.add_argument("run", type=Path, help="the run directory; probes.jsonl is written in it")
    options = parser.parse_args()
    judge_dsn = os.environ.get(DSN_VARIABLE)
    if not judge_dsn:
        print(f"probe: set {DSN_VARIABLE} to the DSN that reads the books", file=sys.stderr)
        return 2
    signal.signal(signal.SIGALRM, _on_alarm)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_stop)
    try:
        probe_until_stopped(judge_dsn, options.run)
    except OSError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
