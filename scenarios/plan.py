"""A plan: what a run will do, read from a TOML file and kept in the run's plan.json.

Plain data beside scenarios.history: the load child takes its shape and mix from it, the nemesis its
faults, the judge its thresholds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

PLANS = Path(__file__).parent / "plans"
_TRADING = frozenset(
    {
        "buy_amount",
        "buy_shares",
        "sell",
        "read_market",
        "read_account",
        "read_ledger",
        "replay",
        "reuse_key",
        "buy_closed",
    }
)
SCENARIOS = {
    "hot_market": _TRADING,
    "money_in_out": _TRADING | {"deposit", "withdraw", "read_withdrawal"},
}
CHAIN_SCENARIOS = frozenset({"money_in_out"})


class PlanError(Exception):
    """A plan that cannot be run; names the file, the key and the rule."""


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ramp linearly to `users` within `ramp_s`, then stay for `hold_s`."""

    name: str
    users: int
    ramp_s: float = 0.0
    hold_s: float = 0.0


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each user behaves. `rate_per_user_s` is the intended rate: lateness counts as latency."""

    rate_per_user_s: float = 5.0
    patience_s: float = 2.0
    answer_budget_s: float = 30.0
    processes: int = 1


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` injections of one fault, spread over `during_s` from `at_s` after load start."""

    fault: str
    at_s: float
    during_s: float = 0.0
    count: int = 1
    options: dict[str, Any] = {}


class Market(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one market all users trade on, and the money they start with (micro-USDC)."""

    outcomes: int = 2
    b_micro: int = 1_000_000_000
    fee_bps: int = 100
    user_funds_micro: int = 1_000_000_000


class ChainPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chain that money comes from and goes to, and the target's processes that deal with it.

    A deposit counts when it is `confirmations` deep; a relay holds an event for `lease_s` and tries it
    `attempts_max` times; the books are compared every `reconcile_every_s`; after the load, relays and watcher
    have `drain_s` to finish.
    """

    confirmations: int = 3
    block_time_s: float = 0.5
    relays: int = 2
    lease_s: float = 3.0
    attempts_max: int = 12
    reconcile_every_s: float = 1.0
    drain_s: float = 30.0


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits whose crossing makes a run slow, never wrong. Absent means not judged."""

    steady_p99_ms: float | None = None
    steady_p50_ms: float | None = None
    trades_per_s: float | None = None
    info_fraction: float | None = None
    health_p99_ms: float | None = None


class Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the Service invariants, seconds after a fault is healed."""

    recovery_s: float = 5.0


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One experiment as asked."""

    name: str
    about: str
    scenario: str
    stages: list[Stage]
    mix: dict[str, float]
    load: Load = Load()
    market: Market = Market()
    chain: ChainPlan | None = None
    faults: list[FaultPlan] = []
    thresholds: Thresholds = Thresholds()
    service: Service = Service()

    @property
    def load_s(self) -> float:
        """Seconds from load start to the end of the last stage."""
        return sum(stage.ramp_s + stage.hold_s for stage in self.stages)

    def users_at(self, elapsed_s: float) -> int | None:
        """Intended users at this second of the load, None when it is over."""
        before, start = 0, 0.0
        for stage in self.stages:
            if elapsed_s < start + stage.ramp_s:
                return round(before + (stage.users - before) * (elapsed_s - start) / stage.ramp_s)
            if elapsed_s < start + stage.ramp_s + stage.hold_s:
                return stage.users
            start += stage.ramp_s + stage.hold_s
            before = stage.users
        return None

    def stage_at(self, elapsed_s: float) -> str:
        """Name of the stage at this second of the load; `drain` when it is over."""
        start = 0.0
        for stage in self.stages:
            start += stage.ramp_s + stage.hold_s
            if elapsed_s < start:
                return stage.name
        return "drain"


class RunPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """plan.json: what was asked of this run, written before anything starts."""

    format: int
    run: str
    seed: int
    plan: Plan
    target: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None
    started_at: str
    monotonic_ns: int
    unix_ns: int


def plan_names() -> list[str]:
    """The plans that come with Seatrial."""
    return sorted(path.stem for path in PLANS.glob("*.toml"))


def load_plan(name_or_path: str) -> Plan:
    """A plan by name or by the path of a TOML file; raises PlanError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = PLANS / f"{name_or_path}.toml"
    if not path.is_file():
        raise PlanError(
            f"no plan {name_or_path!r}: the plans are {', '.join(plan_names())}, or name a .toml file"
        )
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not TOML: {error}") from None
    try:
        plan = msgspec.convert(document, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}: {named(error)}") from None
    check_plan(plan, where=str(path))
    return plan


def read_run_plan(run: Path) -> RunPlan:
    """What was asked of a run; raises PlanError when the folder has no sound plan.json."""
    path = run / "plan.json"
    try:
        asked = msgspec.json.decode(path.read_bytes(), type=RunPlan)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror or error}") from None
    except msgspec.ValidationError as error:
        raise PlanError(f"{path}: {named(error)}") from None
    except msgspec.DecodeError as error:
        raise PlanError(f"{path}: not JSON: {error}") from None
    check_plan(asked.plan, where=str(path))
    return asked


