"""The export: the books of a real system in one snapshot, or an error that names what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chaos.ports import free_port
from reports.books import VIEWS
from reports.export import ExportError, export_state
from tests.conftest import MarketDatabase
from tests.integration.desk import Desk, Order

WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'price_history'::regclass"


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


def test_every_view_is_exported_row_for_row(desk: Desk, tmp_path: Path) -> None:
    market = desk.market(outcomes=3)
    users = [desk.user("ann"), desk.user("bob")]
    for number in range(20):
        desk.trade(market, Order(users[number % 2], f"k{number}", outcome=number % 3, shares=1_000_000))
    desk.trade(market, Order("ann", "refused", shares=10**15))
    desk.close(market)
    manifest = export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)
    assert json.loads((tmp_path / "state" / "manifest.json").read_bytes()) == manifest
    assert (manifest["active"], manifest["prepared"]) == (0, 0)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == sorted(
        ["manifest.json", *(f"{view}.parquet" for view in VIEWS)]
    )
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        for view, columns in VIEWS.items():
            names = [name for name, kind in columns.items() if kind != "TIMESTAMPTZ"]
            exported = db.execute(
                f"SELECT {', '.join(names)} FROM '{tmp_path}/state/{view}.parquet'"
            ).fetchall()
            booked = desk.admin.execute(f"SELECT {', '.join(names)} FROM books.{view}").fetchall()
            assert sorted(map(repr, exported)) == sorted(map(repr, booked)), view
            assert manifest["rows"][view] == len(booked) > 0, view


def test_instants_nulls_and_odd_texts_survive(desk: Desk, tmp_path: Path) -> None:
    desk.admin.execute(
        "CREATE OR REPLACE VIEW books.positions AS SELECT 1::bigint AS market_id,"
        " v.t AS user_id, NULL::int AS outcome, 2::bigint AS shares_micro"
        " FROM (VALUES (''), (NULL), ('a,\"b\"\nc'), ('NULL')) AS v (t)"
    )
    export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)
    (wall,) = desk.row("SELECT min(created_at) AT TIME ZONE 'UTC' FROM books.entries")
    with duckdb.connect() as db:
        found = db.execute(f"SELECT user_id, outcome FROM '{tmp_path}/state/positions.parquet'").fetchall()
        assert sorted(found, key=repr) == sorted(
            [("", None), (None, None), ('a,"b"\nc', None), ("NULL", None)], key=repr
        )
        db.execute("SET TimeZone = 'UTC'")
        exported = db.execute(
            f"SELECT (min(created_at) AT TIME ZONE 'UTC') FROM '{tmp_path}/state/entries.parquet'"
        ).fetchone()
    assert exported == (wall,)


def test_a_missing_view_is_named(desk: Desk, tmp_path: Path) -> None:
    desk.admin.execute("DROP VIEW books.prices")
    with pytest.raises(ExportError, match=r"the view books\.prices is missing"):
        export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)
    assert not (tmp_path / "state" / "manifest.json").exists()


def test_a_missing_column_is_named(desk: Desk, tmp_path: Path) -> None:
    desk.admin.execute("ALTER VIEW books.trades RENAME COLUMN cost_micro TO cost")
    with pytest.raises(ExportError, match=r"books\.trades has no column cost_micro"):
        export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)


def test_a_column_of_another_type_is_named(desk: Desk, tmp_path: Path) -> None:
    desk.admin.execute("DROP VIEW books.positions")
    desk.admin.execute(
        "CREATE VIEW books.positions AS SELECT market_id, user_id, outcome, shares::numeric AS shares_micro"
        " FROM positions"
    )
    with pytest.raises(ExportError, match=r"books\.positions\.shares_micro is numeric, not bigint"):
        export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)


def test_a_failed_export_leaves_no_manifest_of_an_earlier_one(desk: Desk, tmp_path: Path) -> None:
    export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)
    desk.admin.execute("REVOKE SELECT ON books.entries FROM seatrial_judge")
    with pytest.raises(ExportError, match="permission denied for view entries"):
        export_state(desk.database.judge_dsn, tmp_path, active=0, prepared=0)
    assert not (tmp_path / "state" / "manifest.json").exists()
    assert not list((tmp_path / "state").glob("*.csv"))


def test_the_export_sees_one_instant(desk: Desk, tmp_path: Path) -> None:
    """A trade that commits while the export waits for a lock is in none of its views."""
    market, user = desk.market(), desk.user("ann")
    desk.trade(market, Order(user, "before", shares=1_000_000))
    with ThreadPoolExecutor(1) as pool, psycopg.connect(desk.database.admin_dsn) as locker:
        locker.execute("LOCK TABLE price_history IN ACCESS EXCLUSIVE MODE")
        export = pool.submit(export_state, desk.database.judge_dsn, tmp_path, active=0, prepared=0)
        deadline = time.monotonic() + 10
        while desk.row(WAITING) == (0,):
            assert time.monotonic() < deadline, "the export never came to the lock"
            time.sleep(0.01)  # bounded by the deadline; the condition is the lock above
        locker.execute(
            "INSERT INTO price_history SELECT market_id, 77, prices, created_at FROM price_history LIMIT 1"
        )
        locker.commit()
        manifest = export.result(timeout=20)
    assert manifest["rows"]["trades"] == 1
    assert manifest["rows"]["prices"] == 2


def test_a_database_that_does_not_answer_is_named(market_database: MarketDatabase, tmp_path: Path) -> None:
    nobody = make_conninfo(market_database.judge_dsn, port=free_port())
    with pytest.raises(ExportError, match="the database of the books: "):
        export_state(nobody, tmp_path, active=0, prepared=0)
