"""The table `operation_phases`: whether an operation met a fault, its aftermath, or neither.

An operation lives from its intended start to its answer. It belongs to `fault` when its life overlaps a fault
window, to `recovery` when it overlaps the seconds after a heal that the plan grants, else to `steady`.

Windows overlap freely, so they are merged first; then one AS OF join finds, for the end of each life, the
last merged window that began before it, and the life overlaps a window exactly when that one ended after the
life began. Why not a plain join on the overlap: it compares every operation with every window.
"""

from __future__ import annotations

import duckdb

FOREVER_NS = 2**62

# A window begins a new merged one when it starts after all before it have ended.
MERGED = """
CREATE TEMP TABLE {name} AS
SELECT min(from_ns) AS from_ns, max(to_ns) AS to_ns FROM (
    SELECT *, sum((from_ns > coalesce(ended_ns, -1))::INT) OVER (ORDER BY from_ns, to_ns
                  ROWS UNBOUNDED PRECEDING) AS merged
    FROM (SELECT *, max(to_ns) OVER (ORDER BY from_ns, to_ns
                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ended_ns FROM ({windows}))
) GROUP BY merged
"""

PHASES = """
CREATE TABLE operation_phases AS
SELECT o.operation,
       CASE WHEN f.to_ns >= o.intended_ns THEN 'fault' WHEN r.to_ns >= o.intended_ns THEN 'recovery'
            ELSE 'steady' END AS phase
FROM operations o
ASOF LEFT JOIN merged_faults f ON o.answer_ns >= f.from_ns
ASOF LEFT JOIN merged_recoveries r ON o.answer_ns >= r.from_ns
"""

WITHOUT_FAULTS = "CREATE TABLE operation_phases AS SELECT operation, 'steady' AS phase FROM operations"


def make_operation_phases(db: duckdb.DuckDBPyConnection, *, recovery_s: float) -> None:
    """Make the table from `operations` and `fault_windows`."""
    if not (db.execute("SELECT count(*) FROM fault_windows").fetchone() or (0,))[0]:
        db.execute(WITHOUT_FAULTS)
        return
    ended = f"SELECT from_ns, coalesce(to_ns, {FOREVER_NS}) AS to_ns FROM fault_windows"
    after = (
        f"SELECT to_ns AS from_ns, to_ns + {int(recovery_s * 1e9)} AS to_ns FROM fault_windows"
        " WHERE to_ns IS NOT NULL"
    )
    db.execute(MERGED.format(name="merged_faults", windows=ended))
    db.execute(MERGED.format(name="merged_recoveries", windows=after))
    db.execute(PHASES)
    db.execute("DROP TABLE merged_faults")
    db.execute("DROP TABLE merged_recoveries")