def named(error: msgspec.ValidationError) -> str:
    """A validation error with the key first: `load.patience_s: Expected ...`."""
    rule, _, place = str(error).partition(" - at `")
    key = place.rstrip("`").removeprefix("$").removeprefix(".")
    return f"{key}: {rule}" if key else rule


def check_plan(plan: Plan, *, where: str) -> None:
    """Raise PlanError on the first rule the plan breaks."""

    def rule(holds: bool, key: str, text: str) -> None:
        if not holds:
            raise PlanError(f"{where}: {key}: {text}")

    rule(1 <= len(plan.stages) <= 100, "stages", "between 1 and 100 stages")
    for index, stage in enumerate(plan.stages):
        rule(0 <= stage.users <= 100_000, f"stages[{index}].users", "between 0 and 100000")
        rule(stage.ramp_s >= 0 and stage.hold_s >= 0, f"stages[{index}]", "ramp_s and hold_s not below 0")
    rule(0 < plan.load_s <= 86_400, "stages", "the load lasts more than 0 s and at most a day")
    rule(max(stage.users for stage in plan.stages) > 0, "stages", "at least one stage has users")
    rule(
        plan.scenario in SCENARIOS,
        "scenario",
        f"no scenario {plan.scenario!r}; the scenarios are {', '.join(sorted(SCENARIOS))}",
    )
    actions = SCENARIOS[plan.scenario]
    rule(bool(plan.mix), "mix", "at least one action with a weight")
    for action, weight in plan.mix.items():
        known = f"not an action of {plan.scenario}; those are {', '.join(sorted(actions))}"
        rule(action in actions, f"mix.{action}", known)
        rule(0 <= weight <= 1e6, f"mix.{action}", "a weight is from 0 to 1000000")
    rule(sum(plan.mix.values()) > 0, "mix", "at least one weight above 0")
    rule(0 < plan.load.rate_per_user_s <= 10_000, "load.rate_per_user_s", "above 0, at most 10000")
    rule(0 < plan.load.patience_s <= 600, "load.patience_s", "above 0, at most 600")
    rule(0 <= plan.load.answer_budget_s <= 600, "load.answer_budget_s", "from 0 to 600")
    rule(1 <= plan.load.processes <= 64, "load.processes", "from 1 to 64")
    rule(2 <= plan.market.outcomes <= 8, "market.outcomes", "from 2 to 8")
    rule(0 <= plan.market.fee_bps <= 1_000, "market.fee_bps", "from 0 to 1000")
    rule(1_000_000 <= plan.market.b_micro <= 10**12, "market.b_micro", "from 1000000 to 10^12")
    rule(0 < plan.market.user_funds_micro <= 10**15, "market.user_funds_micro", "above 0, at most 10^15")
    _check_chain(plan, rule)
    for name, limit in msgspec.structs.asdict(plan.thresholds).items():
        rule(limit is None or 0 <= limit < float("inf"), f"thresholds.{name}", "a number not below 0")
    rule(0 < plan.service.recovery_s <= 600, "service.recovery_s", "above 0, at most 600")
    for index, fault in enumerate(plan.faults):
        rule(fault.at_s >= 0 and fault.during_s >= 0, f"faults[{index}]", "at_s and during_s not below 0")
        rule(fault.at_s + fault.during_s < plan.load_s, f"faults[{index}]", "ends before the load does")
        rule(1 <= fault.count <= 10_000, f"faults[{index}].count", "from 1 to 10000")


def _check_chain(plan: Plan, rule: Callable[[bool, str, str], None]) -> None:
    chain = plan.chain
    if plan.scenario in CHAIN_SCENARIOS:
        rule(chain is not None, "chain", f"{plan.scenario} needs a table [chain]")
    else:
        rule(chain is None, "chain", f"{plan.scenario} has no chain; leave [chain] out")
    if chain is None:
        return
    rule(1 <= chain.confirmations <= 100, "chain.confirmations", "from 1 to 100")
    rule(0.05 <= chain.block_time_s <= 60, "chain.block_time_s", "from 0.05 to 60")
    rule(1 <= chain.relays <= 8, "chain.relays", "from 1 to 8")
    rule(0.5 <= chain.lease_s <= 600, "chain.lease_s", "from 0.5 to 600")
    rule(1 <= chain.attempts_max <= 1_000, "chain.attempts_max", "from 1 to 1000")
    rule(0.2 <= chain.reconcile_every_s <= 3_600, "chain.reconcile_every_s", "from 0.2 to 3600")
    rule(1 <= chain.drain_s <= 600, "chain.drain_s", "from 1 to 600")
