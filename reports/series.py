"""The series of a run: every number that a figure draws, taken from the evidence in one place.

Response time is what a client of a loaded system meets: from the intended start of an operation to its
answer, through all its retries. Service time is one attempt on the wire. Both are binned by when the
operation was due, not by when it ended: a stall then shows where it began, as wrk2 does it, and not as one
late point after it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.evidence import Evidence
from reports.history_tables import OF_THE_NODE
from reports.latency import make_answered

OUTCOMES = ("ok", "fail", "info")
PHASES = ("steady", "fault", "recovery")
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
OK_POINTS_MAX = 40_000  # beyond this a scatter is a smear and a PNG is megabytes
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """One stretch of time in which one fault, or several of the same kind, were in effect."""

    fault: str
    from_s: float
    to_s: float
    name_width_s: float = 0.0


@dataclass(frozen=True)
class Points:
    """Marks of the scatter; `total` counts also those left out of a crowded second."""

    at_s: Floats
    latency_ms: Floats
    total: int


@dataclass(frozen=True)
class Spectrum:
    """Exact quantiles of one phase."""

    count: int
    quantiles: list[float]
    response_ms: list[float]
    service_ms: list[float]


@dataclass(frozen=True)
class Series:
    """Everything the figures draw; times in seconds since the load began."""

    end_s: float
    windows: list[Window]
    points: dict[str, Points]
    second_s: Floats
    response_ms: dict[str, Floats]
    service_ms: dict[str, Floats]
    rate: dict[str, Floats]
    spectra: dict[str, Spectrum]
    sample_s: Floats
    users: list[float] = field(default_factory=list)
    in_flight: list[float] = field(default_factory=list)
    commits_per_s: list[float] = field(default_factory=list)
    lock_waits: list[float] = field(default_factory=list)
    cpu_percent: dict[str, list[float]] = field(default_factory=dict)


def read_series(evidence: Evidence) -> Series:
    """Query every series once; a run without load gives empty ones."""
    origin_ns, end_ns = load_bounds_ns(evidence)
    end_s = max(1.0, (end_ns - origin_ns) / 1e9)
    make_answered(evidence)
    seconds = math.ceil(end_s)
    second_s = np.arange(seconds, dtype=np.float64)
    response, service = per_second(evidence, seconds)
    samples = read_samples(evidence, origin_ns)
    return Series(
        end_s=end_s,
        windows=read_windows(evidence, origin_ns, end_s),
        points={outcome: read_points(evidence, outcome) for outcome in OUTCOMES},
        second_s=second_s,
        response_ms=response,
        service_ms=service,
        rate=read_rate(evidence, origin_ns, seconds),
        spectra={phase: read_spectrum(evidence, phase) for phase in PHASES},
        **samples,
    )


def load_bounds_ns(evidence: Evidence) -> tuple[int, int]:
    """When the load began and when its last operation ended (CLOCK_MONOTONIC nanoseconds)."""
    last = evidence.scalar("SELECT max(answer_ns) FROM operations")
    return evidence.load_started_ns, max(evidence.load_started_ns, last or 0)


def read_points(evidence: Evidence, outcome: str) -> Points:
    """Marks of one outcome; of a crowd of ok marks a hash of the operation picks who is drawn."""
    total = evidence.scalar("SELECT count(*) FROM answered WHERE outcome = ?", outcome)
    thinned = ""
    if outcome == "ok" and total > OK_POINTS_MAX:
        # The slowest of each second stay: they are what the picture is for.
        share = math.ceil(total / OK_POINTS_MAX)
        slowest = "row_number() OVER (PARTITION BY floor(at_s) ORDER BY response_ms DESC) <= 5"
        thinned = f"QUALIFY hash(operation) % {share} = 0 OR {slowest}"
    drawn = evidence.db.execute(
        f"SELECT at_s, response_ms FROM answered WHERE outcome = ? {thinned} ORDER BY at_s", [outcome]
    ).fetchnumpy()
    return Points(
        at_s=np.asarray(drawn["at_s"], dtype=np.float64),
        latency_ms=np.maximum(np.asarray(drawn["response_ms"], dtype=np.float64), 0.01),
        total=int(total),
    )


def per_second(evidence: Evidence, seconds: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Exact percentiles of each second, NaN where nothing was due."""
    found = {
        kind: {name: np.full(seconds, np.nan) for name in PERCENTILES}
        for kind in ("response_ms", "service_ms")
    }
    levels = list(PERCENTILES.values())
    for kind, series in found.items():
        rows = evidence.db.execute(
            f"SELECT floor(at_s)::INT, quantile_disc({kind}, {levels}) FROM answered GROUP BY 1"
        ).fetchall()
        for second, values in rows:
            if values is not None and 0 <= second < seconds:
                for name, value in zip(PERCENTILES, values, strict=True):
                    series[name][second] = value
    return found["response_ms"], found["service_ms"]


