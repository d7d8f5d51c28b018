"""Service: what breaks comes back by itself, and what is not broken does not fail.

The bound is the plan's `service.recovery_s`, seconds after a fault is healed.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.history_tables import OF_THE_NODE
from reports.invariants.registry import Finding, invariant
from reports.phases import FOREVER_NS

OF_THE_SERVICE = f"NOT {OF_THE_NODE}"


@invariant(group="service", unit="heals and the load's start", needs_state=False)
def the_service_recovers(evidence: Evidence) -> Finding:
    """Within the plan's recovery_s after each heal, and after the load began, some operation succeeds.

    Not examined are heals into another fault, heals too near to the end of the load, and those after which
    nobody asked for anything in the first half of the time.
    """
    recovery_ns = int(evidence.plan.plan.service.recovery_s * 1e9)
    moments = f"""
        WITH moments AS (
            SELECT fault_id, fault, to_ns AS at_ns FROM fault_windows WHERE to_ns IS NOT NULL
            UNION ALL
            SELECT NULL, 'the start of the load', {evidence.load_started_ns}
        ),
        oks AS (SELECT complete_ns FROM attempts WHERE type = 'ok' AND {OF_THE_SERVICE}),
        asked AS (SELECT invoke_ns FROM attempts WHERE {OF_THE_SERVICE}),
        found AS (
            SELECT m.*, o.complete_ns - m.at_ns AS served_ns, a.invoke_ns - m.at_ns AS asked_ns,
                EXISTS (
                    SELECT 1 FROM fault_windows AS w
                    WHERE w.felt AND w.fault_id IS DISTINCT FROM m.fault_id
                        AND w.from_ns <= m.at_ns + {recovery_ns}
                        AND coalesce(w.to_ns, {FOREVER_NS}) > m.at_ns
                ) AS broken_again
            FROM moments AS m
            ASOF LEFT JOIN oks AS o ON m.at_ns < o.complete_ns
            ASOF LEFT JOIN asked AS a ON m.at_ns <= a.invoke_ns
        )
        SELECT *, coalesce(served_ns <= {recovery_ns}, false) AS served FROM found
        WHERE served OR (NOT broken_again AND asked_ns <= {recovery_ns // 2}
            AND at_ns + {recovery_ns} <= {evidence.load_ended_ns})
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({moments})",
        breaches=f"""
            SELECT at_ns, fault_id, fault, served_ns / 1e9 AS first_ok_after_s FROM ({moments})
            WHERE NOT served
        """,
    )


@invariant(group="service", unit="attempts", needs_state=False)
def errors_stay_inside_fault_windows(evidence: Evidence) -> Finding:
    """No attempt meets an error unless a fault was in effect, or healed less than recovery_s before it began.

    An error is an unknown outcome (no reply, a torn one, an undeclared status) or a refused connection. The
    grace is exact: an error is inside a window when the attempt ended at or after the fault was armed and
    began at most recovery_s after it was healed. No errors are declared refusals, 503 `overloaded` among
    them, and replies that were too late for their client's patience: both are slowness, which the thresholds
    count in full (and who never gets an answer is for every_key_reaches_an_answer). Nor is
    `idempotency_key_in_progress`, which only says that an earlier attempt is not over, nor an attempt that
    the load itself cut short when it was stopped. A deposit is asked of the chain's node, not of the service.

    Only a fault that traders may feel is an excuse: not one of a relay, the chain, or the line between them.
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM attempts WHERE complete_ns IS NOT NULL AND {OF_THE_SERVICE}",
        breaches=f"""
            WITH errors AS (
                SELECT * FROM attempts
                WHERE complete_ns IS NOT NULL AND {OF_THE_SERVICE}
                    AND coalesce(error, '') NOT IN ('stopped', 'timeout')
                    AND ((type = 'info' AND code IS DISTINCT FROM 'idempotency_key_in_progress')
                        OR (type = 'fail' AND status IS NULL))
            )
            SELECT e.invoke_ns, e.operation, e.attempt, e.action, e.status, e.code, e.error,
                e.latency_ns / 1e6 AS latency_ms
            FROM errors AS e
            ASOF LEFT JOIN fault_spans AS f ON e.complete_ns >= f.from_ns
            ASOF LEFT JOIN recovery_spans AS r ON e.complete_ns >= r.from_ns
            WHERE coalesce(f.to_ns, 0) < e.invoke_ns AND coalesce(r.to_ns, 0) < e.invoke_ns
        """,
    )
