"""A plan that cannot be run is refused with the file, the key and the rule."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scenarios.load import check_scenario
from scenarios.plan import ChainPlan, PlanError, load_plan, read_run_plan
from scenarios.run_directory import create_run

SOUND = """
name = "small"
about = "a sound plan"
scenario = "hot_market"
mix = {buy_amount = 1.0}
stages = [{name = "hold", users = 2, hold_s = 5.0}]
"""


def with_lines(*lines: str) -> str:
    """The sound plan with these lines in place of those of the same key, or added."""
    kept = SOUND.strip().splitlines()
    for line in lines:
        key = line.partition(" = ")[0]
        kept = [other for other in kept if other.partition(" = ")[0] != key]
        kept.append(line)
    # Tables come last in TOML.
    return "\n".join(sorted(kept, key=lambda line: line.startswith("[")))


def refused(tmp_path: Path, text: str) -> str:
    """What load_plan says of a plan file, without the file's name, which it must begin with."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_plan(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_sound_plan_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SOUND)
    plan = load_plan(str(path))
    assert plan.load_s == 5.0
    assert plan.load.processes == 1
    assert plan.faults == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('surprise = "x"', "Object contains unknown field `surprise`"),
        ("name = 7", "name: Expected `str`, got `int`"),
        ('mix = {buy_amount = "much"}', "mix[...]: Expected `float`, got `str`"),
        ('stages = [{name = "hold", users = "ten"}]', "stages[0].users: Expected `int`, got `str`"),
        (
            'stages = [{name = "hold", users = 1, length = 1}]',
            "stages[0]: Object contains unknown field `length`",
        ),
        ("load = {patience = 2.0}", "load: Object contains unknown field `patience`"),
        ("load = {patience_s = true}", "load.patience_s: Expected `float`, got `bool`"),
        ("market = {outcomes = 2.5}", "market.outcomes: Expected `int`, got `float`"),
        (
            'faults = [{fault = "kill_server", at_s = "soon"}]',
            "faults[0].at_s: Expected `float`, got `str`",
        ),
        ("faults = [{at_s = 1.0}]", "faults[0]: Object missing required field `fault`"),
        ("thresholds = {p99 = 1.0}", "thresholds: Object contains unknown field `p99`"),
    ],
)
def test_a_wrong_key_or_type_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert refused(tmp_path, with_lines(line)) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'scenario = "cold_market"',
            "scenario: no scenario 'cold_market'; the scenarios are hot_market, money_in_out",
        ),
        ("stages = []", "stages: between 1 and 100 stages"),
        ('stages = [{name = "a", users = -1, hold_s = 1.0}]', "stages[0].users: between 0 and 100000"),
        ('stages = [{name = "a", users = 1, hold_s = -1.0}]', "stages[0]: ramp_s and hold_s not below 0"),
        ('stages = [{name = "a", users = 1}]', "stages: the load lasts more than 0 s and at most a day"),
        ('stages = [{name = "a", users = 0, hold_s = 1.0}]', "stages: at least one stage has users"),
        ("mix = {}", "mix: at least one action with a weight"),
        ("mix = {buy_amount = 0.0}", "mix: at least one weight above 0"),
        ("mix = {buy_amount = -1.0}", "mix.buy_amount: a weight is from 0 to 1000000"),
        ("load = {rate_per_user_s = 0.0}", "load.rate_per_user_s: above 0, at most 10000"),
        ("load = {rate_per_user_s = nan}", "load.rate_per_user_s: above 0, at most 10000"),
        ("load = {patience_s = 0.0}", "load.patience_s: above 0, at most 600"),
        ("load = {answer_budget_s = inf}", "load.answer_budget_s: from 0 to 600"),
        ("load = {processes = 0}", "load.processes: from 1 to 64"),
        ("market = {outcomes = 9}", "market.outcomes: from 2 to 8"),
        ("market = {fee_bps = 1001}", "market.fee_bps: from 0 to 1000"),
        ("market = {b_micro = 1}", "market.b_micro: from 1000000 to 10^12"),
        ("market = {user_funds_micro = 0}", "market.user_funds_micro: above 0, at most 10^15"),
        ("thresholds = {steady_p99_ms = -1.0}", "thresholds.steady_p99_ms: a number not below 0"),
        ("thresholds = {steady_p99_ms = nan}", "thresholds.steady_p99_ms: a number not below 0"),
        ('scenario = "money_in_out"', "chain: money_in_out needs a table [chain]"),
        ("chain = {}", "chain: hot_market has no chain; leave [chain] out"),
        ("service = {recovery_s = 0.0}", "service.recovery_s: above 0, at most 600"),
        ('faults = [{fault = "f", at_s = -1.0}]', "faults[0]: at_s and during_s not below 0"),
        ('faults = [{fault = "f", at_s = 4.0, during_s = 1.0}]', "faults[0]: ends before the load does"),
        ('faults = [{fault = "f", at_s = 1.0, count = 0}]', "faults[0].count: from 1 to 10000"),
    ],
)
def test_a_broken_rule_is_named_with_its_key(tmp_path: Path, line: str, said: str) -> None:
    assert refused(tmp_path, with_lines(line)) == said


