"""The ledger: transfers balance, refusals move nothing, and what is written stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors

from tests.conftest import MarketDatabase
from tests.integration.desk import FUNDS, B, Desk, Order, await_lock_wait, one

EXTERNAL, TREASURY, SUSPENSE = 1, 2, 5
TRANSFER: LiteralString = "SELECT record_ledger_entry(%s, %s, %s, %s)"
APPEND_ONLY = ("ledger_entries", "transactions", "trades", "price_history")


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


def sqlstate(error: pytest.ExceptionInfo[psycopg.Error]) -> str | None:
    return error.value.sqlstate


def entries(desk: Desk, transaction: int) -> list[tuple[object, ...]]:
    """A transaction's entries, by account."""
    return desk.admin.execute(
        """SELECT account_id, debit, credit, balance_after, account_version
             FROM ledger_entries WHERE transaction_id = %s ORDER BY account_id""",
        [transaction],
    ).fetchall()


def test_a_transfer_is_two_entries_that_balance(desk: Desk) -> None:
    (transaction,) = desk.row(TRANSFER, TREASURY, SUSPENSE, 250, "correction")
    before = 10**15
    assert entries(desk, transaction) == [
        (TREASURY, 250, 0, before - 250, 2),
        (SUSPENSE, 0, 250, 250, 1),
    ]
    assert desk.row("SELECT kind, user_id, idempotency_key FROM transactions ORDER BY 1 LIMIT 1") == (
        "correction",
        None,
        None,
    )
    desk.assert_books_agree()


def test_a_users_account_is_found_by_kind(desk: Desk) -> None:
    desk.user("ann", funds=700)
    (transaction,) = desk.row(
        """SELECT record_ledger_entry(
               user_account('ann'), user_account('ann', 'user_reserved'), 300, 'reserve')"""
    )
    assert [row[3] for row in entries(desk, transaction)] == [400, 300]
    assert desk.available("ann") == 400
    assert desk.row("SELECT user_account('nobody')") == (None,)
    desk.assert_books_agree()


def test_a_transfer_into_a_market_takes_the_markets_lock(desk: Desk) -> None:
    market = desk.market()
    (pool_account,) = desk.row("SELECT pool_account FROM markets WHERE market_id = %s", market)
    with psycopg.connect(desk.database.admin_dsn) as other:
        one(other, TRANSFER, TREASURY, pool_account, 1, "gift")
        with pytest.raises(errors.LockNotAvailable):
            desk.admin.execute("SELECT FROM markets WHERE market_id = %s FOR NO KEY UPDATE NOWAIT", [market])
        other.rollback()


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        ((TREASURY, SUSPENSE, 0, "gift"), "22023"),
        ((TREASURY, SUSPENSE, -1, "gift"), "22023"),
        ((TREASURY, SUSPENSE, None, "gift"), "22023"),
        ((TREASURY, TREASURY, 1, "gift"), "22023"),
        ((TREASURY, 999_999, 1, "gift"), "P0002"),
        ((999_999, TREASURY, 1, "gift"), "P0002"),
        ((None, TREASURY, 1, "gift"), "P0002"),
        ((SUSPENSE, TREASURY, 1, "gift"), "23514"),  # nothing in suspense
        ((TREASURY, SUSPENSE, 10**15 + 1, "gift"), "23514"),
        ((SUSPENSE, EXTERNAL, 1, "gift"), "23514"),
        ((EXTERNAL, TREASURY, 2**63 - 1, "fund"), "22003"),
        ((TREASURY, SUSPENSE, 1, "Not a kind"), "23514"),
    ],
)
def test_a_refused_transfer_moves_nothing(desk: Desk, arguments: tuple[object, ...], state: str) -> None:
    with desk.nothing_moves(), pytest.raises(psycopg.Error) as error:
        desk.row(TRANSFER, *arguments)
    assert sqlstate(error) == state


def test_a_transfer_while_money_is_paused_moves_nothing(desk: Desk) -> None:
    desk.row("SELECT pause_trading('drill')")
    with desk.nothing_moves(), pytest.raises(psycopg.Error) as error:
        desk.row(TRANSFER, TREASURY, SUSPENSE, 1, "gift")
    assert sqlstate(error) == "ST004"
    desk.resume()
    desk.row(TRANSFER, TREASURY, SUSPENSE, 1, "gift")


def test_a_pause_waits_for_the_money_in_motion(desk: Desk) -> None:
    with psycopg.connect(desk.database.admin_dsn) as other:
        one(other, TRANSFER, TREASURY, SUSPENSE, 1, "gift")
        pausing = threading.Thread(target=desk.row, args=("SELECT pause_trading('drill')",))
        pausing.start()
        await_lock_wait(other, "pause_trading")
        other.commit()
        pausing.join(timeout=30)
        assert not pausing.is_alive()
    assert desk.row("SELECT paused, reason FROM platform_state") == (True, "drill")
    assert desk.row("SELECT balance FROM accounts WHERE account_id = %s", SUSPENSE) == (1,)


def test_a_key_is_used_once_for_ever(desk: Desk) -> None:
    desk.user("ann")
    keyed: LiteralString = "SELECT record_ledger_entry(%s, %s, 1, 'gift', 'ann', 'once')"
    desk.row(keyed, TREASURY, SUSPENSE)
    with desk.nothing_moves(), pytest.raises(errors.UniqueViolation):
        desk.row(keyed, TREASURY, SUSPENSE)


