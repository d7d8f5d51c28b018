"""The sequencer: one queue per market and process, which turns many trades into few transactions.

1. A trade joins its market's queue and waits for its reply.
2. When the market is idle, everything queued (at most BATCH_MAX) goes off as one batch, at the end of the
   event loop's present turn. While one batch is being executed a second goes off as soon as it is at least
   half as large.
3. Otherwise it waits; the trades that arrive while a batch commits are the next batch.
4. A batch that fails for a reason nobody foresaw is rolled back, and its trades run one at a time, in order:
   one poison trade cannot hurt the others.
5. A client that leaves changes nothing: its trade was accepted and stands, under its key.

Why two batches in flight: the second locks its accounts and waits at the market row while the first commits.
Why not more, and why half as large: a batch that leaves early only waits in the database instead of here,
and is smaller for it (measured at 100 clients: 32 trades a batch instead of 39, a tenth more of PostgreSQL's
CPU for each trade).
Why a bounded queue: a trade that would wait for longer than its client does is better refused at once.
The row lock in the database, not this queue, is what keeps several server processes correct.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from reference_server.database import DatabaseError, NotExecuted, OutcomeUnknown, Refused

BATCH_MAX = 128
IN_FLIGHT_MAX = 2
QUEUE_MAX = 2_000

log = logging.getLogger("reference_server.sequencer")


class Trade(NamedTuple):
    """A valid request to trade, as the database functions take it; micro-shares and micro-USDC."""

    user_id: str
    market_id: int
    key: str
    request_hash: str
    outcome: int
    side: str
    shares: int | None
    amount: int | None
    limit: int | None


class Reply(NamedTuple):
    """What the database answers to one request, rendered and stored there: passed on as it is."""

    status: int
    replayed: bool
    body: bytes


Execute = Callable[[int, list[Trade]], Awaitable[list[Reply]]]


class QueueFull(Exception):
    """The market's queue is full: the trade was not accepted."""


class _Market:
    """The queue of one market; exists only while it has trades queued or in flight."""

    __slots__ = ("in_flight", "last_size", "queue", "scheduled")

    def __init__(self) -> None:
        self.queue: deque[tuple[Trade, asyncio.Future[Reply]]] = deque()
        self.in_flight = 0
        self.last_size = 0
        self.scheduled = False

    def may_send(self) -> bool:
        """Whether what is queued should go off now."""
        if self.in_flight == 0:
            return len(self.queue) > 0
        return self.in_flight < IN_FLIGHT_MAX and 2 * len(self.queue) >= self.last_size


class Sequencer:
    """Collects trades by market and executes them in batches through `execute`.

    `execute` gives one reply a trade, by position, or raises DatabaseError for the whole batch.
    """

    def __init__(self, execute: Execute, *, batch_max: int = BATCH_MAX, queue_max: int = QUEUE_MAX) -> None:
        self._execute = execute
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._markets: dict[int, _Market] = {}
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """Trades waiting for a batch."""
        return sum(len(market.queue) for market in self._markets.values())

    @property
    def in_flight(self) -> int:
        """Batches being executed."""
        return len(self._batches)

    def submit(self, trade: Trade) -> asyncio.Future[Reply]:
        """Queue a trade; its future brings the reply or a DatabaseError. Raises QueueFull at once."""
        market = self._markets.get(trade.market_id)
        if market is None:
            market = self._markets[trade.market_id] = _Market()
        elif len(market.queue) >= self._queue_max:
            raise QueueFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        market.queue.append((trade, future))
        if market.in_flight < IN_FLIGHT_MAX and not market.scheduled:
            market.scheduled = True
            loop.call_soon(self._flush, trade.market_id, market)
        return future

    def _flush(self, market_id: int, market: _Market) -> None:
        """Send off what is queued, as far as the bound on batches in flight allows."""
        market.scheduled = False
        while market.may_send():
            queue = market.queue
            batch = [queue.popleft() for _ in range(min(len(queue), self._batch_max))]
            market.in_flight += 1
            market.last_size = len(batch)
            task = asyncio.create_task(self._run(market_id, market, batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
        if not market.queue and not market.in_flight:
            self._markets.pop(market_id, None)

    async def _run(
        self, market_id: int, market: _Market, batch: list[tuple[Trade, asyncio.Future[Reply]]]
    ) -> None:
        try:
            replies = await self._replies(market_id, [trade for trade, _ in batch])
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():  # its client's task was cancelled; the trade stands
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        finally:
            for _, future in batch:  # only when something above is broken: nobody may wait for ever
                if not future.done():
                    future.set_exception(OutcomeUnknown("the batch ended without a reply"))
            market.in_flight -= 1
            self._flush(market_id, market)

    async def _replies(self, market_id: int, trades: list[Trade]) -> list[Reply | DatabaseError]:
        """A reply or an error for each trade."""
        try:
            return list(await self._execute(market_id, trades))
        except Refused as error:
            if len(trades) == 1:
                log.error("a trade was rolled back: %s", error)
                return [error]
            log.warning("a batch of %d was rolled back and runs one at a time: %s", len(trades), error)
        except DatabaseError as error:
            return [error] * len(trades)
        except Exception:
            log.exception("a batch of %d failed outside the database", len(trades))
            return [OutcomeUnknown("the server failed")] * len(trades)
        replies: list[Reply | DatabaseError] = []
        for trade in trades:
            replies += await self._replies(market_id, [trade])
            if isinstance(replies[-1], NotExecuted | OutcomeUnknown):
                # The database is lost. The others were rolled back with the batch and are not sent again:
                # that much is known now, and would take each of them a time limit to find out.
                lost = NotExecuted("the database was lost before the trade was sent again")
                return replies + [lost] * (len(trades) - len(replies))
        return replies
