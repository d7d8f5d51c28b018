"""The invariants of every run, in one where money comes in and goes out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from reports.invariants.registry import Finding
from scenarios.history import digest
from tests.golden import GoldenMoneyRun, golden_money_run
from tests.golden.findings import broken, findings
from tests.golden.market import EXTERNAL

OLD_GROUPS = ("ledger", "idempotency", "trades", "service")
KEYLESS = (
    *("deposit", "reverse_deposit", "assign_deposit", "settle_receivable"),
    *("withdraw_final", "undo_withdraw", "return_withdraw"),
)


@pytest.fixture(scope="module")
def told() -> GoldenMoneyRun:
    return golden_money_run()


@pytest.fixture
def run(told: GoldenMoneyRun) -> GoldenMoneyRun:
    """A golden run of one's own."""
    return copy.deepcopy(told)


def seen(run: GoldenMoneyRun, tmp_path: Path) -> dict[str, Finding]:
    """What the invariants of every run find."""
    return findings(run, tmp_path, OLD_GROUPS)


def test_they_hold_in_the_golden_run_with_a_chain(run: GoldenMoneyRun, tmp_path: Path) -> None:
    found = seen(run, tmp_path)
    assert broken(found) == []
    assert found["every_effect_has_a_cause"].examined == (
        len(run.rows("transactions")) + len(run.rows("idempotency_keys")) + len(run.rows("deposits")) + 1
    )


# -- withdrawals, like everything under a key -------------------------------------------------------------


def test_an_acknowledged_withdrawal_that_is_lost_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    gone = run.rows("withdrawals").pop(2)
    found = seen(run, tmp_path)
    assert broken(found) == [
        "acknowledged_operations_are_durable",
        "every_effect_has_a_cause",
        "operations_are_all_or_nothing",
    ]
    witness = found["acknowledged_operations_are_durable"].witness
    assert [(row["withdrawal_id"], row["problem"]) for row in witness] == [
        (gone["withdrawal_id"], "no such withdrawal")
    ]
    assert found["operations_are_all_or_nothing"].witness == [
        {"transaction_id": gone["transaction_id"], "problems": ["no withdrawal"]}
    ]


@pytest.mark.parametrize("fact", ["account_version", "balance_micro", "transaction_id"])
def test_a_reply_that_differs_from_the_books_is_seen(run: GoldenMoneyRun, tmp_path: Path, fact: str) -> None:
    run.completions("ok", "withdraw")[-1]["facts"][fact] += 1
    assert "acknowledged_operations_are_durable" in broken(seen(run, tmp_path))


def test_a_reply_about_somebody_elses_withdrawal_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    run.completions("ok", "withdraw")[0]["facts"]["withdrawal_id"] = run.withdrawal(2)["withdrawal_id"]
    found = seen(run, tmp_path)
    assert broken(found) == ["acknowledged_operations_are_durable"]
    (row,) = found["acknowledged_operations_are_durable"].witness
    assert row["problem"] == "the withdrawal says otherwise"


def test_a_withdrawal_of_another_amount_than_asked_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    asked = next(row for row in run.history if row.get("action") == "withdraw")
    asked["request"]["amount_micro"] += 1
    found = seen(run, tmp_path)
    assert broken(found) == ["a_key_belongs_to_one_request", "acknowledged_operations_are_durable"]
    assert found["a_key_belongs_to_one_request"].witness == [
        {"user_id": "u1", "key": asked["key"], "problem": "the withdrawal is not what was asked"}
    ]


def test_a_key_that_withdraws_twice_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    op = run.withdraw("u1", 1_000_000)
    run.invoke(op)
    run.execute(op)
    run.books.withdraw("u1", op.row["key"], 1_000_000)
    run.complete(op)
    assert "a_key_applies_once" in broken(seen(run, tmp_path))


def test_a_refused_withdrawal_that_moved_money_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    op = run.withdraw("u1", 1_000_000)
    run.invoke(op)
    run.execute(op)
    op.answer = {"status": 503, "code": "trading_paused", "reply_hash": digest(b"not now")}
    run.complete(op)
    assert broken(seen(run, tmp_path)) == ["rejected_operations_leave_no_trace"]


