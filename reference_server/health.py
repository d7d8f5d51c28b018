"""Health: does PostgreSQL answer, asked on a connection of its own that never waits behind the pool.

Callers who ask at the same time share one question, so health costs one round trip however often it is asked.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from reference_server.database import Connection, connect, cut, is_broken, is_dead

ANSWER_TIMEOUT_S = 1.0

log = logging.getLogger("reference_server.health")


class Health:
    """Knows whether PostgreSQL answers now."""

    def __init__(self, dsn: str, connection: Connection) -> None:
        self._dsn = dsn
        self._connection: Connection | None = connection
        self._question: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether PostgreSQL answered a query just now, within a second."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
        done, _ = await asyncio.wait({self._question}, timeout=ANSWER_TIMEOUT_S)
        return bool(done) and self._question.result()

    async def close(self) -> None:
        if self._question is not None and not self._question.done():
            await asyncio.wait({self._question}, timeout=ANSWER_TIMEOUT_S)
        if self._connection is not None:
            await self._connection.close()

    async def _ask(self) -> bool:
        try:
            if self._connection is None or is_dead(self._connection):
                await self._reconnect()
            assert self._connection is not None
            timer = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT_S, cut, self._connection)
            try:
                cursor = await self._connection.execute("SELECT 1")
                return await cursor.fetchone() is not None
            finally:
                timer.cancel()
        except (psycopg.Error, TimeoutError) as error:
            log.warning("PostgreSQL does not answer: %s", error)
            return False

    async def _reconnect(self) -> None:
        if self._connection is not None and not is_broken(self._connection):
            await self._connection.close()
        self._connection = None
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            self._connection = await connect(self._dsn)
