"""What every registered invariant finds in a golden run."""

from __future__ import annotations

from pathlib import Path

from reports.evidence import open_evidence
from reports.invariants.registry import GROUPS, Finding, load_registry
from tests.golden.recorder import GoldenRun


def findings(run: GoldenRun, tmp_path: Path, groups: tuple[str, ...] = GROUPS) -> dict[str, Finding]:
    """Write the run and let every invariant of these groups look at it, those of the trial never; by name."""
    evidence = open_evidence(run.write(tmp_path / "run"))
    try:
        return {
            known.name: known.check(evidence)
            for known in load_registry()
            if known.group in groups and known.group != "trial"
        }
    finally:
        evidence.close()


def broken(found: dict[str, Finding]) -> list[str]:
    """The invariants that saw violations."""
    return sorted(name for name, finding in found.items() if finding.violations)
