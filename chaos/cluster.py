"""A PostgreSQL cluster as the rest of the harness sees it, and what its kinds share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

USER = "seatrial"
# Recovery replays at most max_wal_size; a disk that needs longer than this for it is no place to test on.
ANSWER_TIMEOUT_S = 60.0
# Each question to a recovering server costs it a process and a line in its log.
_ASK_AGAIN_S = 0.02


class PostgresError(Exception):
    """A PostgreSQL that cannot be had or does not answer; says what to do."""


class Postgres(Protocol):
    """One PostgreSQL cluster, and why it is this one."""

    kind: str
    version: str
    can_kill: bool
    why: str

    @property
    def dsn(self) -> str:
        """Its owner's, for the maintenance database, over TCP; of one of ours known once it is started."""

    def start(self) -> None:
        """Start it and wait until it answers a query; raises PostgresError."""

    def stop(self) -> None:
        """End it in order; nothing happens when it does not run."""

    def kill(self) -> None:
        """SIGKILL the whole cluster; all its processes are gone when this returns."""

    def restart_after_kill(self) -> float:
        """Start it again on the same data and port; returns the seconds until it answered a query."""

    def pause(self) -> None:
        """Freeze all its processes; connections stay open and nobody answers."""

    def resume(self) -> None:
        """Continue after a pause; nothing happens when it is not paused."""

    def pids(self) -> list[int]:
        """Its processes, for sampling; empty where they cannot be seen."""


def settings(*, durable: bool) -> dict[str, str]:
    """Settings that every PostgreSQL from 15 to 18 knows: for load (durable), or for functional tests."""
    common = {
        "max_connections": "200",
        "checkpoint_timeout": "5min",
        "random_page_cost": "1.1",
        "jit": "off",
        "log_line_prefix": "%m [%p] %a ",
        "log_lock_waits": "on",
        # A slow checkpoint is a spike that the report must be able to explain.
        "log_checkpoints": "on",
        "timezone": "UTC",
    }
    if durable:
        return common | {
            "shared_buffers": "256MB",
            "wal_buffers": "16MB",
            "min_wal_size": "256MB",
            "max_wal_size": "1GB",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
        }
    return common | {
        "shared_buffers": "64MB",
        "min_wal_size": "80MB",
        "max_wal_size": "160MB",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "log_checkpoints": "off",
        "autovacuum_naptime": "1h",
    }


def options(settings: dict[str, str]) -> list[str]:
    """Settings as arguments of the postgres program."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def local_dsn(*, port: int, password: str) -> str:
    """The owner's DSN of a cluster of ours."""
    return make_conninfo(
        host="127.0.0.1", port=port, user=USER, password=password, dbname="postgres", connect_timeout=5
    )


def redacted(dsn: str) -> str:
    """A DSN without its password; never the text itself when it cannot be parsed."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "(not a valid DSN)"
    shown = ("host", "hostaddr", "port", "user", "dbname", "service")
    return " ".join(f"{name}={parts[name]}" for name in shown if parts.get(name) is not None)


def server_version(dsn: str, *, connect_timeout_s: int = 5) -> str:
    """Connect, ask one query, and return the server's version; raises psycopg.Error."""
    with psycopg.connect(dsn, connect_timeout=connect_timeout_s, autocommit=True) as connection:
        row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])


def await_answer(
    dsn: str, *, timeout_s: float = ANSWER_TIMEOUT_S, given_up: Callable[[], str | None] = lambda: None
) -> str:
    """Ask until a query is answered and return the server's version.

    `given_up` says why there is no use in asking on, or None. Raises PostgresError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            # 2 s is the least that libpq takes; a starting server refuses at once, so this bounds a hang.
            return server_version(dsn, connect_timeout_s=2)
        except psycopg.Error as error:
            last = str(error).strip()
        if reason := given_up():
            raise PostgresError(reason)
        if time.monotonic() >= deadline:
            raise PostgresError(
                f"PostgreSQL at {redacted(dsn)} did not answer within {timeout_s:.0f} s: {last}"
            )
        time.sleep(_ASK_AGAIN_S)