def test_entries_that_do_not_balance_are_refused(desk: Desk) -> None:
    with desk.nothing_moves(), desk.admin.transaction(force_rollback=True):
        (transaction,) = desk.row("INSERT INTO transactions (kind) VALUES ('gift') RETURNING transaction_id")
        with pytest.raises(psycopg.Error) as error, desk.admin.transaction():
            desk.admin.execute(
                """INSERT INTO ledger_entries
                   (transaction_id, account_id, account_version, kind, debit, credit, balance_after)
                   VALUES (%s, 3, 1, 'gift', 0, 5, 5)""",
                [transaction],
            )
        assert sqlstate(error) == "ST001"


def test_entries_without_a_transaction_are_refused(desk: Desk) -> None:
    with desk.nothing_moves(), pytest.raises(psycopg.Error) as error:
        desk.admin.execute(
            """INSERT INTO ledger_entries
               (transaction_id, account_id, account_version, kind, debit, credit, balance_after)
               VALUES (999999, 3, 1, 'gift', 0, 5, 5), (999999, 4, 1, 'gift', 5, 0, 0)"""
        )
    assert sqlstate(error) == "ST001"


def test_entries_that_disagree_with_their_account_are_refused(desk: Desk) -> None:
    with desk.nothing_moves(), desk.admin.transaction(force_rollback=True):
        (transaction,) = desk.row("INSERT INTO transactions (kind) VALUES ('gift') RETURNING transaction_id")
        with pytest.raises(psycopg.Error) as error, desk.admin.transaction():
            desk.admin.execute(
                """INSERT INTO ledger_entries
                   (transaction_id, account_id, account_version, kind, debit, credit, balance_after)
                   VALUES (%s, 3, 1, 'gift', 0, 5, 5), (%s, 4, 1, 'gift', 5, 0, 0)""",
                [transaction, transaction],
            )
        assert sqlstate(error) == "ST003"


@pytest.mark.parametrize(
    ("debit", "credit", "balance_after"),
    [(0, 0, 0), (1, 1, 0), (-1, 0, 1), (0, -1, 1), (5, 0, -5)],
)
def test_an_entry_has_one_side_above_zero_and_keeps_the_floor(
    desk: Desk, debit: int, credit: int, balance_after: int
) -> None:
    with desk.nothing_moves(), pytest.raises(errors.CheckViolation):
        desk.admin.execute(
            """INSERT INTO ledger_entries
               (transaction_id, account_id, account_version, kind, debit, credit, balance_after)
               VALUES (1, 3, 1, 'gift', %s, %s, %s)""",
            [debit, credit, balance_after],
        )


def test_two_entries_cannot_have_one_version_of_an_account(desk: Desk) -> None:
    with desk.nothing_moves(), pytest.raises(errors.UniqueViolation):
        desk.admin.execute(
            """INSERT INTO ledger_entries
               (transaction_id, account_id, account_version, kind, debit, credit, balance_after)
               SELECT transaction_id, account_id, account_version, kind, debit, credit, balance_after
                 FROM ledger_entries"""
        )


@pytest.mark.parametrize("kind", ["user_available", "market_pool", "house_treasury", "suspense"])
def test_no_account_but_the_contra_account_goes_below_zero(desk: Desk, kind: str) -> None:
    desk.user("ann")
    desk.market()
    with desk.nothing_moves(), pytest.raises(errors.CheckViolation):
        desk.admin.execute("UPDATE accounts SET balance = -1 WHERE kind = %s", [kind])


def test_the_contra_account_never_goes_above_zero(desk: Desk) -> None:
    with desk.nothing_moves(), pytest.raises(errors.CheckViolation):
        desk.admin.execute("UPDATE accounts SET balance = 1 WHERE account_id = %s", [EXTERNAL])


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("change", ["UPDATE {} SET created_at = now()", "DELETE FROM {}", "TRUNCATE {}"])
def test_what_is_written_stays(desk: Desk, table: str, change: str, role: str) -> None:
    desk.user("ann")
    assert desk.trade(desk.market(), Order("ann", "k", shares=B)).status == 200
    desk.admin.execute("SELECT set_config('session_replication_role', %s, false)", [role])
    # an owner may grant himself again what was revoked from him; the trigger remains
    desk.admin.execute("GRANT ALL ON ledger_entries, transactions, trades, price_history TO current_user")
    with desk.nothing_moves(), pytest.raises(psycopg.Error) as error:
        desk.admin.execute(change.format(table).encode())
    assert sqlstate(error) == "ST002"


def test_every_guard_fires_in_every_replication_role(desk: Desk) -> None:
    guards = desk.admin.execute(
        "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname"
    ).fetchall()
    assert len(guards) >= 10
    assert {enabled for _, enabled in guards} == {"A"}


def test_all_money_together_is_zero(desk: Desk) -> None:
    for name in ("ann", "bob"):
        desk.user(name)
    market = desk.market()
    desk.batch(market, [Order("ann", "a", shares=B), Order("bob", "b", outcome=1, amount=FUNDS // 2)])
    assert desk.row("SELECT sum(credit - debit) FROM ledger_entries") == (0,)
    desk.assert_books_agree()
