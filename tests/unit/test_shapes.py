"""Users over time are those of the plan's stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.plan import Plan, Stage, load_plan


def plan_of(*stages: Stage) -> Plan:
    return Plan(name="p", about="", scenario="hot_market", stages=list(stages), mix={"sell": 1.0})


LAUNCH = load_plan("launch")


@pytest.mark.parametrize(
    ("elapsed_s", "users", "stage"),
    [
        (0.0, 0, "to 50"),
        (60.0, 25, "to 50"),
        (119.9, 50, "to 50"),
        (120.0, 50, "at 50"),
        (419.9, 50, "at 50"),
        (420.0, 50, "to 100"),
        (480.0, 75, "to 100"),
        (540.0, 100, "at 100"),
        (839.9, 100, "at 100"),
        (840.0, 100, "down"),
        (900.0, 50, "down"),
        (959.9, 0, "down"),
        (960.0, None, "drain"),
        (9_999.0, None, "drain"),
    ],
)
def test_the_launch_goes_by_its_stages(elapsed_s: float, users: int | None, stage: str) -> None:
    assert (LAUNCH.users_at(elapsed_s), LAUNCH.stage_at(elapsed_s)) == (users, stage)


def test_a_stage_without_a_ramp_begins_at_once() -> None:
    plan = plan_of(Stage(name="a", users=5, hold_s=1), Stage(name="b", users=9, hold_s=1))
    assert [plan.users_at(at_s) for at_s in (0, 0.99, 1, 1.99, 2)] == [5, 5, 9, 9, None]


def test_a_stage_may_ramp_and_hold() -> None:
    plan = plan_of(Stage(name="a", users=10, ramp_s=10, hold_s=5))
    assert [plan.users_at(at_s) for at_s in (0, 5, 10, 14.9, 15)] == [0, 5, 10, 10, None]


STAGES = st.builds(
    Stage,
    name=st.text(min_size=1, max_size=5),
    users=st.integers(0, 500),
    ramp_s=st.floats(0, 100),
    hold_s=st.floats(0, 100),
)


@given(stages=st.lists(STAGES, min_size=1, max_size=6), share=st.floats(0, 0.999))
def test_users_stay_between_the_stages_on_either_side(stages: list[Stage], share: float) -> None:
    plan = plan_of(*stages)
    users = plan.users_at(share * plan.load_s)
    if plan.load_s > 0 and users is not None:
        assert 0 <= users <= max(stage.users for stage in stages)
    assert plan.users_at(plan.load_s + 0.001) is None
