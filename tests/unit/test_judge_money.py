"""A verdict where money comes in and goes out: more is judged, and no more is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import judge as judging
from reports.evidence import open_evidence
from reports.invariants.registry import Finding, Invariant, load_registry
from reports.judge import InvariantResult, examine, judge
from tests import golden


def finding(group: str, *, violations: int) -> Invariant:
    """An invariant of this group that finds so much."""
    return Invariant(
        name=f"something_of_{group}",
        group=group,
        unit="rows",
        statement="Something holds.",
        needs_state=True,
        check=lambda _: Finding(examined=3, violations=violations),
    )


def examined(run: Path, known: Invariant) -> InvariantResult:
    evidence = open_evidence(run)
    try:
        return examine(evidence, known)
    finally:
        evidence.close()


@pytest.mark.parametrize("group", ["outbox", "chain"])
def test_without_a_record_of_the_chain_its_checks_are_not_run(tmp_path: Path, group: str) -> None:
    run = golden.money_run(tmp_path)
    (run / "chain" / "head.json").unlink()
    one = examined(run, finding(group, violations=1))

    assert (one.result, one.examined, one.detail) == ("inconclusive", 0, "the run has no record of the chain")
    other = examined(run, finding("ledger", violations=1))
    assert other.result == "broken"


def test_a_correct_run_with_a_chain_passes(tmp_path: Path) -> None:
    verdict = judge(golden.money_run(tmp_path))

    assert (verdict.verdict, verdict.reasons[1:]) == ("pass", []), verdict.reasons
    assert {one.result for one in verdict.invariants} == {"held"}
    assert [one.name for one in verdict.invariants] == [known.name for known in load_registry()]


def test_outbox_and_chain_are_judged_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [finding(group, violations=0) for group in ("ledger", "outbox", "chain")]
    monkeypatch.setattr(judging, "load_registry", lambda: known)

    with_chain, without = judge(golden.money_run(tmp_path / "with")), judge(golden.run(tmp_path / "without"))
    assert [one.group for one in with_chain.invariants] == ["ledger", "outbox", "chain"]
    assert [one.group for one in without.invariants] == ["ledger"]


def test_deposits_are_no_part_of_what_is_measured(tmp_path: Path) -> None:
    rows = golden.golden_money_run()
    before = judge(rows.write(tmp_path / "before"))
    op = rows.deposit("u1", 1_000_000)
    rows.invoke(op, late_ns=10**9)
    rows.tick(10**9)
    rows.lose(op, "reset")
    after = judge(rows.write(tmp_path / "after"))

    assert (after.totals, after.latency) == (before.totals, before.latency)
    assert after.thresholds == before.thresholds
    deposits = sum(row.get("action") == "deposit" for row in rows.history)
    load = sum(row["type"] == "invoke" and row["time_ns"] > rows.events[0]["time_ns"] for row in rows.history)
    assert after.totals["attempts"] == load - deposits
