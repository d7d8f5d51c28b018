"""Crashes under trades: whatever dies, each key counts once, and a reply never says more than is known."""

from __future__ import annotations

import time
from concurrent.futures import Future

import httpx
import psycopg
import pytest

from chaos.postgres import Postgres
from tests.conftest import MarketDatabase
from tests.integration.conftest import STRATEGIES
from tests.integration.market_client import (
    MarketClient,
    User,
    accepted,
    assert_books_balance,
    await_blocked,
    await_condition,
    lock_held,
    meanwhile,
    new_key,
    question,
    refusal,
)
from tests.integration.market_server import MarketServer

MARKET_LOCK = "SELECT FROM markets WHERE market_id = %s FOR UPDATE"
RETRY_FOR_S = 15.0
BLOCKED = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'reference_server' AND wait_event_type = 'Lock'
"""


def until_answered(client: MarketClient, user: User, market: int, key: str) -> httpx.Response:
    """Trade under one key until there is a lasting answer, as a careful client would."""
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            reply = client.trade(user, market, key=key)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        else:
            if reply.status_code < 500 and reply.status_code != 409:
                return reply
            assert time.monotonic() < deadline, reply.text
        time.sleep(0.02)  # bounded by the deadline; the condition is the lasting answer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_under_trades_every_acknowledged_trade_stands_and_every_key_counts_once(
    market_server: MarketServer, market_database: MarketDatabase, strategy: str
) -> None:
    market_server.restart(strategy)
    dsn = market_database.admin_dsn
    keys = [new_key() for _ in range(60)]
    first: dict[str, bytes] = {}
    with MarketClient(market_server) as client:
        users, market = [client.user() for _ in range(4)], client.market()

    def trade(n: int) -> None:
        with MarketClient(market_server) as client:
            try:
                reply = client.trade(users[n % 4], market, key=keys[n])
            except httpx.TransportError:
                return  # the server died: the outcome is open
            first[keys[n]] = reply.content
            accepted(reply)

    with meanwhile(6) as start:
        trades = [start(trade, n) for n in range(len(keys))]
        await_condition(lambda: len(first) >= 15, "some trades are acknowledged")
        market_server.kill()
        market_server.restart()
        for done in trades:
            done.result()
    assert len(first) < len(keys)  # the kill landed in the middle
    with MarketClient(market_server) as client:
        for n, key in enumerate(keys):
            reply = until_answered(client, users[n % 4], market, key)
            accepted(reply)
            if key in first:
                assert reply.content == first[key]
                assert reply.headers["Idempotent-Replayed"] == "true"
        assert accepted(client.get(f"/api/markets/{market}"))["version"] == len(keys)
    assert question(dsn, "SELECT count(*) FROM trades") == len(keys)
    assert_books_balance(dsn)


def test_a_terminated_backend_leaves_the_outcome_open_and_the_next_try_works(
    market_server: MarketServer, market_database: MarketDatabase
) -> None:
    dsn = market_database.admin_dsn
    with MarketClient(market_server) as client, meanwhile(1) as start:
        user, market, key = client.user(), client.market(), new_key()
        with lock_held(dsn, MARKET_LOCK, market):
            cut_off = start(client.trade, user, market, key=key)
            await_blocked(dsn)
            assert question(dsn, BLOCKED)
            assert refusal(cut_off.result()) == (500, "internal")
        assert accepted(client.trade(user, market, key=key))["marketVersion"] == 1
        assert question(dsn, "SELECT count(*) FROM trades") == 1


def test_postgresql_killed_in_a_batch_leaves_the_outcome_open_and_trading_goes_on(
    breakable: tuple[Postgres, MarketServer],
) -> None:
    postgres, server = breakable
    dsn = server.database.admin_dsn
    with MarketClient(server) as client, meanwhile(8) as start:
        users, market = [client.user() for _ in range(8)], client.market()
        keys = [new_key() for _ in users]
        acknowledged = client.trade(users[0], market, key=keys[0])
        accepted(acknowledged)
        in_flight: list[Future[httpx.Response]] = []
        with psycopg.connect(dsn) as holder:
            holder.execute(MARKET_LOCK, [market])
            for n in (1, 2):
                in_flight.append(start(client.trade, users[n], market, key=keys[n]))
                await_blocked(dsn, n)
            queued = [start(client.trade, users[n], market, key=keys[n]) for n in range(3, 8)]
            await_condition(
                lambda: accepted(client.get("/api/health"))["sequencer"]["queued"] == 5, "five are queued"
            )
            postgres.kill()
            # Sent and not answered: open. Never sent: known not to be executed; but the queue may still have
            # been sent, on a connection whose backend was killed a moment later.
            assert [refusal(reply.result()) for reply in in_flight] == [(500, "internal")] * 2
            said = {refusal(reply.result()) for reply in queued}
            assert said <= {(500, "internal"), (503, "overloaded")}
            holder.close()
        assert refusal(client.ask("GET", "/api/health")) == (503, "unhealthy")
        postgres.restart_after_kill()
        for user, key in zip(users, keys, strict=True):
            reply = until_answered(client, user, market, key)
            accepted(reply)
            if key == keys[0]:
                assert reply.content == acknowledged.content
        assert accepted(client.get(f"/api/markets/{market}"))["version"] == len(keys)
        accepted(client.ask("GET", "/api/health"))
    assert_books_balance(dsn)


def test_postgresql_paused_is_unhealthy_and_resumed_is_healthy(
    breakable: tuple[Postgres, MarketServer],
) -> None:
    postgres, server = breakable
    with MarketClient(server) as client, meanwhile(1) as start:
        user, market, key = client.user(), client.market(), new_key()
        postgres.pause()
        waiting = start(client.trade, user, market, key=key)
        assert refusal(client.ask("GET", "/api/health")) == (503, "unhealthy")
        postgres.resume()
        assert accepted(waiting.result())["marketVersion"] == 1
        await_condition(
            lambda: client.ask("GET", "/api/health").status_code == httpx.codes.OK, "it is healthy again"
        )
