"""The three trade strategies: the same guarantees, also at once and through several processes."""

from __future__ import annotations

import random
from typing import Any

import psycopg

from tests.integration.market_client import (
    USDC,
    MarketClient,
    User,
    accepted,
    meanwhile,
    new_key,
    question,
)
from tests.integration.market_server import MarketServer

SEED = 20_261_122


def some_trades(count: int) -> list[dict[str, Any]]:
    """Trades of every kind, some of which are refused; the same ones each time."""
    choose = random.Random(SEED)
    kinds: list[dict[str, Any]] = []
    for _ in range(count):
        shares = choose.randrange(1, 20) * USDC
        kind = choose.choice(["shares", "amount", "sell", "limit", "too much"])
        body: dict[str, dict[str, Any]] = {
            "shares": {"shares": shares},
            "amount": {"amount": shares},
            "sell": {"side": "sell", "shares": shares // 3},
            "limit": {"shares": shares, "limit": shares // 2},
            "too much": {"shares": 100_000 * USDC},
        }
        kinds.append({"outcome": choose.randrange(2), **body[kind]})
    return kinds


def test_the_same_trades_get_the_same_answers(market_servers: dict[str, MarketServer]) -> None:
    answers = {}
    for strategy, server in market_servers.items():
        with MarketClient(server) as client:
            users, market = [client.user(), client.user()], client.market()
            said = [client.trade(users[n % 2], market, **body) for n, body in enumerate(some_trades(30))]
        serials = ("tradeId", "transactionId", "marketId")
        answers[strategy] = [
            (reply.status_code, {k: v for k, v in reply.json().items() if k not in serials}) for reply in said
        ]
    assert answers["batch"] == answers["row_lock"] == answers["optimistic"]
    assert {status for status, _ in answers["batch"]} == {200, 422}


def test_trades_at_once_leave_dense_versions_and_exact_books(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client, meanwhile(8) as start:
        users, market = [client.user() for _ in range(4)], client.market()
        replies = [
            start(client.trade, users[n % 4], market, **body) for n, body in enumerate(some_trades(60))
        ]
        trades = [reply.result().json() for reply in replies if reply.result().status_code == 200]
        statuses = {reply.result().status_code for reply in replies}
        assert statuses <= {200, 422}
        check_market(any_server.database.admin_dsn, client, market, trades, users)


def test_one_market_through_processes_of_all_strategies_at_once(
    market_servers: dict[str, MarketServer],
) -> None:
    """The row lock is the guard, not the queue: each key comes through every process and counts once."""
    clients = [MarketClient(server) for server in market_servers.values()]
    with clients[0], clients[1], clients[2], meanwhile(9) as start:
        users, market = [clients[0].user() for _ in range(3)], clients[0].market()
        keys = [new_key() for _ in range(12)]
        replies = [
            [start(client.trade, users[n % 3], market, key=key) for client in clients]
            for n, key in enumerate(keys)
        ]
        trades = []
        for of_key in replies:
            trade, *others = [accepted(reply.result()) for reply in of_key]
            assert others == [trade, trade]
            assert sum("Idempotent-Replayed" in reply.result().headers for reply in of_key) == 2
            trades.append(trade)
        check_market(clients[0].server.database.admin_dsn, clients[0], market, trades, users)


def check_market(
    dsn: str, client: MarketClient, market: int, trades: list[dict[str, Any]], users: list[User]
) -> None:
    """Assert that replies, market, accounts and ledger agree about these trades, the market's only ones."""
    assert sorted(trade["marketVersion"] for trade in trades) == list(range(1, len(trades) + 1))
    state = accepted(client.get(f"/api/markets/{market}"))
    assert state["version"] == len(trades)
    signed = {"buy": 1, "sell": -1}
    for outcome in (0, 1):
        here = [signed[trade["side"]] * trade["shares"] for trade in trades if trade["outcome"] == outcome]
        assert state["quantities"][outcome] == sum(here)
    assert state["pool"] == question(
        dsn, "SELECT lmsr_cost(quantities, b) FROM markets WHERE market_id = %s", market
    )
    subsidy = question(dsn, "SELECT subsidy FROM markets WHERE market_id = %s", market)
    assert state["pool"] == subsidy + sum(signed[trade["side"]] * trade["cost"] for trade in trades)
    for user in users:
        statement = accepted(client.get("/api/account/reconciliation", user))
        assert statement["reconciled"]
    with psycopg.connect(dsn) as connection:
        unbalanced = connection.execute(
            "SELECT transaction_id FROM ledger_entries GROUP BY 1 HAVING sum(credit) <> sum(debit)"
        ).fetchall()
    assert unbalanced == []
