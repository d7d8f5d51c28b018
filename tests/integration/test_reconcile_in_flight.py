"""What is in flight explains the difference, item by item, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest

from tests.conftest import MarketDatabase
from tests.integration.chain_figures import Chain
from tests.integration.desk import Desk

# A chain that is behind, beside and ahead of the books.
BLOCK = 10


class Item(NamedTuple):
    """A deposit (> 0) or withdrawal (< 0), where the chain did it, and whether the books have."""

    amount_micro: int
    block: int | None
    booked: bool


@pytest.fixture
def chain(market_database: MarketDatabase) -> Iterator[Chain]:
    """A chain at block 9, and items that the test writes down."""
    with Desk(market_database) as desk:
        desk.admin.execute(
            """CREATE TABLE items (item_id text, amount_micro bigint, block_number bigint, booked boolean);
               CREATE OR REPLACE VIEW in_flight_items AS
               SELECT 'test' AS item_kind, item_id, amount_micro, 'why' AS explanation, block_number, booked
                 FROM items"""
        )
        chain = Chain(desk)
        chain.block = BLOCK - 1
        yield chain


def put(chain: Chain, *items: Item) -> None:
    for number, item in enumerate(items):
        chain.desk.admin.execute("INSERT INTO items VALUES (%s, %s, %s, %s)", [str(number), *item])


@pytest.mark.parametrize(
    ("item", "accounts_for"),
    [
        (Item(50, BLOCK, False), 50),  # a deposit that is not credited yet
        (Item(50, BLOCK + 1, False), 0),  # one in a later block
        (Item(50, BLOCK + 1, True), -50),  # credited already, in a block that this custody does not know
        (Item(-50, None, False), 0),  # a withdrawal that is reserved or sent
        (Item(-50, BLOCK, False), -50),  # paid, and not final in the books
        (Item(-50, BLOCK + 1, True), 50),  # final in the books, in a later block
    ],
)
def test_an_item_accounts_for_what_one_side_has_not_done(chain: Chain, item: Item, accounts_for: int) -> None:
    put(chain, item)
    chain.drift_micro = accounts_for
    report = chain.reconcile()
    assert (report["verdict"], report["difference_micro"]) == ("clean", 0)
    assert report["in_flight_micro"] == accounts_for
    assert [(found["amount_micro"], found["explains"]) for found in report["items"]] == [(accounts_for, True)]


def test_what_both_sides_have_done_is_no_item(chain: Chain) -> None:
    put(chain, Item(50, BLOCK, True), Item(-20, BLOCK - 3, True))
    report = chain.reconcile()
    assert (report["verdict"], report["items"]) == ("clean", [])


def test_items_explain_their_sum_and_no_more(chain: Chain) -> None:
    put(chain, Item(50, BLOCK, False), Item(-20, BLOCK, False), Item(5, BLOCK + 2, True))
    chain.drift_micro = 50 - 20 - 5 + 3
    report = chain.reconcile()
    assert (report["verdict"], report["in_flight_micro"], report["difference_micro"]) == ("alert", 25, 3)
    assert sorted(item["amount_micro"] for item in report["items"]) == [-20, -5, 50]
    assert report["custody_micro"] == report["books_micro"] + 25 + 3


def test_a_reserved_withdrawal_is_in_custody_until_it_is_paid(market_database: MarketDatabase) -> None:
    with Desk(market_database) as desk:
        desk.user("ann")
        chain = Chain(desk)
        desk.row(
            """SELECT record_ledger_entry(user_account('ann'), account_id, 30, 'withdraw')
                 FROM accounts WHERE kind = 'withdraw_in_flight'"""
        )
        desk.admin.execute(
            "INSERT INTO withdrawals (user_id, address, amount, transaction_id) VALUES ('ann', %s, 30, 1)",
            ["0x" + "a" * 40],
        )
        report = chain.reconcile()
    assert (report["verdict"], report["totals"]["withdraw_in_flight"]) == ("clean", 30)
    assert report["difference_micro"] == report["in_flight_micro"] == 0
    (item,) = report["items"]
    assert (item["item_kind"], item["amount_micro"]) == ("withdrawal", 0)
    assert item["explanation"] == "reserved; still in the vault"


def test_a_watcher_that_lags_or_is_silent_is_inconclusive(chain: Chain) -> None:
    head = "0x" + "0" * 64
    chain.desk.row("SELECT watch_vault(1, %s, %s, %s)", "0x" + "a" * 40, BLOCK, head)
    assert "not looked" in chain.reconcile()["trouble"]
    chain.desk.row("SELECT record_seen(%s, %s, '[]')", BLOCK + 1, head)
    assert chain.reconcile()["verdict"] == "clean"
    assert f"up to block {BLOCK + 1}" in chain.reconcile()["trouble"]
    chain.desk.row("SELECT record_seen(%s, %s, '[]')", BLOCK + 5, head)
    assert chain.reconcile()["verdict"] == "clean"
    chain.desk.admin.execute("UPDATE watched_chain SET looked_at = looked_at - interval '301 s'")
    assert "silent" in chain.reconcile()["trouble"]


@pytest.mark.parametrize(
    ("status", "block", "accounts_for"),
    [
        ("seen", BLOCK, 50),
        ("seen", BLOCK + 1, 0),
        ("refused", BLOCK, 50),
        ("credited", BLOCK, None),
        ("credited", BLOCK + 1, -50),
        ("suspended", BLOCK + 1, -50),
        ("reversed", BLOCK, None),
        ("reversed", BLOCK + 1, None),
    ],
)
def test_each_state_of_a_deposit_has_its_weight(
    market_database: MarketDatabase, status: str, block: int, accounts_for: int | None
) -> None:
    with psycopg.connect(market_database.admin_dsn) as connection:
        connection.execute(
            """INSERT INTO deposits (tx_hash, log_index, block_number, block_hash, sender, named_user_id,
                   amount, status)
               VALUES (%s, 0, %s, %s, %s, 'ann', 50, %s)""",
            ["0x" + "1" * 64, block, "0x" + "2" * 64, "0x" + "3" * 40, status],
        )
        found = connection.execute("SELECT item_kind, amount_micro FROM in_flight_at(%s)", [BLOCK]).fetchall()
    assert found == ([] if accounts_for is None else [("deposit", accounts_for)])


@pytest.mark.parametrize(
    ("status", "block", "accounts_for"),
    [
        ("reserved", None, 0),
        ("sent", None, 0),
        ("mined", BLOCK, -50),
        ("mined", BLOCK + 1, 0),
        ("final", BLOCK, None),
        ("final", BLOCK + 1, 50),
        ("returned", None, None),
    ],
)
def test_each_state_of_a_withdrawal_has_its_weight(
    market_database: MarketDatabase, status: str, block: int | None, accounts_for: int | None
) -> None:
    with psycopg.connect(market_database.admin_dsn) as connection:
        connection.execute("INSERT INTO users (user_id, name) VALUES ('ann', 'Ann')")
        connection.execute(
            """INSERT INTO withdrawals (user_id, address, amount, status, transaction_id, end_transaction_id,
                   tx_hash, block_number, block_hash, reason)
               VALUES ('ann', %(address)s, 50, %(status)s, 1,
                   CASE WHEN %(status)s IN ('final', 'returned') THEN 2 END, %(hash)s, %(block)s::bigint,
                   CASE WHEN %(block)s::bigint IS NOT null THEN %(hash)s END,
                   CASE WHEN %(status)s = 'returned' THEN 'a test' END)""",
            {"address": "0x" + "3" * 40, "status": status, "hash": "0x" + "1" * 64, "block": block},
        )
        found = connection.execute("SELECT item_kind, amount_micro FROM in_flight_at(%s)", [BLOCK]).fetchall()
    assert found == ([] if accounts_for is None else [("withdrawal", accounts_for)])
