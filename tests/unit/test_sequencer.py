"""The sequencer on a real event loop, with a stand-in for the database call that it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from reference_server.database import Conflict, NotExecuted, OutcomeUnknown, Refused
from reference_server.sequencer import QueueFull, Reply, Sequencer, Trade


def trade(number: int, market: int = 1) -> Trade:
    return Trade("ann", market, f"key {number}", "hash", 0, "buy", number, None, None)


def reply_to(trade: Trade) -> Reply:
    return Reply(200, False, trade.key.encode())


class Gate:
    """An `execute` that notes each batch by its trades' numbers and answers when it is let."""

    def __init__(self, failing: Callable[[list[int]], Exception | None] = lambda _: None) -> None:
        self.batches: list[list[int]] = []
        self.running = 0
        self.running_max = 0
        self.open = asyncio.Event()
        self._failing = failing

    async def __call__(self, market_id: int, trades: list[Trade]) -> list[Reply]:
        assert {trade.market_id for trade in trades} == {market_id}
        self.batches.append([trade.shares or 0 for trade in trades])
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        if error := self._failing(self.batches[-1]):
            raise error
        return [reply_to(trade) for trade in trades]


def run(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await story

    asyncio.run(bounded())


async def turns(count: int = 5) -> None:
    """Let the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_idle_market_sends_off_at_once_everything_of_one_turn() -> None:
    async def story() -> None:
        gate = Gate()
        gate.open.set()
        sequencer = Sequencer(gate)
        replies = await asyncio.gather(*[sequencer.submit(trade(n)) for n in range(5)])
        assert gate.batches == [[0, 1, 2, 3, 4]]
        assert [reply.body for reply in replies] == [b"key %d" % n for n in range(5)]
        await turns()
        assert (sequencer.queued, sequencer.in_flight) == (0, 0)

    run(story())


def test_at_most_two_batches_are_in_flight_and_what_waits_goes_as_one_in_order() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate)
        futures = []
        for n in range(6):
            futures.append(sequencer.submit(trade(n)))
            await turns()
        assert gate.batches == [[0], [1]]
        assert (sequencer.queued, sequencer.in_flight) == (4, 2)
        gate.open.set()
        assert [(await future).body for future in futures] == [b"key %d" % n for n in range(6)]
        assert gate.batches == [[0], [1], [2, 3, 4, 5]]
        assert gate.running_max == 2

    run(story())


def test_a_second_batch_leaves_when_it_is_half_as_large_as_the_first() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate)
        futures = [sequencer.submit(trade(n)) for n in range(6)]
        await turns()
        for n in (6, 7):
            futures.append(sequencer.submit(trade(n)))
            await turns()
            assert gate.batches == [[0, 1, 2, 3, 4, 5]]
        futures.append(sequencer.submit(trade(8)))
        await turns()
        assert gate.batches == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
        gate.open.set()
        await asyncio.gather(*futures)

    run(story())


def test_a_small_rest_leaves_when_the_batch_before_it_is_done() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate)
        futures = [sequencer.submit(trade(n)) for n in range(6)]
        await turns()
        futures.append(sequencer.submit(trade(6)))
        await turns()
        assert (sequencer.queued, sequencer.in_flight) == (1, 1)
        gate.open.set()
        await asyncio.gather(*futures)
        assert gate.batches == [[0, 1, 2, 3, 4, 5], [6]]

    run(story())


def test_a_batch_has_a_largest_size() -> None:
    async def story() -> None:
        gate = Gate()
        gate.open.set()
        sequencer = Sequencer(gate, batch_max=3)
        await asyncio.gather(*[sequencer.submit(trade(n)) for n in range(8)])
        assert sorted(gate.batches) == [[0, 1, 2], [3, 4, 5], [6, 7]]

    run(story())


def test_markets_do_not_wait_for_each_other() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate)
        futures = [sequencer.submit(trade(n, market=n)) for n in range(1, 6)]
        await turns()
        assert sorted(gate.batches) == [[1], [2], [3], [4], [5]]
        gate.open.set()
        await asyncio.gather(*futures)

    run(story())


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate, batch_max=1, queue_max=3)
        accepted = []
        for n in range(2):
            accepted.append(sequencer.submit(trade(n)))
            await turns()
        accepted += [sequencer.submit(trade(n)) for n in range(2, 5)]
        with pytest.raises(QueueFull):
            sequencer.submit(trade(5))
        sequencer.submit(trade(6, market=2))  # another market has room
        gate.open.set()
        assert [(await future).body for future in accepted] == [b"key %d" % n for n in range(5)]
        assert (await sequencer.submit(trade(7))).body == b"key 7"

    run(story())


def test_an_unforeseen_error_hits_the_poison_trade_only() -> None:
    async def story() -> None:
        gate = Gate(failing=lambda numbers: Refused("poison") if 2 in numbers else None)
        gate.open.set()
        sequencer = Sequencer(gate)
        replies = await asyncio.gather(
            *[sequencer.submit(trade(n)) for n in range(4)], return_exceptions=True
        )
        assert gate.batches == [[0, 1, 2, 3], [0], [1], [2], [3]]
        assert isinstance(replies[2], Refused)
        assert [reply for n, reply in enumerate(replies) if n != 2] == [reply_to(trade(n)) for n in (0, 1, 3)]

    run(story())


@pytest.mark.parametrize("error", [Conflict("met"), NotExecuted("none"), OutcomeUnknown("lost")])
def test_an_error_that_says_what_happened_is_everybodys_and_nothing_runs_again(error: Exception) -> None:
    async def story() -> None:
        gate = Gate(failing=lambda _: error)
        gate.open.set()
        sequencer = Sequencer(gate)
        replies = await asyncio.gather(
            *[sequencer.submit(trade(n)) for n in range(3)], return_exceptions=True
        )
        assert replies == [error] * 3
        assert gate.batches == [[0, 1, 2]]

    run(story())


def test_a_bug_outside_the_database_leaves_the_outcome_open_and_the_market_alive() -> None:
    async def story() -> None:
        broken = True

        def failing(_: list[int]) -> Exception | None:
            return ValueError("a bug") if broken else None

        gate = Gate(failing=failing)
        gate.open.set()
        sequencer = Sequencer(gate)
        with pytest.raises(OutcomeUnknown):
            await sequencer.submit(trade(1))
        broken = False
        assert await sequencer.submit(trade(2)) == reply_to(trade(2))
        await turns()
        assert (sequencer.queued, sequencer.in_flight) == (0, 0)

    run(story())


def test_a_database_lost_while_trades_run_one_at_a_time_is_not_asked_for_the_rest() -> None:
    async def story() -> None:
        def failing(numbers: list[int]) -> Exception | None:
            if len(numbers) > 1:
                return Refused("unforeseen")
            return OutcomeUnknown("lost") if numbers == [1] else None

        gate = Gate(failing=failing)
        gate.open.set()
        sequencer = Sequencer(gate)
        replies = await asyncio.gather(
            *[sequencer.submit(trade(n)) for n in range(5)], return_exceptions=True
        )
        assert gate.batches == [[0, 1, 2, 3, 4], [0], [1]]
        assert replies[0] == reply_to(trade(0))
        assert isinstance(replies[1], OutcomeUnknown)
        assert all(isinstance(reply, NotExecuted) for reply in replies[2:])

    run(story())


def test_a_client_that_leaves_does_not_cancel_the_batch() -> None:
    async def story() -> None:
        gate = Gate()
        sequencer = Sequencer(gate)

        async def ask(number: int) -> Reply:
            return await sequencer.submit(trade(number))

        leaver, stayer = asyncio.create_task(ask(1)), asyncio.create_task(ask(2))
        await turns()
        assert gate.batches == [[1, 2]]
        leaver.cancel()
        await turns()
        assert gate.running == 1
        gate.open.set()
        assert await stayer == reply_to(trade(2))
        assert leaver.cancelled()
        await turns()
        assert (sequencer.queued, sequencer.in_flight) == (0, 0)

    run(story())
