"""The export where money comes in and goes out: views of it too, or an error that names what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from reports.books import ALL_VIEWS, MONEY_VIEWS, VIEWS
from reports.export import ExportError, export_state
from tests.conftest import MarketDatabase
from tests.golden import golden_money_run, golden_run
from tests.integration.custody_desk import USDC, CustodyDesk, custody, custody_chain

__all__ = ["custody", "custody_chain"]


@pytest.fixture
def busy(custody: CustodyDesk) -> CustodyDesk:
    """Books in which every view of money has a row."""
    user = custody.user()
    before = custody.height()
    custody.deposit(user, 100 * USDC, buried=True)
    custody.watch()
    custody.withdraw(user, 95 * USDC)
    assert custody.relay() == []
    # spent, and then its block is gone: a receivable
    custody.reorganise(custody.height() - before)
    custody.mine()
    custody.watch()
    custody.pause()
    custody.resume()
    return custody


def write_plan(run: Path, document: dict[str, object]) -> None:
    (run / "plan.json").write_text(json.dumps(document))


def test_every_view_of_money_is_exported_row_for_row(
    busy: CustodyDesk, market_database: MarketDatabase, tmp_path: Path
) -> None:
    manifest = export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0, with_chain=True)
    assert set(manifest["rows"]) == set(ALL_VIEWS)
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        for view, columns in MONEY_VIEWS.items():
            names = ", ".join(
                f"{name}::text AS {name}" if name == "withdrawal_id" else name
                for name, kind in columns.items()
                if kind != "TIMESTAMPTZ"
            )
            exported = db.execute(f"SELECT {names} FROM '{tmp_path}/state/{view}.parquet'").fetchall()
            booked = busy.admin.execute(f"SELECT {names} FROM books.{view}").fetchall()
            assert sorted(map(repr, exported)) == sorted(map(repr, booked)), view
            assert manifest["rows"][view] == len(booked) > 0, view


def test_the_plan_says_which_views_belong_to_the_export(
    market_database: MarketDatabase, tmp_path: Path
) -> None:
    write_plan(tmp_path, golden_run().plan)
    manifest = export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0)
    assert set(manifest["rows"]) == set(VIEWS)
    write_plan(tmp_path, golden_money_run().plan)
    manifest = export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0)
    assert set(manifest["rows"]) == set(ALL_VIEWS)
    assert {path.stem for path in (tmp_path / "state").glob("*.parquet")} == set(ALL_VIEWS)


def test_a_plan_that_is_none_is_an_error(market_database: MarketDatabase, tmp_path: Path) -> None:
    write_plan(tmp_path, {"format": 1})
    with pytest.raises(ExportError, match=r"plan\.json"):
        export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0)


def test_a_missing_view_of_money_is_missed_only_with_a_chain(
    custody: CustodyDesk, market_database: MarketDatabase, tmp_path: Path
) -> None:
    custody.admin.execute("DROP VIEW books.platform_changes")
    export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0)
    with pytest.raises(ExportError, match=r"the view books\.platform_changes is missing"):
        export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0, with_chain=True)
    assert not (tmp_path / "state" / "manifest.json").exists()


def test_a_column_that_says_yes_or_no_in_words_is_named(
    custody: CustodyDesk, market_database: MarketDatabase, tmp_path: Path
) -> None:
    custody.admin.execute("DROP VIEW books.platform_changes")
    custody.admin.execute(
        "CREATE VIEW books.platform_changes AS SELECT change_id, paused::text AS paused, sells_while_paused,"
        " reads_while_paused, reason, changed_by, changed_at FROM platform_changes"
    )
    with pytest.raises(ExportError, match=r"books\.platform_changes\.paused is text, not boolean"):
        export_state(market_database.judge_dsn, tmp_path, active=0, prepared=0, with_chain=True)