@pytest.mark.parametrize(
    ("field", "wrong", "said"),
    [
        ("confirmations", "0", "from 1 to 100"),
        ("confirmations", "101", "from 1 to 100"),
        ("block_time_s", "0.0", "from 0.05 to 60"),
        ("block_time_s", "nan", "from 0.05 to 60"),
        ("relays", "0", "from 1 to 8"),
        ("relays", "9", "from 1 to 8"),
        ("lease_s", "0.4", "from 0.5 to 600"),
        ("attempts_max", "0", "from 1 to 1000"),
        ("reconcile_every_s", "0.1", "from 0.2 to 3600"),
        ("drain_s", "0.5", "from 1 to 600"),
    ],
)
def test_a_chain_out_of_range_is_named(tmp_path: Path, field: str, wrong: str, said: str) -> None:
    lines = ('scenario = "money_in_out"', f"chain = {{{field} = {wrong}}}")
    assert refused(tmp_path, with_lines(*lines)) == f"chain.{field}: {said}"


def test_a_chain_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(with_lines('scenario = "money_in_out"', "mix = {deposit = 1.0}", "chain = {}"))
    assert load_plan(str(path)).chain == ChainPlan()


def test_an_unknown_action_is_told_the_known_ones(tmp_path: Path) -> None:
    said = refused(tmp_path, with_lines("mix = {dance = 1.0}"))
    assert said.startswith("mix.dance: not an action of hot_market; those are buy_amount, ")


def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refused(tmp_path, "name = \n").startswith("not TOML: Invalid value (at line 1")


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="not TOML"):
        load_plan(str(path))


def test_an_unknown_plan_is_told_the_known_ones() -> None:
    with pytest.raises(
        PlanError, match=r"no plan 'quik': the plans are ci, hot, launch, money, quick, or name a \.toml file"
    ):
        load_plan("quik")


def test_a_plan_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no plan"):
        load_plan(str(tmp_path / "none.toml"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of the sound plan."""
    plan = msgspec.convert(tomllib.loads(SOUND), type(load_plan("quick")))
    return create_run(plan, seed=3, target={}, runs=tmp_path, project=tmp_path)


def test_a_run_keeps_its_plan(run: Path) -> None:
    asked = read_run_plan(run)
    assert (asked.plan.name, asked.seed) == ("small", 3)
    check_scenario(asked.plan)


def changed(run: Path, change: dict[str, Any]) -> None:
    document = msgspec.json.decode((run / "plan.json").read_bytes())
    (run / "plan.json").write_bytes(msgspec.json.encode({**document, **change}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "x"}, "seed: Expected `int`, got `str`"),
        ({"surprise": 1}, "Object contains unknown field `surprise`"),
        ({"plan": {}}, "plan: Object missing required field `name`"),
    ],
)
def test_a_run_with_a_wrong_plan_is_refused(run: Path, change: dict[str, Any], said: str) -> None:
    changed(run, change)
    with pytest.raises(PlanError) as caught:
        read_run_plan(run)
    assert str(caught.value) == f"{run / 'plan.json'}: {said}"


def test_a_folder_without_a_plan_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan\.json: cannot be read: No such file"):
        read_run_plan(tmp_path)


def test_a_plan_json_that_is_not_json_is_refused(run: Path) -> None:
    (run / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="not JSON"):
        read_run_plan(run)
