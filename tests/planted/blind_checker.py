"""Judges a run with one checker gone blind: `python -m tests.planted.blind_checker INVARIANT RUN`."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

from reports.evidence import Evidence
from reports.invariants import registry
from reports.invariants.registry import Check, Finding
from reports.judge import judge, write_verdict


def blinded(check: Check) -> Check:
    """The check, finding everything in order whatever it looks at."""

    @functools.wraps(check)
    def sees_nothing(evidence: Evidence) -> Finding:
        return dataclasses.replace(check(evidence), violations=0, witness=[])

    return sees_nothing


def main() -> int:
    """Judge the run and write its verdict."""
    name, run = sys.argv[1], Path(sys.argv[2])
    registry.load_registry()
    for number, known in enumerate(registry.REGISTRY):
        if known.name == name:
            registry.REGISTRY[number] = dataclasses.replace(known, check=blinded(known.check))
    verdict = judge(run)
    write_verdict(run, verdict)
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
