"""The probe: it reads a real system's books each second, sees them broken, and outlives PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from chaos.postgres import Postgres, choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND, Access, create_database, install
from reports.invariants.registry import load_registry
from reports.probe import probe_command
from reports.reading import Reading, Seen, read_books
from scenarios.history import Probe, read_rows
from tests.conftest import MarketDatabase
from tests.integration.desk import Desk, Order

NOTHING = Seen({}, {})
SHARE = 1_000_000
CHECKS = {
    "every_transaction_balances",
    "running_balances_are_continuous",
    "money_is_conserved",
    "balances_equal_entries",
    "no_account_goes_below_its_floor",
    "entries_never_change",
    "pools_equal_lmsr_cost",
    "pools_cover_every_payout",
    "positions_equal_outstanding_shares",
    "market_versions_are_dense",
}
UNGUARDED: LiteralString = """
ALTER TABLE ledger_entries DISABLE TRIGGER ALL;
ALTER TABLE transactions DISABLE TRIGGER ALL;
ALTER TABLE ledger_entries DROP CONSTRAINT balance_keeps_its_floor;
ALTER TABLE accounts DROP CONSTRAINT balance_keeps_its_floor;
ALTER TABLE markets DROP CONSTRAINT pool_covers_every_payout;
"""


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        market = desk.market()
        for user in ("ann", "bob"):
            desk.user(user)
            desk.trade(market, Order(user, f"{user}-1", shares=5 * SHARE))
        yield desk


@pytest.fixture
def judge(desk: Desk) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(desk.database.judge_dsn, autocommit=True) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        yield connection


def broken(reading: Reading) -> set[str]:
    return {name for name, result in reading.results.items() if result.violations}


def test_a_sound_system_is_read_whole_once_and_then_only_what_is_new(
    desk: Desk, judge: psycopg.Connection[tuple[object, ...]]
) -> None:
    first = read_books(judge, NOTHING)
    (entries,) = desk.row("SELECT count(*) FROM books.entries")
    assert broken(first) == set()
    assert first.results["running_balances_are_continuous"].examined == entries
    desk.batch(1, [Order("ann", "a-2", shares=SHARE), Order("bob", "b-2", outcome=1, shares=SHARE)])
    second = read_books(judge, first.seen)
    assert broken(second) == set()
    assert second.results["every_transaction_balances"].examined == 2
    assert second.results["running_balances_are_continuous"].examined == 6
    desk.close(1)
    third = read_books(judge, second.seen)
    assert broken(third) == set()
    assert set(second.results) == CHECKS <= {known.name for known in load_registry()}


def test_the_sample_names_entries_by_their_digest(
    desk: Desk, judge: psycopg.Connection[tuple[object, ...]]
) -> None:
    rows = desk.admin.execute(
        "SELECT entry_id, transaction_id, account_id, account_version, debit_micro, credit_micro,"
        " balance_after_micro FROM books.entries"
    ).fetchall()
    digests = {row[0]: md5("|".join(map(str, row)).encode()).hexdigest() for row in rows}
    sample = dict(read_books(judge, NOTHING).entries)
    assert sample
    assert sample.items() <= digests.items()


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ("UPDATE accounts SET balance = balance + 1 WHERE account_id = 2", "money_is_conserved"),
        ("UPDATE accounts SET balance = balance + 1 WHERE account_id = 2", "balances_equal_entries"),
        ("UPDATE accounts SET balance = -1 WHERE user_id = 'ann'", "no_account_goes_below_its_floor"),
        ("UPDATE markets SET version = version + 1", "market_versions_are_dense"),
        ("UPDATE markets SET liquidity_pool = liquidity_pool + 1", "pools_equal_lmsr_cost"),
        ("UPDATE markets SET liquidity_pool = 1", "pools_cover_every_payout"),
        ("UPDATE positions SET shares = shares + 1", "positions_equal_outstanding_shares"),
        (
            "UPDATE ledger_entries SET credit = credit + 1 WHERE user_id = 'ann' AND credit > 0",
            "every_transaction_balances",
        ),
        (
            "UPDATE ledger_entries SET balance_after = balance_after + 1 WHERE user_id = 'ann'",
            "running_balances_are_continuous",
        ),
    ],
)
def test_broken_books_are_seen_at_the_first_reading(
    desk: Desk,
    judge: psycopg.Connection[tuple[object, ...]],
    defect: LiteralString,
    expected: str,
) -> None:
    desk.admin.execute(UNGUARDED)
    desk.admin.execute(defect)
    reading = read_books(judge, NOTHING)
    assert expected in broken(reading)
    assert reading.results[expected].witness


def test_an_account_that_lost_entries_between_two_readings_is_seen(
    desk: Desk, judge: psycopg.Connection[tuple[object, ...]]
) -> None:
    first = read_books(judge, NOTHING)
    desk.admin.execute(UNGUARDED)
    desk.admin.execute("UPDATE accounts SET version = version - 1 WHERE user_id = 'ann' AND version > 0")
    assert broken(read_books(judge, first.seen)) == {"entries_never_change"}


def test_who_is_too_far_behind_goes_on_from_here(
    desk: Desk, judge: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.reading.CATCH_UP_MAX", 5)
    first = read_books(judge, NOTHING)
    assert "money_is_conserved" in first.results
    assert "balances_equal_entries" not in first.results
    desk.trade(1, Order("ann", "a-2", shares=SHARE))
    second = read_books(judge, first.seen)
    assert second.results["balances_equal_entries"].examined > 0
    assert broken(second) == set()


# --- the process


@pytest.fixture(scope="module")
def cluster(scratch: Path) -> Iterator[Postgres]:
    """A PostgreSQL of this module's own, to be killed; what it has shown must survive that."""
    folder = scratch / "probed"
    with Supervisor(folder) as supervisor:
        postgres = choose_postgres(
            "embedded",
            supervisor=supervisor,
            data_dir=folder / "pgdata",
            durable=False,
            settings={"synchronous_commit": "on", "full_page_writes": "on"},
        )
        postgres.start()
        yield postgres
        postgres.stop()


