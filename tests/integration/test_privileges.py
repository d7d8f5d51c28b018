"""Who may do what: the server executes its functions, the judge reads the books, nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors, sql

from tests.conftest import MarketDatabase
from tests.integration.desk import TABLES, Connection, Desk, Order

ALL_TABLES = (*TABLES, "users", "tokens", "platform_state", "refusals", "installed_files")
CALLABLE = {
    "api_account",
    "api_account_ledger",
    "api_account_reconciliation",
    "api_authenticate",
    "api_close_market",
    "api_create_market",
    "api_create_user",
    "api_fund",
    "api_link_wallet",
    "api_market",
    "api_markets",
    "api_wallet_nonce",
    "api_wallets",
    "api_withdraw",
    "api_withdrawal",
    "execute_trade_batch",
    "execute_trade_lmsr",
    "execute_trade_optimistic",
    "sell_shares_lmsr",
}
VIEWS = {
    "accounts",
    "entries",
    "idempotency_keys",
    "markets",
    "positions",
    "platform_changes",
    "prices",
    "reconciliation_items",
    "reconciliations",
    "snapshots",
    "trades",
    "transactions",
}


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


@pytest.fixture
def judge(market_database: MarketDatabase) -> Iterator[Connection]:
    with psycopg.connect(market_database.judge_dsn, autocommit=True) as judge:
        yield judge


def refused(connection: Connection, statement: LiteralString, table: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        connection.execute(sql.SQL(statement).format(sql.Identifier(table)))


@pytest.mark.parametrize("table", ALL_TABLES)
def test_the_server_touches_no_table(desk: Desk, table: str) -> None:
    with desk.nothing_moves():
        for statement in ("SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"):
            refused(desk.server, statement, table)


def test_the_server_executes_its_functions_and_no_other(desk: Desk) -> None:
    rows = desk.admin.execute(
        """SELECT p.proname, has_function_privilege('seatrial_server', p.oid, 'EXECUTE')
             FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname IN ('public', 'books')"""
    ).fetchall()
    assert {name for name, allowed in rows if allowed} == CALLABLE
    assert {name for name, allowed in rows if not allowed} >= {
        "record_ledger_entry",
        "write_trades",
        "pause_trading",
        "reconcile_all_balances",
    }
    with desk.nothing_moves(), pytest.raises(errors.InsufficientPrivilege):
        desk.server.execute("SELECT record_ledger_entry(1, 2, 5, 'theft')")


def test_the_server_sees_no_books_and_creates_nothing(desk: Desk) -> None:
    for statement in (
        "SELECT FROM books.trades",
        "CREATE TABLE mine ()",
        "CREATE FUNCTION accounts() RETURNS int LANGUAGE sql RETURN 1",
        "ALTER TABLE trades DISABLE TRIGGER ALL",
        "DROP FUNCTION lmsr_cost",
        "SET session_replication_role = replica",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            desk.server.execute(statement)


def test_a_table_of_the_callers_own_is_not_mistaken_for_the_ledgers(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market()
    desk.server.execute("CREATE TEMP TABLE accounts (account_id bigint, balance bigint)")
    desk.server.execute("CREATE TEMP TABLE idempotency_keys ()")
    desk.server.execute("SET search_path = pg_temp, public")
    assert desk.trade(market, Order("ann", "k", shares=1_000_000)).status == 200
    desk.assert_books_agree()


def test_every_function_of_the_server_has_a_fixed_search_path(desk: Desk) -> None:
    loose = desk.admin.execute(
        """SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname = 'public' AND p.prosecdef
              AND NOT coalesce('search_path=public, pg_temp' = ANY(p.proconfig), false)"""
    ).fetchall()
    assert loose == []


@pytest.mark.parametrize("table", ALL_TABLES)
def test_the_judge_touches_no_table(judge: Connection, table: str) -> None:
    for statement in ("SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}"):
        refused(judge, statement, table)


def test_the_judge_reads_every_book_and_writes_none(desk: Desk, judge: Connection) -> None:
    desk.user("ann")
    assert desk.trade(desk.market(), Order("ann", "k", shares=1_000_000)).status == 200
    desk.admin.execute(
        "INSERT INTO withdrawals (user_id, address, amount, transaction_id) VALUES ('ann', %s, 5, 1)",
        ["0x" + "a" * 40],
    )
    desk.row("SELECT pause_trading('drill')")
    desk.resume()
    views = judge.execute(
        """SELECT c.relname FROM pg_class AS c
            WHERE c.relnamespace = 'books'::regnamespace AND has_table_privilege(c.oid, 'SELECT')"""
    ).fetchall()
    names = {name for (name,) in views}
    assert names >= VIEWS
    for view in names:
        name = sql.Identifier("books", view)
        assert judge.execute(sql.SQL("SELECT * FROM {}").format(name)).fetchall() or view not in VIEWS
        # a view of two tables cannot be written by anybody
        with (
            desk.nothing_moves(),
            pytest.raises((errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)),
        ):
            judge.execute(sql.SQL("DELETE FROM {}").format(name))


def test_the_judge_executes_no_function_of_the_server(desk: Desk, judge: Connection) -> None:
    market = desk.market()
    with desk.nothing_moves(), pytest.raises(errors.InsufficientPrivilege):
        judge.execute("SELECT api_market(%s)", [market])


def test_tokens_are_kept_as_hashes_only(desk: Desk) -> None:
    token = desk.database.admin_token
    assert desk.row(
        "SELECT user_id FROM tokens WHERE token_hash = sha256(convert_to(%s, 'UTF8'))", token
    ) == ("admin",)
    assert desk.row("SELECT count(*) FROM tokens AS t WHERE strpos(t::text, %s) > 0", token) == (0,)


def test_a_token_says_who_calls_and_in_which_role(desk: Desk) -> None:
    desk.user("ann")
    authenticate = "SELECT * FROM api_authenticate(sha256(convert_to(%s, 'UTF8')))"
    assert desk.server.execute(authenticate, ["ann"]).fetchall() == [("ann", "user")]
    assert desk.server.execute(authenticate, [desk.database.admin_token]).fetchall() == [("admin", "admin")]
    assert desk.server.execute(authenticate, ["nobody's"]).fetchall() == []


@pytest.mark.parametrize(
    "call",
    [
        "api_fund('ann', 'k', 'h', 'ann', null, 5)",
        "api_create_market('ann', 'k', 'h', 'Q?', ARRAY['a', 'b'], 1000000, 0)",
        "api_close_market('ann', 'k', 'h', 1)",
    ],
)
def test_only_an_administrator_administers(desk: Desk, call: str) -> None:
    desk.user("ann")
    desk.market()
    with desk.nothing_moves():
        (answer,) = desk.server.execute(f"SELECT status FROM {call}".encode()).fetchall()
    assert answer == (403,)


@pytest.mark.parametrize(
    ("call", "status", "field"),
    [
        ("api_fund('admin', 'k', 'h', 'ann', null, 0)", 400, "amount"),
        ("api_fund('admin', 'k', 'h', 'ann', null, null)", 400, "amount"),
        ("api_fund('admin', 'k', 'h', 'ann', null, 9223372036854775807)", 400, "amount"),
        ("api_fund('admin', 'k', 'h', 'ann', 'house_treasury', 5)", 400, "account"),
        ("api_fund('admin', 'k', 'h', null, null, 5)", 400, "account"),
        ("api_fund('admin', 'k', 'h', null, 'suspense', 5)", 400, "account"),
        ("api_fund('admin', 'k', 'h', 'bob', null, 5)", 404, "userId"),
        ("api_fund('admin', null, 'h', 'ann', null, 5)", 400, None),
        ("api_create_market('admin', 'k', 'h', '', ARRAY['a', 'b'], 1000000, 0)", 400, "question"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a'], 1000000, 0)", 400, "outcomes"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a', 'a'], 1000000, 0)", 400, "outcomes"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a', null], 1000000, 0)", 400, "outcomes"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY[['a', 'b'], ['c', 'd']], 1000000, 0)", 400, None),
        ("api_create_market('admin', 'k', 'h', 'Q?', '{1,2,3,4,5,6,7,8,9}', 1000000, 0)", 400, "outcomes"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a', 'b'], 999999, 0)", 400, "b"),
        ("api_create_market('admin', 'k', 'h', 'Q?', ARRAY['a', 'b'], 1000000, 1001)", 400, "feeBps"),
        ("api_close_market('admin', 'k', 'h', 404)", 404, "marketId"),
    ],
)
def test_an_administrators_malformed_request_moves_nothing(
    desk: Desk, call: str, status: int, field: str | None
) -> None:
    desk.user("ann")
    with desk.nothing_moves():
        answer = desk.server.execute(f"SELECT status, body::json FROM {call}".encode()).fetchall()[0]
    assert answer[0] == status
    if field is not None:
        assert answer[1]["field"] == field


def test_a_market_the_treasury_cannot_pay_for_is_refused(desk: Desk) -> None:
    for _ in range(480):  # eight outcomes at the largest b take 2,079,441,541,680 each
        if desk.row("SELECT balance < 2079441541680 FROM accounts WHERE kind = 'house_treasury'")[0]:
            break
        desk.market(outcomes=8, b=10**12)
    query: LiteralString = """SELECT * FROM api_create_market(
        'admin', 'k', 'h', 'Q?', '{1,2,3,4,5,6,7,8}', 1000000000000, 0)"""
    with desk.nothing_moves(keys_kept=1):
        answer = desk.call(query)
    assert answer.code == "insufficient_funds"
    desk.fund(10**13, account="house_treasury")
    with desk.nothing_moves():
        assert desk.call(query) == answer._replace(replayed=True)


def test_a_user_has_one_name_and_one_id(desk: Desk) -> None:
    desk.user("ann")
    for parameters, status in (
        (("ann", "Ann", b"x" * 32), 409),
        (("a b", "Ann", b"x" * 32), 400),
        (("bob", "", b"x" * 32), 400),
        (("bob", None, b"x" * 32), 400),
    ):
        with desk.nothing_moves():
            assert desk.server.execute(
                "SELECT status FROM api_create_user(%s, %s, %s)", parameters
            ).fetchall() == [(status,)]
    made = desk.server.execute("SELECT body::json FROM api_create_user(null, 'Bob', %s)", [b"y" * 32])
    assert len(made.fetchall()[0][0]["userId"]) == 32
