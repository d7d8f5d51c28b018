"""What the probe saw counts, but for the readings that a fault disturbed on purpose."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.golden import GoldenMoneyRun, golden_money_run
from tests.golden.findings import broken, findings
from tests.golden.market import Row
from tests.golden.recorder import MS

NAME = "balances_equal_entries"
WITNESS = {"account_id": 9, "difference_micro": 1}


@pytest.fixture(scope="module")
def told() -> GoldenMoneyRun:
    return golden_money_run()


@pytest.fixture
def run(told: GoldenMoneyRun) -> GoldenMoneyRun:
    """A golden run of one's own, in which a pair of accounts was made wrong."""
    return copy.deepcopy(told)


def moment(run: GoldenMoneyRun, state: str) -> int:
    """When the pair was armed, landed or healed."""
    return next(int(row["time_ns"]) for row in reversed(run.faults) if row["state"] == state)


def before(run: GoldenMoneyRun) -> Row:
    """The last reading that was over when the fault was armed."""
    return [row for row in run.probes if row["time_ns"] < moment(run, "armed")][-1]


def after(run: GoldenMoneyRun) -> list[Row]:
    """The readings that began after the fault was healed."""
    return [row for row in run.probes if row["time_ns"] > moment(run, "healed")]


def break_reading(reading: Row) -> None:
    reading["results"][NAME] = {"examined": 23, "violations": 1, "witness": [WITNESS]}


def test_readings_that_a_fault_disturbed_are_set_aside(run: GoldenMoneyRun, tmp_path: Path) -> None:
    assert any(probe["results"][NAME]["violations"] for probe in run.probes)
    found = findings(run, tmp_path, ("ledger",))[NAME]
    assert (found.violations, found.witness) == (0, [])
    assert found.detail == "3 readings were set aside: a fault disturbed them on purpose"
    looked_at = sum(probe["results"][NAME]["examined"] for probe in run.probes)
    assert found.examined < looked_at + len(run.rows("accounts"))


def test_the_first_reading_after_the_heal_is_set_aside_too(run: GoldenMoneyRun, tmp_path: Path) -> None:
    break_reading(after(run)[0])
    assert broken(findings(run, tmp_path, ("ledger",))) == []


def test_a_reading_that_was_under_way_when_the_fault_was_armed_is_set_aside(
    run: GoldenMoneyRun, tmp_path: Path
) -> None:
    reading = before(run)
    break_reading(reading)
    reading["took_ms"] = (moment(run, "armed") - reading["time_ns"]) / MS
    assert broken(findings(run, tmp_path, ("ledger",))) == []


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_violation_outside_still_counts(run: GoldenMoneyRun, tmp_path: Path, side: str) -> None:
    reading = before(run) if side == "before" else after(run)[1]
    break_reading(reading)
    found = findings(run, tmp_path, ("ledger",))
    assert broken(found) == [NAME]
    assert found[NAME].witness == [{"probed_ns": reading["time_ns"]} | WITNESS]


def test_what_no_fault_disturbs_counts_all_the_time(run: GoldenMoneyRun, tmp_path: Path) -> None:
    reading = next(row for row in run.probes if row["time_ns"] > moment(run, "armed"))
    reading["results"]["money_is_conserved"] = {"examined": 23, "violations": 1}
    assert broken(findings(run, tmp_path, ("ledger",))) == ["money_is_conserved"]


def test_a_fault_that_never_landed_disturbs_nothing(run: GoldenMoneyRun, tmp_path: Path) -> None:
    landed = next(row for row in reversed(run.faults) if row["state"] == "landed")
    landed["state"] = "failed"
    assert NAME in broken(findings(run, tmp_path, ("ledger",)))


def test_a_fault_that_was_never_healed_disturbs_to_the_end(run: GoldenMoneyRun, tmp_path: Path) -> None:
    run.faults.pop()
    break_reading(run.probes[-1])
    assert NAME not in broken(findings(run, tmp_path, ("ledger",)))
