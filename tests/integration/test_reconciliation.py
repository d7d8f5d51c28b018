"""Reconciliation: it agrees after any trading, and finds exactly what was changed behind its back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.rows import dict_row

from tests.conftest import MarketDatabase
from tests.integration.desk import FUNDS, Desk, Order

SHARE = 1_000_000


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    """Two users with a trade each on one market."""
    with Desk(market_database) as desk:
        for name in ("ann", "bob"):
            desk.user(name)
        desk.batch(desk.market(), [Order(name, "k", amount=5 * SHARE) for name in ("ann", "bob")])
        yield desk


def test_every_account_is_reconciled(desk: Desk) -> None:
    with desk.admin.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute("SELECT * FROM reconcile_all_balances()").fetchall()
    accounts = desk.row("SELECT count(*) FROM accounts")[0]
    assert len(rows) == accounts
    assert {row["reconciled"] for row in rows} == {True}
    assert all(row["balance"] == row["entries_sum"] and row["difference"] == 0 for row in rows)
    assert sum(row["entries"] for row in rows) == desk.row("SELECT count(*) FROM ledger_entries")[0]


def test_sums_by_user_are_the_users_balances(desk: Desk) -> None:
    rows = desk.admin.execute(
        "SELECT user_id, COUNT(*), SUM(credit - debit) FROM ledger_entries GROUP BY user_id"
    ).fetchall()
    sums = {user: (count, total) for user, count, total in rows}
    assert sums["ann"] == (2, desk.available("ann"))
    assert sums["bob"] == (2, desk.available("bob"))
    assert sums[None][1] == -desk.available("ann") - desk.available("bob")


def test_a_users_last_entries_are_read_newest_first(desk: Desk) -> None:
    with desk.admin.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT * FROM ledger_entries WHERE user_id = 'ann' ORDER BY created_at DESC LIMIT 20"
        ).fetchall()
        same = cursor.execute("SELECT * FROM get_user_ledger('ann', 20)").fetchall()
    assert same == rows
    assert [row["kind"] for row in rows] == ["trade", "fund"]
    assert [row["account_version"] for row in rows] == [2, 1]
    assert rows[0]["balance_after"] == desk.available("ann") == FUNDS - rows[0]["debit"]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (50, 2), (0, 0), (-5, 0), (None, 0)])
def test_a_users_ledger_is_bounded(desk: Desk, limit: int | None, count: int) -> None:
    assert desk.row("SELECT count(*) FROM get_user_ledger('ann', %s)", limit) == (count,)
    assert desk.row("SELECT count(*) FROM get_user_ledger('nobody')") == (0,)


def test_a_balance_changed_by_hand_is_found_with_its_difference(desk: Desk) -> None:
    desk.admin.execute(
        "UPDATE accounts SET balance = balance + 7 WHERE user_id = 'ann' AND kind = 'user_available'"
    )
    rows = desk.admin.execute(
        "SELECT user_id, kind, difference, reconciled FROM reconcile_all_balances() LIMIT 2"
    ).fetchall()
    assert rows[0] == ("ann", "user_available", 7, False)
    assert rows[1][3] is True
    assert desk.row("SELECT bool_and(reconciled) FROM reconcile_user_balance('ann')") == (False,)
    assert desk.row("SELECT bool_and(reconciled) FROM reconcile_user_balance('bob')") == (True,)


def test_a_version_changed_by_hand_is_found(desk: Desk) -> None:
    desk.admin.execute("UPDATE accounts SET version = version + 1 WHERE kind = 'house_fees'")
    assert desk.row("SELECT kind, difference FROM reconcile_all_balances() WHERE NOT reconciled") == (
        "house_fees",
        0,
    )


def test_a_user_is_reconciled_account_by_account(desk: Desk) -> None:
    rows = desk.admin.execute(
        """SELECT kind, balance, entries_sum, entries, difference, reconciled
             FROM reconcile_user_balance('ann')"""
    ).fetchall()
    balance = desk.available("ann")
    assert rows == [
        ("user_available", balance, balance, 2, 0, True),
        ("user_reserved", 0, 0, 0, 0, True),
    ]


def test_the_api_shows_a_user_the_same_books(desk: Desk) -> None:
    def shown(call: str) -> object:
        return desk.server.execute(f"SELECT {call}::json".encode()).fetchall()[0][0]

    balance = desk.available("ann")
    assert shown("api_account_reconciliation('ann')") == {
        "userId": "ann",
        "balance": balance,
        "entriesSum": balance,
        "entries": 2,
        "difference": 0,
        "reconciled": True,
    }
    shares = desk.row("SELECT shares FROM positions WHERE user_id = 'ann'")[0]
    assert shown("api_account('ann')") == {
        "userId": "ann",
        "available": balance,
        "reserved": 0,
        "accountVersion": 2,
        "positions": [{"marketId": 1, "outcome": 0, "shares": shares}],
    }
    ledger = shown("api_account_ledger('ann', 1)")
    assert isinstance(ledger, dict)
    (entry,) = ledger["entries"]
    assert (entry["account"], entry["kind"], entry["credit"]) == ("user_available", "trade", 0)
    assert (entry["balanceAfter"], entry["accountVersion"]) == (balance, 2)
    for call in ("api_account('x')", "api_account_reconciliation('x')", "api_market(404)"):
        assert shown(call) is None
    assert shown("api_account_ledger('x', 5)") == {"entries": []}


def test_the_api_shows_every_market(desk: Desk) -> None:
    another = desk.market(outcomes=3)
    (shown,) = desk.server.execute("SELECT api_markets()::json").fetchall()[0]
    assert [market["marketId"] for market in shown["markets"]] == [1, another]
    assert shown["markets"][0]["version"] == 2
    (alone,) = desk.server.execute("SELECT api_market(%s)::json", [another]).fetchall()[0]
    assert alone == shown["markets"][1]
    assert set(alone) == {
        *("marketId", "question", "status", "version", "outcomes", "quantities", "prices", "pool"),
        *("b", "feeBps"),
    }
