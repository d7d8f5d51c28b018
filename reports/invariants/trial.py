"""The trial itself: whether the run could have shown a defect. These never say that the system is wrong.

A trial that fails one of them is inconclusive: its faults did not land, its load did not do what the plan
says, its unknowns stayed unknown, its checkers overlooked a known defect, or the generator was too slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.evidence import Evidence, open_evidence
from reports.history_tables import OF_THE_NODE
from reports.invariants.registry import REGISTRY, WITNESS_MAX, Finding, Invariant, invariant

CANARIES = Path(__file__).parent.parent / "canaries"

# The latencies of a report are wrong by at most this, for 99 of 100 operations.
LATENESS_P99_MAX_MS = 100.0
# A generator this near to a whole core queues its own requests ...
BUSY_CPU_PERCENT = 95.0
# ... and may be for a moment, as when the crowd arrives.
BUSY_SHARE_MAX = 0.1


@invariant(group="trial", unit="faults and the plan", needs_state=False)
def every_fault_landed(evidence: Evidence) -> Finding:
    """Every fault of the plan was planned, landed on evidence, and was healed."""
    asked: dict[str, int] = {}
    for fault in evidence.plan.plan.faults:
        asked[fault.fault] = asked.get(fault.fault, 0) + fault.count
    lives = evidence.rows("""
        SELECT fault_id, fault, CASE WHEN NOT landed THEN 'never landed' WHEN NOT proven THEN
            'landed without evidence' WHEN NOT healed THEN 'never healed' END AS problem, why
        FROM (
            SELECT fault_id, any_value(fault) AS fault, bool_or(state = 'landed') AS landed,
                bool_or(state = 'landed' AND evidence::VARCHAR NOT IN ('{}', 'null')) AS proven,
                bool_or(state = 'healed') AS healed,
                any_value(evidence ->> 'why') FILTER (state = 'failed') AS why
            FROM faults GROUP BY fault_id
        )
        ORDER BY fault_id
    """)
    missed = [
        {name: value for name, value in life.items() if value is not None}
        for life in lives
        if life["problem"]
    ]
    for name, count in sorted(asked.items()):
        planned = sum(life["fault"] == name for life in lives)
        if planned < count:
            missed.append({"fault": name, "problem": f"{planned} of {count} were planned"})
    examined = 1 + max(len(lives), sum(asked.values()))
    return _doubt(examined, missed, f"{len(missed)} of {examined}, as {_story(missed)}" if missed else None)


@invariant(group="trial", unit="stages, actions and phases", needs_state=False)
def every_phase_was_exercised(evidence: Evidence) -> Finding:
    """Every stage had a success, every action of the mix an answer, every phase an operation.

    A deposit's answer is the node's; a stage and a phase need an operation of the system.
    """
    plan = evidence.plan.plan
    wanted: list[tuple[str, str]] = []
    at_ns, before = evidence.load_started_ns, 0
    for stage in plan.stages:
        to_ns = at_ns + int((stage.ramp_s + stage.hold_s) * 1e9)
        if stage.users > 0 or (before > 0 and stage.ramp_s > 0):
            wanted.append(
                (
                    f"stage {stage.name}",
                    f"type = 'ok' AND first_invoke_ns BETWEEN {at_ns} AND {to_ns} AND NOT {OF_THE_NODE}",
                )
            )
        at_ns, before = to_ns, stage.users
    for action in sorted(name for name, weight in plan.mix.items() if weight > 0):
        condition = (
            "end_ns < last_invoke_ns" if action == "replay" else f"action = '{action}' AND type <> 'info'"
        )
        wanted.append((f"action {action}", condition))
    felt = evidence.scalar("SELECT coalesce(bool_or(felt), true) FROM fault_windows")
    phases = ("steady", "fault", "recovery") if plan.faults and felt else ("steady",)
    wanted += [(f"phase {phase}", f"phase = '{phase}' AND NOT {OF_THE_NODE}") for phase in phases]
    counts = ", ".join(f"count(*) FILTER ({condition})" for _, condition in wanted)
    found = evidence.db.execute(f"""
        SELECT {counts} FROM operations JOIN operation_phases USING (operation)
        LEFT JOIN (SELECT operation, max(invoke_ns) AS last_invoke_ns FROM attempts WHERE attempt > 1
            GROUP BY operation) USING (operation)
    """).fetchone() or (0,) * len(wanted)
    missed = [{"missing": name} for (name, _), count in zip(wanted, found, strict=True) if not count]
    names = ", ".join(row["missing"] for row in missed)
    return _doubt(len(wanted), missed, f"no operation in {names}" if missed else None)


@invariant(group="trial", unit="operations under a key")
def every_unknown_was_resolved(evidence: Evidence) -> Finding:
    """What no reply decided, the books decide: they were read when nothing could change them any more."""
    total, unknown = evidence.db.execute(
        "SELECT count(*), count(*) FILTER (type = 'info') FROM operations WHERE key IS NOT NULL"
    ).fetchone() or (0, 0)
    quiet = evidence.scalar(
        "SELECT bool_and(active = 0 AND prepared = 0) FROM events WHERE event = 'quiescent'"
    )
    half = evidence.rows(
        "SELECT user_id, idempotency_key AS key FROM idempotency_keys WHERE status IS NULL LIMIT 10"
    )
    if unknown and not quiet:
        return _doubt(total, [], f"{unknown} unknown outcomes, and no proof that the system had come to rest")
    return _doubt(total, half, f"{_story(half)} has no stored answer" if half else None)


@invariant(group="trial", unit="checkers", needs_state=False)
def canaries_are_caught(evidence: Evidence) -> Finding:
    """Every checker sees the defect of its canary: a small run that is wrong in the way it looks for."""
    del evidence  # the run that is judged has no part in this
    checkers = [known for known in REGISTRY if known.group != "trial"]
    canary = open_evidence(CANARIES / "run")
    try:
        missed = [
            {"invariant": known.name, "problem": problem}
            for known in checkers
            if (problem := _overlooks(canary, known)) is not None
        ]
    finally:
        canary.close()
    story = f"{len(missed)} of {len(checkers)} missed, as {_story(missed)}" if missed else None
    return _doubt(len(checkers), missed, story)


def _overlooks(canary: Evidence, known: Invariant) -> str | None:
    """Why a checker does not catch its canary, None when it does; the evidence is as before afterwards."""
    defect = CANARIES / f"{known.name}.sql"
    if not defect.is_file():
        return "it has no canary"
    canary.memo.clear()
    canary.db.execute("BEGIN")
    try:
        canary.db.execute(defect.read_text(encoding="utf-8"))
        found = known.check(canary)
    except Exception as error:  # noqa: BLE001  a checker that crashes has caught nothing
        return f"it crashed: {error!r}"
    finally:
        canary.db.execute("ROLLBACK")
        canary.memo.clear()
    return None if found.violations else f"it saw nothing in {found.examined} {known.unit}"


@invariant(group="trial", unit="operations", needs_state=False)
def the_generator_kept_up(evidence: Evidence) -> Finding:
    """The load was as late as the system made it, not later: 99 % of operations began within 100 ms.

    They count from the intended start, or the end of the same process's operation before it if
    that came later. Its load process had a core's worth of time left in nine seconds of ten, and closed its
    history itself.
    """
    evidence.db.execute("""
        CREATE OR REPLACE TEMP TABLE starts AS
        SELECT operation, attempt,
            (invoke_ns - greatest(intended_ns, coalesce(before_ns, 0))) / 1e6 AS late_ms
        FROM (
            SELECT operation, attempt, invoke_ns, intended_ns, lag(complete_ns) OVER own AS before_ns,
                lag(intended_ns) OVER own AS intended_before_ns
            FROM attempts
            WINDOW own AS (PARTITION BY writer, split_part(process, '.', 1) ORDER BY invoke_ns)
        )
        WHERE intended_ns IS DISTINCT FROM intended_before_ns
    """)
    try:
        total, late_ms = evidence.db.execute(
            "SELECT count(*), coalesce(quantile_cont(late_ms, 0.99), 0) FROM starts"
        ).fetchone() or (0, 0.0)
        latest = evidence.rows(
            f"SELECT * FROM starts ORDER BY late_ms DESC, operation, attempt LIMIT {WITNESS_MAX}"
        )
    finally:
        evidence.db.execute("DROP TABLE starts")
    seconds, busy = evidence.db.execute(
        f"""SELECT count(cpu), count(*) FILTER (cpu >= {BUSY_CPU_PERCENT})
        FROM (SELECT (processes ->> '$.load.cpu_percent')::DOUBLE AS cpu FROM samples
            WHERE time_ns BETWEEN ? AND ?)""",
        [evidence.load_started_ns, evidence.load_ended_ns],
    ).fetchone() or (0, 0)
    doubts = [
        f"the history of {row['writer']} was cut short: {row['cut']}"
        for row in evidence.rows("SELECT writer, cut FROM histories WHERE cut IS NOT NULL ORDER BY writer")
    ]
    if late_ms > LATENESS_P99_MAX_MS:
        doubts.append(f"1 % of operations began more than {late_ms:.0f} ms late by the generator's own fault")
    if not seconds:
        doubts.append("no sample shows the load process")
    elif busy > BUSY_SHARE_MAX * seconds:
        doubts.append(f"the load process had used up its core in {busy} of {seconds} seconds")
    return _doubt(total, latest if late_ms > LATENESS_P99_MAX_MS else [], "; ".join(doubts) or None)


def _doubt(examined: int, witness: list[dict[str, Any]], unresolved: str | None) -> Finding:
    """A finding of the trial: no violations, only doubt."""
    return Finding(examined=examined, violations=0, witness=witness[:WITNESS_MAX], unresolved=unresolved)


def _story(rows: list[dict[str, Any]]) -> str:
    """The first of some rows, in words."""
    return " ".join(str(value) for value in rows[0].values())
