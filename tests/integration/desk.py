"""A trading desk at SQL level: users and a market made through the functions, and a picture of the books."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, LiteralString, NamedTuple, TypeAlias

import psycopg

from reference_server.custody import Custody
from reference_server.reconcile import Reading, reconcile
from tests.conftest import MarketDatabase

Row: TypeAlias = tuple[Any, ...]
Connection: TypeAlias = psycopg.Connection[Row]

B = 1_000_000_000
FUNDS = 10_000_000_000
BATCH: LiteralString = """SELECT "position", status, replayed, body FROM execute_trade_batch(
    %s, %s::text[], %s::text[], %s::text[], %s::int[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
"""
TABLES: tuple[LiteralString, ...] = (
    "accounts",
    "transactions",
    "ledger_entries",
    "markets",
    "positions",
    "trades",
    "price_history",
    "idempotency_keys",
)


class Order(NamedTuple):
    """One trade as a client asks for it; shares in micro-shares, amount and limit in micro-USDC."""

    user: str
    key: str
    outcome: int = 0
    side: str = "buy"
    shares: int | None = None
    amount: int | None = None
    limit: int | None = None
    request_hash: str | None = None

    @property
    def hash(self) -> str:
        """The given hash, else one that differs with what is asked for."""
        asked = (self.outcome, self.side, self.shares, self.amount, self.limit)
        return self.request_hash or "|".join(map(str, asked))


class Answer(NamedTuple):
    """What a function answers to one request."""

    status: int
    replayed: bool
    body: str

    @property
    def facts(self) -> dict[str, Any]:
        """The body, parsed."""
        facts: dict[str, Any] = json.loads(self.body)
        return facts

    @property
    def code(self) -> str:
        """The code of a refusal."""
        return str(self.facts["code"])


class Desk:
    """An admin's and a server's connection to one database, a funded treasury, and the calls of both."""

    def __init__(self, database: MarketDatabase) -> None:
        self.database = database
        self.admin: Connection = psycopg.connect(database.admin_dsn, autocommit=True)
        self.server: Connection = psycopg.connect(database.app_dsn, autocommit=True)
        self._keys = 0

    def __enter__(self) -> Desk:
        self.fund(10**15, account="house_treasury")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.admin.close()
        self.server.close()

    def key(self) -> str:
        """A key nobody used."""
        self._keys += 1
        return f"key-{self._keys}"

    def user(self, name: str, funds: int = FUNDS) -> str:
        """A user with money."""
        digest = hashlib.sha256(name.encode()).digest()
        assert self.row("SELECT status FROM api_create_user(%s, %s, %s)", name, name, digest) == (201,)
        if funds:
            self.fund(funds, user=name)
        return name

    def fund(self, amount: int, *, user: str | None = None, account: str | None = None) -> Answer:
        """Money from outside."""
        key = self.key()
        answer = self.call(
            "SELECT * FROM api_fund('admin', %s, %s, %s, %s, %s)", key, key, user, account, amount
        )
        assert answer.status == 201, answer
        return answer

    def market(self, *, outcomes: int = 2, b: int = B, fee_bps: int = 100) -> int:
        """An open market; its id."""
        key = self.key()
        names = [f"outcome {number}" for number in range(outcomes)]
        answer = self.call(
            "SELECT * FROM api_create_market('admin', %s, %s, 'Will it?', %s::text[], %s, %s)",
            *(key, key, names, b, fee_bps),
        )
        assert answer.status == 201, answer
        return int(answer.facts["marketId"])

    def close(self, market: int) -> Answer:
        """No more trades on this market."""
        key = self.key()
        return self.call("SELECT * FROM api_close_market('admin', %s, %s, %s)", key, key, market)

    def resume(self) -> None:
        """Trading goes on, by an administrator, after a clean reconciliation."""
        (books,) = self.row("SELECT -balance FROM accounts WHERE kind = 'external_onchain'")
        report = reconcile(self.database.admin_dsn, Custody(int(books), 1), Reading(lower_block=True))
        assert report["verdict"] == "clean", report
        assert self.row("SELECT resume_trading('admin', 'the drill is over')") == (True,)

    def trade(self, market: int, order: Order) -> Answer:
        """A batch of one."""
        (answer,) = self.batch(market, [order])
        return answer

    def batch(self, market: int, orders: Sequence[Order], *, on: Connection | None = None) -> list[Answer]:
        """One batch on the server's connection or another."""
        return execute_batch(on or self.server, market, orders)

    def call(self, query: LiteralString, *parameters: object) -> Answer:
        """One of the server's functions that answer with status, replayed and body."""
        return Answer(*one(self.server, query, *parameters))

    def row(self, query: LiteralString, *parameters: object) -> Row:
        """The only row of a query, seen by the database's owner."""
        return one(self.admin, query, *parameters)

    def available(self, user: str) -> int:
        """What a user can spend."""
        found = self.row("SELECT balance FROM accounts WHERE user_id = %s AND kind = 'user_available'", user)
        return int(found[0])

    def picture(self) -> dict[str, str]:
        """A digest of every row of every table that a trade writes, by table."""
        return {
            table: str(self.row(f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} AS t")[0])
            for table in TABLES
        }

    @contextmanager
    def nothing_moves(self, *, keys_kept: int = 0) -> Iterator[None]:
        """Fails if any table differs afterwards; so many keys may have been kept with their refusals."""
        before, keys = self.picture(), self._kept()
        yield
        after = self.picture()
        assert self._kept() == keys + keys_kept
        if keys_kept:
            before.pop("idempotency_keys")
            after.pop("idempotency_keys")
        assert after == before

    def assert_books_agree(self) -> None:
        """Accounts equal entries, transactions balance, pools are what the market maker says."""
        assert self.row("SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled") == (0,)
        assert self.row("SELECT sum(balance) FROM accounts") == (0,)
        assert self.row(
            """SELECT count(*) FROM markets AS m JOIN accounts AS a ON a.account_id = m.pool_account
                WHERE m.liquidity_pool <> a.balance OR m.liquidity_pool <> lmsr_cost(m.quantities, m.b)"""
        ) == (0,)
        assert self.row(
            """SELECT count(*) FROM (
                   SELECT m.market_id FROM markets AS m
                   CROSS JOIN LATERAL unnest(m.quantities) WITH ORDINALITY AS q (quantity, n)
                   LEFT JOIN positions AS p ON p.market_id = m.market_id AND p.outcome = q.n - 1
                   GROUP BY m.market_id, q.n, q.quantity
                   HAVING q.quantity <> coalesce(sum(p.shares), 0)) AS wrong"""
        ) == (0,)

    def _kept(self) -> int:
        return int(self.row("SELECT count(*) FROM idempotency_keys")[0])


def one(connection: Connection, query: LiteralString, *parameters: object) -> Row:
    """The only row of a query."""
    rows = connection.execute(query, parameters).fetchall()
    assert len(rows) == 1, rows
    return rows[0]


def execute_batch(connection: Connection, market: int, orders: Sequence[Order]) -> list[Answer]:
    """One batch, its answers in the order of the orders."""
    rows = connection.execute(
        BATCH,
        (
            market,
            [order.user for order in orders],
            [order.key for order in orders],
            [order.hash for order in orders],
            [order.outcome for order in orders],
            [order.side for order in orders],
            [order.shares for order in orders],
            [order.amount for order in orders],
            [order.limit for order in orders],
        ),
    ).fetchall()
    assert sorted(row[0] for row in rows) == list(range(1, len(orders) + 1))
    return [Answer(*row[1:]) for row in sorted(rows)]


def await_lock_wait(observer: Connection, text: str, *, timeout_s: float = 30.0) -> None:
    """Return when a statement of this database that contains the text waits for a lock."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        (waiting,) = one(
            observer,
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                  AND pid <> pg_backend_pid() AND wait_event_type = 'Lock' AND strpos(query, %s) > 0""",
            text,
        )
        if waiting:
            return
        # pg_stat_activity is remembered for as long as a transaction lasts
        observer.execute("SELECT pg_stat_clear_snapshot()")
        time.sleep(0.005)
    raise AssertionError(f"nothing like {text!r} waited for a lock within {timeout_s} s")
