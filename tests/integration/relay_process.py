"""Relay processes and the receiver process of a test: enqueue, signal, wait, and read what happened."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from chaos.ports import free_port
from chaos.supervisor import Child, Supervisor
from chaos.target import REFERENCE_COMMAND
from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, one

TIMEOUT_S = 30.0
PASSWORD = "relay"

_numbers = itertools.count(1)


class Note(NamedTuple):
    """A line of the receiver's journal; `number` is the request's."""

    what: str
    key: str
    number: int
    time_ns: int


def relay_dsn(database: MarketDatabase) -> str:
    """The DSN of the relay's role."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE seatrial_relay PASSWORD {}").format(sql.Literal(PASSWORD)))
    return make_conninfo(database.admin_dsn, user="seatrial_relay", password=PASSWORD)


def enqueue(
    connection: Connection,
    aggregate: str,
    aggregate_id: str,
    *,
    key: str | None = None,
    event_type: str = "alert.test",
    payload: dict[str, object] | None = None,
) -> int:
    """An event, in the connection's transaction; its id. Without a key it gets one that nobody has."""
    call: LiteralString = "SELECT enqueue_event(%s, %s, %s, %s, %s)"
    key = f"key:{next(_numbers)}" if key is None else key
    found = one(connection, call, aggregate, aggregate_id, event_type, Jsonb(payload or {}), key)
    return int(found[0])


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Return when the condition holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


class World:
    """The receiver process; ended by the supervisor."""

    def __init__(self, supervisor: Supervisor, folder: Path) -> None:
        self.port = free_port()
        self.url = f"json://127.0.0.1:{self.port}/events"
        self._journal = folder / "journal.jsonl"
        self._journal.touch()
        command = [REFERENCE_COMMAND[0], "-m", "tests.integration.webhook_receiver"]
        self.child = supervisor.spawn(
            f"receiver-{next(_numbers)}", [*command, str(self.port), str(self._journal)], critical=False
        )
        wait_until(self._listens, "the receiver listens")

    def conduct(self, *, hold: str | None = None, refuse: str | None = None, take_s: float = 0.0) -> None:
        """How to behave from now on to keys that begin so; what was held and no longer is gets its answer."""
        conduct = {
            "hold": [] if hold is None else [hold],
            "refuse": [] if refuse is None else [refuse],
            "take_s": take_s,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/conduct", data=json.dumps(conduct).encode(), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass

    def notes(self, what: str, key: str | None = None) -> list[Note]:
        """The journal's lines of one sort, in order."""
        lines = self._journal.read_text(encoding="utf-8").splitlines(keepends=True)
        notes = [Note(**json.loads(line)) for line in lines if line.endswith("\n")]
        return [note for note in notes if note.what == what and key in (None, note.key)]

    def await_arrivals(self, key: str, count: int = 1) -> None:
        """Return when so many requests with the key have arrived."""
        wait_until(lambda: len(self.notes("arrival", key)) >= count, f"{count} arrivals of {key}")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class RelayProcess:
    """A relay that has begun to relay."""

    def __init__(
        self,
        supervisor: Supervisor,
        database: MarketDatabase,
        world: World,
        *,
        lease_s: float = TIMEOUT_S,
        **options: float,
    ) -> None:
        settings = {"poll_s": 0.05, "seed": 1, "retry_cap_s": 0.05, "workers": 8, **options}
        command = [*REFERENCE_COMMAND, "relay", "--dsn", relay_dsn(database), "--notify", world.url]
        command += ["--lease-s", str(lease_s)]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.child: Child = supervisor.spawn(f"relay-{next(_numbers)}", command, critical=False)
        wait_until(lambda: self.said("relaying") or not self.child.alive, "the relay relays")
        assert self.child.alive, self.child.log_tail()

    def said(self, text: str) -> bool:
        """Whether its log has the text."""
        return text in self.child.log_tail(1_000)

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def pause(self) -> None:
        """SIGSTOP."""
        self.child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.child.signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        self.child.signal(signal.SIGTERM)

    def end(self) -> None:
        """SIGTERM, and it must end in order."""
        self.ask_to_end()
        assert self.child.wait(TIMEOUT_S) == 0, self.child.log_tail()
