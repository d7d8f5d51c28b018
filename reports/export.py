"""The export: the books of a quiet target, read once in one snapshot, as parquet files in the run directory.

1. Every view of reports/books.py that the run's plan asks for must be there with its columns, or nothing is
   exported.
2. In one REPEATABLE READ READ ONLY transaction each view is copied out as CSV, into a file beside its
   destination, and turned into `state/<view>.parquet`; one view at a time, so memory stays small.
3. `state/manifest.json` comes last: a state without it is not a state.

Why by way of a file: DuckDB reads one with all cores and in bounded memory, and PostgreSQL's own COPY is the
fastest way out of it. Why not DuckDB's postgres extension: it is fetched from the network at first use.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import msgspec
import psycopg
from psycopg import sql

from reports.books import ALL_VIEWS, views_of
from scenarios.history import FORMAT
from scenarios.plan import PlanError, read_run_plan

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_S = 10
# A million trades with their entries take about ten seconds; a target that needs longer than this hangs.
STATEMENT_TIMEOUT_MS = 300_000
MEMORY_LIMIT = "512MB"

# What PostgreSQL may call a column, by what the judge reads it as.
_ACCEPTED = {
    "BIGINT": ("bigint", "integer", "smallint"),
    "VARCHAR": ("text", "character varying", "character", "uuid"),
    "BOOLEAN": ("boolean",),
    "TIMESTAMPTZ": ("timestamp with time zone",),
    "BIGINT[]": ("bigint[]", "integer[]", "smallint[]"),
}
_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, NULL)
FROM pg_attribute AS a
INNER JOIN pg_class AS c ON a.attrelid = c.oid
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE n.nspname = 'books' AND a.attnum > 0 AND NOT a.attisdropped
"""


class ExportError(Exception):
    """Books that cannot be read; says which view or column, or what the database answered."""


def export_state(
    judge_dsn: str, run: Path, *, active: int, prepared: int, with_chain: bool | None = None
) -> dict[str, Any]:
    """Export every view and return the manifest; `active` and `prepared` are the evidence of quiescence.

    `with_chain` says whether the views of money in and out belong to it; by default the run's plan does.
    Raises ExportError when the database does not answer, a view or column is missing or the disk is full.
    An export that failed leaves no manifest.
    """
    state = run / "state"
    views = views_of(has_chain=_has_chain(run) if with_chain is None else with_chain)
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / "manifest.json").unlink(missing_ok=True)
        with _connect(judge_dsn) as connection:
            _check_columns(connection, views)
            row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
            assert row is not None
            manifest = {
                "format": FORMAT,
                "snapshot": row[0],
                "time_ns": time.monotonic_ns(),
                "active": active,
                "prepared": prepared,
                "rows": {view: _export_view(connection, view, state) for view in views},
            }
        (state / "manifest.json").write_bytes(msgspec.json.encode(manifest) + b"\n")
    except psycopg.Error as error:
        raise ExportError(f"the database of the books: {str(error).strip()}") from None
    except (duckdb.Error, OSError) as error:
        raise ExportError(f"the books could not be written: {error}") from None
    return manifest


def _has_chain(run: Path) -> bool:
    """What the run's plan says; a folder without one has no chain."""
    if not (run / "plan.json").exists():
        return False
    try:
        return read_run_plan(run).plan.chain is not None
    except PlanError as error:
        raise ExportError(str(error)) from None


def _connect(judge_dsn: str) -> Connection:
    connection = psycopg.connect(
        judge_dsn,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="seatrial export",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC -c datestyle=ISO",
    )
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def _check_columns(connection: Connection, views: dict[str, dict[str, str]]) -> None:
    """Raise ExportError unless every view has every column of the contract, in a type that fits."""
    found: dict[str, dict[str, str]] = {}
    for view, column, kind in connection.execute(_COLUMNS):
        found.setdefault(view, {})[column] = kind
    for view, columns in views.items():
        if view not in found:
            raise ExportError(
                f"the view books.{view} is missing (docs/books.md lists what a target must show)"
            )
        for column, kind in columns.items():
            seen = found[view].get(column)
            if seen is None:
                raise ExportError(f"books.{view} has no column {column}; docs/books.md asks for it")
            if seen not in _ACCEPTED[kind]:
                raise ExportError(f"books.{view}.{column} is {seen}, not {_ACCEPTED[kind][0]}")


def _export_view(connection: Connection, view: str, state: Path) -> int:
    """Write one view as parquet; how many rows it has."""
    spool = state / f"{view}.csv"
    try:
        _copy_out(connection, view, spool)
        return _write_parquet(view, spool, state / f"{view}.parquet")
    finally:
        spool.unlink(missing_ok=True)


def _copy_out(connection: Connection, view: str, spool: Path) -> None:
    # FORCE_QUOTE: a null stays the only field without quotes, so that it differs from an empty text.
    statement = sql.SQL(
        "COPY (SELECT {columns} FROM books.{view}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)"
    ).format(
        columns=sql.SQL(", ").join(sql.Identifier(name) for name in ALL_VIEWS[view]),
        view=sql.Identifier(view),
    )
    with spool.open("wb") as file, connection.cursor().copy(statement) as copy:
        for block in copy:
            file.write(block)


def _write_parquet(view: str, spool: Path, destination: Path) -> int:
    columns = ALL_VIEWS[view]
    texts = {name: "VARCHAR" if kind == "BIGINT[]" else kind for name, kind in columns.items()}
    selected = ", ".join(
        f"CAST(translate({name}, '{{}}', '[]') AS BIGINT[]) AS {name}" if kind == "BIGINT[]" else name
        for name, kind in columns.items()
    )
    with duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        db.execute(f"SET temp_directory = '{_quoted(destination.parent / 'spill')}'")
        db.execute("SET preserve_insertion_order = false")
        db.execute("SET TimeZone = 'UTC'")
        db.execute(
            f"COPY (SELECT {selected} FROM read_csv('{_quoted(spool)}', header = false, auto_detect = false,"
            f" delim = ',', quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = false,"
            f" columns = {texts})) TO '{_quoted(destination)}' (FORMAT parquet)"
        )
        row = db.execute(f"SELECT count(*) FROM '{_quoted(destination)}'").fetchone()
        assert row is not None
        return int(row[0])


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
