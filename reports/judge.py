"""The judge: a run directory in, a verdict out; a pure function of the folder.

1. The evidence is opened, which refuses a folder that is not a run and a history that is malformed.
2. Every registered invariant looks at it, those of outbox and chain only where there is one. One that
   crashes, examined nothing or could not decide is inconclusive. Those of the trial itself never say that the
   system is wrong: at worst they are, too.
3. Latencies are measured and held against the plan's thresholds.
4. The worst wins: fail, inconclusive, slow, pass.

Nothing in a verdict depends on when or where it was reached: judging twice gives the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import traceback
from pathlib import Path
from typing import Any

import msgspec

from reports.evidence import Evidence, open_evidence
from reports.invariants.registry import WITNESS_MAX, Invariant, load_registry
from reports.junit import junit_xml
from reports.latency import make_answered, read_latency, read_thresholds, read_totals
from reports.summary import summary_markdown
from reports.verdict import EXIT_CODES, FaultCount, InvariantResult, Threshold, Verdict, Word
from scenarios.plan import PlanError, read_run_plan

__all__ = [
    "InvariantResult",
    "Threshold",
    "Verdict",
    "abandoned",
    "examine",
    "judge",
    "judge_evidence",
    "write_verdict",
]

JSON_INTEGER_MAX = 2**63 - 1
# Judged, and listed, only where money comes in and goes out over a chain.
CHAIN_GROUPS = ("outbox", "chain")

FAULTS = """
SELECT fault, count(DISTINCT fault_id) AS planned,
       count(DISTINCT fault_id) FILTER (state = 'landed') AS landed,
       count(DISTINCT fault_id) FILTER (state = 'healed') AS healed
FROM faults GROUP BY fault ORDER BY min(time_ns), fault
"""


def judge(run: Path) -> Verdict:
    """The verdict on a run directory; raises RunError or HistoryError when there is nothing to judge."""
    with contextlib.closing(open_evidence(run)) as evidence:
        return judge_evidence(evidence)


def judge_evidence(evidence: Evidence) -> Verdict:
    """The verdict on evidence that somebody opened, and may go on reading."""
    results = [
        examine(evidence, known)
        for known in load_registry()
        if evidence.has_chain or known.group not in CHAIN_GROUPS
    ]
    make_answered(evidence)
    latency = read_latency(evidence)
    totals = read_totals(evidence)
    thresholds = read_thresholds(evidence, latency, totals)
    word, reasons = weigh(results, evidence.incomplete, thresholds)
    return Verdict(
        verdict=word,
        exit_code=EXIT_CODES[word],
        reasons=reasons,
        run=evidence.plan.run,
        plan=evidence.plan.plan.name,
        seed=evidence.plan.seed,
        invariants=results,
        thresholds=thresholds,
        latency=latency,
        totals=totals,
        faults=[FaultCount(**row) for row in evidence.rows(FAULTS)],
    )


def examine(evidence: Evidence, known: Invariant) -> InvariantResult:
    """One invariant's result; whatever its check does, there is one."""
    examined, violations, witness = 0, 0, []
    detail, remark = None, None
    if known.needs_state and not evidence.has_state:
        detail = "the run has no exported books"
    elif known.group in CHAIN_GROUPS and not evidence.has_chain_state:
        detail = "the run has no record of the chain"
    else:
        try:
            finding = known.check(evidence)
        except Exception as error:  # noqa: BLE001  a crashed checker is inconclusive, never pass, never fatal
            detail = "the check crashed: " + crash(error)
        else:
            examined, violations = finding.examined, finding.violations
            witness = [plain(row) for row in finding.witness[:WITNESS_MAX]]
            detail, remark = finding.unresolved, finding.detail
            if detail is None and not examined and not violations:
                detail = "examined nothing"
            if detail is None and violations and known.group == "trial":
                detail = f"{violations:,} of {examined:,} {known.unit}"
    broken = violations > 0 and known.group != "trial"
    return InvariantResult(
        name=known.name,
        group=known.group,
        statement=known.statement,
        result="broken" if broken else "held" if detail is None else "inconclusive",
        examined=examined,
        unit=known.unit,
        violations=violations,
        witness=witness,
        detail=detail or remark,
    )


def crash(error: Exception) -> str:
    """The first line of an error, and where it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = traceback.format_exception_only(error)[-1].strip().split("\n", 1)[0]
    return f"{message} ({Path(place.filename).name}, line {place.lineno})"


def plain(value: Any) -> Any:
    """A value of a witness as JSON can hold it, exactly: integers beyond 64 bits and decimals as text."""
    match value:
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(inner) for inner in value]
        case bool() | None | str():
            return value
        case int():
            return value if -JSON_INTEGER_MAX <= value <= JSON_INTEGER_MAX else str(value)
        case float():
            return value if value - value == 0 else str(value)
        case decimal.Decimal():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return str(value)


def weigh(
    results: list[InvariantResult], incomplete: list[str], thresholds: list[Threshold]
) -> tuple[Word, list[str]]:
    """The word, and all reasons that speak against a better one, worst first."""
    broken = [
        f"{one.name}: {one.violations:,} violations in {one.examined:,} {one.unit}"
        for one in results
        if one.result == "broken"
    ]
    doubts = list(incomplete)
    doubts += [f"{one.name}: {one.detail}" for one in results if one.result == "inconclusive"]
    doubts += [f"{one.name}: nothing was measured" for one in thresholds if one.value is None]
    crossed = [
        f"{one.name} is {one.value:,.6g}, the limit is {one.limit:,.6g}"
        for one in thresholds
        if one.value is not None and not one.kept
    ]
    if not results:
        doubts.append("no invariant is registered")
    reasons = broken + doubts + crossed
    if broken:
        return "fail", reasons
    if doubts:
        return "inconclusive", reasons
    if crossed:
        return "slow", reasons
    return "pass", ["every invariant held on evidence, and every threshold was kept"]


def abandoned(run: Path, reason: str) -> Verdict:
    """The verdict on a run that left nothing to judge: inconclusive, and why."""
    name, plan, seed = run.name, "", None
    try:
        asked = read_run_plan(run)
        name, plan, seed = asked.run, asked.plan.name, asked.seed
    except PlanError as error:
        reason = f"{reason}; {error}"
    return Verdict(
        verdict="inconclusive",
        exit_code=EXIT_CODES["inconclusive"],
        reasons=[reason],
        run=name,
        plan=plan,
        seed=seed,
        invariants=[],
        thresholds=[],
        latency={},
        totals={},
        faults=[],
    )


def write_verdict(run: Path, verdict: Verdict) -> None:
    """Write verdict.json, junit.xml and summary.md into the run directory."""
    document = msgspec.json.format(msgspec.json.encode(verdict), indent=2) + b"\n"
    (run / "verdict.json").write_bytes(document)
    (run / "junit.xml").write_bytes(junit_xml(verdict))
    (run / "summary.md").write_text(summary_markdown(verdict), encoding="utf-8")
