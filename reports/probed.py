"""Invariants that hold at any instant: what the probe saw of them counts beside the state at the end.

A fault may break one of them on purpose, to see what the system makes of it; its evidence says so
(`disturbs`). Readings taken while it was in effect are set aside: from the first that was still under way
when the fault was armed, until the first that began after it was healed, inclusive: that one goes on from
what the one before it saw.
"""

from __future__ import annotations

import functools
import json

from reports.evidence import Evidence
from reports.invariants.registry import WITNESS_MAX, Check, Finding

READINGS = """
WITH disturbed AS (
    SELECT min(time_ns) FILTER (state IN ('armed', 'landed')) AS from_ns,
        max(time_ns) FILTER (state = 'healed') AS healed_ns
    FROM faults
    GROUP BY fault_id
    HAVING bool_or(state = 'landed' AND list_contains((evidence -> '$.disturbs')::VARCHAR[], ?))
),
readings AS (
    SELECT r.*, r.time_ns + coalesce((p.took_ms * 1e6)::BIGINT, 0) AS ended_ns
    FROM probe_results AS r
    LEFT JOIN (SELECT time_ns, max(took_ms) AS took_ms FROM probes GROUP BY time_ns) AS p USING (time_ns)
    WHERE r.name = ?
),
windows AS (  -- never healed: for ever
    SELECT from_ns,
        CASE WHEN healed_ns IS NOT NULL THEN coalesce(
            (SELECT min(time_ns) FROM readings WHERE time_ns > healed_ns), healed_ns) END AS to_ns
    FROM disturbed
)
SELECT time_ns, examined, violations, witness, EXISTS (
    SELECT 1 FROM windows AS w
    WHERE readings.ended_ns >= w.from_ns AND (w.to_ns IS NULL OR readings.time_ns <= w.to_ns)
) AS set_aside
FROM readings ORDER BY time_ns
"""


def probed(check: Check) -> Check:
    """Add to a check's finding what the probe's readings of the same name found while the load went on."""

    @functools.wraps(check)
    def with_readings(evidence: Evidence) -> Finding:
        finding = check(evidence)
        readings = evidence.rows(READINGS, check.__name__, check.__name__)
        judged = [reading for reading in readings if not reading["set_aside"]]
        seen = [
            {"probed_ns": reading["time_ns"], **row}
            for reading in judged
            if reading["violations"]
            for row in json.loads(reading["witness"] or "[]") or [{}]
        ]
        return Finding(
            examined=finding.examined + sum(reading["examined"] for reading in judged),
            violations=finding.violations + sum(reading["violations"] for reading in judged),
            witness=[*finding.witness, *seen][:WITNESS_MAX],
            unresolved=finding.unresolved,
            detail=finding.detail or _remark(len(readings) - len(judged)),
        )

    return with_readings


def _remark(set_aside: int) -> str | None:
    return f"{set_aside} readings were set aside: a fault disturbed them on purpose" if set_aside else None
