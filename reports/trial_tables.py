"""What the trial wrote beside the history, as tables: faults, fault_windows, samples, probes, events."""

from __future__ import annotations

from pathlib import Path

import duckdb
import msgspec

from reports.json_lines import only, read_lines
from scenarios.history import FaultRow, Probe, Sample


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One row of events.jsonl, as far as it is judged."""

    time_ns: int
    event: str
    at_ns: int | None = None
    active: int | None = None
    prepared: int | None = None
    drained: bool | None = None
    why: str | None = None


FAULTS = {
    "time_ns": "BIGINT",
    "fault_id": "VARCHAR",
    "fault": "VARCHAR",
    "state": "VARCHAR",
    "target": "VARCHAR",
    "evidence": "JSON",
}
SAMPLES = {
    "time_ns": "BIGINT",
    "phase": "VARCHAR",
    "users": "BIGINT",
    "in_flight": "BIGINT",
    "processes": "JSON",
    "commits": "BIGINT",
    "lock_waits": "BIGINT",
    "backends_active": "BIGINT",
    "pool_size": "BIGINT",
    "pool_waiting": "BIGINT",
    "health_ms": "DOUBLE",
}
RESULT = "STRUCT(examined BIGINT, violations BIGINT, witness JSON)"
PROBES = {
    "time_ns": "BIGINT",
    "snapshot": "VARCHAR",
    "took_ms": "DOUBLE",
    "results": f"MAP(VARCHAR, {RESULT})",
    "entries": "JSON[][]",
    "error": "VARCHAR",
}
EVENTS = {
    "time_ns": "BIGINT",
    "event": "VARCHAR",
    "at_ns": "BIGINT",
    "active": "BIGINT",
    "prepared": "BIGINT",
    "drained": "BOOLEAN",
    "why": "VARCHAR",
}
FILES: dict[str, tuple[dict[str, str], type[msgspec.Struct]]] = {
    "faults": (FAULTS, FaultRow),
    "samples": (SAMPLES, Sample),
    "probes": (PROBES, Probe),
    "events": (EVENTS, Event),
}

# A fault is in effect from the moment it was armed, which is at most its trigger early, until it was healed;
# one that was only planned, or was given up before it was armed, never was. Null: it was never healed.
# `felt`: traders may feel it. What hits relay, chain, the line between them or the world behind them excuses
# nothing.
FAULT_WINDOWS = """
CREATE TABLE fault_windows AS
SELECT fault_id, any_value(fault) AS fault,
       coalesce(any_value(target), '') NOT IN ('relay', 'chain', 'line', 'receiver') AS felt,
       min(time_ns) FILTER (state IN ('armed', 'landed')) AS from_ns,
       max(time_ns) FILTER (state IN ('healed', 'failed')) AS to_ns
FROM faults GROUP BY fault_id HAVING from_ns IS NOT NULL ORDER BY from_ns, fault_id
"""

PROBE_RESULTS = """
CREATE TABLE probe_results AS
SELECT time_ns, key AS name, value.examined AS examined, value.violations AS violations,
       coalesce(value.witness, '[]') AS witness
FROM (SELECT time_ns, unnest(map_entries(results), recursive := false) AS result FROM probes),
     LATERAL (SELECT result.key AS key, result.value AS value)
"""

PROBE_ENTRIES = """
CREATE TABLE probe_entries AS
SELECT time_ns, (entry[1])::BIGINT AS entry_id, entry[2] ->> '$' AS digest
FROM (SELECT time_ns, unnest(entries) AS entry FROM probes)
"""


def read_trial(db: duckdb.DuckDBPyConnection, run: Path) -> None:
    """Make the tables of the trial; an absent file is an empty table. Raises HistoryError."""
    for name, (columns, kind) in FILES.items():
        db.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {of}' for column, of in columns.items())})")
        path = run / f"{name}.jsonl"
        if path.is_file():
            read_lines(db, path, f"INSERT INTO {name} FROM", columns, only(kind))
    db.execute("UPDATE faults SET evidence = '{}' WHERE evidence IS NULL")
    db.execute("UPDATE samples SET processes = '{}' WHERE processes IS NULL")
    for derived in (FAULT_WINDOWS, PROBE_RESULTS, PROBE_ENTRIES):
        db.execute(derived)
