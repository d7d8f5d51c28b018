"""The ledger invariants: a correct run passes all, and each sees the run that breaks it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.invariants.registry import Finding, load_registry
from tests.golden import GoldenRun, golden_run
from tests.golden.findings import broken, findings

NAMES = [known.name for known in load_registry() if known.group == "ledger"]
EXTERNAL, TREASURY, FEES = 1, 2, 4


def entries_of(run: GoldenRun, account_id: int) -> list[dict[str, Any]]:
    return [row for row in run.rows("entries") if row["account_id"] == account_id]


def test_the_golden_run_breaks_nothing(tmp_path: Path) -> None:
    found = findings(golden_run(), tmp_path)
    assert [name for name in broken(found) if name in NAMES] == []
    # 27 transactions, 73 entries and 16 accounts in the state; the rest was seen by eight probes
    assert {name: found[name].examined for name in NAMES} == {
        "every_transaction_balances": 27 + 138,
        "money_is_conserved": 16 + 128,
        "balances_equal_entries": 16 + 128,
        "running_balances_are_continuous": 73,
        "no_account_goes_below_its_floor": 73 + 16,
        "entries_never_change": 38,
    }


def test_two_transactions_that_balance_only_together_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    treasury, user = entries_of(run, EXTERNAL)[:2]  # a funding of 1,000 and one of 200 USDC
    treasury["transaction_id"], user["transaction_id"] = user["transaction_id"], treasury["transaction_id"]
    found = findings(run, tmp_path)
    assert broken(found) == ["every_transaction_balances"]
    assert found["every_transaction_balances"] == Finding(
        examined=27,
        violations=2,
        witness=[
            {"transaction_id": 1, "kind": "fund", "entries": 2, "difference_micro": 800_000_000},
            {"transaction_id": 5, "kind": "fund", "entries": 2, "difference_micro": -800_000_000},
        ],
    )


def test_an_entry_that_moves_money_both_ways_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    entry = entries_of(run, FEES)[0]
    entry["debit_micro"] += 5
    entry["credit_micro"] += 5
    found = findings(run, tmp_path)
    assert broken(found) == ["every_transaction_balances"]
    witness = {"transaction_id": 9, "kind": "trade", "entries": 3, "difference_micro": 0}
    assert found["every_transaction_balances"] == Finding(
        examined=27, violations=1, witness=[witness | {"entries_not_one_way": 1}]
    )


def test_entries_without_a_transaction_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    run.rows("transactions").pop(0)
    found = findings(run, tmp_path)
    assert found["every_transaction_balances"] == Finding(
        examined=26,
        violations=1,
        witness=[{"transaction_id": 1, "entries": 2, "difference_micro": 0, "without_transaction": True}],
    )


def test_an_account_that_vanishes_with_its_money_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    gone = run.rows("accounts").pop(EXTERNAL - 1)
    found = findings(run, tmp_path)
    assert broken(found) == ["money_is_conserved"]
    witness = {"sum_micro": -gone["balance_micro"], "accounts": 15, "brought_in_micro": 0}
    assert found["money_is_conserved"] == Finding(examined=15, violations=1, witness=[witness])


def test_what_only_a_probe_saw_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes[2]["results"]["money_is_conserved"] = {
        "examined": 16,
        "violations": 1,
        "witness": [{"sum_micro": 7}],
    }
    found = findings(run, tmp_path)
    assert broken(found) == ["money_is_conserved"]
    witness = {"probed_ns": run.probes[2]["time_ns"], "sum_micro": 7}
    assert found["money_is_conserved"] == Finding(examined=144, violations=1, witness=[witness])


def test_balances_whose_errors_cancel_out_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    treasury, fees = run.rows("accounts")[TREASURY - 1], run.rows("accounts")[FEES - 1]
    treasury["balance_micro"] += 1
    fees["balance_micro"] -= 1
    found = findings(run, tmp_path)
    assert broken(found) == ["balances_equal_entries"]
    assert found["balances_equal_entries"] == Finding(
        examined=16,
        violations=2,
        witness=[
            {
                "account_id": TREASURY,
                "kind": "house_treasury",
                "balance_micro": treasury["balance_micro"],
                "entries_micro": treasury["balance_micro"] - 1,
                "version": 4,
                "entries": 4,
            },
            {
                "account_id": FEES,
                "kind": "house_fees",
                "market_id": 1,
                "balance_micro": fees["balance_micro"],
                "entries_micro": fees["balance_micro"] + 1,
                "version": 13,
                "entries": 13,
            },
        ],
    )


def test_a_version_that_counts_an_entry_too_many_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.rows("accounts")[TREASURY - 1]["version"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["balances_equal_entries"]
    assert [(row["version"], row["entries"]) for row in found["balances_equal_entries"].witness] == [(5, 4)]


def test_a_running_balance_that_jumps_is_seen_going_up_and_coming_down(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    first, second, third = entries_of(run, FEES)[:3]
    second["balance_after_micro"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["running_balances_are_continuous"]
    assert found["running_balances_are_continuous"] == Finding(
        examined=73,
        violations=2,
        witness=[
            {
                "account_id": FEES,
                "account_version": entry["account_version"],
                "entry_id": entry["entry_id"],
                "change_micro": entry["credit_micro"],
                "balance_after_micro": entry["balance_after_micro"],
                "version_before": before["account_version"],
                "balance_before_micro": before["balance_after_micro"],
            }
            for before, entry in ((first, second), (second, third))
        ],
    )


def test_two_entries_with_one_version_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    before, last = entries_of(run, FEES)[-2:]
    last["account_version"] = before["account_version"]
    found = findings(run, tmp_path)
    assert broken(found) == ["running_balances_are_continuous"]
    witness = found["running_balances_are_continuous"].witness
    assert [(row["entry_id"], row["account_version"], row["version_before"]) for row in witness] == [
        (last["entry_id"], 12, 12)
    ]


def test_a_balance_below_its_floor_at_one_version_is_seen(tmp_path: Path) -> None:
    run = golden_run()
    balances = [entry["balance_after_micro"] for entry in entries_of(run, TREASURY)]
    assert balances == sorted(balances, reverse=True)
    run.rows("accounts")[TREASURY - 1]["floor_micro"] = floor = balances[-1] + 1
    found = findings(run, tmp_path)
    assert broken(found) == ["no_account_goes_below_its_floor"]
    witness = {"account_id": TREASURY, "kind": "house_treasury"}
    witness |= {"balance_micro": balances[-1], "floor_micro": floor}
    assert found["no_account_goes_below_its_floor"] == Finding(
        examined=89, violations=2, witness=[witness | {"account_version": 4}, witness]
    )


def test_entries_rewritten_or_gone_since_a_probe_saw_them_are_seen(tmp_path: Path) -> None:
    run = golden_run()
    entry_id, kept = run.probes[-1]["entries"][0]
    run.probes[-1]["entries"][0][1] = "0" * 32
    run.probes[3]["entries"].append([74, "1" * 32])
    entry = run.entry(entry_id)
    found = findings(run, tmp_path)
    assert broken(found) == ["entries_never_change"]
    assert found["entries_never_change"] == Finding(
        examined=39,
        violations=2,
        witness=[
            {
                "entry_id": entry_id,
                "seen_ns": run.probes[-1]["time_ns"],
                "digest_seen": "0" * 32,
                "digest_kept": kept,
                **{name: entry[name] for name in ("transaction_id", "account_id", "account_version")},
            },
            {
                "entry_id": 74,
                "seen_ns": run.probes[3]["time_ns"],
                "digest_seen": "1" * 32,
                "digest_kept": "none",
            },
        ],
    )


def test_empty_books_are_examined_and_nothing_is_found(tmp_path: Path) -> None:
    run = golden_run()
    run.probes.clear()
    for view in run.books.views.values():
        view.clear()
    found = findings(run, tmp_path)
    assert {found[name].examined for name in NAMES} == {0}
