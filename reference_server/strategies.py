"""The three ways to execute a trade: same functions, same guarantees, three answers to "which to ship".

batch       one sequencer per market; a batch is one call on one connection
row_lock    each request calls the batch function alone, on its own connection, and queues at the row lock
optimistic  each request reads the market's version and updates only if it is still the same, else again
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from reference_server.database import Conflict, Database, OutcomeUnknown
from reference_server.sequencer import Reply, Sequencer, Trade

CONFLICT_TRIES = 5
# The textbook way loses more often the more users there are; it gives up when a client would.
OPTIMISTIC_TRIES = 50
BACKOFF_MAX_S = 0.05

BATCH_SQL = """SELECT position, status, replayed, body FROM execute_trade_batch(
    %s::bigint, %s::text[], %s::text[], %s::text[], %s::int[], %s::text[],
    %s::bigint[], %s::bigint[], %s::bigint[])"""
OPTIMISTIC_SQL = """SELECT status, replayed, body FROM execute_trade_optimistic(
    %s::text, %s::bigint, %s::text, %s::text, %s::int, %s::text, %s::bigint, %s::bigint, %s::bigint)"""

Value = TypeVar("Value")


class Strategy(Protocol):
    """Executes one trade; raises DatabaseError or QueueFull."""

    name: str

    async def trade(self, trade: Trade) -> Reply: ...

    @property
    def queued(self) -> int: ...

    @property
    def in_flight(self) -> int: ...


def text_array(values: Iterable[str]) -> str:
    """A PostgreSQL array literal of texts."""
    return '{"' + '","'.join(v.replace("\\", "\\\\").replace('"', '\\"') for v in values) + '"}'


def number_array(values: Iterable[int | None]) -> str:
    """A PostgreSQL array literal of numbers."""
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


class Trades:
    """The database's trade functions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def execute(self, market_id: int, trades: list[Trade]) -> list[Reply]:
        """Execute trades of one market in one transaction, in order; one reply each, by position."""
        users, _, keys, hashes, outcomes, sides, shares, amounts, limits = zip(*trades, strict=True)
        # Array literals made here cost a fifth of the driver's own conversion of lists.
        parameters = (
            market_id,
            text_array(users),
            text_array(keys),
            text_array(hashes),
            number_array(outcomes),
            text_array(sides),
            number_array(shares),
            number_array(amounts),
            number_array(limits),
        )
        rows = await retried(lambda: self._database.rows(BATCH_SQL, parameters), tries=CONFLICT_TRIES)
        replies: list[Reply | None] = [None] * len(trades)
        for position, status, replayed, body in rows:
            replies[position - 1] = Reply(status, replayed, body.encode())
        complete = [reply for reply in replies if reply is not None]
        if len(complete) != len(trades):
            raise OutcomeUnknown(f"{len(trades)} trades brought {len(complete)} replies")
        return complete

    async def execute_optimistic(self, trade: Trade) -> Reply:
        """Execute one trade if the market's version is still the one it was priced at; raises Conflict."""
        status, replayed, body = await self._database.row(
            OPTIMISTIC_SQL,
            (
                trade.user_id,
                trade.market_id,
                trade.key,
                trade.request_hash,
                trade.outcome,
                trade.side,
                trade.shares,
                trade.amount,
                trade.limit,
            ),
        )
        if status == 0:
            raise Conflict("another trade came first")
        return Reply(status, replayed, body.encode())


async def retried(call: Callable[[], Awaitable[Value]], *, tries: int) -> Value:
    """What the call brings, after at most so many conflicts; raises the last Conflict."""
    for attempt in range(1, tries):
        try:
            return await call()
        except Conflict:
            # Jitter, so that those who met do not meet again. Not a choice of the experiment: unseeded.
            await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_S, 0.001 * 2**attempt)))
    return await call()


class Batch:
    """Trades through the sequencer."""

    name = "batch"

    def __init__(self, database: Database) -> None:
        self.sequencer = Sequencer(Trades(database).execute)

    async def trade(self, trade: Trade) -> Reply:
        return await self.sequencer.submit(trade)

    @property
    def queued(self) -> int:
        return self.sequencer.queued

    @property
    def in_flight(self) -> int:
        return self.sequencer.in_flight


class _Alone:
    """A trade per connection; the pool's queue is the only one."""

    def __init__(self, database: Database) -> None:
        self._trades = Trades(database)
        self._database = database
        self.in_flight = 0

    @property
    def queued(self) -> int:
        return self._database.waiting


class RowLock(_Alone):
    """Each trade alone, queueing at the market's row lock."""

    name = "row_lock"

    async def trade(self, trade: Trade) -> Reply:
        self.in_flight += 1
        try:
            return (await self._trades.execute(trade.market_id, [trade]))[0]
        finally:
            self.in_flight -= 1


class Optimistic(_Alone):
    """Each trade alone, with the version check and bounded retry."""

    name = "optimistic"

    async def trade(self, trade: Trade) -> Reply:
        self.in_flight += 1
        try:
            return await retried(lambda: self._trades.execute_optimistic(trade), tries=OPTIMISTIC_TRIES)
        finally:
            self.in_flight -= 1


STRATEGIES: dict[str, type[Batch] | type[RowLock] | type[Optimistic]] = {
    kind.name: kind for kind in (Batch, RowLock, Optimistic)
}
