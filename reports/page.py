"""The report: one self-contained HTML page, with the pictures and tables beside it as files.

The page is derived from the run directory alone and remade by `seatrial check`. A run that could not be
judged still gets a page, which says so first.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from reports.evidence import Evidence
from reports.figures import draw_figures
from reports.judge import Verdict
from reports.series import PERCENTILES, Series, read_series
from scenarios.plan import RunPlan, read_run_plan

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS = {
    "latency": "Each mark is one operation, placed where it was due. Hatched: a fault was in effect. What "
    "happened during a stall stands at the moment the user wanted it, not at the moment it ended.",
    "timeline": "Percentiles of each second: solid from the intended start, dotted on the wire. Where solid "
    "leaves dotted, users waited before their request was even sent: closed-loop tools do not see that.",
    "spectrum": "The same operations by phase; every nine to the right is a rarer one. An operation belongs "
    "to fault when its life overlaps a fault window, to recovery when it overlaps the seconds after a heal, "
    "else to steady.",
    "machine": "What the machine did meanwhile. A load process near 100 % would mean that the generator was "
    "the bottleneck; the_generator_kept_up judges that.",
}


def write_report(run: Path, verdict: Verdict, evidence: Evidence) -> Path:
    """Write report.html, the PNG pictures and the CSV tables; the page's path."""
    series = read_series(evidence)
    write_tables(run, series)
    return write_page(
        run,
        verdict,
        evidence.plan,
        pictures=draw_figures(series, run),
        faults=fault_rows(evidence.rows(FAULTS)),
    )


def write_report_without_evidence(run: Path, verdict: Verdict, problem: str) -> Path:
    """The page of a run whose evidence could not be opened: the verdict, what was asked, and why."""
    return write_page(run, verdict, read_run_plan(run), problem=problem)


def write_page(
    run: Path,
    verdict: Verdict,
    plan: RunPlan,
    *,
    pictures: Sequence[Path] = (),
    faults: Sequence[dict[str, Any]] = (),
    problem: str | None = None,
) -> Path:
    """Render report.html from what there is."""
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            verdict=verdict,
            plan=plan,
            pictures=[(path.stem, embedded(path), CAPTIONS[path.stem]) for path in pictures],
            faults=faults,
            problem=problem,
            groups=grouped(verdict),
            command=rerun_command(plan),
        )
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


FAULTS = """
SELECT fault,
       count(DISTINCT fault_id) FILTER (state = 'planned') AS planned,
       count(DISTINCT fault_id) FILTER (state = 'landed') AS landed,
       count(DISTINCT fault_id) FILTER (state = 'healed') AS healed,
       arg_min(evidence, time_ns) FILTER (state = 'landed') AS first_evidence
FROM faults GROUP BY fault ORDER BY min(time_ns)
"""


def fault_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The faults table: counts by kind, and what proved the first that landed."""
    for row in rows:
        evidence = row["first_evidence"]
        mapping = json.loads(evidence) if isinstance(evidence, str) else evidence or {}
        row["first_evidence"] = ", ".join(f"{key} {value}" for key, value in list(mapping.items())[:6])
    return rows


def write_tables(run: Path, series: Series) -> None:
    """The numbers behind the pictures, for a spreadsheet."""
    columns = {
        "second": series.second_s,
        **{f"response_{name}_ms": series.response_ms[name] for name in PERCENTILES},
        **{f"service_{name}_ms": series.service_ms[name] for name in PERCENTILES},
        **{f"{outcome}_per_s": rate for outcome, rate in series.rate.items()},
    }
    write_csv(run / "per_second.csv", list(columns), zip(*columns.values(), strict=True))
    write_csv(
        run / "spectrum.csv",
        ["phase", "quantile", "response_ms", "service_ms"],
        (
            (phase, *row)
            for phase, curve in series.spectra.items()
            for row in zip(curve.quantiles, curve.response_ms, curve.service_ms, strict=True)
        ),
    )


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """One CSV file; NaN becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow(["" if cell != cell else cell for cell in row])


def grouped(verdict: Verdict) -> list[tuple[str, list[Any]]]:
    """Invariants by group, in report order."""
    groups: dict[str, list[Any]] = {}
    for one in verdict.invariants:
        groups.setdefault(one.group, []).append(one)
    return list(groups.items())


def rerun_command(plan: RunPlan) -> str:
    """The command that asks for the same run again."""
    strategy = plan.target.get("strategy", "batch")
    return f"seatrial run --plan {plan.plan.name} --seed {plan.seed} --trade-strategy {strategy}"


def embedded(path: Path) -> str:
    """A PNG as a data URL, so that the page travels as one file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def environment() -> jinja2.Environment:
    """Jinja2 with escaping on and undefined names refused."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.filters["thousands"] = lambda value: f"{value:,}"
    made.filters["number"] = lambda value: "–" if value is None else f"{value:,.4g}"
    return made
