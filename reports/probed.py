"""Invariants that hold at any instant: what the probe saw of them counts beside the state at the end."""

from __future__ import annotations

import functools
import json

from reports.evidence import Evidence
from reports.invariants.registry import WITNESS_MAX, Check, Finding


def probed(check: Check) -> Check:
    """Add to a check's finding what the probe's readings of the same name found while the load went on."""

    @functools.wraps(check)
    def with_readings(evidence: Evidence) -> Finding:
        finding = check(evidence)
        breached = evidence.rows(
            "SELECT time_ns, violations, witness FROM probe_results WHERE name = ? AND violations > 0"
            " ORDER BY time_ns",
            check.__name__,
        )
        examined = evidence.scalar("SELECT sum(examined) FROM probe_results WHERE name = ?", check.__name__)
        seen = [
            {"probed_ns": reading["time_ns"], **row}
            for reading in breached
            for row in json.loads(reading["witness"] or "[]") or [{}]
        ]
        return Finding(
            examined=finding.examined + int(examined or 0),
            violations=finding.violations + sum(reading["violations"] for reading in breached),
            witness=[*finding.witness, *seen][:WITNESS_MAX],
            unresolved=finding.unresolved,
            detail=finding.detail,
        )

    return with_readings
