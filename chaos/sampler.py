"""The sampler: one row a second of what the machine, the server and PostgreSQL are doing, seen from outside.

It never waits on what it measures for longer than a second: a field it could not read is absent, which is
itself a finding (the report draws the gap).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from scenarios.history import JsonLines, ProcessSample, Sample, Status

READ_DEADLINE_S = 1.0
ACTIVITY = """
SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
       (SELECT count(*) FROM pg_locks WHERE NOT granted),
       (SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid())
"""


class Sampler:
    """Appends a Sample to samples.jsonl each second from its own thread, from start() to stop()."""

    def __init__(
        self,
        run: Path,
        *,
        pids: Callable[[], dict[str, list[int]]],
        status: Callable[[], Status | None],
        dsn: str | None,
        health_url: str | None,
    ) -> None:
        self._run = run
        self._pids = pids
        self._status = status
        self._dsn = dsn
        self._health_url = health_url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self._known: dict[int, psutil.Process] = {}
        self._database: psycopg.Connection[tuple[Any, ...]] | None = None
        self.last: Sample | None = None
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; bounded by three reads."""
        self._stop.set()
        self._thread.join(timeout=3 * READ_DEADLINE_S + 1)

    def _loop(self) -> None:
        next_s = time.monotonic()
        with (
            JsonLines(self._run / "samples.jsonl") as file,
            httpx.Client(timeout=READ_DEADLINE_S, trust_env=False) as client,
        ):
            while not self._stop.is_set():
                try:
                    self.last = self._sample(client)
                    file.append(self.last)
                except OSError as error:
                    self.error = error
                    return
                next_s = max(next_s + 1, time.monotonic())
                self._stop.wait(next_s - time.monotonic())
        if self._database is not None:
            self._database.close()

    def _sample(self, client: httpx.Client) -> Sample:
        status = self._status()
        commits, lock_waits, active = self._activity()
        health_ms, pool = self._health(client)
        return Sample(
            time_ns=time.monotonic_ns(),
            phase=status.phase if status else "setup",
            users=status.users if status else 0,
            in_flight=status.in_flight if status else 0,
            processes={name: self._process(pids) for name, pids in self._pids().items()},
            commits=commits,
            lock_waits=lock_waits,
            backends_active=active,
            pool_size=pool.get("size"),
            pool_waiting=pool.get("waiting"),
            health_ms=health_ms,
        )

    def _process(self, pids: list[int]) -> ProcessSample:
        cpu_percent, rss_bytes = 0.0, 0
        for pid in pids:
            try:
                known = self._known.get(pid)
                if known is None or not known.is_running():
                    known = self._known[pid] = psutil.Process(pid)
                cpu_percent += known.cpu_percent()
                rss_bytes += known.memory_info().rss
            except psutil.Error:  # it ended between the listing and the reading
                self._known.pop(pid, None)
        return ProcessSample(cpu_percent=round(cpu_percent, 1), rss_bytes=rss_bytes)

    def _activity(self) -> tuple[int | None, int | None, int | None]:
        if self._dsn is None:
            return None, None, None
        try:
            if self._database is None or self._database.closed:
                self._database = psycopg.connect(
                    self._dsn,
                    autocommit=True,
                    connect_timeout=2,
                    application_name="seatrial sampler",
                    options=f"-c statement_timeout={int(READ_DEADLINE_S * 1000)}",
                )
            row = self._database.execute(ACTIVITY).fetchone()
        except psycopg.Error:  # PostgreSQL is down or restarting: the gap in the samples says so
            if self._database is not None:
                self._database.close()
            self._database = None
            return None, None, None
        return (row[0], row[1], row[2]) if row else (None, None, None)

    def _health(self, client: httpx.Client) -> tuple[float | None, dict[str, int]]:
        if self._health_url is None:
            return None, {}
        started = time.perf_counter()
        try:
            reply = client.get(self._health_url)
            body = reply.json()
        except (httpx.HTTPError, ValueError):  # the server is down: the gap in the samples says so
            return None, {}
        if reply.status_code != httpx.codes.OK or not isinstance(body, dict):
            return None, {}
        pool = body.get("pool")
        return round((time.perf_counter() - started) * 1000, 3), pool if isinstance(pool, dict) else {}
