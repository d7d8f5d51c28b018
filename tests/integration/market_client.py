"""A client of the HTTP contract that checks each reply it gets against the contract."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, LiteralString

import httpx
import msgspec
import psycopg
from psycopg import sql

from reference_server.openapi import OPERATIONS, refusals_of
from reference_server.problem import CODES, ProblemBody
from tests.integration.market_server import MarketServer

WAIT_S = 10.0
USDC = 1_000_000

_numbers = itertools.count(1)


class User:
    """A user's id and token."""

    def __init__(self, user_id: str, token: str) -> None:
        self.user_id = user_id
        self.token = token


class MarketClient:
    """Asks one server; usable from several threads."""

    def __init__(self, server: MarketServer) -> None:
        self.server = server
        # No certificates: reading them costs more than a test's requests, and there is no TLS here.
        self.http = httpx.Client(base_url=server.url, timeout=30, trust_env=False, verify=False)

    def __enter__(self) -> MarketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request (`body`: bytes as they are, anything else as JSON) and check its reply."""
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token}")
        if key is not None:
            sent.setdefault("Idempotency-Key", key)
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else msgspec.json.encode(body)
            sent.setdefault("Content-Type", "application/json")
        reply = self.http.request(method, path, content=content, headers=sent)
        check_reply(method, path, reply)
        return reply

    def post(
        self, path: str, body: Any, user: User | None = None, *, key: str | None = None
    ) -> httpx.Response:
        """A well-formed POST, by the admin when no user is given, with a new key when none is given."""
        token = self.server.admin_token if user is None else user.token
        return self.ask("POST", path, body, token=token, key=key or new_key())

    def get(self, path: str, user: User | None = None) -> httpx.Response:
        return self.ask("GET", path, token=self.server.admin_token if user is None else user.token)

    def user(self, funds: int = 1_000 * USDC) -> User:
        """A new user with money, in micro-USDC."""
        reply = self.ask("POST", "/api/users", {"name": "A test user"}, token=self.server.admin_token)
        made = accepted(reply)
        if funds:
            accepted(self.post("/api/fundings", {"userId": made["userId"], "amount": funds}))
        return User(made["userId"], made["token"])

    def market(self, **changes: Any) -> int:
        """A new open market; its id."""
        accepted(self.post("/api/fundings", {"account": "house_treasury", "amount": 1_000 * USDC}))
        body = {"question": "Will it hold?", "outcomes": ["Yes", "No"], "b": 100 * USDC, "feeBps": 100}
        return int(accepted(self.post("/api/markets", body | changes))["marketId"])

    def trade(self, user: User, market: int, *, key: str | None = None, **changes: Any) -> httpx.Response:
        """A trade; one share of the first outcome unless told otherwise."""
        body = {"marketId": market, "outcome": 0, "side": "buy"}
        if "amount" not in changes:
            body["shares"] = USDC
        return self.post("/api/trade", body | changes, user, key=key)


def new_key() -> str:
    return f"test-{next(_numbers)}"


def accepted(reply: httpx.Response) -> Any:
    """The body of a reply that must be a success."""
    assert reply.status_code in (200, 201, 202), reply.text
    return reply.json()


def refusal(reply: httpx.Response) -> tuple[int, str]:
    """Status and code of a reply that must be a refusal."""
    assert reply.status_code >= 400, reply.text
    return reply.status_code, reply.json()["code"]


def check_reply(method: str, path: str, reply: httpx.Response) -> None:
    """Assert what the contract says of every reply: type, shape, and that the operation documents it."""
    operation = next(
        (
            operation
            for operation in OPERATIONS
            if operation.method == method.lower()
            and re.fullmatch(re.sub("{.*?}", "[^/]+", operation.path), path.partition("?")[0])
        ),
        None,
    )
    if reply.status_code < 400:
        assert reply.headers["content-type"] == "application/json"
        if operation is not None:
            assert reply.status_code == operation.status
            msgspec.json.decode(reply.content, type=operation.reply)
        return
    assert reply.headers["content-type"] == "application/problem+json"
    problem = msgspec.json.decode(reply.content, type=ProblemBody)
    code = CODES[problem.code]
    assert (problem.status, problem.title) == (code.status, code.title) == (reply.status_code, problem.title)
    assert ("retry-after" in reply.headers) == code.retry
    documented = ["not_found", "method_not_allowed"] if operation is None else refusals_of(operation)
    assert problem.code in documented, f"{method} {path} does not document {problem.code}"


def question(dsn: str, query: LiteralString, *parameters: Any) -> Any:
    """The only value of a query."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def digest_of_books(dsn: str) -> dict[str, str]:
    """A digest of every table of the server, whole rows: equal digests mean that nothing moved."""
    with psycopg.connect(dsn) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        found = {}
        for (name,) in names:
            query = sql.SQL(
                "SELECT coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {} AS t"
            )
            row = connection.execute(query.format(sql.Identifier(name))).fetchone()
            assert row is not None
            found[name] = row[0]
    assert len(found) > 8
    return found


def assert_books_balance(dsn: str) -> None:
    """Assert that every balance equals its entries and every pool its LMSR cost."""
    wrong = "SELECT count(*) FROM reconcile_all_balances() WHERE NOT reconciled"
    assert question(dsn, wrong) == 0
    assert question(dsn, "SELECT count(*) FROM markets WHERE liquidity_pool <> lmsr_cost(quantities, b)") == 0


@contextmanager
def lock_held(dsn: str, query: LiteralString, *parameters: Any) -> Iterator[psycopg.Connection[Any]]:
    """Hold the row locks that a query takes until the block ends."""
    with psycopg.connect(dsn) as connection:
        assert connection.execute(query, parameters).fetchall()
        yield connection


def await_blocked(dsn: str, count: int = 1) -> None:
    """Wait until so many of the server's backends wait for a lock in this database."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'reference_server' AND wait_event_type = 'Lock'"
    )
    await_condition(lambda: bool(question(dsn, waiting) >= count), f"{count} backends wait for a lock")


def await_condition(holds: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds; fails with `what` when it does not in time."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


@contextmanager
def meanwhile(workers: int) -> Iterator[Callable[..., Future[Any]]]:
    """Threads to ask from while the test goes on; the block ends when all have their replies."""
    with ThreadPoolExecutor(workers) as pool:
        yield pool.submit