def test_a_retried_withdrawal_with_another_reply_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    retry = next(row for row in run.completions("ok", "withdraw") if row.get("replayed"))
    retry["reply_hash"] = digest(b"other")
    assert broken(seen(run, tmp_path)) == ["retries_get_the_first_reply"]


def test_a_reservation_that_two_withdrawals_share_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    first = run.withdrawal(1)
    other = first | {"withdrawal_id": "5ea70000-0000-4000-8000-00000000ffff", "status": "reserved"}
    run.rows("withdrawals").append(other)
    found = seen(run, tmp_path)
    assert found["operations_are_all_or_nothing"].witness == [
        {"transaction_id": first["transaction_id"], "problems": ["two withdrawals"]}
    ]


def test_a_withdrawal_without_a_reservation_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    run.withdrawal(1)["transaction_id"] = 9_999
    found = seen(run, tmp_path)["operations_are_all_or_nothing"]
    assert {problem for row in found.witness for problem in row["problems"]} == {
        "no transaction",
        "no withdrawal",
    }


def test_a_reservation_of_another_amount_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    row = run.withdrawal(2)
    row["amount_micro"] -= 1
    found = seen(run, tmp_path)["operations_are_all_or_nothing"]
    assert found.witness == [
        {"transaction_id": row["transaction_id"], "problems": ["its entries are not its amount"]}
    ]


# -- what moves money without a key -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYLESS)
def test_a_move_without_a_cause_is_seen(run: GoldenMoneyRun, tmp_path: Path, kind: str) -> None:
    account = run.books.account("user_available", user_id="u3")["account_id"]
    run.books._transact(kind, "u3", None, None, [(account, -1_000), (EXTERNAL, 1_000)])
    found = seen(run, tmp_path)
    assert broken(found) == ["every_effect_has_a_cause"]
    (row,) = found["every_effect_has_a_cause"].witness
    assert (row["what"], row["user_id"]) == (kind, "u3")


def test_a_keyless_move_of_a_kind_that_has_keys_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    account = run.books.account("user_available", user_id="u3")["account_id"]
    run.books._transact("fund", None, None, None, [(EXTERNAL, -1_000), (account, 1_000)])
    assert broken(seen(run, tmp_path)) == ["every_effect_has_a_cause"]


def test_a_deposit_out_of_suspense_has_its_cause_there(run: GoldenMoneyRun, tmp_path: Path) -> None:
    suspended = next(row for row in run.rows("deposits") if row["status"] == "suspended")
    run.books.assign(suspended["deposit_id"], "u4")
    assert broken(seen(run, tmp_path)) == []


def test_a_payment_after_the_return_is_taken_back_in_two_parts(run: GoldenMoneyRun, tmp_path: Path) -> None:
    account = run.books.account("user_available", user_id="u3")
    run.do(run.withdraw("u3", account["balance_micro"] - 5_000_000))
    returned = run.withdrawal(2)
    log: dict[str, Any] = {"withdrawal_id": returned["withdrawal_id"], "receiver": returned["address"]}
    log |= {"amount_micro": returned["amount_micro"], "tx_hash": "0x" + "11" * 32, "block_number": 9}
    run.books.pay(log | {"block_hash": "0x" + "22" * 32})
    assert returned["status"] == "final"
    assert run.rows("receivables")[-1]["owed_micro"] == returned["amount_micro"] - 5_000_000
    assert broken(seen(run, tmp_path)) == []


def untold(run: GoldenMoneyRun) -> dict[str, Any]:
    """The first deposit, forgotten by the history."""
    deposit = run.rows("deposits")[0]
    names = {
        row["operation"] for row in run.history if row.get("facts", {}).get("tx_hash") == deposit["tx_hash"]
    }
    run.history = [row for row in run.history if row["operation"] not in names]
    return deposit


