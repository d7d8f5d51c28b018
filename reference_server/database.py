"""The server's way to PostgreSQL: a pool of connections, and what an error means for the caller's money.

Every statement is one function call in autocommit, so it is one transaction, and there are four ends:
  1. rows: it is committed;
  2. Conflict, Stopped, Refused: PostgreSQL answered with an error, so it is rolled back;
  3. NotExecuted: it was never sent;
  4. OutcomeUnknown: the connection was lost after it was sent; it may or may not be committed.

Why not the pool's own connection check: it asks the server (a round trip per use) and sleeps a second after
the second dead connection. A dead connection shows at once and for free: its socket has become readable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from psycopg_pool.base import AttemptWithBackoff

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30
# PostgreSQL ends a statement itself; this is for a PostgreSQL that is stopped or cut off.
ANSWER_TIMEOUT_S = STATEMENT_TIMEOUT_S + 5
# Longer than a crash recovery takes (0.1 to 0.9 s), shorter than a client's patience.
ACQUIRE_TIMEOUT_S = 1.5
WAITING_MAX = 1_000
UNACKNOWLEDGED_MS = 10_000

# serialization_failure, deadlock_detected, lock_not_available: rolled back, and worth another try.
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
QUERY_CANCELED = "57014"
NUMERIC_VALUE_OUT_OF_RANGE = "22003"
PAUSED = "ST004"

Row: TypeAlias = tuple[Any, ...]
Connection: TypeAlias = psycopg.AsyncConnection[Row]

log = logging.getLogger("reference_server.database")


class DatabaseError(Exception):
    """A statement that brought no rows."""


class NotExecuted(DatabaseError):
    """No connection could be had in time: nothing was sent."""


class Conflict(DatabaseError):
    """Rolled back because of concurrent transactions; another try may succeed."""


class Stopped(DatabaseError):
    """Rolled back because it took too long or was cancelled; another try would wait as long."""


class Refused(DatabaseError):
    """Rolled back by an error nobody foresaw; `sqlstate` says which."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class OutcomeUnknown(DatabaseError):
    """The connection was lost after the statement was sent."""


class QuickRetry(AttemptWithBackoff):
    """Reconnects after 50 ms, then at most every 250 ms: the database is local and soon back."""

    INITIAL_DELAY = 0.05
    DELAY_BACKOFF = 1.5
    DELAY_MAX_S = 0.25

    def update_delay(self, now: float) -> None:
        super().update_delay(now)
        self.delay = min(self.delay, self.DELAY_MAX_S)


class Pool(AsyncConnectionPool[Connection]):
    """psycopg's pool with a quicker way back."""

    async def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        await super()._add_connection(attempt or QuickRetry(timeout=self.reconnect_timeout), growing)


def server_conninfo(dsn: str) -> str:
    """The DSN with the server's own limits; what the DSN says itself about them is replaced."""
    return make_conninfo(
        dsn,
        connect_timeout=CONNECT_TIMEOUT_S,
        tcp_user_timeout=UNACKNOWLEDGED_MS,
        application_name="reference_server",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
    )


async def connect(dsn: str) -> Connection:
    """One autocommit connection outside the pool; raises psycopg.Error."""
    return await psycopg.AsyncConnection.connect(server_conninfo(dsn), autocommit=True, prepare_threshold=0)


class Database:
    """Runs one statement at a time on a pooled connection."""

    def __init__(self, dsn: str, *, pool_min: int, pool_max: int) -> None:
        self._pool = Pool(
            server_conninfo(dsn),
            connection_class=psycopg.AsyncConnection[Row],
            kwargs={"autocommit": True, "prepare_threshold": 0},
            min_size=pool_min,
            max_size=pool_max,
            open=False,
            timeout=ACQUIRE_TIMEOUT_S,
            max_waiting=WAITING_MAX,
            num_workers=max(pool_min, 1),  # the first connections are made side by side
            name="trades",
        )

    async def open(self) -> None:
        """Begin to connect; the first caller waits for the first connection, not for all of them."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=5.0)

    @property
    def size(self) -> int:
        return self._pool.get_stats()["pool_size"]

    @property
    def waiting(self) -> int:
        return self._pool.get_stats()["requests_waiting"]

    async def rows(self, query: LiteralString, parameters: tuple[Any, ...]) -> list[Row]:
        """The rows of one prepared statement; raises DatabaseError, whose kind says what became of it."""
        connection = await self._acquire()
        timer = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT_S, cut, connection)
        try:
            cursor = await connection.execute(query, parameters, binary=True)
            return await cursor.fetchall()
        except psycopg.Error as error:
            raise meaning(error, broken=is_broken(connection)) from error
        finally:
            timer.cancel()
            await self._pool.putconn(connection)

    async def row(self, query: LiteralString, parameters: tuple[Any, ...]) -> Row:
        """The only row of one prepared statement; raises DatabaseError."""
        rows = await self.rows(query, parameters)
        if len(rows) != 1:
            raise Refused(f"expected one row, got {len(rows)}")
        return rows[0]

    async def read_rows(self, query: LiteralString, parameters: tuple[Any, ...]) -> list[Row]:
        """The rows of a statement that changes nothing, asked once more when the connection is lost."""
        try:
            return await self.rows(query, parameters)
        except OutcomeUnknown:
            pass
        try:
            return await self.rows(query, parameters)
        except OutcomeUnknown as error:
            raise NotExecuted(f"the database was lost twice: {error}") from error

    async def read_row(self, query: LiteralString, parameters: tuple[Any, ...]) -> Row:
        """The only row of a statement that changes nothing."""
        rows = await self.read_rows(query, parameters)
        if len(rows) != 1:
            raise Refused(f"expected one row, got {len(rows)}")
        return rows[0]

    async def _acquire(self) -> Connection:
        """A connection that was alive a moment ago; raises NotExecuted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ACQUIRE_TIMEOUT_S
        try:
            while True:
                connection = await self._pool.getconn(deadline - loop.time())
                if not is_dead(connection):
                    return connection
                await connection.close()
                await self._pool.putconn(connection)  # the pool replaces it
        except (PoolTimeout, TooManyRequests, PoolClosed) as error:
            raise NotExecuted(f"no database connection: {error}") from error


def is_dead(connection: Connection) -> bool:
    """Whether an idle connection's socket was closed by the other side or speaks out of turn."""
    if is_broken(connection):
        return True
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


def is_broken(connection: Connection) -> bool:
    return connection.pgconn.status != ConnStatus.OK


def cut(connection: Connection) -> None:
    """End the wait for an answer that does not come: the reader sees the end of the stream."""
    if is_broken(connection):
        return
    log.error("no answer from PostgreSQL within %d s; cutting the connection", ANSWER_TIMEOUT_S)
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as handle:
        handle.shutdown(socket.SHUT_RDWR)


def meaning(error: psycopg.Error, *, broken: bool) -> DatabaseError:
    """What this error says about the statement's effect."""
    # An error of class 57P (shutdown, crash) ends the backend, perhaps just after it committed.
    if broken or (error.sqlstate or "").startswith("57P"):
        return OutcomeUnknown(str(error))
    if error.sqlstate in CONFLICTS:
        return Conflict(str(error))
    if error.sqlstate == QUERY_CANCELED:
        return Stopped(str(error))
    return Refused(str(error), error.sqlstate)