def read_rate(evidence: Evidence, origin_ns: int, seconds: int) -> dict[str, Floats]:
    """Attempts completed in each second, by outcome."""
    found = {outcome: np.zeros(seconds) for outcome in OUTCOMES}
    rows = evidence.db.execute(
        f"""
        SELECT floor((coalesce(complete_ns, invoke_ns) - {origin_ns}) / 1e9)::INT, type, count(*)
        FROM attempts WHERE invoke_ns >= {origin_ns} AND NOT {OF_THE_NODE} GROUP BY 1, 2
        """
    ).fetchall()
    for second, outcome, count in rows:
        if 0 <= second < seconds:
            found[outcome][second] = count
    return found


def read_spectrum(evidence: Evidence, phase: str) -> Spectrum:
    """Exact quantiles at twelve points for each nine, as far as the count reaches."""
    count = int(evidence.scalar("SELECT count(*) FROM answered WHERE phase = ?", phase))
    if not count:
        return Spectrum(count=0, quantiles=[], response_ms=[], service_ms=[])
    steps = int(12 * math.log10(count)) + 1
    quantiles = [1 - 10 ** (-step / 12) for step in range(steps)]
    response, service = evidence.db.execute(
        f"""
        SELECT quantile_disc(response_ms, {quantiles}), quantile_disc(service_ms, {quantiles})
        FROM answered WHERE phase = ?
        """,
        [phase],
    ).fetchone() or ([], [])
    return Spectrum(count=count, quantiles=quantiles, response_ms=list(response), service_ms=list(service))


def read_windows(evidence: Evidence, origin_ns: int, end_s: float) -> list[Window]:
    """Fault windows; those of one fault that touch or nearly touch (a picture's pixel) become one."""
    rows = evidence.db.execute("SELECT fault, from_ns, to_ns FROM fault_windows ORDER BY from_ns").fetchall()
    pixel_s = end_s / 400
    merged: list[Window] = []
    open_at: dict[str, int] = {}
    for fault, from_ns, to_ns in rows:
        from_s = (from_ns - origin_ns) / 1e9
        to_s = max(from_s + pixel_s, (to_ns - origin_ns) / 1e9) if to_ns is not None else end_s
        before = open_at.get(fault)
        if before is not None and from_s <= merged[before].to_s + 3 * pixel_s:
            known = merged[before]
            merged[before] = Window(fault, known.from_s, max(known.to_s, to_s), known.name_width_s)
            continue
        open_at[fault] = len(merged)
        merged.append(Window(fault, from_s, to_s, name_width_s=end_s * len(fault) / 170))
    return merged


def read_samples(evidence: Evidence, origin_ns: int) -> dict[str, Any]:
    """Columns of samples.jsonl since the load began; a missing reading is NaN, drawn as a gap."""
    rows = evidence.rows(
        "SELECT time_ns, coalesce(users, 0) AS users, coalesce(in_flight, 0) AS in_flight, processes,"
        " commits, lock_waits FROM samples WHERE time_ns >= ? ORDER BY time_ns",
        origin_ns,
    )
    at_s = np.asarray([(row["time_ns"] - origin_ns) / 1e9 for row in rows], dtype=np.float64)
    processes = [as_mapping(row["processes"]) for row in rows]
    names = sorted({name for sample in processes for name in sample})
    commits = [math.nan if row["commits"] is None else float(row["commits"]) for row in rows]
    rates = [math.nan] * len(rows)
    for index in range(1, len(rows)):
        passed_s = at_s[index] - at_s[index - 1]
        grown = commits[index] - commits[index - 1]
        # PostgreSQL's counters start again after a crash: a negative growth is no rate.
        rates[index] = grown / passed_s if passed_s > 0 and grown >= 0 else math.nan
    return {
        "sample_s": at_s,
        "users": [float(row["users"]) for row in rows],
        "in_flight": [float(row["in_flight"]) for row in rows],
        "commits_per_s": rates,
        "lock_waits": [math.nan if row["lock_waits"] is None else float(row["lock_waits"]) for row in rows],
        "cpu_percent": {
            name: [float(sample[name]["cpu_percent"]) if name in sample else math.nan for sample in processes]
            for name in names
        },
    }


def as_mapping(value: Any) -> dict[str, dict[str, float]]:
    """A JSON column of DuckDB as a dictionary."""
    return json.loads(value) if isinstance(value, str) else dict(value or {})