def test_a_deposit_that_nobody_sent_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    deposit = untold(run)
    found = seen(run, tmp_path)
    assert broken(found) == ["every_effect_has_a_cause"]
    assert found["every_effect_has_a_cause"].witness == [
        {
            "user_id": "u1",
            "what": "deposit that nobody sent",
            "transaction_id": deposit["transaction_id"],
            "deposit_id": deposit["deposit_id"],
        }
    ]


def test_a_deposit_that_a_fault_sent_has_its_cause(run: GoldenMoneyRun, tmp_path: Path) -> None:
    deposit = untold(run)
    landed = next(row for row in run.faults if row["state"] == "landed")
    landed["evidence"]["sent"] = [deposit["tx_hash"]]
    assert broken(seen(run, tmp_path)) == []


def test_a_deposit_that_was_cut_off_has_its_cause(run: GoldenMoneyRun, tmp_path: Path) -> None:
    sent = run.completions("ok", "deposit")[0]
    run.history.remove(sent)
    assert broken(seen(run, tmp_path)) == []
    invoke = next(row for row in run.history if row["operation"] == sent["operation"])
    invoke["request"]["amount_micro"] += 1
    assert broken(seen(run, tmp_path / "other")) == ["every_effect_has_a_cause"]


# -- order ------------------------------------------------------------------------------------------------


def test_a_withdrawal_shown_as_reserved_again_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    read = run.completions("ok", "read_withdrawal")[1]
    assert read["facts"]["withdrawal_status"] == "mined"
    assert broken(seen(run, tmp_path)) == []
    run.do(run.read_withdrawal("u1", 1))
    run.history[-1]["facts"]["withdrawal_status"] = "reserved"
    found = seen(run, tmp_path / "again")
    assert broken(found) == ["reads_never_go_back"]
    assert found["reads_never_go_back"].witness[0]["told_by"] == read["operation"]


def test_a_payment_that_was_reorganised_away_may_be_under_way_again(
    run: GoldenMoneyRun, tmp_path: Path
) -> None:
    run.do(run.read_withdrawal("u1", 1))
    run.do(run.read_withdrawal("u1", 1))
    run.history[-1]["facts"]["withdrawal_status"] = "sent"
    assert broken(seen(run, tmp_path)) == []


def test_a_credit_that_was_read_before_its_deposit_was_sent_is_seen(
    run: GoldenMoneyRun, tmp_path: Path
) -> None:
    read = run.read_account("u4")
    run.invoke(read)
    run.execute(read)
    run.complete(read)
    told = run.history[-1]["facts"]
    told |= {"account_version": told["account_version"] + 1, "balance_micro": told["balance_micro"] + 3_000}
    deposit = run.do(run.deposit("u4", 3_000))
    run.pass_blocks(4)
    found = seen(run, tmp_path)
    assert broken(found) == ["trades_are_strictly_serializable"]
    cycle = {row["operation"] for row in found["trades_are_strictly_serializable"].witness}
    assert cycle == {read.row["operation"], deposit.row["operation"]}


def test_a_withdrawal_takes_its_place_in_the_order(run: GoldenMoneyRun, tmp_path: Path) -> None:
    read = run.read_account("u4")
    run.invoke(read)
    run.execute(read)
    run.complete(read)
    told = run.history[-1]["facts"]
    told |= {"account_version": told["account_version"] + 1, "balance_micro": told["balance_micro"] - 3_000}
    run.do(run.withdraw("u4", 3_000))
    assert broken(seen(run, tmp_path)) == ["trades_are_strictly_serializable"]


# -- the ledger -------------------------------------------------------------------------------------------


def test_a_debt_below_nothing_is_seen(run: GoldenMoneyRun, tmp_path: Path) -> None:
    account = run.books.account("user_available", user_id="u3")["account_id"]
    run.books._transact("settle_receivable", "u3", None, None, [(account, -1), (run.books.owed, 1)])
    assert broken(seen(run, tmp_path)) == ["every_effect_has_a_cause", "no_account_goes_below_its_floor"]
