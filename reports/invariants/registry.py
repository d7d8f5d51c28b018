"""The register of invariants: each is a named function from Evidence to a Finding.

A module of this package registers its functions with `@invariant`; `load_registry` imports those in MODULES
and returns them in report order: by group, then as the modules define them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reports.evidence import Evidence

MODULES = (
    *("ledger", "idempotency", "idempotency_effects", "trades", "refusals", "order"),
    *("outbox_effects", "outbox", "deposits", "withdrawals", "custody", "reconciliation"),
    *("service", "trial"),
)
GROUPS = ("ledger", "idempotency", "trades", "outbox", "chain", "service", "trial")

WITNESS_MAX = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check saw: how much it examined, how many breaches, and at most ten rows that prove them.

    `unresolved` says why the evidence cannot decide; it makes a finding without violations inconclusive.
    `detail` is what a reader should know although it decides nothing.
    """

    examined: int
    violations: int
    witness: list[dict[str, Any]] = field(default_factory=list)
    unresolved: str | None = None
    detail: str | None = None


Check = Callable[[Evidence], Finding]


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """One check. `statement` is what the report prints; `unit` is what `examined` counts."""

    name: str
    group: str
    unit: str
    statement: str
    needs_state: bool
    check: Check


REGISTRY: list[Invariant] = []


def invariant(*, group: str, unit: str, needs_state: bool = True) -> Callable[[Check], Check]:
    """Register the decorated function under its own name; its docstring's first line is the statement.

    With `needs_state` (the default) the check is not run, and is inconclusive, when the run has no exported
    books: without them every acknowledged trade would look lost.
    """
    if group not in GROUPS:
        raise ValueError(f"no group {group!r}: the groups are {', '.join(GROUPS)}")

    def register(check: Check) -> Check:
        name = check.__name__
        statement = (check.__doc__ or "").strip().split("\n", 1)[0].strip()
        if not statement:
            raise ValueError(f"{name}: an invariant states itself in the first line of its docstring")
        if any(known.name == name for known in REGISTRY):
            raise ValueError(f"{name}: two invariants have this name")
        REGISTRY.append(
            Invariant(
                name=name, group=group, unit=unit, statement=statement, needs_state=needs_state, check=check
            )
        )
        return check

    return register


def load_registry() -> list[Invariant]:
    """Import every module of invariants and return them all in report order, whatever was imported before."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return sorted(REGISTRY, key=report_order)


def report_order(known: Invariant) -> tuple[int, int]:
    """By group, then by module; sorting keeps the order in which a module defines its own."""
    return GROUPS.index(known.group), MODULES.index(known.check.__module__.rpartition(".")[2])
