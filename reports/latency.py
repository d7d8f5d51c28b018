"""Latencies and thresholds: exact percentiles from the history, never from a sketch of it.

Response time is what a client of a loaded system meets: from the intended start of an operation to its
answer, through all its retries. Service time is the one attempt that brought the answer. An operation that
never got one counts with the time until its client gave up: leaving it out would flatter every percentile.

Deposits are no part of it: they go to the chain's node, and measure the node.
"""

from __future__ import annotations

from typing import Any

import msgspec

from reports.evidence import Evidence
from reports.history_tables import OF_THE_NODE
from reports.phases import SAMPLE_PHASES
from reports.verdict import Latency, Threshold

PHASES = ("all", "steady", "fault", "recovery")
KINDS = ("response", "service")
LEVELS = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
UNREAD_HEALTH_MS = 1000.0  # the sampler's patience: a health check it could not read took at least as long


def make_answered(evidence: Evidence) -> None:
    """The table `answered`: one row an operation of the load, with response and service time in ms."""
    origin_ns = evidence.load_started_ns
    evidence.db.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE answered AS
        SELECT o.operation, o.type AS outcome, o.trade_id, o.end_ns,
               (o.intended_ns - {origin_ns}) / 1e9 AS at_s,
               (o.answer_ns - o.intended_ns) / 1e6 AS response_ms,
               coalesce(o.latency_ns, o.answer_ns - o.first_invoke_ns) / 1e6 AS service_ms, p.phase
        FROM operations o JOIN operation_phases p USING (operation)
        WHERE o.intended_ns >= {origin_ns} AND NOT {OF_THE_NODE}
        """
    )


def read_latency(evidence: Evidence) -> Latency:
    """Percentiles by phase and kind, from the table `answered`; a phase without operations is absent."""
    levels = list(LEVELS.values())
    rows = evidence.db.execute(
        f"""
        SELECT coalesce(phase, 'all'), count(*), quantile_disc(response_ms, {levels}),
               quantile_disc(service_ms, {levels})
        FROM answered GROUP BY GROUPING SETS ((phase), ())
        """
    ).fetchall()
    found: dict[str, tuple[int, list[float], list[float]]] = {row[0]: row[1:] for row in rows if row[1]}
    return {
        phase: {
            kind: {"count": found[phase][0]}
            | {name: round(value, 3) for name, value in zip(LEVELS, values, strict=True)}
            for kind, values in zip(KINDS, found[phase][1:], strict=True)
        }
        for phase in PHASES
        if phase in found
    }


def read_totals(evidence: Evidence) -> dict[str, Any]:
    """What the run amounted to, from the table `answered` and the records beside it."""
    operations, ok, fail, info = evidence.db.execute(
        "SELECT count(*), count(*) FILTER (outcome = 'ok'), count(*) FILTER (outcome = 'fail'),"
        " count(*) FILTER (outcome = 'info') FROM answered"
    ).fetchone() or (0, 0, 0, 0)
    load_s = seconds_of_load(evidence)
    end_ns = evidence.load_started_ns + int(load_s * 1e9)
    trades = evidence.scalar("SELECT count(*) FROM answered WHERE trade_id IS NOT NULL AND outcome = 'ok'")
    in_time = evidence.scalar(
        "SELECT count(*) FROM answered WHERE trade_id IS NOT NULL AND outcome = 'ok' AND end_ns <= ?", end_ns
    )
    return {
        "load_s": round(load_s, 3),
        "users_most": evidence.scalar("SELECT coalesce(max(users), 0) FROM samples"),
        "operations": operations,
        "ok": ok,
        "fail": fail,
        "info": info,
        "attempts": evidence.scalar(
            f"SELECT count(*) FROM attempts WHERE intended_ns >= ? AND NOT {OF_THE_NODE}",
            evidence.load_started_ns,
        ),
        "trades": trades,
        "trades_per_s": round(in_time / load_s, 3) if load_s else 0.0,
        "faults_planned": evidence.scalar("SELECT count(DISTINCT fault_id) FROM faults"),
        "faults_landed": evidence.scalar(
            "SELECT count(DISTINCT fault_id) FROM faults WHERE state = 'landed'"
        ),
    }


def seconds_of_load(evidence: Evidence) -> float:
    """How long the load lasted: as planned, or less when it was stopped before."""
    return min(evidence.plan.plan.load_s, (evidence.load_ended_ns - evidence.load_started_ns) / 1e9)


def read_thresholds(evidence: Evidence, latency: Latency, totals: dict[str, Any]) -> list[Threshold]:
    """The plan's limits against what was measured."""
    steady = latency.get("steady", {}).get("response", {})
    operations = totals["operations"]
    measured = {
        "steady_p99_ms": steady.get("p99_ms"),
        "steady_p50_ms": steady.get("p50_ms"),
        "trades_per_s": totals["trades_per_s"] if operations else None,
        "info_fraction": round(totals["info"] / operations, 6) if operations else None,
        "health_p99_ms": evidence.scalar(
            f"SELECT quantile_disc(coalesce(health_ms, {UNREAD_HEALTH_MS}), 0.99) FROM ({SAMPLE_PHASES})"
            " WHERE phase_of_faults = 'steady' AND time_ns BETWEEN ? AND ?",
            evidence.load_started_ns,
            evidence.load_ended_ns,
        ),
    }
    found = []
    for name, limit in msgspec.structs.asdict(evidence.plan.plan.thresholds).items():
        if limit is None:
            continue
        value = measured[name]
        kept = value is not None and (value >= limit if name == "trades_per_s" else value <= limit)
        found.append(Threshold(name=name, limit=limit, value=value, kept=kept))
    return found
