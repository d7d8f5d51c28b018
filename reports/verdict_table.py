"""The verdict as a terminal shows it: the word first, then each invariant with how much it examined."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports.judge import InvariantResult, Verdict

STYLES = {"pass": "bold white on dark_green", "fail": "bold white on red", "slow": "bold black on yellow"}
MARKS = {"held": ("✓", "green"), "broken": ("✗", "bold red"), "inconclusive": ("?", "yellow")}
VALUE_LENGTH_MAX = 400


def verdict_table(verdict: Verdict) -> RenderableType:
    """Everything a person needs in order to decide whether to open the report."""
    parts: list[RenderableType] = [invariants_table(verdict)]
    if verdict.thresholds:
        parts.append(thresholds_table(verdict))
    word = Text(
        f" {verdict.verdict.upper()} ", style=STYLES.get(verdict.verdict, "bold black on bright_cyan")
    )
    held = sum(one.result == "held" for one in verdict.invariants)
    word.append(f"  {held} of {len(verdict.invariants)} invariants held", style="default on default not bold")
    parts.append(Text())
    parts.append(word)
    parts += [Text(f"  {reason}") for reason in verdict.reasons]
    for one in verdict.invariants:
        if one.result == "broken":
            parts += [Text(), breach(one)]
    return Group(*parts)


def breach(one: InvariantResult) -> Text:
    """What a broken invariant says, and the first row that proves the breach."""
    told = Text(f"✗ {one.name}", style="bold red").append(f"  {one.statement}", style="not bold default")
    for name, value in (one.witness[0] if one.witness else {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        told.append(f"\n    {name} ", style="not bold dim default").append(
            shortened(shown), style="not bold default"
        )
    return told


def shortened(text: str) -> str:
    """At most VALUE_LENGTH_MAX characters; verdict.json has the rest."""
    return text if len(text) <= VALUE_LENGTH_MAX else f"{text[: VALUE_LENGTH_MAX - 1]}…"


def invariants_table(verdict: Verdict) -> Table:
    """One line an invariant, in the order of the registry."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("invariant", no_wrap=True)
    table.add_column("examined", justify="right", no_wrap=True)
    group = ""
    for one in verdict.invariants:
        if one.group != group:
            group = one.group
            table.add_row("", Text(group, style="bold"), "")
        mark, style = MARKS[one.result]
        examined = f"{one.examined:,} {one.unit}"
        if one.result == "broken":
            examined = f"{one.violations:,} violations in {examined}"
        shown = "" if one.result == "held" else style
        table.add_row(Text(mark, style=style), Text(one.name, style=shown), Text(examined, style=shown))
    return table


def thresholds_table(verdict: Verdict) -> Table:
    """The limits of the plan and what was measured."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "threshold", "limit", "measured"):
        table.add_column(heading)
    for one in verdict.thresholds:
        mark, style = MARKS["held" if one.kept else "broken"]
        measured = "-" if one.value is None else f"{one.value:,.3g}"
        table.add_row(Text(mark, style=style), one.name, f"{one.limit:,.6g}", measured)
    return table
