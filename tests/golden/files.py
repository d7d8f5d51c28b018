"""Files of a run directory written from plain rows."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from reports.books import ALL_VIEWS
from tests.golden.market import Row


def write_lines(path: Path, rows: list[Row]) -> None:
    """A JSON-lines file as the writers of a run make it: compact, one row a line."""
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def write_views(folder: Path, views: dict[str, list[Row]]) -> None:
    """Views of the books as parquet files, one a view."""
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        for view, rows in views.items():
            columns = ALL_VIEWS[view]
            kept = [{name: row[name] for name in columns} for row in rows]
            db.execute(f"CREATE TABLE {view} ({', '.join(f'{name} {of}' for name, of in columns.items())})")
            db.execute(
                f"INSERT INTO {view} SELECT row.* FROM (SELECT unnest(from_json(?, ?)) AS row)",
                [json.dumps(kept, default=str), json.dumps([columns])],
            )
            db.execute(f"COPY {view} TO '{folder / view}.parquet' (FORMAT parquet)")
