"""Reconciliations in plain Python: the books against the chain, and the pause (docs/reconciliation.md)."""

from __future__ import annotations

from tests.golden.chain import Chain
from tests.golden.custody_books import CustodyBooks
from tests.golden.market import Row

ALERT_MICRO = 1
PAUSE_MICRO = 1_000_000
PAUSE_AFTER = 3
CRITICAL_MICRO = 100_000_000

SEEN = "in the vault; its block is not deep enough, or not booked yet"
MINED = "paid by the vault; its block is not deep enough, or not booked yet"


def reconcile(books: CustodyBooks, chain: Chain) -> Row:
    """Compare once, at the watcher's head; the run, which may have paused trading."""
    runs = books.views["reconciliations"]
    before = runs[-1] if runs else None
    number = books.head[0]
    run_id = len(runs) + 1
    items = in_flight(books) + wrong_accounts(books)
    custody = chain.custody_micro(number)
    balances = books.views["accounts"]
    total = sum(row["balance_micro"] for row in balances if row["kind"] != "external_onchain")
    flying = sum(item["amount_micro"] for item in items if item["explains"])
    drift_of_accounts = sum(abs(item["amount_micro"]) for item in items if not item["explains"])
    difference = custody - total - flying
    imbalance = abs(sum(row["balance_micro"] for row in balances))
    drift = max(abs(difference), drift_of_accounts, imbalance)
    consecutive = (before["consecutive"] if before else 0) + 1 if drift >= PAUSE_MICRO else 0
    wrong = sum(not item["explains"] for item in items)
    verdict = verdict_of(drift, consecutive, wrong)
    row: Row = {
        "run_id": run_id,
        "verdict": verdict,
        "cutoff_at": books.wall,
        "finished_at": books.wall,
        "block_number": number,
        "custody_micro": custody,
        "books_micro": total,
        "in_flight_micro": flying,
        "difference_micro": difference,
        "account_drift_micro": drift_of_accounts,
        "drift_micro": drift,
        "accounts_wrong": wrong,
        "entries_read": len(books.views["entries"]) if before is None else 0,
        "base_run_id": None if before is None else 1,
        "snapshot": before is None,
        "consecutive": consecutive,
        "last_clean_at": last_clean_at(before),
        "first_found_at": None if verdict == "clean" else first_found_at(before) or books.wall,
        "paused_at": None,
        "trouble": None,
    }
    if verdict == "pause" and not books.paused:
        row["paused_at"] = books.wall
        change_platform(books, paused=True, reason=f"reconciliation {run_id} found a drift of {drift}")
    runs.append(row)
    books.views["reconciliation_items"] += [{"run_id": run_id} | item for item in items]
    announce(books, row, before)
    return row


def verdict_of(drift: int, consecutive: int, wrong: int) -> str:
    """What the thresholds make of a run."""
    if drift >= CRITICAL_MICRO or consecutive >= PAUSE_AFTER:
        return "pause"
    return "alert" if drift >= ALERT_MICRO or wrong else "clean"


def in_flight(books: CustodyBooks) -> list[Row]:
    """What one side has done and the other not yet."""
    items = [
        _item("deposit", f"{row['tx_hash']}:{row['log_index']}", row["amount_micro"], SEEN)
        for row in books.views["deposits"]
        if row["status"] == "seen"
    ]
    for row in books.views["withdrawals"]:
        if row["status"] == "mined":
            items.append(_item("withdrawal", row["withdrawal_id"], -row["amount_micro"], MINED))
        elif row["status"] in ("reserved", "sent"):
            why = f"{row['status']}; still in the vault"
            items.append(_item("withdrawal", row["withdrawal_id"], 0, why))
    return items


def wrong_accounts(books: CustodyBooks) -> list[Row]:
    """Accounts whose balance is not the sum of their entries."""
    sums: dict[int, int] = {}
    for entry in books.views["entries"]:
        change = entry["credit_micro"] - entry["debit_micro"]
        sums[entry["account_id"]] = sums.get(entry["account_id"], 0) + change
    items = []
    for row in books.views["accounts"]:
        if difference := row["balance_micro"] - sums.get(row["account_id"], 0):
            why = f"{row['kind']} of {row['user_id']}: the balance is not the sum of the entries"
            items.append(_item("account", str(row["account_id"]), difference, why) | {"explains": False})
    return items


def last_clean_at(before: Row | None) -> object:
    """The cut-off of the last clean run up to this one."""
    if before is None:
        return None
    return before["cutoff_at"] if before["verdict"] == "clean" else before["last_clean_at"]


def first_found_at(before: Row | None) -> object:
    """Since when there are findings in succession."""
    return None if before is None else before["first_found_at"]


def announce(books: CustodyBooks, row: Row, before: Row | None) -> None:
    """An alert when the verdict or the drift is not that of the run before."""
    was = (before["verdict"], before["drift_micro"]) if before else ("clean", 0)
    if (row["verdict"], row["drift_micro"]) == was and row["paused_at"] is None:
        return
    agree = row["verdict"] == "clean"
    title = "The books agree with the chain again" if agree else "The books differ from the chain"
    payload = {name: row[name] for name in ("run_id", "verdict", "difference_micro", "drift_micro")}
    run_id = row["run_id"]
    books.outbox.enqueue(
        "reconciliation",
        str(run_id),
        "alert.reconciliation",
        {"title": title} | payload,
        f"reconciliation:{run_id}",
    )


def change_platform(books: CustodyBooks, *, paused: bool, reason: str, changed_by: str | None = None) -> None:
    """Pause, or let money move again."""
    books.paused = paused
    changes = books.views["platform_changes"]
    changes.append(
        {
            "change_id": len(changes) + 1,
            "paused": paused,
            "sells_while_paused": False,
            "reads_while_paused": True,
            "reason": reason,
            "changed_by": changed_by,
            "changed_at": books.wall,
        }
    )


def _item(kind: str, item_id: str, amount_micro: int, explanation: str) -> Row:
    return {
        "item_kind": kind,
        "item_id": item_id,
        "amount_micro": amount_micro,
        "explains": True,
        "explanation": explanation,
    }
