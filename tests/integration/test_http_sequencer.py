"""The sequencer behind HTTP: what waits becomes few transactions, and nobody suffers for another's trade."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import psycopg

from chaos.supervisor import Supervisor
from tests.conftest import MarketDatabase
from tests.integration.conftest import running
from tests.integration.market_client import (
    USDC,
    MarketClient,
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
POISON = """
CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'poison' USING ERRCODE = 'XX000';
END
$$;
CREATE TRIGGER poison BEFORE INSERT ON trades FOR EACH ROW WHEN (new.shares = 666) EXECUTE FUNCTION poison();
"""


def sequencer_of(client: MarketClient) -> dict[str, int]:
    found: dict[str, int] = accepted(client.get("/api/health"))["sequencer"]
    return found


def transactions_of(dsn: str, market: int) -> int:
    """How many database transactions wrote the trades of this market."""
    query = "SELECT count(DISTINCT xmin::text) FROM trades WHERE market_id = %s"
    return int(question(dsn, query, market))


def test_what_waits_for_a_market_becomes_two_batches_in_flight_and_a_queue(
    client: MarketClient, market: int
) -> None:
    dsn = client.server.database.admin_dsn
    users = [client.user() for _ in range(12)]
    with meanwhile(len(users)) as start:
        with lock_held(dsn, MARKET_LOCK, market):
            replies = [start(client.trade, users[0], market)]
            await_blocked(dsn, 1)
            replies.append(start(client.trade, users[1], market))
            await_blocked(dsn, 2)
            replies += [start(client.trade, user, market) for user in users[2:]]
            await_condition(lambda: sequencer_of(client)["queued"] == 10, "ten trades are queued")
            assert sequencer_of(client) == {"queued": 10, "in_flight": 2}
        trades = [accepted(reply.result()) for reply in replies]
    assert sorted(trade["marketVersion"] for trade in trades) == list(range(1, 13))
    # The two waiting batches of one trade each, and the whole queue as the third.
    assert transactions_of(dsn, market) == 3
    assert sequencer_of(client) == {"queued": 0, "in_flight": 0}


def test_a_market_that_waits_does_not_hold_up_another(client: MarketClient, market: int) -> None:
    other, user, another = client.market(), client.user(), client.user()
    dsn = client.server.database.admin_dsn
    with meanwhile(1) as start:
        with lock_held(dsn, MARKET_LOCK, market):
            waiting = start(client.trade, user, market)
            await_blocked(dsn)
            accepted(client.trade(another, other))
            assert not waiting.done()
        accepted(waiting.result())


def test_a_poison_trade_fails_alone(market_server: MarketServer, market_database: MarketDatabase) -> None:
    dsn = market_database.admin_dsn
    with psycopg.connect(dsn) as connection:
        connection.execute(POISON)
    with MarketClient(market_server) as client, meanwhile(7) as start:
        market, users = client.market(), [client.user() for _ in range(7)]
        poison_key = new_key()
        with lock_held(dsn, MARKET_LOCK, market):
            replies = [start(client.trade, users[0], market)]
            await_blocked(dsn, 1)
            replies.append(start(client.trade, users[1], market))
            await_blocked(dsn, 2)
            poison = start(client.trade, users[2], market, shares=666, key=poison_key)
            replies += [start(client.trade, user, market) for user in users[3:]]
            await_condition(lambda: sequencer_of(client)["queued"] == 5, "five trades are queued")
        assert refusal(poison.result()) == (500, "internal")
        assert sorted(accepted(reply.result())["marketVersion"] for reply in replies) == list(range(1, 7))
        # The poison left nothing, not even its key: without it the same request goes through.
        with psycopg.connect(dsn) as connection:
            connection.execute("DROP TRIGGER poison ON trades")
        assert accepted(client.trade(users[2], market, shares=666, key=poison_key))["marketVersion"] == 7
    assert_books_balance(dsn)


def test_a_client_that_leaves_does_not_undo_its_trade_or_its_neighbours(
    client: MarketClient, market: int
) -> None:
    dsn = client.server.database.admin_dsn
    leaver, stayer, key = client.user(), client.user(), new_key()
    body = b'{"marketId":%d,"outcome":0,"side":"buy","shares":1000000}' % market
    head = (
        f"POST /api/trade HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {leaver.token}\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    url = urlsplit(client.server.url)
    with meanwhile(1) as start:
        with lock_held(dsn, MARKET_LOCK, market):
            with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
                connection.sendall(head.encode() + body)
                await_blocked(dsn, 1)
            stays = start(client.trade, stayer, market)
            await_blocked(dsn, 2)
        accepted(stays.result())
    await_condition(lambda: sequencer_of(client)["in_flight"] == 0, "both trades are done")
    replay = client.trade(leaver, market, key=key)
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert accepted(replay)["shares"] == USDC
    assert accepted(client.get(f"/api/markets/{market}"))["version"] == 2


def test_without_a_free_connection_a_trade_is_refused_in_time_and_not_executed(
    supervisor: Supervisor, market_database: MarketDatabase
) -> None:
    dsn = market_database.admin_dsn
    options = ("--pool-min", "1", "--pool-max", "1")
    with (
        running(supervisor, market_database, strategy="row_lock", options=options) as server,
        MarketClient(server) as client,
        meanwhile(1) as start,
    ):
        market, users, key = client.market(), [client.user(), client.user()], new_key()
        for user in users:
            client.get("/api/account", user)  # the server knows the tokens from now on
        with lock_held(dsn, MARKET_LOCK, market):
            first = start(client.trade, users[0], market)
            await_blocked(dsn)
            refused = client.trade(users[1], market, key=key)
            assert refusal(refused) == (503, "overloaded")
            assert int(refused.headers["Retry-After"]) >= 1
        accepted(first.result())
        assert question(dsn, "SELECT count(*) FROM trades") == 1
        second = client.trade(users[1], market, key=key)
        assert accepted(second)["marketVersion"] == 2
        assert "Idempotent-Replayed" not in second.headers
