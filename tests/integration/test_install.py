"""Installing the schema: once, again, cut short, twice at once, and into a database that cannot take it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.postgres import Postgres
from reference_server import install as installer
from reference_server.__main__ import main
from reference_server.install import InstallError, install
from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, one

PROJECT = Path(__file__).resolve().parents[2]
# The roles belong to the whole cluster and are not this test's to change: no install here renames them.
SCHEMA = """
SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
    SELECT concat_ws(' ', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod)) AS line
      FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
     WHERE c.relnamespace::regnamespace::text IN ('public', 'books')
    UNION ALL
    SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT pg_get_triggerdef(t.oid) || t.tgenabled::text FROM pg_trigger AS t WHERE NOT t.tgisinternal
) AS lines
"""


def password_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["password"])


@pytest.fixture
def reinstall(market_database: MarketDatabase) -> Callable[..., dict[str, str]]:
    """Install with the passwords that the session's other databases rely on."""

    def call(dsn: str, admin_token: str = "token") -> dict[str, str]:
        return install(
            dsn,
            server_password=password_of(market_database.app_dsn),
            judge_password=password_of(market_database.judge_dsn),
            relay_password="relay",
            admin_token=admin_token,
        )

    return call


def schema(dsn: str) -> object:
    with psycopg.connect(dsn) as connection:
        return one(connection, SCHEMA)[0]


def test_an_install_says_how_to_connect(database: str, reinstall: Callable[..., dict[str, str]]) -> None:
    access = reinstall(database)
    with psycopg.connect(access["server_dsn"], autocommit=True) as server:
        assert one(server, "SELECT current_user::text, current_database()::text") == (
            "seatrial_server",
            conninfo_to_dict(database)["dbname"],
        )
        digest = hashlib.sha256(access["admin_token"].encode()).digest()
        assert one(server, "SELECT * FROM api_authenticate(%s)", digest) == ("admin", "admin")
    with psycopg.connect(access["judge_dsn"], autocommit=True) as judge:
        kinds = {kind for (kind,) in judge.execute("SELECT kind FROM books.accounts").fetchall()}
        assert kinds >= {"external_onchain", "house_treasury", "suspense", "user_available"}


def test_a_new_ledger_is_empty_and_reconciled(
    database: str, reinstall: Callable[..., dict[str, str]]
) -> None:
    reinstall(database)
    with psycopg.connect(database) as connection:
        assert one(connection, "SELECT count(*) FROM ledger_entries") == (0,)
        assert one(connection, "SELECT bool_and(reconciled) FROM reconcile_all_balances()") == (True,)


def test_a_second_install_changes_no_table_and_adds_its_token(
    database: str, reinstall: Callable[..., dict[str, str]]
) -> None:
    reinstall(database, "first")
    before = schema(database)
    access = reinstall(database, "second")
    assert schema(database) == before
    with psycopg.connect(access["server_dsn"]) as server:
        for token in ("first", "second"):
            digest = hashlib.sha256(token.encode()).digest()
            assert one(server, "SELECT * FROM api_authenticate(%s)", digest) == ("admin", "admin")


def test_an_install_cut_short_goes_on_where_it_stopped(
    database: str,
    reinstall: Callable[..., dict[str, str]],
    market_database: MarketDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = shutil.copytree(installer.SQL, tmp_path / "sql")
    broken = copied / "70_trading.sql"
    whole = broken.read_text(encoding="utf-8")
    broken.write_text(whole + "\nSELECT 1 / 0;\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(installer, "SQL", copied)
        with pytest.raises(psycopg.errors.DivisionByZero):
            reinstall(database)
    with psycopg.connect(database) as connection:
        # what the broken file had made is gone with its transaction, what came before stays
        assert one(connection, "SELECT to_regtype('executed_trade') IS NULL") == (True,)
        assert one(connection, "SELECT max(name) FROM installed_files") == ("65_idempotency.sql",)
    reinstall(database)
    assert schema(database) == schema(market_database.admin_dsn)


def test_a_file_that_changed_since_is_refused_by_name(
    database: str,
    reinstall: Callable[..., dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reinstall(database)
    before = schema(database)
    copied = shutil.copytree(installer.SQL, tmp_path / "sql")
    with (copied / "40_lmsr.sql").open("a", encoding="utf-8") as file:
        file.write("-- newer\n")
    monkeypatch.setattr(installer, "SQL", copied)
    with pytest.raises(InstallError, match=r"40_lmsr\.sql differs"):
        reinstall(database)
    assert schema(database) == before


def test_two_installs_at_once_install_once(
    database: str, reinstall: Callable[..., dict[str, str]], market_database: MarketDatabase
) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(reinstall, database) for _ in range(2)]
        first, second = (future.result(timeout=60) for future in both)
    assert first == second
    assert schema(database) == schema(market_database.admin_dsn)


def test_a_database_in_another_encoding_is_refused(postgres: Postgres, database: str) -> None:
    name = str(conninfo_to_dict(database)["dbname"]) + "_latin1"
    create = sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name)))
        try:
            with pytest.raises(InstallError, match="encoded in LATIN1"):
                install(make_conninfo(postgres.dsn, dbname=name))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_lock_that_is_not_given_up_ends_the_install(
    database: str, reinstall: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "_LOCK_TIMEOUT_S", 0.05)
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_xact_lock(5300)")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            reinstall(database)
        other.rollback()
    reinstall(database)


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEATRIAL_")}
    return subprocess.run(
        [sys.executable, "-m", "reference_server", *arguments],
        cwd=PROJECT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_its_credentials_as_the_last_line(
    database: str, market_database: MarketDatabase
) -> None:
    done = run(
        [
            "install",
            *("--dsn", database),
            f"--server-password={password_of(market_database.app_dsn)}",  # may begin with a dash
            f"--judge-password={password_of(market_database.judge_dsn)}",
            "--relay-password=relay",
        ],
        SEATRIAL_ADMIN_TOKEN="from the environment",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == {"server_dsn", "judge_dsn", "relay_dsn", "admin_token"}
    assert said["admin_token"] == "from the environment"
    files = len(list(installer.SQL.glob("*.sql")))
    assert f"install: {files} files applied" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["install"], "give --dsn or set SEATRIAL_DSN"),
        (["install", "--dsn", "host=127.0.0.1 port=1 connect_timeout=5"], "Connection refused"),
        (["install", "--dsn", "no dsn at all"], "missing"),
        (["install", "--speed", "9"], "unrecognized arguments: --speed"),
        (["destroy"], "invalid choice: 'destroy'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_why(arguments: list[str], message: str) -> None:
    done = run(arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "install" in said
    assert "serve" in said


def test_the_names_that_users_know_are_there(market_database: MarketDatabase) -> None:
    connection: Connection
    with psycopg.connect(market_database.admin_dsn) as connection:
        for function in (
            "record_ledger_entry",
            "execute_trade_lmsr",
            "sell_shares_lmsr",
            "reconcile_all_balances",
            "reconcile_user_balance",
            "get_user_ledger",
        ):
            assert one(connection, "SELECT count(*) FROM pg_proc WHERE proname = %s", function) == (1,)
        assert one(connection, "SELECT count(version), count(liquidity_pool) FROM markets") == (0, 0)
