"""The invariants of the trial: a sound run passes all, and each doubts the run that it cannot trust."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pytest

from reports.evidence import open_evidence
from reports.invariants import trial
from reports.invariants.registry import Finding, Invariant, load_registry
from tests.golden import GoldenRun, golden_money_run, golden_run
from tests.golden.files import write_lines
from tests.golden.recorder import MS, S

TRIAL = {known.name: known for known in load_registry() if known.group == "trial"}


def doubts(folder: Path, names: list[str]) -> dict[str, Finding]:
    """What these invariants find in a written run."""
    evidence = open_evidence(folder)
    try:
        return {name: TRIAL[name].check(evidence) for name in names}
    finally:
        evidence.close()


def doubt(run: GoldenRun, name: str, tmp_path: Path) -> Finding:
    """What one invariant finds in a run."""
    return doubts(run.write(tmp_path / "run"), [name])[name]


def test_the_golden_run_leaves_no_doubt(tmp_path: Path) -> None:
    found = doubts(golden_run().write(tmp_path / "run"), list(TRIAL))
    checkers = sum(known.group != "trial" for known in load_registry())
    assert found == {
        "every_fault_landed": Finding(examined=2, violations=0),
        "every_phase_was_exercised": Finding(examined=5, violations=0),
        "every_unknown_was_resolved": Finding(examined=32, violations=0),
        "canaries_are_caught": Finding(examined=checkers, violations=0),
        "the_generator_kept_up": Finding(examined=44, violations=0),
    }


@pytest.mark.parametrize(
    ("state", "problem"), [("landed", "never landed"), ("healed", "never healed"), ("planned", None)]
)
def test_a_fault_without_a_whole_life_is_doubted(tmp_path: Path, state: str, problem: str | None) -> None:
    run = golden_run()
    run.faults = [row for row in run.faults if row["state"] != state]
    found = doubt(run, "every_fault_landed", tmp_path)
    if problem is None:
        assert found == Finding(examined=2, violations=0)
        return
    witness = {"fault_id": "f001", "fault": "drop_reply", "problem": problem}
    story = f"1 of 2, as f001 drop_reply {problem}"
    assert found == Finding(examined=2, violations=0, witness=[witness], unresolved=story)


def test_a_fault_that_landed_without_evidence_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    del next(row for row in run.faults if row["state"] == "landed")["evidence"]
    found = doubt(run, "every_fault_landed", tmp_path)
    assert found.unresolved == "1 of 2, as f001 drop_reply landed without evidence"


def test_a_fault_of_the_plan_that_was_never_planned_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["faults"][0]["count"] = 3
    found = doubt(run, "every_fault_landed", tmp_path)
    witness = {"fault": "drop_reply", "problem": "1 of 3 were planned"}
    assert found == Finding(
        examined=4, violations=0, witness=[witness], unresolved="1 of 4, as drop_reply 1 of 3 were planned"
    )


def test_a_plan_without_faults_is_no_reason_for_doubt(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["faults"] = []
    run.faults = []
    assert doubt(run, "every_fault_landed", tmp_path) == Finding(examined=1, violations=0)


def test_a_stage_and_an_action_without_operations_are_doubted(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["stages"].append({"name": "late", "users": 4, "hold_s": 20.0})
    run.plan["plan"]["mix"] |= {"replay": 1.0, "sell": 1.0, "read_ledger": 0.0}
    found = doubt(run, "every_phase_was_exercised", tmp_path)
    assert found == Finding(
        examined=8,
        violations=0,
        witness=[{"missing": "stage late"}, {"missing": "action replay"}],
        unresolved="no operation in stage late, action replay",
    )


def test_the_golden_run_with_a_chain_leaves_no_doubt(tmp_path: Path) -> None:
    found = doubts(golden_money_run().write(tmp_path / "run"), list(TRIAL))
    assert {name: finding.unresolved for name, finding in found.items()} == dict.fromkeys(TRIAL)
    assert found["every_fault_landed"].examined == 8
    assert found["every_phase_was_exercised"].examined == 8


def test_deposits_alone_exercise_no_stage(tmp_path: Path) -> None:
    run = golden_money_run()
    run.plan["plan"]["stages"].append({"name": "late", "users": 4, "hold_s": 20.0})
    run.tick(10 * S)
    run.do(run.deposit("u1", 1_000_000))
    found = doubt(run, "every_phase_was_exercised", tmp_path)
    assert found.unresolved == "no operation in stage late"


def test_an_action_of_the_chain_without_an_answer_is_doubted(tmp_path: Path) -> None:
    run = golden_money_run()
    names = {row["operation"] for row in run.history if row.get("action") == "deposit"}
    for row in run.history:
        if row["operation"] in names and row["type"] == "ok":
            row |= {"type": "info", "error": "reset"}
    found = doubt(run, "every_phase_was_exercised", tmp_path)
    assert found.unresolved == "no operation in action deposit"


def test_a_replay_counts_as_its_action(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["mix"] |= {"replay": 1.0}
    op = run.do(run.buy("u1", 1, 0, 300_000))
    run.invoke(op)
    run.complete(op, replayed=True)
    assert doubt(run, "every_phase_was_exercised", tmp_path).unresolved is None


def test_a_run_without_recovery_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    run.faults = []
    found = doubt(run, "every_phase_was_exercised", tmp_path)
    assert found.unresolved == "no operation in phase fault, phase recovery"


def test_unknowns_of_a_system_that_never_came_to_rest_are_doubted(tmp_path: Path) -> None:
    run = golden_run()
    next(row for row in run.events if row["event"] == "quiescent")["active"] = 1
    found = doubt(run, "every_unknown_was_resolved", tmp_path)
    story = "2 unknown outcomes, and no proof that the system had come to rest"
    assert found == Finding(examined=32, violations=0, unresolved=story)


def test_a_key_without_its_stored_answer_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    row = run.rows("idempotency_keys")[-1]
    row["status"] = None
    found = doubt(run, "every_unknown_was_resolved", tmp_path)
    assert found.witness == [{"user_id": row["user_id"], "key": row["idempotency_key"]}]


def test_a_checker_that_overlooks_its_canary_is_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = shutil.copytree(trial.CANARIES, tmp_path / "canaries")
    (canaries / "a_key_applies_once.sql").write_text("SELECT 1")
    (canaries / "the_service_recovers.sql").unlink()
    monkeypatch.setattr(trial, "CANARIES", canaries)
    found = doubt(golden_run(), "canaries_are_caught", tmp_path)
    assert found.witness == [
        {"invariant": "a_key_applies_once", "problem": "it saw nothing in 44 keys"},
        {"invariant": "the_service_recovers", "problem": "it has no canary"},
    ]
    assert (found.unresolved or "").startswith("2 of ")


def test_a_checker_that_crashes_has_caught_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: object) -> Finding:
        raise ZeroDivisionError("no reason")

    names = {"name": "a_key_applies_once", "group": "idempotency", "unit": "keys", "statement": "It crashes."}
    monkeypatch.setattr(trial, "REGISTRY", [Invariant(**names, needs_state=True, check=crash)])
    found = doubt(golden_run(), "canaries_are_caught", tmp_path)
    problem = "it crashed: ZeroDivisionError('no reason')"
    assert found.witness == [{"invariant": "a_key_applies_once", "problem": problem}]


def test_a_canary_leaves_no_trace_for_the_next(tmp_path: Path) -> None:
    run = golden_run().write(tmp_path / "run")
    first, second = (doubts(run, ["canaries_are_caught"]) for _ in range(2))
    assert first == second


def test_the_canaries_share_the_golden_run_with_a_chain(tmp_path: Path) -> None:
    made = golden_money_run().write(tmp_path / "run")
    packaged = trial.CANARIES / "run"
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(packaged)) for path in packaged.rglob("*") if path.is_file())
    with duckdb.connect() as db:
        for name in names:
            one, other = packaged / name, made / name
            if name.endswith(".parquet"):
                differing = db.execute(f"SELECT count(*) FROM (FROM '{one}' EXCEPT ALL FROM '{other}')")
                assert differing.fetchone() == (0,), name
            else:
                assert one.read_text() == other.read_text(), name


def test_a_generator_that_begins_late_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    for row in run.history:
        if row["type"] == "invoke":
            row["intended_ns"] = row["time_ns"] - 200 * MS
    found = doubt(run, "the_generator_kept_up", tmp_path)
    assert found.examined == 44
    assert found.unresolved == "1 % of operations began more than 200 ms late by the generator's own fault"
    assert [row["late_ms"] for row in found.witness] == [200.0] * 10


def test_a_start_delayed_by_the_answer_before_is_not_the_generators(tmp_path: Path) -> None:
    run = golden_run()
    slow = run.buy("u1", 1, 0, 300_000)
    run.invoke(slow)
    due_ns = run.now_ns + 100 * MS
    run.tick(S)
    run.execute(slow)
    run.complete(slow)
    run.invoke(late := run.buy("u1", 1, 0, 300_000), late_ns=run.now_ns - due_ns)
    run.execute(late)
    run.complete(late)
    assert doubt(run, "the_generator_kept_up", tmp_path) == Finding(examined=46, violations=0)


def test_a_generator_that_uses_up_its_core_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    for sample in run.samples[-2:]:
        sample["processes"]["load"] = {"cpu_percent": 99.0, "rss_bytes": 1}
    seconds = sum(sample["time_ns"] > run.events[0]["time_ns"] for sample in run.samples)
    found = doubt(run, "the_generator_kept_up", tmp_path)
    assert found.unresolved == f"the load process had used up its core in 2 of {seconds} seconds"


def test_a_generator_that_nobody_watched_is_doubted(tmp_path: Path) -> None:
    run = golden_run()
    run.samples = []
    assert doubt(run, "the_generator_kept_up", tmp_path).unresolved == "no sample shows the load process"


def test_a_history_that_was_cut_short_is_doubted(tmp_path: Path) -> None:
    folder = golden_run().write(tmp_path / "run")
    path = folder / "history" / "load-0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["cut"] = "it died"
    write_lines(path, rows)
    found = doubts(folder, ["the_generator_kept_up"])["the_generator_kept_up"]
    assert found.unresolved == "the history of load-0 was cut short: it died"
