"""The idempotency truth table over HTTP, for each strategy: every cell is a test.

first use · replay after 2xx, after a business refusal, after a crash · in flight · other body · other user ·
other endpoint · the same key twice inside one batch
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from chaos.supervisor import Supervisor
from reference_server.database import Database
from reference_server.sequencer import Reply, Sequencer, Trade
from reference_server.strategies import Trades
from tests.conftest import MarketDatabase
from tests.integration.conftest import STRATEGIES, running
from tests.integration.market_client import (
    USDC,
    MarketClient,
    User,
    accepted,
    assert_books_balance,
    await_blocked,
    digest_of_books,
    lock_held,
    meanwhile,
    new_key,
    question,
    refusal,
)
from tests.integration.market_server import MarketServer

# All strategies lock the user's account first, so whoever holds this lock keeps a trade in flight.
ACCOUNT_LOCK = "SELECT FROM accounts WHERE user_id = %s AND kind = 'user_available' FOR UPDATE"


def assert_replays(reply: httpx.Response, first: httpx.Response) -> None:
    """Assert that this is the stored reply: same status, same bytes, and it says so."""
    assert reply.headers.get("Idempotent-Replayed") == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert (reply.status_code, reply.content) == (first.status_code, first.content)


def test_a_key_may_hold_any_visible_character(any_server: MarketServer) -> None:
    visible = "".join(chr(n) for n in range(0x21, 0x7F))
    keys = [visible, visible[::-1], '"', "\\", '\\"', "{}", "NULL", "null", "a,b", "'", "%s", "$1", "x" * 255]
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        firsts = [client.trade(user, market, key=key) for key in keys]
        assert [accepted(first)["marketVersion"] for first in firsts] == list(range(1, len(keys) + 1))
        for key, first in zip(keys, firsts, strict=True):
            assert_replays(client.trade(user, market, key=key), first)
    stored = "SELECT array_agg(idempotency_key) FROM idempotency_keys WHERE user_id = %s"
    assert set(question(any_server.database.admin_dsn, stored, user.user_id)) == set(keys)


def test_first_use_executes_and_is_no_replay(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        first = client.trade(user, market)
        assert accepted(first)["marketVersion"] == 1
        assert "Idempotent-Replayed" not in first.headers


def test_a_retry_after_success_gets_the_same_bytes_and_moves_nothing(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market, key = client.user(), client.market(), new_key()
        first = client.trade(user, market, key=key)
        accepted(first)
        accepted(client.trade(user, market))  # the state has moved on; the reply has not
        before = digest_of_books(any_server.database.admin_dsn)
        assert_replays(client.trade(user, market, key=key), first)
        assert_replays(client.trade(user, market, key=key), first)
        assert digest_of_books(any_server.database.admin_dsn) == before


def test_a_retry_may_be_spelt_differently(shared_server: MarketServer) -> None:
    with MarketClient(shared_server) as client:
        user, market, key = client.user(), client.market(), new_key()
        first = client.trade(user, market, key=key)
        spelt = b'{ "shares": 1000000, "side": "buy",\n "outcome": 0, "marketId": %d }' % market
        assert_replays(client.post("/api/trade", spelt, user, key=key), first)


def test_a_retry_after_a_business_refusal_gets_the_refusal_even_when_it_could_succeed(
    any_server: MarketServer,
) -> None:
    with MarketClient(any_server) as client:
        user, market, key = client.user(funds=0), client.market(), new_key()
        first = client.trade(user, market, key=key)
        assert refusal(first) == (422, "insufficient_funds")
        accepted(client.post("/api/fundings", {"userId": user.user_id, "amount": 100 * USDC}))
        assert_replays(client.trade(user, market, key=key), first)
        accepted(client.trade(user, market))


def test_a_refusal_that_is_not_kept_leaves_the_key_free(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market, key = client.user(), client.market(), new_key()
        assert refusal(client.trade(user, market + 10_000_000, key=key)) == (404, "market_not_found")
        assert refusal(client.trade(user, market, key=key, shares=-1)) == (400, "malformed")
        first = client.trade(user, market, key=key)
        assert accepted(first)["marketVersion"] == 1
        assert "Idempotent-Replayed" not in first.headers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_retry_after_a_crash_gets_the_same_bytes(market_server: MarketServer, strategy: str) -> None:
    market_server.restart(strategy)
    with MarketClient(market_server) as client:
        user, poor, market = client.user(), client.user(funds=0), client.market()
        keys = new_key(), new_key()
        done = client.trade(user, market, key=keys[0])
        refused = client.trade(poor, market, key=keys[1])
    market_server.kill()
    market_server.restart()
    with MarketClient(market_server) as client:
        assert_replays(client.trade(user, market, key=keys[0]), done)
        assert_replays(client.trade(poor, market, key=keys[1]), refused)


def test_a_retry_with_another_strategy_gets_the_same_bytes(market_servers: dict[str, MarketServer]) -> None:
    with MarketClient(market_servers["batch"]) as client:
        user, market, key = client.user(), client.market(), new_key()
        first = client.trade(user, market, key=key)
    for strategy in ("row_lock", "optimistic"):
        with MarketClient(market_servers[strategy]) as client:
            assert_replays(client.trade(user, market, key=key), first)


def test_a_second_request_in_flight_is_told_to_come_back(any_server: MarketServer) -> None:
    dsn = any_server.database.admin_dsn
    with MarketClient(any_server) as client, meanwhile(1) as start:
        user, market, key = client.user(), client.market(), new_key()
        with lock_held(dsn, ACCOUNT_LOCK, user.user_id):
            first = start(client.trade, user, market, key=key)
            await_blocked(dsn)
            second = client.trade(user, market, key=key)
            assert refusal(second) == (409, "idempotency_key_in_progress")
            assert int(second.headers["Retry-After"]) >= 1
            assert not first.done()
        assert accepted(first.result())["marketVersion"] == 1
        assert_replays(client.trade(user, market, key=key), first.result())


def test_in_flight_in_two_processes_one_executes_and_the_other_replays(
    supervisor: Supervisor, any_server: MarketServer
) -> None:
    dsn = any_server.database.admin_dsn
    with (
        running(supervisor, any_server.database, strategy=any_server.strategy) as twin,
        MarketClient(any_server) as client,
        MarketClient(twin) as other,
        meanwhile(2) as start,
    ):
        user, market, key = client.user(), client.market(), new_key()
        with lock_held(dsn, ACCOUNT_LOCK, user.user_id):
            one = start(client.trade, user, market, key=key)
            two = start(other.trade, user, market, key=key)
            await_blocked(dsn, 2)
        replies = sorted([one.result(), two.result()], key=lambda r: "Idempotent-Replayed" in r.headers)
        accepted(replies[0])
        assert_replays(replies[1], replies[0])
        assert accepted(client.get(f"/api/markets/{market}"))["version"] == 1


def test_another_body_under_the_same_key_is_refused(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market, other, key = client.user(), client.market(), client.market(), new_key()
        accepted(client.trade(user, market, key=key))
        before = digest_of_books(any_server.database.admin_dsn)
        for reply in (
            client.trade(user, market, key=key, shares=2 * USDC),
            client.trade(user, market, key=key, amount=USDC),
            client.trade(user, market, key=key, outcome=1),
            client.trade(user, market, key=key, side="sell"),
            client.trade(user, market, key=key, limit=10 * USDC),
            client.trade(user, other, key=key),
        ):
            assert refusal(reply) == (422, "idempotency_key_reused")
            assert "Idempotent-Replayed" not in reply.headers
        assert digest_of_books(any_server.database.admin_dsn) == before


def test_another_body_after_a_business_refusal_is_refused_too(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market, key = client.user(), client.market(), new_key()
        assert refusal(client.trade(user, market, key=key, side="sell")) == (422, "insufficient_shares")
        assert refusal(client.trade(user, market, key=key)) == (422, "idempotency_key_reused")


def test_another_user_may_use_the_same_key(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        one, two, market, key = client.user(), client.user(), client.market(), new_key()
        first, second = client.trade(one, market, key=key), client.trade(two, market, key=key)
        assert [accepted(reply)["marketVersion"] for reply in (first, second)] == [1, 2]
        assert_replays(client.trade(one, market, key=key), first)
        assert_replays(client.trade(two, market, key=key), second)


def test_another_endpoint_under_the_same_key_is_refused(shared_server: MarketServer) -> None:
    with MarketClient(shared_server) as client:
        user, market, key = client.user(), client.market(), new_key()
        first = client.post("/api/fundings", {"userId": user.user_id, "amount": USDC}, key=key)
        accepted(first)
        before = digest_of_books(shared_server.database.admin_dsn)
        new_market = {"question": "Again?", "outcomes": ["Yes", "No"], "b": 100 * USDC}
        for path, body in (
            ("/api/markets", new_market),
            (f"/api/markets/{market}", {"action": "close"}),
            ("/api/fundings", {"account": "house_treasury", "amount": USDC}),
        ):
            assert refusal(client.post(path, body, key=key)) == (422, "idempotency_key_reused")
        assert digest_of_books(shared_server.database.admin_dsn) == before
        again = client.post("/api/fundings", {"userId": user.user_id, "amount": USDC}, key=key)
        assert_replays(again, first)


def test_every_endpoint_that_moves_money_replays(shared_server: MarketServer) -> None:
    with MarketClient(shared_server) as client:
        user, market = client.user(), client.market()
        calls: list[tuple[str, dict[str, Any]]] = [
            ("/api/fundings", {"userId": user.user_id, "amount": USDC}),
            ("/api/fundings", {"account": "house_treasury", "amount": 1_000 * USDC}),
            ("/api/markets", {"question": "Twice?", "outcomes": ["Yes", "No"], "b": 100 * USDC}),
            (f"/api/markets/{market}", {"action": "close"}),
        ]
        for path, body in calls:
            key = new_key()
            first = client.post(path, body, key=key)
            accepted(first)
            before = digest_of_books(shared_server.database.admin_dsn)
            assert_replays(client.post(path, body, key=key), first)
            assert digest_of_books(shared_server.database.admin_dsn) == before


def test_the_same_key_twice_inside_one_batch_executes_once(
    market_database: MarketDatabase, market_server: MarketServer
) -> None:
    """One process answers the second with 409 before it reaches a batch, so the batch is made here."""
    with MarketClient(market_server) as client:
        one, two, market = client.user(), client.user(), client.market()

    def trade(user: User, shares: int, key: str = "k") -> Trade:
        return Trade(user.user_id, market, key, f"hash of {shares}", 0, "buy", shares, None, None)

    async def in_one_batch(trades: list[Trade]) -> list[Reply]:
        database = Database(market_database.app_dsn, pool_min=1, pool_max=2)
        await database.open()
        try:
            sequencer = Sequencer(Trades(database).execute)
            return await asyncio.gather(*[sequencer.submit(trade) for trade in trades])
        finally:
            await database.close()

    first, replay, reused, other_user, too_much, too_much_replayed = asyncio.run(
        in_one_batch(
            [
                trade(one, USDC),
                trade(one, USDC),
                trade(one, 2 * USDC),
                trade(two, USDC),
                trade(one, 10**12, "k2"),
                trade(one, 10**12, "k2"),
            ]
        )
    )
    assert (first.status, first.replayed, other_user.status, other_user.replayed) == (200, False, 200, False)
    assert replay == Reply(200, True, first.body)
    assert (reused.status, b"idempotency_key_reused" in reused.body) == (422, True)
    assert (too_much.status, too_much.replayed) == (422, False)
    assert too_much_replayed == Reply(422, True, too_much.body)
    dsn = market_database.admin_dsn
    assert question(dsn, "SELECT count(*) FROM trades") == 2
    assert question(dsn, "SELECT count(DISTINCT xmin::text) FROM trades") == 1  # one transaction: one batch
    assert_books_balance(dsn)
