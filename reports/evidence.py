"""A run directory as tables: everything the judge may look at, validated, in one in-memory DuckDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from scenarios.plan import RunPlan


class RunError(Exception):
    """A folder that is not a run, or lacks what judging needs; says what and what to do."""


class Evidence:
    """One run, open for judging.

    `memo` keeps what several checkers share; `incomplete` says what is missing.
    """

    def __init__(self, run: Path, plan: RunPlan, db: duckdb.DuckDBPyConnection) -> None:
        self.run = run
        self.plan = plan
        self.db = db
        self.has_state = False
        self.incomplete: list[str] = []
        self.memo: dict[str, Any] = {}

    def rows(self, sql: str, *params: object) -> list[dict[str, Any]]:
        """The result of a query as dictionaries."""
        cursor = self.db.execute(sql, list(params))
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def scalar(self, sql: str, *params: object) -> Any:
        """The first column of the first row, None when there is no row."""
        row = self.db.execute(sql, list(params)).fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        self.db.close()


def open_evidence(run: Path) -> Evidence:
    """Load and validate a run; raises RunError or scenarios.history.HistoryError."""
    raise NotImplementedError
