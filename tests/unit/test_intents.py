"""What traders ask for: seeded, within their means but for a few, and after what they were told."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.history import Facts
from scenarios.intents import MICRO, Intent, Trader, Venue
from scenarios.plan import load_plan
from scenarios.replies import AccountContent, Position
from scenarios.venue import user_name

VENUE = Venue(hot=1, side=2, outcomes=2, fee_bps=100)
MIX = load_plan("hot").mix
TRADES = ("buy_amount", "buy_shares", "sell")


def trader(seed: str = "7/0/trades", *, venue: Venue = VENUE, mix: dict[str, float] | None = None) -> Trader:
    return Trader(venue, funds_micro=1_000 * MICRO, mix=mix or MIX, seed=seed)


def some_intents(mind: Trader, count: int) -> list[Intent]:
    """What a trader asks for when it is answered each time."""
    asked = []
    for _ in range(count):
        action = mind.choose()
        if action in TRADES:
            intent: Intent = getattr(mind, action)()
            asked.append(intent)
            answer(mind, intent, shares_micro=5 * MICRO)
        elif action.startswith("read_"):
            asked.append(getattr(mind, action)())
        else:
            asked.append(mind.buy_on_side(closed=action == "buy_closed"))
    return asked


def answer(mind: Trader, intent: Intent, *, shares_micro: int) -> None:
    facts = Facts(
        trade_id=1,
        market_id=intent.market,
        shares_micro=shares_micro,
        balance_micro=900 * MICRO,
        prices_micro=[400_000, 600_000],
    )
    mind.learn(intent, facts, None)


def test_a_seed_gives_the_same_intents_again() -> None:
    first, second = some_intents(trader(), 300), some_intents(trader(), 300)
    assert first == second


def test_another_seed_gives_others() -> None:
    assert some_intents(trader("7/0/trades"), 50) != some_intents(trader("7/1/trades"), 50)
    assert some_intents(trader("7/0/trades"), 50) != some_intents(trader("8/0/trades"), 50)


def test_actions_come_as_often_as_their_weights_say() -> None:
    mind = trader()
    counts = Counter(mind.choose() for _ in range(20_000))
    for action, weight in MIX.items():
        assert counts[action] / 20_000 == pytest.approx(weight / sum(MIX.values()), rel=0.2)


def test_an_action_without_weight_never_comes() -> None:
    mind = trader(mix={"sell": 1.0, "buy_amount": 0.0})
    assert {mind.choose() for _ in range(100)} == {"sell"}


def test_the_body_says_what_the_history_says() -> None:
    for intent in some_intents(trader(), 300):
        if intent.method == "GET":
            assert (intent.keyed, intent.body, intent.request) == (False, b"", None)
            continue
        body, request = msgspec.json.decode(intent.body), intent.request
        assert request is not None
        assert intent.keyed
        assert body.pop("marketId") == intent.market
        assert body == {
            key: value
            for key, value in (
                ("outcome", request.outcome),
                ("side", request.side),
                ("amount", request.amount_micro),
                ("shares", request.shares_micro),
                ("limit", request.limit_micro),
            )
            if value is not None
        }


@given(seed=st.text(), outcomes=st.integers(2, 8), count=st.integers(1, 60))
def test_every_intent_is_one_the_api_takes(seed: str, outcomes: int, count: int) -> None:
    mind = trader(seed, venue=Venue(hot=1, side=2, outcomes=outcomes, fee_bps=100))
    for _ in range(count):
        for intent in (mind.buy_amount(), mind.buy_shares(), mind.sell(), mind.buy_on_side(closed=True)):
            request = intent.request
            assert request is not None
            assert 0 <= (request.outcome or 0) < outcomes
            assert (request.amount_micro is None) != (request.shares_micro is None)
            assert (request.amount_micro or request.shares_micro or 0) > 0
            assert request.limit_micro is None or request.limit_micro >= 0
            assert request.side == "buy" or request.amount_micro is None
            facts = Facts(
                trade_id=1, market_id=1, shares_micro=MICRO, prices_micro=[MICRO // outcomes] * outcomes
            )
            mind.learn(intent, facts, None)


def test_who_holds_nothing_buys_instead_of_selling() -> None:
    intent = trader().sell()
    assert (intent.action, intent.request and intent.request.side) == ("buy_shares", "buy")


def test_a_sale_is_of_what_is_held_but_for_a_few() -> None:
    mind = trader()
    mind.shares = {(1, 0): 30 * MICRO, (1, 1): 2 * MICRO}
    over = 0
    for _ in range(2_000):
        request = mind.sell().request
        assert request is not None
        assert request.outcome is not None
        over += (request.shares_micro or 0) > mind.shares[1, request.outcome]
    assert 0 < over < 100


def test_a_purchase_is_within_the_balance_but_for_a_few() -> None:
    mind = trader()
    over = sum(
        (intent.request.amount_micro or 0) > mind.balance_micro
        for intent in purchases(mind, 3_000)
        if intent.request
    )
    assert 0 < over < 100


def purchases(mind: Trader, count: int) -> list[Intent]:
    return [mind.buy_amount() for _ in range(count)]


def test_some_trades_have_a_limit() -> None:
    mind = trader()
    limited = sum(
        intent.request.limit_micro is not None for intent in purchases(mind, 1_000) if intent.request
    )
    assert 50 < limited < 300


def test_buyers_prefer_the_cheaper_outcome() -> None:
    mind = trader()
    mind.learn(mind.read_market(), Facts(market_id=1, prices_micro=[900_000, 100_000]), None)
    cheaper = sum(intent.request.outcome == 1 for intent in purchases(mind, 1_000) if intent.request)
    assert 750 < cheaper < 950


def test_an_answer_changes_what_is_held() -> None:
    mind = trader()
    buy = mind.buy_shares()
    answer(mind, buy, shares_micro=3 * MICRO)
    assert buy.request is not None
    assert buy.request.outcome is not None
    place = (1, buy.request.outcome)
    assert mind.shares == {place: 3 * MICRO}
    assert mind.balance_micro == 900 * MICRO
    mind.shares[place] = 10 * MICRO
    sale = mind.sell()
    answer(mind, sale, shares_micro=4 * MICRO)
    assert mind.shares[place] == 6 * MICRO


def test_no_answer_changes_nothing() -> None:
    mind = trader()
    mind.learn(mind.buy_shares(), None, None)
    assert (mind.shares, mind.balance_micro) == ({}, 1_000 * MICRO)


def test_the_account_tells_what_is_held_whatever_was_thought() -> None:
    mind = trader()
    mind.shares = {(1, 0): 99}
    content = AccountContent("u1", 5, 0, 3, [Position(1, 1, 7)])
    mind.learn(mind.read_account(), Facts(balance_micro=5), content)
    assert (mind.shares, mind.balance_micro) == ({(1, 1): 7}, 5)


def test_a_reused_key_comes_with_another_request() -> None:
    mind = trader()
    for _ in range(200):
        first = mind.buy_shares()
        other = mind.reuse(first)
        assert other.action == "reuse_key"
        assert other.body != first.body


def depositor(seed: str = "7/0/trades") -> Trader:
    """A trader of money_in_out."""
    return trader(seed, mix=MIX | {"deposit": 1.0, "withdraw": 1.0, "read_withdrawal": 1.0})


def withdrew(mind: Trader, withdrawal_id: str, *, balance_micro: int = 900 * MICRO) -> Intent:
    """A withdrawal that was accepted."""
    intent = mind.withdraw()
    mind.learn(intent, Facts(withdrawal_id=withdrawal_id, balance_micro=balance_micro), None)
    return intent


def test_a_withdrawal_is_within_the_balance_but_for_a_few() -> None:
    mind = depositor()
    over = 0
    for _ in range(2_000):
        intent = mind.withdraw()
        assert intent.request is not None
        amount = intent.request.amount_micro or 0
        assert (intent.action, intent.reading, intent.keyed) == ("withdraw", "withdraw", True)
        assert (intent.path, msgspec.json.decode(intent.body)) == ("/api/withdrawals", {"amount": amount})
        over += amount > mind.balance_micro
        assert amount > mind.balance_micro or MICRO // 2 <= amount <= 20 * MICRO
    assert 0 < over < 100


def test_a_deposit_is_of_one_to_fifty_dollars() -> None:
    amounts = [depositor(str(seed)).deposit_micro() for seed in range(500)]
    assert MICRO <= min(amounts) < 2 * MICRO
    assert 30 * MICRO < max(amounts) <= 50 * MICRO


def test_a_withdrawal_changes_the_balance() -> None:
    mind = depositor()
    withdrew(mind, "w1", balance_micro=123)
    assert mind.balance_micro == 123


def test_one_of_the_last_withdrawals_is_looked_at() -> None:
    mind = depositor()
    assert mind.read_withdrawal().action == "read_account"
    for number in range(15):
        withdrew(mind, f"w{number}")
    looked = {mind.read_withdrawal() for _ in range(300)}
    assert {intent.path for intent in looked} == {f"/api/withdrawals/w{number}" for number in range(5, 15)}
    assert {(intent.action, intent.reading, intent.keyed) for intent in looked} == {
        ("read_withdrawal", "read_withdrawal", False)
    }


def test_a_key_of_a_withdrawal_is_reused_by_withdrawals_and_trades() -> None:
    mind = depositor()
    for first, rarer in ((mind.withdraw(), "sell or buy"), (mind.buy_shares(), "withdraw")):
        others = [mind.reuse(first) for _ in range(400)]
        assert {other.action for other in others} == {"reuse_key"}
        assert all(other.body != first.body for other in others)
        counts = Counter("withdraw" if other.reading == "withdraw" else "sell or buy" for other in others)
        assert 80 < counts[rarer] < 160


def test_who_never_withdraws_reuses_keys_for_trades_only() -> None:
    mind = trader()
    assert {mind.reuse(mind.buy_shares()).path for _ in range(200)} == {"/api/trade"}


def test_a_closed_side_market_is_named_in_the_history() -> None:
    assert trader().buy_on_side(closed=True).action == "buy_closed"
    open_buy = trader().buy_on_side(closed=False)
    assert (open_buy.action, open_buy.market) == ("buy_shares", 2)


def test_a_user_has_the_same_name_in_every_run_of_a_seed() -> None:
    names = [user_name(7, number) for number in range(20)]
    assert names == [user_name(7, number) for number in range(20)]
    assert names != [user_name(8, number) for number in range(20)]
    assert len(set(names)) > 15
