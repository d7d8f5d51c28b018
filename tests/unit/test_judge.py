"""A verdict follows from what the invariants found: the worst wins; what decides nothing is never a pass."""

from __future__ import annotations

import datetime
import decimal
import importlib
import json
import pkgutil
from pathlib import Path

import msgspec
import pytest

from reports import invariants
from reports import judge as judging
from reports.evidence import Evidence, RunError, open_evidence
from reports.invariants.registry import REGISTRY, Check, Finding, Invariant, load_registry
from reports.judge import InvariantResult, Verdict, abandoned, examine, judge, plain, weigh, write_verdict
from reports.verdict import Threshold
from scenarios.history import HistoryError
from tests import golden

DOCUMENT = Path(__file__).parents[2] / "docs" / "verdict.md"


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.run(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return golden.run(tmp_path)


def invariant_of(check: Check, *, group: str = "ledger", needs_state: bool = True) -> Invariant:
    return Invariant(
        name="something_holds",
        group=group,
        unit="rows",
        statement="Something holds.",
        needs_state=needs_state,
        check=check,
    )


def examined(correct: Path, check: Check, *, group: str = "ledger") -> InvariantResult:
    evidence = open_evidence(correct)
    try:
        return examine(evidence, invariant_of(check, group=group))
    finally:
        evidence.close()


def result(kind: str, detail: str | None = None) -> InvariantResult:
    return msgspec.convert(
        {
            "name": f"something_{kind}",
            "group": "ledger",
            "statement": "Something holds.",
            "result": kind,
            "examined": 5,
            "unit": "rows",
            "violations": 2 if kind == "broken" else 0,
            "witness": [],
            "detail": detail,
        },
        InvariantResult,
    )


SLOW = Threshold(name="steady_p99_ms", limit=5.0, value=9.0, kept=False)
KEPT = Threshold(name="steady_p99_ms", limit=5.0, value=4.0, kept=True)
UNMEASURED = Threshold(name="health_p99_ms", limit=5.0, value=None, kept=False)


# -- one invariant ----------------------------------------------------------------------------------------


def test_an_invariant_that_examined_something_and_saw_no_breach_held(correct: Path) -> None:
    one = examined(correct, lambda _: Finding(examined=3, violations=0))

    assert (one.result, one.examined, one.detail) == ("held", 3, None)


def test_a_breach_is_broken_and_keeps_its_witness(correct: Path) -> None:
    one = examined(correct, lambda _: Finding(examined=3, violations=1, witness=[{"entry_id": 7}]))

    assert (one.result, one.violations, one.witness) == ("broken", 1, [{"entry_id": 7}])


def test_an_invariant_that_examined_nothing_is_inconclusive(correct: Path) -> None:
    one = examined(correct, lambda _: Finding(examined=0, violations=0))

    assert (one.result, one.detail) == ("inconclusive", "examined nothing")


def test_a_check_that_crashes_is_inconclusive_and_says_where(correct: Path) -> None:
    def crash(_: Evidence) -> Finding:
        raise ZeroDivisionError("no rows to divide by")

    one = examined(correct, crash)

    assert one.result == "inconclusive"
    assert one.detail is not None
    assert one.detail.startswith(
        "the check crashed: ZeroDivisionError: no rows to divide by (test_judge.py, "
    )


def test_a_check_whose_query_is_wrong_is_inconclusive(correct: Path) -> None:
    one = examined(correct, lambda evidence: evidence.scalar("SELECT * FROM nowhere"))

    assert one.result == "inconclusive"
    assert one.detail is not None
    assert "nowhere" in one.detail
    assert "\n" not in one.detail


def test_what_could_not_be_resolved_is_inconclusive(correct: Path) -> None:
    one = examined(
        correct, lambda _: Finding(examined=9, violations=0, unresolved="two cannot be told apart")
    )

    assert (one.result, one.detail) == ("inconclusive", "two cannot be told apart")


def test_a_breach_outweighs_what_could_not_be_resolved(correct: Path) -> None:
    one = examined(correct, lambda _: Finding(examined=9, violations=1, unresolved="and one is unclear"))

    assert (one.result, one.detail) == ("broken", "and one is unclear")


def test_the_trial_itself_never_says_that_the_system_is_wrong(correct: Path) -> None:
    one = examined(correct, lambda _: Finding(examined=9, violations=2), group="trial")

    assert (one.result, one.violations, one.detail) == ("inconclusive", 2, "2 of 9 rows")


def test_without_books_a_check_that_needs_them_is_not_run(run: Path) -> None:
    (run / "state" / "manifest.json").unlink()
    evidence = open_evidence(run)

    def forbidden(_: Evidence) -> Finding:
        raise AssertionError("run all the same")

    assert examine(evidence, invariant_of(forbidden)).detail == "the run has no exported books"
    needless = invariant_of(lambda _: Finding(examined=1, violations=0), needs_state=False)
    assert examine(evidence, needless).result == "held"


def test_a_witness_is_kept_exactly_as_json_can_hold_it() -> None:
    row = {
        "sum": 2**80,
        "exact": decimal.Decimal("0.1"),
        "at": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "ratio": float("nan"),
        "list": (1, None, True),
    }

    assert plain(row) == {
        "sum": str(2**80),
        "exact": "0.1",
        "at": "2026-01-02T03:04:05",
        "ratio": "nan",
        "list": [1, None, True],
    }


# -- the word ---------------------------------------------------------------------------------------------


def test_everything_held_and_kept_is_a_pass() -> None:
    word, reasons = weigh([result("held")], [], [KEPT])

    assert word == "pass"
    assert len(reasons) == 1


def test_a_crossed_threshold_alone_is_slow() -> None:
    assert weigh([result("held")], [], [SLOW]) == ("slow", ["steady_p99_ms is 9, the limit is 5"])


def test_a_doubt_outweighs_a_crossed_threshold() -> None:
    word, reasons = weigh([result("inconclusive", "examined nothing")], [], [SLOW])

    assert word == "inconclusive"
    assert reasons == [
        "something_inconclusive: examined nothing",
        "steady_p99_ms is 9, the limit is 5",
    ]


def test_a_breach_outweighs_everything() -> None:
    word, reasons = weigh([result("inconclusive", "?"), result("broken")], ["cut short"], [SLOW])

    assert word == "fail"
    assert reasons[0] == "something_broken: 2 violations in 5 rows"
    assert len(reasons) == 4


def test_an_incomplete_record_is_inconclusive_even_when_everything_held() -> None:
    assert weigh([result("held")], ["the history was cut short"], []) == (
        "inconclusive",
        ["the history was cut short"],
    )


def test_a_threshold_without_a_measurement_is_inconclusive() -> None:
    assert weigh([result("held")], [], [UNMEASURED])[0] == "inconclusive"


def test_no_invariants_are_no_pass() -> None:
    assert weigh([], [], [])[0] == "inconclusive"


# -- the whole ----------------------------------------------------------------------------------------------


def test_a_correct_run_passes(correct: Path) -> None:
    verdict = judge(correct)

    assert (verdict.verdict, verdict.exit_code) == ("pass", 0), verdict.reasons
    judged = [known.name for known in load_registry() if known.group not in judging.CHAIN_GROUPS]
    assert [one.name for one in verdict.invariants] == judged
    assert all(one.examined > 0 for one in verdict.invariants)
    assert verdict.totals["trades"] > 0
    assert [(one.fault, one.landed) for one in verdict.faults] == [("drop_reply", 1)]


def test_no_module_of_invariants_is_left_out() -> None:
    for module in pkgutil.iter_modules(invariants.__path__):
        importlib.import_module(f"{invariants.__name__}.{module.name}")

    assert len(load_registry()) == len(REGISTRY)


def test_every_group_of_this_version_has_invariants() -> None:
    assert {known.group for known in load_registry()} == {
        "ledger",
        "idempotency",
        "trades",
        "outbox",
        "chain",
        "service",
        "trial",
    }


@pytest.mark.parametrize("broken", [False, True])
def test_judging_twice_gives_the_same_bytes(tmp_path: Path, broken: bool) -> None:
    rows = golden.golden_run()
    if broken:
        rows.entry(30)["credit_micro"] += 1
        rows.trade(5)["cost_micro"] += 1
    folder = rows.write(tmp_path / "run")
    write_verdict(folder, judge(folder))
    first = {name: (folder / name).read_bytes() for name in ("verdict.json", "junit.xml", "summary.md")}
    write_verdict(folder, judge(folder))

    assert {name: (folder / name).read_bytes() for name in first} == first


def test_a_broken_ledger_fails_the_run(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.entry(30)["credit_micro"] += 1
    verdict = judge(rows.write(tmp_path / "run"))

    assert (verdict.verdict, verdict.exit_code) == ("fail", 1)
    found = {one.name: one for one in verdict.invariants}["every_transaction_balances"]
    assert (found.result, found.violations) == ("broken", 1)
    assert found.witness[0]["transaction_id"] == rows.entry(30)["transaction_id"]


def test_a_history_that_was_cut_is_inconclusive_at_best(run: Path) -> None:
    path = run / "history" / "load-0.jsonl"
    lines = path.read_text().splitlines()
    end = json.loads(lines[-1]) | {"cut": "the load child exited -9"}
    path.write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n")
    verdict = judge(run)

    assert (verdict.verdict, verdict.exit_code) == ("inconclusive", 3)
    assert "history/load-0.jsonl was cut short: the load child exited -9" in verdict.reasons


def test_a_run_without_books_is_inconclusive(run: Path) -> None:
    (run / "state" / "manifest.json").unlink()
    verdict = judge(run)

    assert verdict.verdict == "inconclusive"
    assert not [one.name for one in verdict.invariants if one.result == "broken"]


def test_a_slow_run_is_slow(tmp_path: Path) -> None:
    rows = golden.golden_run()
    rows.plan["plan"]["thresholds"] = {"trades_per_s": 1000.0}
    verdict = judge(rows.write(tmp_path / "run"))

    assert (verdict.verdict, verdict.exit_code) == ("slow", 99), verdict.reasons


def test_a_crashing_check_keeps_the_others(correct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: Evidence) -> Finding:
        raise RuntimeError("a defect of ours")

    fine = invariant_of(lambda _: Finding(examined=1, violations=0))
    monkeypatch.setattr(judging, "load_registry", lambda: [invariant_of(crash), fine])
    verdict = judge(correct)

    assert [one.result for one in verdict.invariants] == ["inconclusive", "held"]
    assert verdict.exit_code == 3


def test_a_folder_that_is_not_a_run_has_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        judge(tmp_path)


def test_a_malformed_history_has_no_verdict(run: Path) -> None:
    path = run / "history" / "load-0.jsonl"
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(HistoryError):
        judge(run)


def test_an_abandoned_run_is_inconclusive_and_says_why(run: Path) -> None:
    verdict = abandoned(run, "interrupted before the load began")

    assert (verdict.verdict, verdict.exit_code, verdict.run) == ("inconclusive", 3, "golden")
    assert verdict.reasons == ["interrupted before the load began"]
    write_verdict(run, verdict)


def test_an_abandoned_folder_without_a_plan_still_has_a_verdict(tmp_path: Path) -> None:
    verdict = abandoned(tmp_path, "killed")

    assert verdict.run == tmp_path.name
    assert "plan.json" in verdict.reasons[0]


def test_verdict_json_reads_back(run: Path) -> None:
    verdict = judge(run)
    write_verdict(run, verdict)

    assert msgspec.json.decode((run / "verdict.json").read_bytes(), type=Verdict) == verdict


# -- the document -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", load_registry(), ids=lambda known: known.name)
def test_an_invariant_is_in_the_document_with_its_statement(known: Invariant) -> None:
    assert f"| `{known.name}` | {known.statement} |" in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("field", Verdict.__struct_fields__ + InvariantResult.__struct_fields__)
def test_a_field_of_verdict_json_is_in_the_document(field: str) -> None:
    assert f"`{field}`" in DOCUMENT.read_text(encoding="utf-8")
