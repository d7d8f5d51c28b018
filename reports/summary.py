"""A verdict as Markdown for the page of a CI job: the word first, then what to look at."""

from __future__ import annotations

import json
from collections.abc import Iterable

from reports.verdict import InvariantResult, Verdict

MARKS = {"held": "✅", "broken": "❌", "inconclusive": "❔"}
WORDS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "❔ inconclusive", "slow": "🐢 slow"}
WITNESSES_SHOWN = 3
LATENCY_COLUMNS = ("count", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")


def summary_markdown(verdict: Verdict) -> str:
    """The whole page."""
    held = sum(one.result == "held" for one in verdict.invariants)
    seed = "" if verdict.seed is None else f", seed {verdict.seed}"
    parts = [
        f"# {WORDS[verdict.verdict]}",
        f"`{verdict.run}`, plan `{verdict.plan}`{seed}: {held} of {len(verdict.invariants)} invariants held.",
        "\n".join(f"- {cell(reason)}" for reason in verdict.reasons),
    ]
    if verdict.invariants:
        parts.append("## Invariants")
        parts.append(
            table(
                ("", "invariant", "examined", "violations", ""),
                (
                    (
                        MARKS[one.result],
                        f"`{one.name}`",
                        f"{one.examined:,} {one.unit}",
                        f"{one.violations:,}",
                        story(one),
                    )
                    for one in verdict.invariants
                ),
            )
        )
    if verdict.latency:
        parts.append("## Latency")
        parts.append(latency_table(verdict))
    if verdict.thresholds:
        parts.append("## Thresholds")
        rows = (
            (
                MARKS["held" if one.kept else "broken"],
                one.name,
                f"{one.limit:,.6g}",
                "-" if one.value is None else f"{one.value:,.6g}",
            )
            for one in verdict.thresholds
        )
        parts.append(table(("", "threshold", "limit", "measured"), rows))
    if verdict.faults:
        parts.append("## Faults")
        counts = ((one.fault, str(one.planned), str(one.landed), str(one.healed)) for one in verdict.faults)
        parts.append(table(("fault", "planned", "landed", "healed"), counts))
    if verdict.totals:
        parts.append("## Totals")
        totals = ((name.replace("_", " "), f"{value:,}") for name, value in verdict.totals.items())
        parts.append(table(("", ""), totals))
    return "\n\n".join(parts) + "\n"


def latency_table(verdict: Verdict) -> str:
    """Percentiles in milliseconds, one line a phase and kind."""
    rows = (
        (phase, kind, f"{values['count']:,}", *(f"{values[name]:,.1f}" for name in LATENCY_COLUMNS[1:]))
        for phase, kinds in verdict.latency.items()
        for kind, values in kinds.items()
    )
    return table(("phase", "time", *(name.replace("_", " ") for name in LATENCY_COLUMNS)), rows)


def story(one: InvariantResult) -> str:
    """What there is to say of an invariant beyond its numbers."""
    if one.result == "held":
        return one.detail or ""
    shown = "; ".join(json.dumps(row, ensure_ascii=False) for row in one.witness[:WITNESSES_SHOWN])
    return ": ".join(text for text in (one.detail, shown) if text)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    titles = list(header)
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that neither ends a table cell nor begins markup."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())
