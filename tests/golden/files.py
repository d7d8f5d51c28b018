"""Files of a run directory written from plain rows."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from reports.books import VIEWS
from tests.golden.market import Row


def write_lines(path: Path, rows: list[Row]) -> None:
    """A JSON-lines file as the writers of a run make it: compact, one row a line."""
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def write_view(path: Path, view: str, rows: list[Row]) -> None:
    """One view of the books as parquet."""
    columns = VIEWS[view]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        if rows:
            marks = ", ".join("?" for _ in columns)
            db.executemany(
                f"INSERT INTO t VALUES ({marks})", [[row[name] for name in columns] for row in rows]
            )
        db.execute(f"COPY t TO '{path}' (FORMAT parquet)")
