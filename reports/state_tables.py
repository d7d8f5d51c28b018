"""state/*.parquet, the exported books, as one table a view; what is missing of them is said, not guessed.

The views of money in and out are there in every run, and empty in one without a chain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import duckdb

from reports.books import ALL_VIEWS, views_of


class RunError(Exception):
    """A folder that is not a run, or lacks what judging needs; says what and what to do."""


def read_state(db: duckdb.DuckDBPyConnection, run: Path, *, has_chain: bool) -> list[str]:
    """Make a table of every view; reasons why the books do not show the end of the run, [] when they do.

    Without a complete export the tables exist and are empty. Raises RunError for books that no export writes.
    """
    exported = views_of(has_chain=has_chain)
    missing = unfinished(run / "state", exported)
    for view, columns in ALL_VIEWS.items():
        if missing or view not in exported:
            db.execute(f"CREATE TABLE {view} ({', '.join(f'{name} {of}' for name, of in columns.items())})")
            continue
        path = run / "state" / f"{view}.parquet"
        wanted = ", ".join(read_as(name, of) for name, of in columns.items())
        try:
            db.execute(f"CREATE TABLE {view} AS SELECT {wanted} FROM read_parquet(?)", [str(path)])
        except duckdb.Error as error:
            reason = str(error).split("\n", 1)[0]
            raise RunError(
                f"{path}: not the view books.{view} as docs/books.md has it: {reason}; export the books again"
            ) from None
    return missing


def read_as(name: str, kind: str) -> str:
    """A column of a view; an instant becomes its UTC clock time, which Python fetches without a zone."""
    if kind == "TIMESTAMPTZ":
        return f"({name}::TIMESTAMPTZ AT TIME ZONE 'UTC') AS {name}"
    return f"{name}::{kind} AS {name}"


def unfinished(state: Path, exported: Iterable[str]) -> list[str]:
    """What keeps the export of these views from being complete."""
    if not state.is_dir():
        return ["the books were not exported"]
    absent = [view for view in exported if not (state / f"{view}.parquet").is_file()]
    if absent or not (state / "manifest.json").is_file():
        return ["the export of the books is incomplete: no " + ", ".join(absent or ["manifest.json"])]
    return []


def check_manifest(db: duckdb.DuckDBPyConnection, run: Path, *, has_chain: bool) -> list[str]:
    """What the export says against itself; raises RunError when its manifest cannot be read."""
    path = run / "state" / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        rows, active, prepared = dict(manifest["rows"]), int(manifest["active"]), int(manifest["prepared"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a manifest of an export: {error!r}; export the books again") from None
    reasons = []
    for view in views_of(has_chain=has_chain):
        found = (db.execute(f"SELECT count(*) FROM {view}").fetchone() or (0,))[0]
        if rows.get(view) != found:
            reasons.append(f"state/{view}.parquet has {found} rows, its manifest says {rows.get(view)}")
    if active or prepared:
        reasons.append(
            f"the system was not quiet when the books were exported: {active} active backends, "
            f"{prepared} prepared transactions"
        )
    return reasons
