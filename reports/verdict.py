"""What a verdict is made of: the structs behind verdict.json, described field by field in docs/verdict.md."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FORMAT = 1
Word = Literal["pass", "fail", "inconclusive", "slow"]
EXIT_CODES: dict[Word, int] = {"pass": 0, "fail": 1, "inconclusive": 3, "slow": 99}
Latency = dict[str, dict[str, dict[str, float | int]]]


class InvariantResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one invariant came to; `detail` says why it is inconclusive, or what else there is to know."""

    name: str
    group: str
    statement: str
    result: Literal["held", "broken", "inconclusive"]
    examined: int
    unit: str
    violations: int
    witness: list[dict[str, Any]]
    detail: str | None


class Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit of the plan; `value` is None when nothing was there to measure, and then it is not kept."""

    name: str
    limit: float
    value: float | None
    kept: bool


class FaultCount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many faults of one kind came how far."""

    fault: str
    planned: int
    landed: int
    healed: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The judge's answer; `reasons` come worst first and are never empty."""

    format: int = FORMAT
    verdict: Word
    exit_code: int
    reasons: list[str]
    run: str
    plan: str
    seed: int | None
    invariants: list[InvariantResult]
    thresholds: list[Threshold]
    latency: Latency
    totals: dict[str, Any]
    faults: list[FaultCount]
