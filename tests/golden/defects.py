"""What the invariants find in a run that was opened once, after a defect was put into its tables by SQL."""

from __future__ import annotations

from reports.evidence import Evidence
from reports.invariants.registry import Finding, load_registry

# Those that read the books; what trades and service show is not touched by a defect of money in and out.
GROUPS = ("ledger", "idempotency", "outbox", "chain")


def found_with(evidence: Evidence, defect: str) -> dict[str, Finding]:
    """The findings of these groups, by name; the evidence is as before afterwards."""
    evidence.memo.clear()
    # a hundred rows: more threads only wait for each other
    evidence.db.execute("SET threads = 1")
    evidence.db.execute("BEGIN")
    try:
        evidence.db.execute(defect)
        return {known.name: known.check(evidence) for known in load_registry() if known.group in GROUPS}
    finally:
        evidence.db.execute("ROLLBACK")
        evidence.memo.clear()
