"""The table `operation_phases`: whether an operation met a fault, its aftermath, or neither.

An operation lives from its intended start to its answer. It belongs to `fault` when its life overlaps a fault
window, to `recovery` when it overlaps the seconds after a heal that the plan grants, else to `steady`. Only
windows of faults that traders may feel count: a relay that is killed is no excuse for a slow trade.

Windows overlap freely, so they are merged first, into `fault_spans` and `recovery_spans`; then one AS OF join
finds the last span that began before a life ended, and the two overlap exactly when that span ended after the
life began. Why not a plain join on the overlap: it compares every operation with every window.
"""

from __future__ import annotations

import duckdb

FOREVER_NS = 2**62

FAULT_WINDOWS = f"SELECT from_ns, coalesce(to_ns, {FOREVER_NS}) AS to_ns FROM fault_windows WHERE felt"
RECOVERY_WINDOWS = """
SELECT to_ns AS from_ns, to_ns + {recovery_ns} AS to_ns FROM fault_windows WHERE felt AND to_ns IS NOT NULL
"""

# A window begins a new span when it starts after all before it have ended.
SPANS = """
CREATE TABLE {name} AS
SELECT min(from_ns) AS from_ns, max(to_ns) AS to_ns
FROM (
    SELECT *, sum((from_ns > coalesce(ended_ns, -1))::INT) OVER (
        ORDER BY from_ns, to_ns ROWS UNBOUNDED PRECEDING) AS span
    FROM (
        SELECT *, max(to_ns) OVER (
            ORDER BY from_ns, to_ns ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ended_ns
        FROM ({windows})
    )
)
GROUP BY span ORDER BY from_ns
"""

PHASE = """
CASE WHEN f.to_ns >= {from_ns} THEN 'fault' WHEN r.to_ns >= {from_ns} THEN 'recovery' ELSE 'steady' END
"""

OPERATION_PHASES = f"""
CREATE TABLE operation_phases AS
SELECT o.operation, {PHASE.format(from_ns="o.intended_ns")} AS phase
FROM operations o
ASOF LEFT JOIN fault_spans f ON o.answer_ns >= f.from_ns
ASOF LEFT JOIN recovery_spans r ON o.answer_ns >= r.from_ns
"""

# One reading a sample, so its life is an instant.
SAMPLE_PHASES = f"""
SELECT s.*, {PHASE.format(from_ns="s.time_ns")} AS phase_of_faults
FROM samples s
ASOF LEFT JOIN fault_spans f ON s.time_ns >= f.from_ns
ASOF LEFT JOIN recovery_spans r ON s.time_ns >= r.from_ns
"""


def make_operation_phases(db: duckdb.DuckDBPyConnection, *, recovery_s: float) -> None:
    """Make the tables from `operations` and `fault_windows`."""
    recovery_windows = RECOVERY_WINDOWS.format(recovery_ns=int(recovery_s * 1e9))
    db.execute(SPANS.format(name="fault_spans", windows=FAULT_WINDOWS))
    db.execute(SPANS.format(name="recovery_spans", windows=recovery_windows))
    db.execute(OPERATION_PHASES)
