"""After the pause commits not one trade commits, by any path or process, by PostgreSQL's own commit times."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors

from chaos.postgres import Postgres, choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND, create_database, install
from tests.conftest import MarketDatabase
from tests.integration.conftest import STRATEGIES, running
from tests.integration.desk import Connection, Desk, Order, await_lock_wait, execute_batch, one
from tests.integration.market_client import MarketClient, User, await_condition, refusal

PATIENCE_S = 30.0
# How much everybody has traded before the drift, and how often everybody is refused after it.
BEFORE, AFTER = 20, 5
CRITICAL_MICRO = 100_000_000

COMMITTED_AFTER = """
SELECT count(*), count(*) FILTER (WHERE pg_xact_commit_timestamp(t.xmin) > pg_xact_commit_timestamp(p.xmin))
  FROM trades AS t CROSS JOIN platform_state AS p"""


@pytest.fixture(scope="module")
def supervised(scratch: Path) -> Iterator[tuple[Supervisor, Postgres]]:
    """A cluster whose commits have times."""
    folder = scratch / "stops_trading"
    with Supervisor(folder) as supervisor:
        postgres = choose_postgres(
            "embedded",
            supervisor=supervisor,
            data_dir=scratch / "stops_trading_pgdata",
            durable=False,
            settings={"track_commit_timestamp": "on"},
        )
        postgres.start()
        yield supervisor, postgres
        postgres.stop()


@pytest.fixture
def desk(
    supervised: tuple[Supervisor, Postgres], request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Desk]:
    dsn = create_database(supervised[1].dsn, request.node.name[:60])
    access = install(REFERENCE_COMMAND, dsn, tmp_path / "install.log")
    database = MarketDatabase(
        admin_dsn=dsn,
        app_dsn=access.server_dsn,
        judge_dsn=access.judge_dsn,
        admin_token=access.admin_token,
    )
    with Desk(database) as desk:
        yield desk


class Trader:
    """Trades one after another until it has been refused so often, or is stopped."""

    def __init__(self, trade: Callable[[int], tuple[int, str]]) -> None:
        self._trade = trade
        self.done = 0
        self.refused = 0

    def run(self, stop: threading.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, code = self._trade(number)
            if status == 200:
                self.done += 1
            else:
                assert (status, code) == (503, "trading_paused")
                self.refused += 1


def http_trader(client: MarketClient, user: User, market_id: int) -> Trader:
    """Over a server, with whatever strategy it has."""

    def trade(number: int) -> tuple[int, str]:
        reply = client.trade(user, market_id, outcome=number % 2, shares=1000)
        return (200, "") if reply.status_code == 200 else refusal(reply)

    return Trader(trade)


def sql_trader(connection: Connection, market_id: int, user: str, path: str) -> Trader:
    """Past the servers, by one of the functions that they call."""

    def trade(number: int) -> tuple[int, str]:
        order = Order(user, f"{path}-{number}", outcome=number % 2, shares=1000)
        if path == "batch":
            (answer,) = execute_batch(connection, market_id, [order])
            return answer.status, "" if answer.status == 200 else answer.code
        status, body = one(
            connection,
            """SELECT status, body FROM execute_trade_lmsr(%s, %s, %s, %s, null, null, %s, %s)""",
            *(user, market_id, order.outcome, order.shares, order.key, order.hash),
        )
        return status, "" if status == 200 else "trading_paused" if "trading_paused" in body else body

    return Trader(trade)


def reconcile(dsn: str, custody_micro: int, block: int) -> int:
    """The command in a process of its own; its exit code."""
    words = ["--dsn", dsn, "--custody-micro", str(custody_micro), "--block", str(block)]
    return subprocess.run(
        [*REFERENCE_COMMAND, "reconcile", *words], capture_output=True, timeout=PATIENCE_S, check=False
    ).returncode


class Floor:
    """Everybody trades on one market: two users at a server of each strategy, and past the servers."""

    def __init__(self, desk: Desk, supervisor: Supervisor, stack: ExitStack) -> None:
        market_id = desk.market()
        self.traders: list[Trader] = []
        for strategy in STRATEGIES:
            server = stack.enter_context(running(supervisor, desk.database, strategy=strategy))
            client = stack.enter_context(MarketClient(server))
            self.traders += [http_trader(client, client.user(), market_id) for _ in range(2)]
        for path in ("batch", "alone"):
            connection = stack.enter_context(psycopg.connect(desk.database.app_dsn, autocommit=True))
            self.traders.append(sql_trader(connection, market_id, desk.user(path), path))
        self._stop = threading.Event()
        pool = stack.enter_context(ThreadPoolExecutor(len(self.traders)))
        stack.callback(self._stop.set)
        self._running = [pool.submit(trader.run, self._stop) for trader in self.traders]

    def await_each(self, count: Callable[[Trader], int], least: int, what: str) -> None:
        """Return when everybody has counted so far; at once when somebody failed."""

        def holds() -> bool:
            return all(count(trader) >= least for trader in self.traders) or any(
                trader.done() for trader in self._running
            )

        await_condition(holds, what, timeout_s=PATIENCE_S)

    def close(self) -> int:
        """Everybody stops; how often they traded. Raises what anybody met."""
        self._stop.set()
        for trader in self._running:
            trader.result(timeout=PATIENCE_S)
        return sum(trader.done for trader in self.traders)


def test_no_trade_commits_after_the_pause(desk: Desk, supervised: tuple[Supervisor, Postgres]) -> None:
    with ExitStack() as stack:
        floor = Floor(desk, supervised[0], stack)
        floor.await_each(lambda trader: trader.done, BEFORE, "everybody trades")
        (custody,) = desk.row("SELECT -balance FROM accounts WHERE kind = 'external_onchain'")
        assert reconcile(desk.database.admin_dsn, custody, 1) == 0
        assert reconcile(desk.database.admin_dsn, custody - CRITICAL_MICRO, 2) == 3
        floor.await_each(lambda trader: trader.refused, AFTER, "everybody is refused")
        done = floor.close()
    trades, late = desk.row(COMMITTED_AFTER)
    assert trades == done >= BEFORE * len(floor.traders)
    assert late == 0
    desk.assert_books_agree()


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel))
def test_a_transaction_from_before_the_pause_trades_no_more(
    desk: Desk, isolation: psycopg.IsolationLevel
) -> None:
    """Whatever its snapshot shows."""
    desk.user("ann")
    market_id = desk.market()
    with psycopg.connect(desk.database.app_dsn) as old:
        old.isolation_level = isolation
        one(old, "SELECT 1")
        desk.row("SELECT pause_trading('drill')")
        try:
            (answer,) = execute_batch(old, market_id, [Order("ann", "k", shares=1000)])
            found = answer.code
            old.commit()
        except errors.SerializationFailure:
            found = "changed meanwhile"
    serial = isolation in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE)
    assert found == ("changed meanwhile" if serial else "trading_paused")
    assert desk.row(COMMITTED_AFTER) == (0, 0)


CLOSERS: dict[str, LiteralString] = {
    "pause": "SELECT pause_trading('drill')",
    "reconciliation": "SELECT reconcile(0, 1)",
    "by hand": "UPDATE platform_state SET paused = true",
}


@pytest.mark.parametrize("closer", CLOSERS)
def test_a_pause_is_dated_after_all_that_it_waited_for(desk: Desk, closer: str) -> None:
    """So that whoever reads the books can tell by times that nothing moved after it."""
    desk.user("ann")
    market_id = desk.market()
    statement = CLOSERS[closer]
    with (
        psycopg.connect(desk.database.app_dsn) as slow,
        psycopg.connect(desk.database.admin_dsn) as closing,
        ThreadPoolExecutor(1) as thread,
    ):
        closing.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert execute_batch(slow, market_id, [Order("ann", "k", shares=1000)])[0].status == 200
        closed = thread.submit(closing.execute, statement)
        await_lock_wait(desk.admin, statement)
        slow.commit()
        closed.result(timeout=PATIENCE_S)
        closing.commit()
    assert desk.row(
        """SELECT p.paused, pg_xact_commit_timestamp(t.xmin) <= p.changed_at, c.changed_at = p.changed_at
             FROM trades AS t CROSS JOIN platform_state AS p
            CROSS JOIN (SELECT changed_at FROM platform_changes ORDER BY change_id DESC LIMIT 1) AS c"""
    ) == (True, True, True)


def test_what_moves_after_a_pause_is_dated_after_its_end(desk: Desk) -> None:
    desk.user("ann")
    market_id = desk.market()
    desk.row("SELECT pause_trading('drill')")
    (custody,) = desk.row("SELECT -balance FROM accounts WHERE kind = 'external_onchain'")
    assert reconcile(desk.database.admin_dsn, custody, 1) == 0
    with psycopg.connect(desk.database.admin_dsn) as resuming, ThreadPoolExecutor(1) as thread:
        assert one(resuming, "SELECT resume_trading('admin', 'over')") == (True,)
        traded = thread.submit(desk.trade, market_id, Order("ann", "k", shares=1000))
        await_lock_wait(desk.admin, "execute_trade_batch")
        resuming.commit()
        assert traded.result(timeout=PATIENCE_S).status == 200
    assert desk.row("SELECT t.created_at > p.changed_at FROM trades AS t CROSS JOIN platform_state AS p") == (
        True,
    )


def test_whatever_writes_entries_passes_the_gate(desk: Desk) -> None:
    def functions(text: str) -> set[str]:
        """Those whose source holds this text."""
        rows = desk.admin.execute(
            """SELECT proname FROM pg_proc
                WHERE pronamespace = 'public'::regnamespace AND strpos(prosrc, %s) > 0""",
            [text],
        )
        return {name for (name,) in rows}

    assert functions("INSERT INTO ledger_entries") == {"record_ledger_entry", "write_trades"}
    assert functions("write_trades(") == {"execute_trade_batch"}
    assert {"record_ledger_entry", "execute_trade_batch"} <= functions("NOT pass_pause_gate()")


def test_a_trade_that_slips_through_the_gate_would_be_seen(desk: Desk) -> None:
    """The gate without its lock lets a trade of before commit after."""
    desk.user("ann")
    market_id = desk.market()
    desk.admin.execute(
        """CREATE OR REPLACE FUNCTION pass_pause_gate() RETURNS boolean LANGUAGE sql VOLATILE
           AS 'SELECT NOT paused FROM platform_state'"""
    )
    with psycopg.connect(desk.database.app_dsn) as slow:
        (answer,) = execute_batch(slow, market_id, [Order("ann", "k", shares=1000)])
        assert answer.status == 200
        desk.row("SELECT pause_trading('drill')")
        slow.commit()
    assert desk.row(COMMITTED_AFTER) == (1, 1)
