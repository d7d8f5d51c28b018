"""The trades invariants but for those of time: a correct run passes all, each sees what breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.invariants.registry import Finding, load_registry
from tests.golden import GoldenRun, golden_run
from tests.golden.build import HOT, SHORT, WIDE
from tests.golden.findings import broken, findings

NAMES = [known.name for known in load_registry() if known.group == "trades"]
TREASURY = 2


@pytest.fixture
def run() -> GoldenRun:
    """A correct run without probes: what is found is found in its history and its books."""
    correct = golden_run()
    correct.probes.clear()
    return correct


def invoke_of(run: GoldenRun, trade: dict[str, Any]) -> dict[str, Any]:
    """The invoke row of the operation that made this trade."""
    return next(row for row in run.history if row.get("key") == trade["idempotency_key"])


def named(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


def test_the_golden_run_breaks_nothing(run: GoldenRun, tmp_path: Path) -> None:
    found = findings(run, tmp_path)
    assert [name for name in broken(found) if name in NAMES] == []
    assert {name: found[name].examined for name in NAMES} == {
        "pools_equal_lmsr_cost": 19 + 3,  # trades and markets
        "trades_replay_exactly": 19,
        "market_versions_are_dense": 19 + 1 + 3,  # trades, a closing, creations
        "positions_equal_outstanding_shares": 7 + 11,
        "pools_cover_every_payout": 19 + 3 + 3,  # trades, subsidies, balances now
        "prices_sum_to_one": 22 + 26,  # in the books, in replies
        "limits_are_respected": 5,
        "nobody_trades_a_closed_market": 2 + 1,  # its trades, and an order that came too late
        "trades_are_strictly_serializable": 28 + 7,  # effects and reads
        "reads_never_go_back": 7,
    }


def test_a_pool_that_is_off_by_one_after_one_trade_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    trade = run.trade(3)
    trade["pool_after_micro"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["pools_equal_lmsr_cost"]
    right = trade["pool_after_micro"] - 1
    witness = {"market_id": HOT, "market_version": 3, "trade_id": 3, "pool_micro": right + 1}
    assert found["pools_equal_lmsr_cost"] == Finding(
        examined=22, violations=1, witness=[witness | {"account_micro": right, "model_micro": right}]
    )


def test_a_pool_that_is_not_what_its_account_holds_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    market = run.rows("markets")[0]
    market["pool_micro"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["pools_equal_lmsr_cost"]
    right = market["pool_micro"] - 1
    witness = {"market_id": HOT, "market_version": 13, "pool_micro": right + 1, "account_micro": right}
    witness |= {"model_micro": right, "subsidy_micro": market["subsidy_micro"]}
    assert found["pools_equal_lmsr_cost"] == Finding(examined=22, violations=1, witness=[witness])


def test_a_buy_that_could_have_had_more_for_its_amount_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    trade = run.trade(2)
    assert trade["amount_micro"] == 7_000_000
    trade["amount_micro"] = invoke_of(run, trade)["request"]["amount_micro"] = 7_000_001
    found = findings(run, tmp_path)
    assert broken(found) == ["trades_replay_exactly"]
    witness = named(trade, "trade_id", "market_id", "market_version", "side", "outcome", "shares_micro")
    witness |= {"cost_micro": 6_930_693, "model_cost_micro": 6_930_693}
    witness |= {"fee_micro": 69_307, "model_fee_micro": 69_307}
    assert found["trades_replay_exactly"] == Finding(
        examined=19,
        violations=1,
        witness=[witness | {"would_pay_micro": 7_000_001, "for_one_more_micro": 7_000_001}],
    )


@pytest.mark.parametrize("name", ["cost_micro", "fee_micro"])
def test_a_trade_at_another_cost_or_fee_is_seen(run: GoldenRun, tmp_path: Path, name: str) -> None:
    trade = run.trade(3)
    trade[name] += 1
    found = findings(run, tmp_path)
    # the reply said, and the entries moved, what was right
    others = ["acknowledged_operations_are_durable", "operations_are_all_or_nothing"]
    assert broken(found) == [*others, "trades_replay_exactly"]
    (witness,) = found["trades_replay_exactly"].witness
    assert named(witness, "trade_id", name, f"model_{name}") == {
        "trade_id": 3,
        name: trade[name],
        f"model_{name}": trade[name] - 1,
    }


def test_prices_that_are_not_the_market_makers_are_seen(run: GoldenRun, tmp_path: Path) -> None:
    prices = run.rows("prices")[4]
    assert (prices["market_id"], prices["market_version"]) == (HOT, 2)
    prices["prices_micro"][0] += 2
    prices["prices_micro"][1] -= 2
    found = findings(run, tmp_path)
    assert broken(found) == ["trades_replay_exactly"]
    (witness,) = found["trades_replay_exactly"].witness
    assert named(witness, "trade_id", "wrong_prices_micro") == {
        "trade_id": 2,
        "wrong_prices_micro": prices["prices_micro"],
    }


def test_a_trade_of_an_outcome_that_is_not_there_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    run.trade(3)["outcome"] = 2
    found = findings(run, tmp_path)
    assert found["trades_replay_exactly"].violations > 1  # and all that follow, on other quantities
    assert found["trades_replay_exactly"].witness[0]["trade_id"] == 3


def test_either_pool_is_right_where_float8_cannot_decide(run: GoldenRun, tmp_path: Path) -> None:
    run.do(run.buy("u1", HOT, 0, 10_000_000_000))  # the other outcome's weight is exp(-100)
    trade, market = run.trade(20), run.rows("markets")[0]
    assert market["pool_micro"] == max(market["quantities"]) + 1
    entry = run.rows("entries")[-2]
    account = run.books.account("market_pool", market_id=HOT)
    # as float8 has it, for which the sum of the weights is 1
    for row, name in ((market, "pool_micro"), (account, "balance_micro"), (trade, "pool_after_micro")):
        row[name] -= 1
    entry["balance_after_micro"] -= 1
    trade["cost_micro"] -= 1
    found = findings(run, tmp_path)
    remark = "1 pools lie within float8's error of the next: either was accepted"
    assert found["pools_equal_lmsr_cost"] == Finding(examined=23, violations=0, detail=remark)
    assert found["trades_replay_exactly"] == Finding(examined=20, violations=0)


def test_a_version_without_a_trade_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    run.rows("markets")[0]["version"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["market_versions_are_dense"]
    witness = {"market_id": HOT, "market_version": 14, "last_version": 13}
    assert found["market_versions_are_dense"] == Finding(examined=23, violations=1, witness=[witness])


def test_a_version_that_is_skipped_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    trade = run.do(run.buy("u1", HOT, 0, 1_000_000)).row["key"]
    for rows in (run.rows("trades"), run.rows("prices"), run.rows("markets")[:1]):
        row = rows[-1]
        row["market_version" if "market_version" in row else "version"] += 1
    run.completions("ok", "buy_shares")[-1]["facts"]["market_version"] += 1
    found = findings(run, tmp_path)
    assert trade == run.trade(20)["idempotency_key"]
    assert broken(found) == ["market_versions_are_dense"]
    witness = {"market_id": HOT, "market_version": 15, "trade_id": 20, "version_before": 13}
    assert found["market_versions_are_dense"] == Finding(examined=24, violations=1, witness=[witness])


def test_a_version_that_is_priced_twice_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    run.rows("prices").append(dict(run.rows("prices")[0]))
    found = findings(run, tmp_path)
    assert broken(found) == ["market_versions_are_dense"]
    witness = {"market_id": HOT, "market_version": 0, "price_rows": 2}
    assert found["market_versions_are_dense"] == Finding(examined=23, violations=1, witness=[witness])


def test_a_share_from_nowhere_is_seen_at_its_owner_and_in_the_sum(run: GoldenRun, tmp_path: Path) -> None:
    position = run.rows("positions")[0]
    position["shares_micro"] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["positions_equal_outstanding_shares"]
    where = {"market_id": HOT, "outcome": 0}
    total = run.rows("markets")[0]["quantities"][0]
    held = position["shares_micro"]
    assert found["positions_equal_outstanding_shares"] == Finding(
        examined=18,
        violations=2,
        witness=[
            where | {"user_id": "u1", "positions_micro": held, "traded_micro": held - 1},
            where | {"quantity_micro": total, "positions_micro": total + 1, "traded_micro": total},
        ],
    )


def test_a_sale_of_shares_that_the_seller_never_had_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    run.do(run.buy("u4", WIDE, 1, 1_000_000))
    run.do(run.sell("u3", WIDE, 1, 1_000_000))
    run.do(run.buy("u3", WIDE, 1, 1_500_000))
    found = findings(run, tmp_path)
    assert broken(found) == ["positions_equal_outstanding_shares"]
    witness = {"market_id": WIDE, "outcome": 1, "user_id": "u3", "market_version": 6}
    assert found["positions_equal_outstanding_shares"] == Finding(
        examined=20, violations=1, witness=[witness | {"traded_micro": -1_000_000}]
    )


def test_a_pool_that_was_empty_for_a_moment_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    pool = run.books.account("market_pool", market_id=HOT)
    loan = pool["balance_micro"] - 1
    run.books.time_ns -= 3_600_000_000_000  # by no order of this run
    for amount in (loan, -loan):
        moves = [(pool["account_id"], -amount), (TREASURY, amount)]
        run.books._transact("fund", "admin", f"loan of {amount}", None, moves)
    found = findings(run, tmp_path)
    assert broken(found) == ["pools_cover_every_payout"]
    witness = {"market_id": HOT, "market_version": 13, "account_version": 15, "transaction_id": 28}
    payout = max(run.rows("markets")[0]["quantities"])
    assert found["pools_cover_every_payout"] == Finding(
        examined=27, violations=1, witness=[witness | {"pool_micro": 1, "payout_micro": payout}]
    )


def test_a_pool_that_is_empty_in_the_end_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    run.books.account("market_pool", market_id=HOT)["balance_micro"] = 0
    found = findings(run, tmp_path)["pools_cover_every_payout"]
    payout = max(run.rows("markets")[0]["quantities"])
    witness = {"market_id": HOT, "market_version": 13, "pool_micro": 0, "payout_micro": payout}
    assert found == Finding(examined=25, violations=1, witness=[witness])


def test_a_reply_whose_prices_sum_to_more_than_one_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    reply = run.completions("ok", "buy_shares")[0]
    reply["facts"]["prices_micro"][0] += 1
    found = findings(run, tmp_path)
    assert broken(found) == ["prices_sum_to_one"]
    witness = named(reply["facts"], "market_id", "market_version", "prices_micro")
    witness |= {"operation": reply["operation"], "sum_micro": 1_000_001}
    assert found["prices_sum_to_one"] == Finding(examined=48, violations=1, witness=[witness])


def test_a_buy_above_its_limit_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    trade = run.trade(3)
    trade["limit_micro"] = invoke_of(run, trade)["request"]["limit_micro"] = 1_215_284
    found = findings(run, tmp_path)
    assert broken(found) == ["limits_are_respected"]
    witness = named(trade, "trade_id", "market_id", "market_version", "side")
    witness |= {"operation": trade["idempotency_key"], "total_micro": 1_215_285, "bound_micro": 1_215_284}
    assert found["limits_are_respected"] == Finding(examined=5, violations=1, witness=[witness])


def test_a_sale_below_its_limit_is_seen_though_the_books_forgot_it(run: GoldenRun, tmp_path: Path) -> None:
    trade = next(row for row in run.rows("trades") if row["side"] == "sell" and row["limit_micro"])
    invoke_of(run, trade)["request"]["limit_micro"] = 2_000_000
    trade["limit_micro"] = None
    found = findings(run, tmp_path)
    assert "limits_are_respected" in broken(found)
    (witness,) = found["limits_are_respected"].witness
    assert witness["bound_micro"] == 2_000_000
    assert witness["total_micro"] == trade["cost_micro"] - trade["fee_micro"]


def test_a_trade_after_the_closing_is_seen(run: GoldenRun, tmp_path: Path) -> None:
    closed = run.completions("ok", "close_market")[0]
    op = run.do(run.buy("u1", SHORT, 0, 1_000_000))
    found = findings(run, tmp_path)
    assert broken(found) == ["nobody_trades_a_closed_market"]
    witness = {"user_id": "u1", "operation": op.row["operation"]}
    witness |= {"trade_id": 20, "market_id": SHORT, "market_version": 4, "closed_version": 3}
    witness |= {"invoke_ns": op.invoke_ns, "closed_ns": closed["time_ns"]}
    assert found["nobody_trades_a_closed_market"] == Finding(examined=4, violations=1, witness=[witness])


def test_empty_books_and_an_empty_history_are_examined_and_nothing_is_found(tmp_path: Path) -> None:
    run = golden_run()
    for rows in (run.history, run.probes, *run.books.views.values()):
        rows.clear()
    found = findings(run, tmp_path)
    assert {found[name].examined for name in NAMES} == {0}
    assert {found[name].violations for name in NAMES} == {0}
