"""How a query becomes a Finding: its rows are the breaches, the first ten of them the witness."""

from __future__ import annotations

from typing import Any

from reports.evidence import Evidence
from reports.invariants.registry import WITNESS_MAX, Finding


def finding(evidence: Evidence, *, examined: str, breaches: str, unresolved: str | None = None) -> Finding:
    """Run two queries: `examined` gives a number, `breaches` one row a violation, sorted by its columns."""
    found = evidence.rows(
        f"SELECT *, count(*) OVER () AS breaches_total FROM ({breaches}) ORDER BY ALL LIMIT {WITNESS_MAX}"
    )
    violations = found[0]["breaches_total"] if found else 0
    return Finding(
        examined=int(evidence.scalar(examined) or 0),
        violations=violations,
        witness=[_told(row) for row in found],
        unresolved=unresolved,
    )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """A witness without the columns that say nothing."""
    return {name: value for name, value in row.items() if value is not None and name != "breaches_total"}
