"""Trading over HTTP: what a caller gets, and that the books say the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.market_client import (
    USDC,
    MarketClient,
    accepted,
    refusal,
)
from tests.integration.market_server import MarketServer


def test_a_buy_by_shares_charges_cost_and_fee_and_is_in_the_ledger(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        trade = accepted(client.trade(user, market, shares=10 * USDC))
        assert trade["shares"] == 10 * USDC
        assert trade["total"] == trade["cost"] + trade["fee"]
        assert trade["fee"] == -(-trade["cost"] * 100 // 10_000)
        assert trade["marketVersion"] == 1
        assert trade["balance"] == 1_000 * USDC - trade["total"]
        assert sum(trade["prices"]) == 1_000_000
        account = accepted(client.get("/api/account", user))
        assert account["available"] == trade["balance"]
        assert account["accountVersion"] == trade["accountVersion"]
        assert account["positions"] == [{"marketId": market, "outcome": 0, "shares": 10 * USDC}]
        newest = accepted(client.get("/api/account/ledger?limit=1", user))["entries"]
        assert [(entry["transactionId"], entry["debit"], entry["balanceAfter"]) for entry in newest] == [
            (trade["transactionId"], trade["total"], trade["balance"])
        ]
        state = accepted(client.get(f"/api/markets/{market}"))
        assert (state["version"], state["prices"]) == (1, trade["prices"])


def test_a_buy_by_amount_spends_no_more_and_gets_as_many_shares_as_that_buys(
    any_server: MarketServer,
) -> None:
    with MarketClient(any_server) as client:
        user, market, other = client.user(), client.market(), client.market()
        trade = accepted(client.trade(user, market, amount=7 * USDC))
        assert trade["total"] <= 7 * USDC
        more = accepted(client.trade(user, other, shares=trade["shares"] + 1))
        assert more["total"] > 7 * USDC


def test_buying_and_selling_the_same_shares_costs_the_fees_only(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        bought = accepted(client.trade(user, market, shares=5 * USDC))
        sold = accepted(client.trade(user, market, side="sell", shares=5 * USDC))
        assert sold["cost"] == bought["cost"]
        assert sold["balance"] == 1_000 * USDC - bought["fee"] - sold["fee"]
        assert accepted(client.get("/api/account", user))["positions"] == []


def test_a_limit_holds_on_both_sides(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        total = accepted(client.trade(user, market, shares=USDC))["total"]
        next_total = total + 50_000
        assert refusal(client.trade(user, market, shares=USDC, limit=total)) == (422, "limit_exceeded")
        assert accepted(client.trade(user, market, shares=USDC, limit=next_total))["total"] <= next_total
        sell: dict[str, Any] = {"side": "sell", "shares": USDC}
        assert refusal(client.trade(user, market, **sell, limit=USDC)) == (422, "limit_exceeded")
        assert accepted(client.trade(user, market, **sell, limit=1))["total"] >= 1


def test_each_business_refusal_has_its_code_and_moves_nothing(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(funds=10 * USDC), client.market()
        before = accepted(client.get("/api/account", user))
        refused = [
            refusal(client.trade(user, market, shares=100 * USDC)),
            refusal(client.trade(user, market, side="sell", shares=1)),
            refusal(client.trade(user, market, amount=1)),
            refusal(client.trade(user, market, shares=10**15 + 1)),
            refusal(client.trade(user, market + 10_000_000, shares=USDC)),
        ]
        assert refused == [
            (422, "insufficient_funds"),
            (422, "insufficient_shares"),
            (422, "trade_too_small"),
            (422, "trade_too_large"),
            (404, "market_not_found"),
        ]
        assert accepted(client.get("/api/account", user)) == before
        assert accepted(client.get(f"/api/markets/{market}"))["version"] == 0


def test_a_closed_market_takes_no_trade_and_closes_once(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        user, market = client.user(), client.market()
        closed = accepted(client.post(f"/api/markets/{market}", {"action": "close"}))
        assert (closed["status"], closed["version"]) == ("closed", 1)
        assert refusal(client.trade(user, market)) == (422, "market_closed")
        again = client.post(f"/api/markets/{market}", {"action": "close"})
        assert refusal(again) == (422, "market_closed")


@pytest.mark.parametrize("outcomes", [2, 8])
def test_a_market_has_prices_for_all_its_outcomes(shared_server: MarketServer, outcomes: int) -> None:
    with MarketClient(shared_server) as client:
        user, market = client.user(), client.market(outcomes=[f"Outcome {n}" for n in range(outcomes)])
        trade = accepted(client.trade(user, market, outcome=outcomes - 1))
        assert len(trade["prices"]) == outcomes
        assert trade["prices"][-1] == max(trade["prices"])
        reply = client.trade(user, market, outcome=outcomes)
        assert refusal(reply) == (400, "malformed")
        assert reply.json()["field"] == "outcome"


def test_a_user_reads_the_account_reconciled(shared_server: MarketServer) -> None:
    with MarketClient(shared_server) as client:
        user, market = client.user(), client.market()
        accepted(client.trade(user, market))
        statement = accepted(client.get("/api/account/reconciliation", user))
        assert statement["reconciled"]
        assert (statement["entries"], statement["difference"]) == (2, 0)
        assert statement["balance"] == statement["entriesSum"]


def test_every_market_is_listed_with_its_state(shared_server: MarketServer) -> None:
    with MarketClient(shared_server) as client:
        market = client.market(question="Is it in the list?")
        listed = {found["marketId"]: found for found in accepted(client.get("/api/markets"))["markets"]}
        assert listed[market] == accepted(client.get(f"/api/markets/{market}"))
