"""`reconcile --every`: run after run until a signal, whatever fails meanwhile, and none is left half done."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from chaos.ports import free_port
from chaos.postgres import Postgres
from chaos.target import REFERENCE_COMMAND
from reference_server.custody import Vault
from tests.conftest import MarketDatabase
from tests.integration.desk import Desk, Order, await_lock_wait, execute_batch
from tests.integration.test_reconcile_chain import TREASURY, Bank, bank

__all__ = ["bank"]

TIMEOUT_S = 30.0
CRITICAL_MICRO = 100_000_000
VAULT = Vault(f"http://127.0.0.1:{free_port()}", "0x" + "1" * 40, "0x" + "2" * 40)


class Repeating:
    """A `reconcile --every` process and the lines it prints, as they come."""

    def __init__(self, dsn: str, vault: Vault, every_s: float) -> None:
        command = [*REFERENCE_COMMAND, "reconcile", "--every", str(every_s), "--rpc", vault.rpc]
        command += ["--vault", vault.vault, "--usdc", vault.usdc]
        environment = os.environ | {"SEATRIAL_DSN": dsn}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def report(self) -> Any:
        """The next run."""
        return json.loads(self._lines.get(timeout=TIMEOUT_S))

    def await_report(self, verdict: str) -> Any:
        """The first run from now on with this verdict; what others there are before it does not matter."""
        for _ in range(100):
            if (report := self.report())["verdict"] == verdict:
                return report
        raise AssertionError(f"no run is {verdict}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> list[Any]:
        """The signal, and what it still printed; it must end in order."""
        self.process.send_signal(number)
        assert self.process.wait(TIMEOUT_S) == 0
        self._reader.join(TIMEOUT_S)
        return [json.loads(self._lines.get()) for _ in range(self._lines.qsize())]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)


@contextmanager
def repeating(dsn: str, vault: Vault, *, every_s: float = 0.1) -> Iterator[Repeating]:
    """Ended whatever happens."""
    run = Repeating(dsn, vault, every_s)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait(TIMEOUT_S)
        run._reader.join(TIMEOUT_S)
        assert run.process.stdout is not None
        run.process.stdout.close()


@contextmanager
def away(admin_dsn: str, dsn: str) -> Iterator[None]:
    """The database takes no connections."""
    name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            yield
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


def test_each_run_is_a_line_until_the_signal(bank: Bank) -> None:
    bank.watch()
    with repeating(bank.desk.database.admin_dsn, bank.vault) as run:
        reports = [run.report() for _ in range(4)]
        reports += run.end()
    assert {report["verdict"] for report in reports} == {"clean"}
    assert [report["run_id"] for report in reports] == list(range(1, len(reports) + 1))
    assert bank.desk.row("SELECT count(*) FROM reconciliation_runs") == (len(reports),)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(desk: Desk, number: signal.Signals) -> None:
    with repeating(desk.database.admin_dsn, VAULT, every_s=86_400) as run:
        assert run.report()["verdict"] == "inconclusive"
        assert run.end(number) == []


def test_a_drift_pauses_and_its_end_is_seen(bank: Bank) -> None:
    cursor = bank.watch()
    with repeating(bank.desk.database.admin_dsn, bank.vault) as run:
        assert run.report()["verdict"] == "clean"
        bank.give(bank.addresses.vault, CRITICAL_MICRO)
        bank.look(cursor)
        found = run.await_report("pause")
        assert (found["difference_micro"], found["trading_paused"]) == (CRITICAL_MICRO, True)
        assert {report["verdict"] for report in run.end()} <= {"pause"}
    assert bank.desk.row("SELECT paused FROM platform_state") == (True,)


def test_a_node_that_is_away_ends_nothing(bank: Bank) -> None:
    bank.watch()
    with repeating(bank.desk.database.admin_dsn, bank.vault) as run:
        assert run.report()["verdict"] == "clean"
        bank.node.kill()
        assert run.await_report("inconclusive")["trouble"].startswith("the node: ")
        bank.node.restart_after_kill()
        assert run.await_report("clean")["custody_micro"] == TREASURY
        run.end()


def test_a_database_that_is_away_ends_nothing(bank: Bank, postgres: Postgres) -> None:
    bank.watch()
    dsn = bank.desk.database.admin_dsn
    with repeating(dsn, bank.vault) as run:
        assert run.report()["verdict"] == "clean"
        with away(postgres.dsn, dsn):
            gone = run.await_report("inconclusive")
            assert set(gone) == {"verdict", "trouble"}
            assert gone["trouble"].startswith("the books: ")
        assert run.await_report("clean")["trouble"] is None
        run.end()


class Nonsense(BaseHTTPRequestHandler):
    """Answers every call with an empty list."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_node_that_answers_nonsense_ends_nothing(desk: Desk) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as node:
        threading.Thread(target=node.serve_forever).start()
        with repeating(
            desk.database.admin_dsn, VAULT._replace(rpc=f"http://127.0.0.1:{node.server_port}")
        ) as run:
            for report in (run.report(), run.report()):
                assert report["verdict"] == "inconclusive"
                assert "nonsense" in report["trouble"]
            run.end()
        node.shutdown()


@contextmanager
def pausing(bank: Bank) -> Iterator[tuple[Repeating, psycopg.Connection[tuple[Any, ...]]]]:
    """A run that found a critical drift and waits for a trade, and the transaction of that trade."""
    cursor = bank.watch()
    bank.desk.user("bob")
    market_id = bank.desk.market()
    bank.give(bank.addresses.vault, 2 * CRITICAL_MICRO)
    bank.look(cursor)
    with psycopg.connect(bank.desk.database.app_dsn) as slow:
        assert execute_batch(slow, market_id, [Order("bob", "k", shares=1000)])[0].status == 200
        with repeating(bank.desk.database.admin_dsn, bank.vault) as run:
            await_lock_wait(bank.desk.admin, "SELECT reconcile(")
            yield run, slow


def test_a_run_that_was_begun_is_finished_after_the_signal(bank: Bank) -> None:
    with pausing(bank) as (run, slow):
        run.process.terminate()
        slow.commit()
        (report,) = run.end()
    assert (report["verdict"], report["trading_paused"]) == ("pause", True)
    assert bank.desk.row("SELECT paused FROM platform_state") == (True,)


def test_a_run_that_takes_too_long_after_the_signal_is_as_if_it_had_never_been(bank: Bank) -> None:
    with pausing(bank) as (run, slow):
        assert run.end() == []
        slow.commit()
    with bank.desk.admin.transaction():  # behind whatever the server still did for the run
        bank.desk.row("SELECT pg_advisory_xact_lock(pause_gate())")
        assert bank.desk.row("SELECT paused FROM platform_state") == (False,)
        assert bank.desk.row("SELECT count(*) FROM reconciliation_runs") == (0,)
