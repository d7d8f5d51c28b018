"""The idempotency invariants: a correct run passes all, and each sees the run that breaks it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.invariants.registry import Finding, load_registry
from scenarios.history import digest
from tests.golden import GoldenRun, golden_run
from tests.golden.findings import broken, findings
from tests.golden.recorder import MS, Op

NAMES = [known.name for known in load_registry() if known.group == "idempotency"]


def funding(run: GoldenRun) -> dict[str, Any]:
    """The invoke row of the first user's funding."""
    return next(row for row in run.history if row.get("request", {}).get("to_user") == "u1")


def acknowledged_unbooked(run: GoldenRun) -> Op:
    """A funding that is acknowledged and never reaches the books."""
    op = run.fund("u1", 5_000_000)
    run.invoke(op)
    facts = {"transaction_id": 999, "user_id": "u1", "account_version": 99, "balance_micro": 1}
    op.answer = {"status": 201, "reply_hash": digest(b"lost"), "facts": facts}
    run.complete(op)
    return op


def test_the_golden_run_breaks_nothing(tmp_path: Path) -> None:
    found = findings(golden_run(), tmp_path)
    assert broken(found) == []
    assert {name: found[name].examined for name in NAMES} == {
        "a_key_applies_once": 31,
        "rejected_operations_leave_no_trace": 3,
        "retries_get_the_first_reply": 29,
        "a_key_belongs_to_one_request": 31,
        "every_key_reaches_an_answer": 32,
        "acknowledged_operations_are_durable": 31,
        "operations_are_all_or_nothing": 27,
        "every_effect_has_a_cause": 58,
    }


def test_a_key_that_pays_twice_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = run.fund("u1", 5_000_000)
    key, account = op.row["key"], run.books.account("user_available", user_id="u1")
    run.invoke(op)
    run.execute(op)
    second = run.books.fund("admin", key, account["account_id"], 5_000_000)["transaction_id"]
    run.complete(op)
    found = findings(run, tmp_path)
    assert broken(found) == ["a_key_applies_once"]
    ids = [second - 1, second]
    witness = {"user_id": "admin", "key": key, "transactions": 2, "trades": 0, "transaction_ids": ids}
    assert found["a_key_applies_once"] == Finding(examined=32, violations=1, witness=[witness])


def test_an_acknowledged_operation_that_is_lost_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = acknowledged_unbooked(run)
    found = findings(run, tmp_path)
    assert broken(found) == ["acknowledged_operations_are_durable"]
    witness = {
        "operation": op.row["operation"],
        "attempt": 1,
        "action": "fund",
        "user_id": "admin",
        "key": op.row["key"],
        "problem": "no such entry",
        "transaction_id": 999,
    }
    assert found["acknowledged_operations_are_durable"] == Finding(
        examined=32, violations=1, witness=[witness]
    )


@pytest.mark.parametrize(
    "fact", ["trade_id", "transaction_id", "account_version", "balance_micro", "fee_micro"]
)
def test_a_reply_that_differs_from_the_books_is_seen(tmp_path: Path, fact: str) -> None:
    run = golden_run()
    run.completions("ok", "sell")[-1]["facts"][fact] += 1
    assert "acknowledged_operations_are_durable" in broken(findings(run, tmp_path))


def test_a_refused_operation_that_moved_money_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = run.fund("u1", 5_000_000)
    run.invoke(op)
    run.execute(op)
    op.answer = {"status": 400, "code": "malformed", "reply_hash": digest(b"refused")}
    run.complete(op)
    found = findings(run, tmp_path)
    assert broken(found) == ["rejected_operations_leave_no_trace"]
    witness = {
        "operation": op.row["operation"],
        "user_id": "admin",
        "key": op.row["key"],
        "code": "malformed",
        "transaction_id": run.rows("transactions")[-1]["transaction_id"],
    }
    assert found["rejected_operations_leave_no_trace"] == Finding(examined=4, violations=1, witness=[witness])


def test_a_copy_made_by_the_proxy_may_execute_what_the_client_was_refused_for_now(tmp_path: Path) -> None:
    run = golden_run()
    op = run.fund("u1", 5_000_000)
    run.invoke(op)
    run.execute(op)
    op.answer = {"status": 503, "code": "overloaded", "reply_hash": digest(b"not now")}
    run.complete(op)
    assert broken(findings(run, tmp_path / "without")) == ["rejected_operations_leave_no_trace"]
    landed = {"fault_id": "f002", "fault": "duplicate_at_once", "state": "landed"}
    run.faults.append({"time_ns": run.tick()} | landed | {"evidence": {"key": op.row["key"]}})
    assert broken(findings(run, tmp_path / "with")) == []


def test_a_retry_with_another_answer_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    retry = next(row for row in run.history if row.get("replayed"))
    stored, other = retry["reply_hash"], digest(b"other")
    retry["reply_hash"] = other
    found = findings(run, tmp_path)
    assert broken(found) == ["retries_get_the_first_reply"]
    answer = {
        "operation": retry["operation"],
        "attempt": 2,
        "status": 200,
        "reply_hash": other,
        "replayed": True,
    }
    witness = {
        "user_id": "u3",
        "key": retry["operation"],
        "answers": [answer],
        "stored_status": 200,
        "stored_hash": stored,
    }
    assert found["retries_get_the_first_reply"] == Finding(examined=29, violations=1, witness=[witness])


