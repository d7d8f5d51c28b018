"""The plans that come with Seatrial do what is said of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import pytest

from chaos.faults import FAULTS, ProcessFault, make_fault
from scenarios.plan import SCENARIOS, Plan, load_plan, plan_names

TRADING_FAULTS = {
    "drop_reply",
    "drop_request",
    "duplicate_at_once",
    "duplicate_late",
    "kill_server",
    "terminate_backend",
    "kill_postgres",
}
FELT_PROCESS_FAULTS = {"kill_server", "terminate_backend", "kill_postgres", "plant_drift"}
MONEY_FAULTS = {
    "kill_relay",
    "add_relay",
    "pause_relay",
    "poison_event",
    "lose_rpc_reply",
    "kill_chain",
    "lag_chain",
    "drop_transaction",
    "replace_transaction",
    "duplicate_transaction",
    "reorganise",
    "plant_drift",
}


@pytest.fixture(params=plan_names())
def plan(request: pytest.FixtureRequest) -> Plan:
    return load_plan(request.param)


def test_these_plans_come_with_seatrial() -> None:
    assert plan_names() == ["ci", "hot", "launch", "money", "quick"]


def test_every_fault_that_there_is_is_in_a_plan() -> None:
    assert set(FAULTS) == TRADING_FAULTS | MONEY_FAULTS


def test_a_plan_is_named_as_its_file() -> None:
    assert [load_plan(name).name for name in plan_names()] == plan_names()


def test_every_plan_tries_every_action(plan: Plan) -> None:
    assert {action for action, weight in plan.mix.items() if weight > 0} == SCENARIOS[plan.scenario]


@pytest.mark.parametrize("name", ["ci", "hot", "launch", "quick"])
def test_a_plan_of_trading_injects_every_fault_of_trading(name: str) -> None:
    assert {fault.fault for fault in load_plan(name).faults} >= TRADING_FAULTS


def options_of(plan: Plan, fault: str) -> list[dict[str, Any]]:
    """The options of each of a plan's injections of a fault, with the defaults of those not given."""
    made = [make_fault(fault, one.options) for one in plan.faults if one.fault == fault]
    return [msgspec.structs.asdict(one) for one in made]


def test_money_injects_every_fault_of_money_in_and_out_in_every_way() -> None:
    plan = load_plan("money")
    assert {fault.fault for fault in plan.faults} >= MONEY_FAULTS
    kills = [(one["moment"], one["of"]) for one in options_of(plan, "kill_relay")]
    assert sorted(kills) == list(itertools.product(("before_mark", "in_mark"), ("notice", "withdrawal")))
    assert {one["of"] for one in options_of(plan, "pause_relay")} == {"notice", "withdrawal"}
    assert {one["kind"] for one in options_of(plan, "plant_drift")} == {"plus", "minus", "pair"}
    reorganisations = options_of(plan, "reorganise")
    assert {one["drop"] > 0 for one in reorganisations} == {True, False}
    assert {one["send_again"] for one in reorganisations} == {True, False}


def test_in_money_each_fault_has_time_of_its_own() -> None:
    plan = load_plan("money")
    processes = [fault for fault in plan.faults if issubclass(FAULTS[fault.fault], ProcessFault)]
    for one, following in itertools.pairwise(sorted(processes, key=lambda fault: fault.at_s)):
        # as long as it takes a poisoned event to die, or anything else to happen
        assert following.at_s - one.at_s >= (12 if one.fault == "poison_event" else 3)


def test_money_lasts_a_little_more_than_two_minutes() -> None:
    assert 120 <= load_plan("money").load_s <= 150


@pytest.mark.parametrize("name", ["money", "quick"])
def test_the_chain_is_reorganised_shallower_and_deeper_than_the_confirmations(name: str) -> None:
    plan = load_plan(name)
    assert plan.chain is not None
    depths = [fault.options["depth"] for fault in plan.faults if fault.fault == "reorganise"]
    assert min(depths) < plan.chain.confirmations < max(depths)


def test_every_plan_lets_the_service_recover_before_the_load_ends(plan: Plan) -> None:
    for fault in plan.faults:
        assert fault.at_s + fault.during_s + plan.service.recovery_s < plan.load_s, fault


def test_every_plan_has_steady_load_too(plan: Plan) -> None:
    disturbed: set[int] = set()
    for fault in plan.faults:
        if fault.fault in MONEY_FAULTS - FELT_PROCESS_FAULTS:
            continue
        end_s = fault.at_s + fault.during_s + plan.service.recovery_s
        disturbed |= set(range(int(fault.at_s), math.ceil(end_s)))
    assert plan.load_s - len(disturbed) >= 0.1 * plan.load_s


def test_the_budget_outlasts_a_lost_reply_and_an_outage(plan: Plan) -> None:
    assert plan.load.answer_budget_s >= 3 * plan.load.patience_s + plan.service.recovery_s


def test_quick_leaves_room_for_a_verdict_in_two_minutes() -> None:
    plan = load_plan("quick")
    assert 45 <= plan.load_s <= 75
    assert max(stage.users for stage in plan.stages) == 100


def test_in_quick_processes_break_one_at_a_time() -> None:
    plan = load_plan("quick")
    windows = sorted(
        (fault.at_s, fault.at_s + fault.during_s)
        for fault in plan.faults
        if fault.fault in FELT_PROCESS_FAULTS
    )
    for (_, end_s), (next_s, _) in itertools.pairwise(windows):
        assert end_s + plan.service.recovery_s <= next_s


def test_ci_lasts_about_three_minutes() -> None:
    assert 150 <= load_plan("ci").load_s <= 200


def test_launch_is_the_rehearsal_that_was_asked_for() -> None:
    stages = [(stage.users, stage.ramp_s, stage.hold_s) for stage in load_plan("launch").stages]
    assert stages == [(50, 120, 0), (50, 0, 300), (100, 120, 0), (100, 0, 300), (0, 120, 0)]
