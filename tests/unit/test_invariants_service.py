"""The service invariants: a correct run passes both, and each sees the run that breaks it alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from reports.invariants.registry import Finding
from tests.golden import GoldenRun, golden_run
from tests.golden.findings import broken, findings
from tests.golden.recorder import MS

RECOVERY_NS = 3_000 * MS


def healed(run: GoldenRun) -> dict[str, Any]:
    return next(row for row in run.faults if row["state"] == "healed")


def heal_before_a_silence(run: GoldenRun) -> int:
    """Heal the fault of the golden run when more than the recovery time passes before anything succeeds."""
    armed_ns = run.faults[0]["time_ns"]
    oks = [int(row["time_ns"]) for row in run.history if row["type"] == "ok" and row["time_ns"] > armed_ns]
    silence = next(at for at, after in itertools.pairwise(oks) if after - at > RECOVERY_NS + 100 * MS)
    # A moment later, so that the unknowns between the two stay inside the window.
    healed(run)["time_ns"] = silence + 10 * MS
    return silence + 10 * MS


def ask_in_vain(run: GoldenRun, at_ns: int) -> None:
    """One attempt that is invoked at this time and gets no answer, put in its place in the history."""
    now_ns, run.now_ns = run.now_ns, at_ns - MS
    op = run.buy("u1", 1, 0, 300_000)
    before = len(run.history)
    run.invoke(op)
    run.lose(op, "reset")
    run.now_ns = now_ns
    rows = run.history[before:]
    del run.history[before:]
    place = sum(row["time_ns"] < at_ns for row in run.history)
    run.history[place:place] = rows


def test_the_golden_run_breaks_nothing(tmp_path: Path) -> None:
    found = findings(golden_run(), tmp_path)
    assert broken(found) == []
    assert found["the_service_recovers"] == Finding(examined=2, violations=0)
    assert found["errors_stay_inside_fault_windows"] == Finding(examined=44, violations=0)


def test_a_service_that_stays_down_after_a_heal_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    healed_ns = heal_before_a_silence(run)
    ask_in_vain(run, healed_ns + 500 * MS)
    first_ok = next(row for row in run.history if row["type"] == "ok" and row["time_ns"] > healed_ns)
    found = findings(run, tmp_path)
    assert broken(found) == ["the_service_recovers"]
    witness = {
        "at_ns": healed_ns,
        "fault_id": "f001",
        "fault": "drop_reply",
        "first_ok_after_s": (first_ok["time_ns"] - healed_ns) / 1e9,
    }
    assert found["the_service_recovers"] == Finding(examined=2, violations=1, witness=[witness])


def test_a_heal_after_which_nobody_asks_is_not_examined(tmp_path: Path) -> None:
    run = golden_run()
    heal_before_a_silence(run)
    assert findings(run, tmp_path)["the_service_recovers"] == Finding(examined=1, violations=0)


def test_a_heal_into_another_fault_is_not_examined(tmp_path: Path) -> None:
    run = golden_run()
    healed_ns = heal_before_a_silence(run)
    ask_in_vain(run, healed_ns + 500 * MS)
    for state, after_ms in (("planned", 0), ("armed", 900), ("landed", 901), ("healed", 1_000)):
        row = {
            "time_ns": healed_ns + after_ms * MS,
            "fault_id": "f002",
            "fault": "kill_server",
            "state": state,
        }
        run.faults.append(row)
    found = findings(run, tmp_path)["the_service_recovers"]
    assert (found.examined, found.violations) == (2, 0)


def test_a_service_that_never_begins_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    started_ns = next(row["time_ns"] for row in run.events if row["event"] == "load_started")
    for row in run.history:
        if row["type"] == "ok" and row["time_ns"] > started_ns:
            row["type"] = "info"
    found = findings(run, tmp_path)["the_service_recovers"]
    assert {"at_ns": started_ns, "fault": "the start of the load"} in found.witness


def test_an_error_outside_every_fault_window_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = run.buy("u1", 1, 0, 300_000)
    run.invoke(op)
    run.lose(op, "reset")
    found = findings(run, tmp_path)
    assert broken(found) == ["errors_stay_inside_fault_windows"]
    witness = {
        "invoke_ns": op.invoke_ns,
        "operation": op.row["operation"],
        "attempt": 1,
        "action": "buy_shares",
        "error": "reset",
        "latency_ms": 1.0,
    }
    assert found["errors_stay_inside_fault_windows"] == Finding(examined=45, violations=1, witness=[witness])


def test_a_refused_connection_outside_every_fault_window_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = run.buy("u1", 1, 0, 300_000)
    run.invoke(op)
    run.lose(op, "refused")
    run.history[-1]["type"] = "fail"
    assert broken(findings(run, tmp_path)) == ["errors_stay_inside_fault_windows"]


def test_the_grace_after_a_heal_is_exactly_the_recovery_time(tmp_path: Path) -> None:
    for later_ns, expected in ((0, []), (1, ["errors_stay_inside_fault_windows"])):
        run = golden_run()
        ask_in_vain(run, healed(run)["time_ns"] + RECOVERY_NS + later_ns)
        assert broken(findings(run, tmp_path / str(later_ns))) == expected


def test_a_declared_refusal_and_an_attempt_cut_short_or_given_up_are_no_errors(tmp_path: Path) -> None:
    run = golden_run()
    for seen in (
        {"type": "fail", "status": 503, "code": "overloaded"},
        {"status": 409, "code": "idempotency_key_in_progress"},
        {"error": "stopped"},
        {"error": "timeout"},
    ):
        op = run.buy("u1", 1, 0, 300_000)
        run.invoke(op)
        run.lose(op)
        del run.history[-1]["error"]
        run.history[-1] |= seen
    assert broken(findings(run, tmp_path)) == []


def test_a_fault_of_the_relay_excuses_no_error_of_the_service(tmp_path: Path) -> None:
    run = golden_run()
    for row in run.faults:
        row["target"] = "relay"
    found = findings(run, tmp_path)
    assert broken(found) == ["errors_stay_inside_fault_windows"]