@pytest.fixture(scope="module")
def access(cluster: Postgres, scratch: Path) -> Access:
    return install(REFERENCE_COMMAND, create_database(cluster.dsn, "probed"), scratch / "logs" / "probed.log")


@pytest.fixture
def probe(access: Access, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(probe_command(access.judge_dsn, tmp_path))
    yield process
    process.kill()
    process.wait(timeout=5)


def await_row(run: Path, wanted: Callable[[Probe], bool], *, timeout_s: float = 15.0) -> Probe:
    """The last row of probes.jsonl once it is as wanted."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        path = run / "probes.jsonl"
        rows = list(read_rows(path, Probe)) if path.is_file() else []
        if rows and wanted(rows[-1]):
            return rows[-1]
        time.sleep(0.05)  # bounded by the deadline; the condition is the row above
    raise AssertionError(f"no such row within {timeout_s:.0f} s; the last: {rows[-1:]}")


def test_the_probe_outlives_a_killed_postgresql_and_goes_on(
    cluster: Postgres, probe: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    await_row(tmp_path, lambda row: row.error is None)
    cluster.kill()
    dead = await_row(tmp_path, lambda row: row.error is not None)
    assert dead.results == {}
    cluster.restart_after_kill()
    back = await_row(tmp_path, lambda row: row.error is None)
    # It goes on from the last reading: what was seen before the crash must still be there.
    assert back.results["entries_never_change"].examined > 0
    assert not any(result.violations for result in back.results.values())
    probe.terminate()
    assert probe.wait(timeout=5) == 0


def test_a_frozen_postgresql_costs_one_reading_its_deadline(
    cluster: Postgres, probe: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    await_row(tmp_path, lambda row: row.error is None)
    cluster.pause()
    try:
        frozen = await_row(tmp_path, lambda row: row.error is not None)
    finally:
        cluster.resume()
    assert frozen.error
    await_row(tmp_path, lambda row: row.error is None)
    assert probe.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_probe_between_two_rows(
    cluster: Postgres, probe: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals
) -> None:
    del cluster
    await_row(tmp_path, lambda row: row.error is None)
    probe.send_signal(number)
    assert probe.wait(timeout=5) == 0
    assert list(read_rows(tmp_path / "probes.jsonl", Probe))


def test_no_password_is_in_the_list_of_processes(
    access: Access, probe: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    await_row(tmp_path, lambda row: row.error is None)
    arguments = Path(f"/proc/{probe.pid}/cmdline").read_bytes()
    assert b"reports.probe" in arguments
    password = str(conninfo_to_dict(access.judge_dsn)["password"])
    assert password.encode() not in arguments