def test_two_answers_that_both_claim_to_be_the_first_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    op = run.do(run.buy("u1", 1, 0, 300_000))
    run.invoke(op)
    run.complete(op)
    assert broken(findings(run, tmp_path)) == ["retries_get_the_first_reply"]


def test_an_effect_that_is_not_what_was_asked_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    row = funding(run)
    row["request"]["amount_micro"] -= 1
    found = findings(run, tmp_path)
    assert broken(found) == ["a_key_belongs_to_one_request"]
    witness = {"user_id": "admin", "key": row["key"], "problem": "the funding is not what was asked"}
    assert found["a_key_belongs_to_one_request"] == Finding(examined=31, violations=1, witness=[witness])


def test_a_trade_other_than_the_one_asked_for_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    asked = [row for row in run.history if row.get("action") == "buy_shares" and row.get("market") == 1]
    asked[0]["request"]["limit_micro"] = 10**12
    assert "a_key_belongs_to_one_request" in broken(findings(run, tmp_path))


def test_a_second_request_answered_under_one_key_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    reused = run.completions("fail", "reuse_key")[0]
    key = next(row["key"] for row in run.history if row["operation"] == reused["operation"] and "key" in row)
    first = next(row for row in run.history if row["operation"] == key and row["type"] == "ok")
    reused |= {"type": "ok", "replayed": True} | {
        name: first[name] for name in ("status", "reply_hash", "facts")
    }
    del reused["code"]
    found = findings(run, tmp_path)["a_key_belongs_to_one_request"]
    witness = {"user_id": "u1", "key": key, "problem": "two requests were answered"}
    assert (found.violations, found.witness) == (1, [witness])


def test_an_effect_without_its_answer_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    gone = run.rows("idempotency_keys").pop()
    found = findings(run, tmp_path)
    assert broken(found) == ["operations_are_all_or_nothing"]
    witness = {"transaction_id": gone["transaction_id"], "problems": ["no answer under its key"]}
    assert found["operations_are_all_or_nothing"] == Finding(examined=27, violations=1, witness=[witness])


@pytest.mark.parametrize(
    ("view", "problem"),
    [("trades", "no trade"), ("prices", "no price"), ("transactions", "no transaction")],
)
def test_half_an_effect_is_seen(tmp_path: Path, view: str, problem: str) -> None:
    run = golden_run()
    run.rows(view).pop()
    found = findings(run, tmp_path)["operations_are_all_or_nothing"]
    assert problem in found.witness[0]["problems"]


def test_an_effect_that_nobody_asked_for_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    account = run.books.account("user_available", user_id="u1")
    made = run.books.fund("u1", "nobody-asked", account["account_id"], 1_000_000)
    number = made["transaction_id"]
    run.books.remember("u1", "nobody-asked", "POST /api/fundings", "", 201, "", number)
    found = findings(run, tmp_path)
    assert broken(found) == ["every_effect_has_a_cause"]
    effect = {"user_id": "u1", "key": "nobody-asked", "transaction_id": number}
    witness = [effect | {"what": "fund"}, effect | {"what": "key"}]
    assert found["every_effect_has_a_cause"] == Finding(examined=60, violations=2, witness=witness)


def test_a_market_that_nobody_closed_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.books.close(2)
    found = findings(run, tmp_path)["every_effect_has_a_cause"]
    assert (found.violations, found.witness) == (1, [{"what": "closing", "market_id": 2}])


def test_what_was_in_the_books_before_the_run_needs_no_cause(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["unix_ns"] += 3_600 * 10**9
    found = findings(run, tmp_path)["every_effect_has_a_cause"]
    assert (found.examined, found.violations) == (0, 0)


def test_a_key_in_progress_for_ever_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["load"] = {"answer_budget_s": 2.0}
    op = run.buy("u1", 1, 0, 300_000)
    for _ in range(4):
        run.invoke(op)
        run.lose(op)
        del run.history[-1]["error"]
        run.history[-1] |= {"status": 409, "code": "idempotency_key_in_progress"}
        run.tick(400 * MS)
    found = findings(run, tmp_path)
    assert broken(found) == ["every_key_reaches_an_answer"]
    witness = {
        "operation": op.row["operation"],
        "user_id": "u1",
        "key": op.row["key"],
        "attempts": 4,
        "pursued_s": 1.207,
        "code": "idempotency_key_in_progress",
    }
    assert found["every_key_reaches_an_answer"] == Finding(examined=33, violations=1, witness=[witness])


def test_giving_up_while_a_fault_is_in_effect_is_no_breach(tmp_path: Path) -> None:
    run = golden_run()
    run.plan["plan"]["load"] = {"answer_budget_s": 2.0}
    run.fault("armed")
    run.faults[-1]["fault_id"] = "f002"
    op = run.buy("u1", 1, 0, 300_000)
    run.invoke(op)
    run.tick(2_000 * MS)
    run.lose(op)
    assert broken(findings(run, tmp_path)) == []
