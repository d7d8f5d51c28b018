"""The views are what docs/books.md says of them, column by column: it is the contract of other systems."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from tests.conftest import MarketDatabase

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "books.md"
# As PostgreSQL calls them.
TYPES = {
    "int": "integer",
    "timestamptz": "timestamp with time zone",
    "bigint[]": "ARRAY",
}


def documented() -> dict[str, dict[str, str]]:
    """Each view's columns and their types; what stands in parentheses is for people."""
    rows = re.findall(r"^\| `books\.(\w+)` \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    views = {}
    for view, columns in rows:
        words = [column.split() for column in without_parentheses(columns).split(", ")]
        views[view] = {name: TYPES.get(kind, kind) for name, kind, *_ in words}
    return views


def without_parentheses(text: str) -> str:
    inner = re.sub(r"\([^()]*\)", "", text)
    return text if inner == text else without_parentheses(inner)


def test_every_view_is_documented_as_it_is(market_database: MarketDatabase) -> None:
    with psycopg.connect(market_database.judge_dsn) as judge:
        rows = judge.execute(
            """SELECT table_name, column_name, data_type FROM information_schema.columns
                WHERE table_schema = 'books' ORDER BY table_name, ordinal_position"""
        ).fetchall()
    views: dict[str, dict[str, str]] = {}
    for view, column, kind in rows:
        views.setdefault(view, {})[column] = kind
    assert documented() == views
    assert "outbox_events" in views
