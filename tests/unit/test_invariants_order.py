"""The trades invariants of time: each sees the run that breaks it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.invariants.registry import Finding
from tests.golden import GoldenRun, golden_run
from tests.golden.build import HOT
from tests.golden.findings import broken, findings
from tests.golden.recorder import Op

ORDER, READS = "trades_are_strictly_serializable", "reads_never_go_back"


@pytest.fixture
def run() -> GoldenRun:
    return golden_run()


def account_of(run: GoldenRun, user: str) -> int:
    return int(run.books.account("user_available", user_id=user)["account_id"])


def told(op: Op, run: GoldenRun, *, before_next: str, **levels: int) -> dict[str, Any]:
    """The witness of one operation of a cycle."""
    name = op.row["operation"]
    end_ns = next(r["time_ns"] for r in run.history if r["operation"] == name and r["type"] == "ok")
    row = {"operation": name, "action": op.row["action"], "invoke_ns": op.invoke_ns, "end_ns": end_ns}
    return row | levels | {"before_next": before_next}


def test_a_trade_booked_before_one_that_ended_before_it_began_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    late, early = run.buy("u1", HOT, 0, 300_000), run.buy("u2", HOT, 1, 200_000)
    run.execute(late)
    run.do(early)
    run.invoke(late)
    run.complete(late)
    found = findings(run, tmp_path)
    assert broken(found) == [ORDER]
    assert found[ORDER] == Finding(
        examined=37,
        violations=1,
        witness=[
            told(
                late,
                run,
                market_id=HOT,
                market_version=14,
                account_id=account_of(run, "u1"),
                account_version=8,
                before_next=f"by the versions of market {HOT}",
            ),
            told(
                early,
                run,
                market_id=HOT,
                market_version=15,
                account_id=account_of(run, "u2"),
                account_version=8,
                before_next="ended before the first began",
            ),
        ],
    )


def test_an_unanswered_trade_has_its_place_from_the_books(run: GoldenRun, tmp_path: Path) -> None:
    late, early = run.buy("u1", HOT, 0, 300_000), run.buy("u2", HOT, 1, 200_000)
    run.execute(late)
    run.do(early)
    run.invoke(late)
    run.lose(late)
    found = findings(run, tmp_path)
    assert ORDER in broken(found)
    assert found[ORDER].violations == 1
    assert "end_ns" not in found[ORDER].witness[0]


def test_a_trade_seen_in_its_market_and_not_yet_in_its_account_is_seen(
    run: GoldenRun, tmp_path: Path
) -> None:
    old, trade, new = run.read_account("u3"), run.buy("u3", HOT, 0, 300_000), run.read_market("u4", HOT)
    run.invoke(trade)
    run.execute(old)
    run.execute(trade)
    run.do(new)
    run.invoke(old)
    run.complete(old)
    run.complete(trade)
    found = findings(run, tmp_path)
    assert broken(found) == [ORDER]
    account_id = account_of(run, "u3")
    own = f"by the versions of account {account_id}"
    hot = f"by the versions of market {HOT}"
    at = {"market_id": HOT, "market_version": 14}
    assert found[ORDER] == Finding(
        examined=38,
        violations=1,
        witness=[
            told(old, run, account_id=account_id, account_version=5, before_next=own),
            told(trade, run, account_id=account_id, account_version=6, before_next=hot, **at),
            told(new, run, before_next="ended before the first began", **at),
        ],
    )


def test_a_balance_that_never_was_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    read = run.completions("ok", "read_account")[0]
    read["facts"]["balance_micro"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == [ORDER]
    seen = read["facts"]["balance_micro"]
    witness = {"operation": read["operation"], "account_version": read["facts"]["account_version"]}
    assert found[ORDER] == Finding(
        examined=35, violations=1, witness=[witness | {"balance_seen_micro": seen, "balance_micro": seen - 1}]
    )


def test_prices_that_never_were_are_seen(run: GoldenRun, tmp_path: Path) -> None:
    facts = run.completions("ok", "read_market")[0]["facts"]
    was = list(facts["prices_micro"])
    facts["prices_micro"] = [was[0] + 1, was[1] - 1]
    found = findings(run, tmp_path)
    assert broken(found) == [ORDER]
    (witness,) = found[ORDER].witness
    assert (witness["prices_seen_micro"], witness["prices_micro"]) == (facts["prices_micro"], was)


def test_a_version_of_the_future_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    facts = run.completions("ok", "read_market")[-1]["facts"]
    facts["market_version"] += 1
    assert broken(findings(run, tmp_path)) == [ORDER]


def test_a_read_older_than_what_its_reader_knew_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    old, trade = run.read_account("u1"), run.buy("u1", HOT, 0, 300_000)
    run.execute(old)
    run.do(trade)
    run.invoke(old)
    run.complete(old)
    found = findings(run, tmp_path)
    assert broken(found) == [READS]
    told_ns = run.completions("ok", "buy_shares")[-1]["time_ns"]
    assert found[READS] == Finding(
        examined=8,
        violations=1,
        witness=[
            {
                "object": "account of u1",
                "version": 7,
                "version_told": 8,
                "invoke_ns": old.invoke_ns,
                "operation": old.row["operation"],
                "told_by": trade.row["operation"],
                "told_ns": told_ns,
            }
        ],
    )


def test_a_read_older_than_what_another_reader_saw_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    old, trade, new = run.read_market("u1", HOT), run.buy("u2", HOT, 0, 300_000), run.read_market("u3", HOT)
    run.execute(old)
    run.invoke(trade)
    run.execute(trade)
    run.do(new)
    run.invoke(old)
    run.complete(old)
    run.complete(trade)
    found = findings(run, tmp_path)
    assert broken(found) == [READS]
    (witness,) = found[READS].witness
    assert (witness["version"], witness["version_told"]) == (13, 14)
    assert witness["told_by"] == new.row["operation"]


def test_reads_that_overlap_a_trade_may_see_it_or_not(run: GoldenRun, tmp_path: Path) -> None:
    trade, old, new = run.buy("u2", HOT, 0, 300_000), run.read_market("u1", HOT), run.read_market("u3", HOT)
    for op in (trade, old, new):
        run.invoke(op)
    for op in (old, trade, new):
        run.execute(op)
    for op in (new, trade, old):
        run.complete(op)
    assert broken(findings(run, tmp_path)) == []
