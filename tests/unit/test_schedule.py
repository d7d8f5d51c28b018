"""The nemesis's schedule: a pure function of plan and seed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from chaos.faults import FAULTS, FaultError
from chaos.nemesis import NTH_MAX, schedule
from scenarios.plan import FaultPlan, Plan, Stage, load_plan, plan_names


def plan(*faults: FaultPlan) -> Plan:
    return Plan(
        name="t",
        about="",
        scenario="hot_market",
        stages=[Stage(name="all", users=1, hold_s=100)],
        mix={"sell": 1.0},
        faults=list(faults),
    )


MIXED = plan(
    FaultPlan(fault="drop_reply", at_s=10, during_s=20, count=40),
    FaultPlan(fault="kill_server", at_s=12, during_s=8, count=4),
    FaultPlan(fault="kill_postgres", at_s=50),
)


def test_the_same_plan_and_seed_give_the_same_schedule() -> None:
    assert schedule(MIXED, 7) == schedule(MIXED, 7)


def test_another_seed_gives_other_times_and_other_requests() -> None:
    one, other = schedule(MIXED, 7), schedule(MIXED, 8)
    assert [injection.at_s for injection in one] != [injection.at_s for injection in other]
    assert [injection.nth for injection in one] != [injection.nth for injection in other]


def test_every_injection_of_the_plan_is_there_once_and_numbered_in_order_of_time() -> None:
    found = schedule(MIXED, 3)
    assert [injection.fault_id for injection in found] == [f"f{number:03}" for number in range(1, 46)]
    assert [injection.at_s for injection in found] == sorted(injection.at_s for injection in found)
    counts = {name: sum(injection.fault == name for injection in found) for name in FAULTS}
    assert {name: count for name, count in counts.items() if count} == {
        "drop_reply": 40,
        "kill_server": 4,
        "kill_postgres": 1,
    }


@pytest.mark.parametrize("seed", range(20))
def test_injections_stay_in_their_stretch_and_half_a_slice_apart(seed: int) -> None:
    times = [injection.at_s for injection in schedule(MIXED, seed) if injection.fault == "kill_server"]
    assert min(times) >= 12
    assert max(times) <= 20
    assert all(later - earlier >= 0.999 for earlier, later in pairwise(times))
    assert all(1 <= injection.nth <= NTH_MAX for injection in schedule(MIXED, seed))


def test_a_fault_more_in_the_plan_leaves_the_times_of_the_others() -> None:
    more = plan(*MIXED.faults, FaultPlan(fault="drop_request", at_s=11, during_s=30, count=9))
    before = [injection.at_s for injection in schedule(MIXED, 1)]
    after = [injection.at_s for injection in schedule(more, 1) if injection.fault != "drop_request"]
    assert after == before


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("drop_everything", {}, ["drop_everything", "drop_reply", "kill_postgres"]),
        ("drop_reply", {"delay_s": 1}, ["drop_reply", "delay_s", "paths"]),
        ("duplicate_late", {"delay_s": "long"}, ["duplicate_late", "delay_s"]),
        ("drop_request", {"how": "politely"}, ["drop_request", "politely"]),
        ("kill_server", {"server": 0.5}, ["kill_server", "server"]),
        ("kill_postgres", {"server": 0}, ["kill_postgres", "options are: none"]),
        ("duplicate_late", {"delay_s": -1.0}, ["duplicate_late", "delay_s"]),
    ],
)
def test_an_unknown_fault_or_option_is_named_with_those_that_exist(
    name: str, options: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(FaultError) as caught:
        schedule(plan(FaultPlan(fault=name, at_s=1, options=options)), 1)
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize("name", plan_names())
def test_the_plans_that_come_along_can_be_scheduled(name: str) -> None:
    chosen = load_plan(name)
    assert len(schedule(chosen, 1)) == sum(fault.count for fault in chosen.faults)


def test_a_plan_without_faults_has_an_empty_schedule() -> None:
    assert schedule(plan(), 1) == []
