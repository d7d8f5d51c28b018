"""The relay's way to the outbox: one connection that listens, claims and marks, a statement each.

The connection is in autocommit, so between two calls there is no transaction, and the outside world is never
called inside of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from reference_server.relay.event import Event, Outcome

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30
UNACKNOWLEDGED_MS = 10_000

Row: TypeAlias = tuple[Any, ...]

log = logging.getLogger("reference_server.relay.outbox")


class Outbox:
    """The outbox as one relay sees it; all calls but `disconnect` raise psycopg.Error."""

    def __init__(self, dsn: str) -> None:
        self._conninfo = make_conninfo(
            dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=UNACKNOWLEDGED_MS,
            application_name="reference_server relay",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
        )
        self._connection: psycopg.Connection[Row] | None = None
        self.hinted = False

    def connect(self) -> psycopg.Connection[Row]:
        """The connection, made and listening if there is none."""
        if self._connection is None:
            connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=0)
            # before the first claim: what is committed from here on is either claimed or hinted at
            connection.execute("LISTEN outbox")
            connection.add_notify_handler(self._take_hint)
            self._connection = connection
        return self._connection

    def disconnect(self) -> None:
        """Give up the connection; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def socket(self) -> int | None:
        """What becomes readable when a hint comes, or the end of the connection."""
        return self._connection.fileno() if self._connection is not None else None

    def claim(self, *, limit: int, lease_s: float, event_types: Sequence[str]) -> list[Event]:
        """Lease up to `limit` due events."""
        self.hinted = False
        # Read before the statement begins, so that this relay's lease ends before the database's.
        lease_ends_s = time.monotonic() + lease_s
        cursor = self.connect().cursor(row_factory=dict_row)
        cursor.execute(
            "SELECT event_id, aggregate_type, aggregate_id, event_type, payload, dedup_key, attempts,"
            " lease_token FROM relay_claim(%s, %s, %s)",
            [limit, lease_s, list(event_types)],
        )
        return [Event(**row, lease_ends_s=lease_ends_s) for row in cursor]

    def mark(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write down outcomes; returns the ids of those whose lease still held."""
        rows = self.connect().execute(
            "SELECT relay_mark(%s::bigint[], %s::bigint[], %s::text[], %s::float8[], %s::boolean[])",
            [
                [outcome.event.event_id for outcome in outcomes],
                [outcome.event.lease_token for outcome in outcomes],
                [outcome.error for outcome in outcomes],
                [outcome.retry_s for outcome in outcomes],
                [outcome.dead for outcome in outcomes],
            ],
        )
        return {event_id for (event_id,) in rows}

    def _take_hint(self, notify: psycopg.Notify) -> None:  # noqa: ARG002  that there is one says it all
        self.hinted = True
