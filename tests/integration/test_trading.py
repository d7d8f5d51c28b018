"""Trades: what they charge, what they refuse, and what a batch of them leaves behind."""

from __future__ import annotations

import random
from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import MarketDatabase
from tests.integration.desk import BATCH, FUNDS, B, Desk, Order, one
from tests.lmsr_model import QUANTITY_MAX, charge, pools

INT64_MAX = 2**63 - 1
SHARE = 1_000_000


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


def market_row(desk: Desk, market: int) -> tuple[object, ...]:
    return desk.row(
        "SELECT version, quantities, liquidity_pool, status FROM markets WHERE market_id = %s", market
    )


def test_a_buy_by_shares_charges_the_cost_and_the_fee(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market(fee_bps=100)
    answer = desk.trade(market, Order("ann", "k", shares=5 * SHARE))
    cost = pools([5 * SHARE, 0], B).least - pools([0, 0], B).least
    fee = -(-cost // 100)

    assert answer.status == 200
    assert not answer.replayed
    assert answer.facts == {
        "tradeId": 1,
        "transactionId": answer.facts["transactionId"],
        "marketId": market,
        "marketVersion": 1,
        "outcome": 0,
        "side": "buy",
        "shares": 5 * SHARE,
        "cost": cost,
        "fee": fee,
        "total": cost + fee,
        "balance": FUNDS - cost - fee,
        "accountVersion": 2,
        "prices": [501_250, 498_750],
    }
    assert desk.available("ann") == FUNDS - cost - fee
    assert market_row(desk, market) == (1, [5 * SHARE, 0], pools([5 * SHARE, 0], B).least, "open")
    desk.assert_books_agree()


def test_a_trade_is_three_entries_and_two_without_a_fee(desk: Desk) -> None:
    desk.user("ann")
    for fee_bps, legs in ((100, 3), (0, 2)):
        answer = desk.trade(desk.market(fee_bps=fee_bps), Order("ann", f"k{fee_bps}", shares=SHARE))
        assert desk.row(
            "SELECT count(*), sum(credit - debit) FROM ledger_entries WHERE transaction_id = %s",
            answer.facts["transactionId"],
        ) == (legs, 0)
    desk.assert_books_agree()


def test_a_sell_pays_the_proceeds_less_the_fee(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market(fee_bps=100)
    bought = desk.trade(market, Order("ann", "buy", shares=5 * SHARE)).facts
    sold = desk.trade(market, Order("ann", "sell", side="sell", shares=2 * SHARE)).facts
    proceeds = pools([5 * SHARE, 0], B).least - pools([3 * SHARE, 0], B).least

    assert (sold["cost"], sold["fee"], sold["total"]) == charge(proceeds, "sell", 100)
    assert sold["balance"] == bought["balance"] + sold["total"]
    assert desk.row("SELECT shares FROM positions") == (3 * SHARE,)
    desk.assert_books_agree()


@pytest.mark.parametrize("fee_bps", [0, 1, 250, 1_000])
@pytest.mark.parametrize("amount", [1_000, 999_999, 5 * 10**9])
def test_a_buy_by_amount_gets_the_most_shares_the_amount_pays_for(
    desk: Desk, amount: int, fee_bps: int
) -> None:
    desk.user("ann")
    market = desk.market(fee_bps=fee_bps)
    bought = desk.trade(market, Order("ann", "k", amount=amount)).facts
    one_more = pools([bought["shares"] + 1, 0], B).least - pools([0, 0], B).least

    assert bought["total"] <= amount
    assert charge(one_more, "buy", fee_bps).total > amount
    desk.assert_books_agree()


@pytest.mark.parametrize("outcomes", range(2, 9))
def test_a_round_trip_in_any_order_returns_every_micro_usdc(desk: Desk, outcomes: int) -> None:
    chance = random.Random(outcomes)
    desk.user("ann")
    market = desk.market(outcomes=outcomes, fee_bps=0)
    before = market_row(desk, market)[1:]
    buys = [
        Order("ann", f"buy-{n}", n % outcomes, shares=chance.randint(1_000, 300 * SHARE)) for n in range(20)
    ]
    sells = [order._replace(key=f"sell-{n}", side="sell") for n, order in enumerate(buys)]
    chance.shuffle(sells)

    assert {answer.status for answer in desk.batch(market, buys)} == {200}
    desk.assert_books_agree()
    assert {answer.status for answer in desk.batch(market, sells)} == {200}

    assert market_row(desk, market) == (40, *before)
    assert desk.available("ann") == FUNDS
    desk.assert_books_agree()


def test_the_pool_of_every_version_is_the_markets_cost(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market(outcomes=3)
    desk.batch(market, [Order("ann", f"k{n}", n % 3, amount=10_000_000 + n) for n in range(30)])
    held = [0, 0, 0]
    rows = desk.admin.execute(
        "SELECT market_version, outcome, shares, pool_after FROM trades ORDER BY market_version"
    ).fetchall()
    assert [row[0] for row in rows] == list(range(1, 31))
    for _, outcome, shares, pool in rows:
        held[outcome] += shares
        assert pool in pools(held, B)


def test_the_prices_of_every_version_are_kept(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market(outcomes=3)
    answers = desk.batch(market, [Order("ann", f"k{n}", n % 3, shares=SHARE * (n + 1)) for n in range(5)])
    kept = [
        prices for (prices,) in desk.admin.execute("SELECT prices FROM price_history ORDER BY market_version")
    ]
    assert kept == [[333_334, 333_333, 333_333], *(answer.facts["prices"] for answer in answers)]


def test_a_limit_that_is_met_does_not_stop_a_trade(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market()
    total = desk.trade(market, Order("ann", "first", shares=SHARE)).facts["total"]
    assert desk.trade(market, Order("ann", "b", outcome=1, shares=SHARE, limit=total)).status == 200
    proceeds = desk.trade(market, Order("ann", "s", side="sell", shares=SHARE)).facts["total"]
    assert desk.trade(market, Order("ann", "again", shares=SHARE)).status == 200
    assert desk.trade(market, Order("ann", "s2", side="sell", shares=SHARE, limit=proceeds)).status == 200


REFUSED = {
    "more than is available": (Order("ann", "k", shares=40 * B), "insufficient_funds"),
    "more than is held": (Order("ann", "k", side="sell", shares=SHARE + 1), "insufficient_shares"),
    "nothing of it is held": (Order("ann", "k", 1, side="sell", shares=1), "insufficient_shares"),
    "dearer than the limit": (Order("ann", "k", shares=SHARE, limit=505_000), "limit_exceeded"),
    "less than the limit": (Order("ann", "k", side="sell", shares=SHARE, limit=500_000), "limit_exceeded"),
    "an amount for no share": (Order("ann", "k", amount=1), "trade_too_small"),
    "proceeds eaten by the fee": (Order("ann", "k", side="sell", shares=1), "trade_too_small"),
    "a trade beyond the range": (Order("ann", "k", shares=QUANTITY_MAX + 1), "trade_too_large"),
    "an amount beyond the range": (Order("ann", "k", amount=QUANTITY_MAX + 1), "trade_too_large"),
    "an outcome beyond the range": (Order("ann", "k", shares=QUANTITY_MAX), "trade_too_large"),
    "an amount nobody has": (Order("ann", "k", amount=QUANTITY_MAX), "insufficient_funds"),
}


@pytest.mark.parametrize(("order", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_kept_and_moves_nothing(desk: Desk, order: Order, code: str) -> None:
    desk.user("ann")
    market = desk.market()
    desk.trade(market, Order("ann", "before", shares=SHARE))
    with desk.nothing_moves(keys_kept=1):
        answer = desk.trade(market, order)
    assert (answer.status, answer.replayed, answer.code) == (422, False, code)
    with desk.nothing_moves():
        assert desk.trade(market, order) == answer._replace(replayed=True)


def test_nobody_trades_a_closed_market(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market()
    desk.trade(market, Order("ann", "before", shares=SHARE))
    closed = desk.close(market)
    assert (closed.status, closed.facts["status"], closed.facts["version"]) == (200, "closed", 2)
    for order in (Order("ann", "b", shares=SHARE), Order("ann", "s", side="sell", shares=SHARE)):
        with desk.nothing_moves(keys_kept=1):
            answer = desk.trade(market, order)
        assert (answer.status, answer.code) == (422, "market_closed")
    desk.assert_books_agree()


NOT_KEPT = {
    "no such user": (Order("bob", "k", shares=1), 404, "user_not_found", None),
    "an outcome too far": (Order("ann", "k", 2, shares=SHARE), 400, "malformed", "outcome"),
    "an outcome below": (Order("ann", "k", -1, shares=SHARE), 400, "malformed", "outcome"),
    "no such side": (Order("ann", "k", side="hold", shares=SHARE), 400, "malformed", "side"),
    "neither": (Order("ann", "k"), 400, "malformed", "shares"),
    "both": (Order("ann", "k", shares=SHARE, amount=SHARE), 400, "malformed", "amount"),
    "a sell by amount": (Order("ann", "k", side="sell", amount=SHARE), 400, "malformed", "shares"),
    "zero shares": (Order("ann", "k", shares=0), 400, "malformed", "shares"),
    "negative shares": (Order("ann", "k", shares=-1), 400, "malformed", "shares"),
    "a zero amount": (Order("ann", "k", amount=0), 400, "malformed", "amount"),
    "a negative amount": (Order("ann", "k", amount=-(2**63)), 400, "malformed", "amount"),
    "a zero limit": (Order("ann", "k", shares=SHARE, limit=0), 400, "malformed", "limit"),
    "an empty key": (Order("ann", "", shares=SHARE), 400, "malformed", "Idempotency-Key"),
    "a long key": (Order("ann", "k" * 256, shares=SHARE), 400, "malformed", "Idempotency-Key"),
}


@pytest.mark.parametrize(("order", "status", "code", "field"), NOT_KEPT.values(), ids=NOT_KEPT)
def test_a_malformed_trade_is_not_kept_and_moves_nothing(
    desk: Desk, order: Order, status: int, code: str, field: str | None
) -> None:
    desk.user("ann")
    market = desk.market()
    with desk.nothing_moves():
        answer = desk.trade(market, order)
    assert (answer.status, answer.replayed, answer.code) == (status, False, code)
    assert answer.facts.get("field") == field


def test_a_trade_on_an_unknown_market_is_not_kept_and_moves_nothing(desk: Desk) -> None:
    desk.user("ann")
    with desk.nothing_moves():
        answer = desk.trade(404_404, Order("ann", "k", shares=SHARE))
    assert (answer.status, answer.code, answer.facts["field"]) == (404, "market_not_found", "marketId")


def test_while_money_is_paused_every_trade_is_sent_away(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market()
    orders = [Order("ann", "a", shares=SHARE), Order("ann", "b", 9, shares=SHARE)]
    desk.row("SELECT pause_trading('drill')")
    with desk.nothing_moves():
        answers = desk.batch(market, orders)
    assert [(answer.status, answer.code) for answer in answers] == [(503, "trading_paused")] * 2
    desk.resume()
    assert desk.trade(market, orders[0]).status == 200


@pytest.mark.parametrize("value", [INT64_MAX, INT64_MAX - 1, 2**62, 2**53, QUANTITY_MAX, 1])
@pytest.mark.parametrize("side", ["buy", "sell"])
@pytest.mark.parametrize("field", ["shares", "amount", "limit"])
def test_no_number_is_an_error(desk: Desk, field: str, side: str, value: int) -> None:
    desk.user("ann", funds=QUANTITY_MAX)
    market = desk.market(outcomes=8, b=10**12, fee_bps=1_000)
    numbers: dict[str, int | None] = {"shares": SHARE if field == "limit" else None, field: value}
    order = Order("ann", "k", 0, side, numbers["shares"], numbers.get("amount"), numbers.get("limit"))
    answer = desk.trade(market, order)
    assert answer.status in (200, 400, 422)
    desk.assert_books_agree()


def test_the_richest_user_can_fill_a_market_and_no_more(desk: Desk) -> None:
    desk.user("ann", funds=QUANTITY_MAX)
    desk.fund(QUANTITY_MAX, user="ann")
    market = desk.market(b=10**6, fee_bps=0)
    assert desk.trade(market, Order("ann", "fill", shares=QUANTITY_MAX)).status == 200
    assert desk.trade(market, Order("ann", "more", amount=1)).code == "trade_too_large"
    # the hopeless outcome, by shares and by amount: free until it leads
    assert desk.trade(market, Order("ann", "free", 1, shares=SHARE)).code == "trade_too_small"
    assert desk.trade(market, Order("ann", "long shot", 1, amount=5)).status == 200
    desk.assert_books_agree()


def test_results_are_by_position(desk: Desk) -> None:
    for name in ("ann", "bob"):
        desk.user(name)
    market = desk.market()
    answers = desk.batch(
        market,
        [
            Order("bob", "1", shares=SHARE),
            Order("ann", "2", 7, shares=SHARE),
            Order("ann", "3", side="sell", shares=SHARE),
            Order("nobody", "4", shares=SHARE),
            Order("ann", "5", 1, amount=SHARE),
            Order("bob", "6", shares=QUANTITY_MAX + 1),
            Order("bob", "7", side="sell", shares=SHARE),
        ],
    )
    assert [answer.status for answer in answers] == [200, 400, 422, 404, 200, 422, 200]
    assert [a.facts["marketVersion"] for a in answers if a.status == 200] == [1, 2, 3]
    assert [a.facts["side"] for a in answers if a.status == 200] == ["buy", "buy", "sell"]
    desk.assert_books_agree()


def test_each_trade_of_a_batch_sees_what_the_one_before_left(desk: Desk) -> None:
    desk.user("ann", funds=1_100_000)
    market = desk.market(fee_bps=0)
    answers = desk.batch(
        market,
        [
            Order("ann", "all of the money", amount=1_100_000),
            Order("ann", "nothing is left", 1, shares=SHARE),
            Order("ann", "back", side="sell", shares=2 * SHARE),
            Order("ann", "now it can be paid", 1, shares=SHARE),
            Order("ann", "more than is left to sell", side="sell", shares=SHARE),
        ],
    )
    assert [answer.status for answer in answers] == [200, 422, 200, 200, 422]
    assert [answers[1].code, answers[4].code] == ["insufficient_funds", "insufficient_shares"]
    assert [answers[n].facts["accountVersion"] for n in (0, 2, 3)] == [2, 3, 4]
    desk.assert_books_agree()


def test_a_batch_does_what_its_trades_do_one_at_a_time(desk: Desk) -> None:
    chance = random.Random(7)
    batched, alone = desk.market(outcomes=4), desk.market(outcomes=4)
    for market in (batched, alone):
        for number in range(5):
            desk.user(f"{market}-{number}", funds=20 * SHARE)
    orders = [
        Order(
            str(chance.randrange(5)),
            f"k{number}",
            chance.randrange(4),
            chance.choice(["buy", "buy", "sell"]),
            shares=chance.randint(1, 20 * SHARE),
        )
        for number in range(60)
    ]

    def of(market: int) -> list[Order]:
        return [order._replace(user=f"{market}-{order.user}") for order in orders]

    together = desk.batch(batched, of(batched))
    apart = [desk.trade(alone, order) for order in of(alone)]
    same = ("marketVersion", "shares", "cost", "fee", "total", "balance", "accountVersion", "prices", "code")
    assert [{name: answer.facts.get(name) for name in same} for answer in together] == [
        {name: answer.facts.get(name) for name in same} for answer in apart
    ]
    assert {answer.status for answer in together} == {200, 422}
    desk.assert_books_agree()


def test_an_empty_batch_has_no_results(desk: Desk) -> None:
    market = desk.market()
    with desk.nothing_moves():
        assert desk.batch(market, []) == []


@pytest.mark.parametrize("broken", range(1, 9))
@pytest.mark.parametrize("value", [None, [], [None, None]])
def test_arrays_of_another_length_are_an_error_and_move_nothing(
    desk: Desk, broken: int, value: list[None] | None
) -> None:
    desk.user("ann")
    parameters: list[object] = [desk.market(), ["ann"], ["k"], ["h"], [0], ["buy"], [SHARE], [None], [None]]
    parameters[broken] = value
    with desk.nothing_moves(), pytest.raises(psycopg.Error) as error:
        desk.server.execute(BATCH, parameters)
    assert error.value.sqlstate == "22023"


@pytest.mark.parametrize("missing", range(1, 6))
def test_a_missing_element_is_a_malformed_trade(desk: Desk, missing: int) -> None:
    desk.user("ann")
    parameters: list[object] = [desk.market(), ["ann"], ["k"], ["h"], [0], ["buy"], [SHARE], [None], [None]]
    parameters[missing] = [None]
    with desk.nothing_moves():
        assert one(desk.server, BATCH, *parameters)[1] == 400


def test_a_poison_trade_undoes_its_batch_and_the_others_can_go_alone(desk: Desk) -> None:
    for name in ("ann", "bob"):
        desk.user(name)
    market = desk.market()
    desk.trade(market, Order("bob", "forgotten", shares=SHARE))
    # only by hand: the ledger still knows a key whose answer is gone
    desk.admin.execute("DELETE FROM idempotency_keys WHERE idempotency_key = 'forgotten'")
    orders = [
        Order("ann", "1", shares=SHARE),
        Order("bob", "forgotten", shares=SHARE),
        Order("ann", "3", side="sell", shares=SHARE),
    ]
    with desk.nothing_moves(), pytest.raises(psycopg.errors.UniqueViolation):
        desk.batch(market, orders)
    assert desk.trade(market, orders[0]).status == 200
    with desk.nothing_moves(), pytest.raises(psycopg.errors.UniqueViolation):
        desk.trade(market, orders[1])
    assert desk.trade(market, orders[2]).status == 200
    desk.assert_books_agree()


def test_a_buy_and_a_sell_of_one_are_batches_of_one(desk: Desk) -> None:
    desk.user("ann")
    market = desk.market(fee_bps=0)
    by_shares = desk.call(
        "SELECT * FROM execute_trade_lmsr('ann', %s, 0, %s, null, null, 'a', 'h')", market, SHARE
    )
    by_amount = desk.call(
        "SELECT * FROM execute_trade_lmsr('ann', %s, 1, null, %s, null, 'b', 'h')", market, SHARE
    )
    sold = desk.call("SELECT * FROM sell_shares_lmsr('ann', %s, 0, %s, null, 'c', 'h')", market, SHARE)
    assert [answer.status for answer in (by_shares, by_amount, sold)] == [200, 200, 200]
    assert [answer.facts["side"] for answer in (by_shares, by_amount, sold)] == ["buy", "buy", "sell"]
    assert by_amount.facts["total"] <= SHARE
    replayed = desk.call("SELECT * FROM sell_shares_lmsr('ann', %s, 0, %s, null, 'c', 'h')", market, SHARE)
    assert replayed == sold._replace(replayed=True)
    refused = desk.call("SELECT * FROM sell_shares_lmsr('ann', %s, 0, %s, null, 'd', 'h')", market, SHARE)
    assert refused.code == "insufficient_shares"
    limited = desk.call(
        "SELECT * FROM execute_trade_lmsr('ann', %s, 0, %s, null, 1, 'e', 'h')", market, SHARE
    )
    assert limited.code == "limit_exceeded"
    desk.assert_books_agree()
