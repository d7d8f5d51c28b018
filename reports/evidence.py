"""A run directory as tables: everything the judge may look at, validated, in one in-memory DuckDB.

The tables, by who makes them: histories, attempts, operations (reports/history_tables.py); faults,
fault_windows, samples, probes, probe_results, probe_entries, events (reports/trial_tables.py); one for
each view of docs/books.md (reports/state_tables.py); chain_head, chain_blocks, chain_deposits,
chain_payments, deliveries (reports/chain_tables.py); operation_phases (reports/phases.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from reports.chain_tables import read_chain
from reports.history_tables import read_history
from reports.phases import make_operation_phases
from reports.state_tables import RunError, check_manifest, read_state
from reports.trial_tables import read_trial
from scenarios.plan import PlanError, RunPlan, read_run_plan

__all__ = ["Evidence", "RunError", "open_evidence"]

MEMORY_LIMIT = "3GB"


# Everything that says why something happened ended the trial early, except the choice of the target.
ENDINGS = """
SELECT event, why FROM events WHERE why IS NOT NULL AND event NOT IN ('target_healthy', 'drained')
ORDER BY time_ns
"""
NOT_DRAINED = "SELECT coalesce(why, 'no reason is given') FROM events WHERE event = 'drained' AND NOT drained"


class Evidence:
    """One run, open for judging.

    `has_chain`: money came in and went out over a chain. `has_state`, `has_chain_state`: the books, and what
    chain and world saw, were recorded to the end. `incomplete` says what is missing of the record; `memo`
    keeps what several checkers share. `load_started_ns` is when the load left its set-up, `load_ended_ns`
    when it was stopped.
    """

    def __init__(self, run: Path, plan: RunPlan, db: duckdb.DuckDBPyConnection) -> None:
        self.run = run
        self.plan = plan
        self.db = db
        self.has_chain = plan.plan.chain is not None
        self.has_state = False
        self.has_chain_state = False
        self.incomplete: list[str] = []
        self.load_started_ns = 0
        self.load_ended_ns = 0
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
    if not run.is_dir():
        raise RunError(f"{run}: no such folder; name a run directory, such as one in runs/")
    try:
        plan = read_run_plan(run)
    except PlanError as error:
        raise RunError(f"{run} is not a run: {error}") from None
    files = sorted((run / "history").glob("*.jsonl"))
    if not files:
        raise RunError(f"{run} has no history: no load was recorded, so there is nothing to judge")
    db = duckdb.connect()
    try:
        db.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        db.execute("SET TimeZone = 'UTC'")
        db.execute("SET enable_progress_bar = false")
        evidence = Evidence(run, plan, db)
        read_history(db, files, has_chain=evidence.has_chain)
        read_trial(db, run)
        missing = read_state(db, run, has_chain=evidence.has_chain)
        evidence.has_state = not missing
        unseen = read_chain(db, run, has_chain=evidence.has_chain)
        evidence.has_chain_state = evidence.has_chain and not unseen
        missing = missing or check_manifest(db, run, has_chain=evidence.has_chain)
        evidence.incomplete = incomplete(evidence) + missing + unseen
        evidence.load_started_ns, evidence.load_ended_ns = load_bounds_ns(evidence)
        make_operation_phases(db, recovery_s=plan.plan.service.recovery_s)
    except BaseException:
        db.close()
        raise
    return evidence


def incomplete(evidence: Evidence) -> list[str]:
    """What the record says about its own gaps."""
    reasons = [
        f"history/{row['file']} was cut short: {row['cut']}"
        for row in evidence.rows("SELECT file, cut FROM histories WHERE cut IS NOT NULL ORDER BY file")
    ]
    if not evidence.scalar("SELECT count(*) FROM events WHERE event = 'load_started'"):
        reasons.append("the load never began")
    if not evidence.scalar("SELECT count(*) FROM events WHERE event = 'quiescent'"):
        reasons.append("the system was never brought to rest")
    reasons += [f"{row['event']}: {row['why']}" for row in evidence.rows(ENDINGS)]
    return reasons + (not_drained(evidence) if evidence.has_chain else [])


def not_drained(evidence: Evidence) -> list[str]:
    """Why relay and chain did not come to their end, as far as the trial says so."""
    if not evidence.scalar("SELECT count(*) FROM events WHERE event = 'drained'"):
        return ["relay and chain were never drained"]
    why = evidence.scalar(NOT_DRAINED)
    return [] if why is None else [f"relay and chain were not drained: {why}"]


def load_bounds_ns(evidence: Evidence) -> tuple[int, int]:
    """When the load began and when it was stopped; the history's own bounds where no event says so."""
    started, stopped = evidence.db.execute(
        "SELECT min(coalesce(at_ns, time_ns)) FILTER (event = 'load_started'),"
        " max(time_ns) FILTER (event = 'load_stopped') FROM events"
    ).fetchone() or (None, None)
    first, last = evidence.db.execute(
        "SELECT min(intended_ns), max(answer_ns) FROM operations"
    ).fetchone() or (None, None)
    return (started or first or 0), (stopped or last or 0)
