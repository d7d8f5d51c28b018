"""Any batches of any trades do exactly what an independent model says, refusals and replays included.

How exactness is judged: costs come from 60-digit decimals. Where those leave float8's rounding the choice of
two neighbours (tests/lmsr_model.py), either is right and the model goes on from the one that was taken;
everything else (fees, totals, balances, versions, positions, the pool as a sum) has one right value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MarketDatabase
from tests.integration.desk import Answer, Desk, Order
from tests.lmsr_model import PRICE_SUM, QUANTITY_MAX, Charge, budget, charge, moved, pools, prices

USERS = 2
SIZES = st.integers(0, 50).flatmap(lambda bits: st.integers(1, min(2**bits, QUANTITY_MAX)))
FUNDS = st.integers(25, 50).flatmap(lambda bits: st.integers(1, min(2**bits, QUANTITY_MAX)))

_numbers = itertools.count(1)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """A trade of one of the users, small or large, often under a key that was used before."""
    side = draw(st.sampled_from(["buy", "sell"]))
    size = draw(SIZES)
    by_amount = side == "buy" and draw(st.booleans())
    return Order(
        user=str(draw(st.integers(0, USERS - 1))),
        key=f"k{draw(st.integers(0, 99))}",
        outcome=draw(st.integers(0, 8)),  # 8 is out of range, the others are taken into it
        side=side,
        shares=None if by_amount else size,
        amount=size if by_amount else None,
        limit=draw(st.none() | st.none() | SIZES),
    )


class Wish(NamedTuple):
    """A new order, or one of those so far sent again; a sell may be of so many quarters of what is held
    (of nothing: it is a buy)."""

    order: Order
    again: int | None
    quarters: int | None


WISHES = st.builds(
    Wish, orders(), st.sampled_from([None, None, None, None, 0, 1, 5]), st.sampled_from([None, 1, 2, 4, 4])
)


@dataclass
class Account:
    """What the model knows of a user."""

    available: int
    version: int
    held: list[int]


@dataclass
class Model:
    """One market and its users; `take` judges an answer and follows it."""

    market: int
    b: int
    fee_bps: int
    quantities: list[int]
    pool: int
    accounts: dict[str, Account]
    version: int = 0
    fees: int = 0
    answers: dict[tuple[str, str], tuple[str, Answer]] = field(default_factory=dict)

    def order(self, run: int, wish: Wish, sent: list[Order]) -> Order:
        """The order that a wish comes to in this state; appended to those sent."""
        if wish.again is not None and sent:
            return sent[-1 - wish.again % len(sent)]
        order = wish.order._replace(user=f"{run}-{wish.order.user}")
        if order.outcome < 8:
            order = order._replace(outcome=order.outcome % len(self.quantities))
            held = self.accounts[order.user].held[order.outcome]
            if order.side == "sell" and wish.quarters is not None:
                part = max(held * wish.quarters // 4, 1)
                order = order._replace(shares=part) if held else order._replace(side="buy")
        sent.append(order)
        return order

    def take(self, order: Order, answer: Answer) -> None:
        """Fails unless this is a right answer to the order in this state."""
        if order.outcome >= len(self.quantities):
            assert (answer.status, answer.replayed, answer.code) == (400, False, "malformed")
            return
        name = (order.user, order.key)
        if name in self.answers:
            request_hash, first = self.answers[name]
            if request_hash == order.hash:
                assert answer == first._replace(replayed=True)
            else:
                assert (answer.status, answer.replayed) == (422, False)
                assert answer.code == "idempotency_key_reused"
            return
        assert not answer.replayed
        self.answers[name] = (order.hash, answer)
        if answer.status == 200:
            self._follow(order, answer)
        else:
            assert answer.status == 422
            assert answer.code in self._right_codes(order)

    def _follow(self, order: Order, answer: Answer) -> None:
        facts, account = answer.facts, self.accounts[order.user]
        shares = facts["shares"]
        if order.amount is None:
            assert shares == order.shares
        else:
            spend = self.pool + budget(order.amount, self.fee_bps)
            assert pools(moved(self.quantities, order.outcome, shares), self.b).least <= spend
            assert pools(moved(self.quantities, order.outcome, shares + 1), self.b).most > spend
        right = [moves for moves in self._charges(order, shares) if self._code(order, shares, moves) is None]
        moves = Charge(facts["cost"], facts["fee"], facts["total"])
        assert moves in right
        sign = 1 if order.side == "buy" else -1
        self.version += 1
        self.pool += sign * moves.cost
        self.fees += moves.fee
        self.quantities = moved(self.quantities, order.outcome, sign * shares)
        account.available -= sign * moves.total
        account.version += 1
        account.held[order.outcome] += sign * shares
        assert (facts["marketId"], facts["marketVersion"]) == (self.market, self.version)
        assert (facts["outcome"], facts["side"]) == (order.outcome, order.side)
        assert (facts["balance"], facts["accountVersion"]) == (account.available, account.version)
        assert sum(facts["prices"]) == PRICE_SUM
        for price, exact in zip(facts["prices"], prices(self.quantities, self.b), strict=True):
            assert abs(price - exact) < 1 + Decimal("1e-6")

    def _right_codes(self, order: Order) -> set[str | None]:
        if order.side == "sell":
            assert order.shares is not None
            if order.shares > self.accounts[order.user].held[order.outcome]:
                return {"insufficient_shares"}
        return {
            self._code(order, shares, moves)
            for shares in self._right_shares(order)
            for moves in self._charges(order, shares)
        }

    def _right_shares(self, order: Order) -> set[int]:
        """What is asked for, or what the amount buys: the least and the most that may be right."""
        if order.shares is not None:
            return {order.shares}
        assert order.amount is not None
        spend = self.pool + budget(order.amount, self.fee_bps)
        found = set()
        for end in ("least", "most"):
            low, high = 0, spend - self.quantities[order.outcome] + 1
            while high - low > 1:
                middle = (low + high) // 2
                right = pools(moved(self.quantities, order.outcome, middle), self.b)
                low, high = (middle, high) if getattr(right, end) <= spend else (low, middle)
            found.add(low)
        return found

    def _charges(self, order: Order, shares: int) -> list[Charge]:
        sign = 1 if order.side == "buy" else -1
        after = pools(moved(self.quantities, order.outcome, sign * shares), self.b)
        costs = {sign * (pool - self.pool) for pool in range(after.least, after.most + 1)}
        return [charge(cost, order.side, self.fee_bps) for cost in costs]

    def _code(self, order: Order, shares: int, moves: Charge) -> str | None:
        """Why this trade is refused; None: it is not."""
        if order.side == "buy" and self.quantities[order.outcome] + shares > QUANTITY_MAX:
            return "trade_too_large"
        if shares < 1 or moves.cost < 1 or moves.total < 1:
            return "trade_too_small"
        if order.limit is not None:
            within = moves.total <= order.limit if order.side == "buy" else moves.total >= order.limit
            if not within:
                return "limit_exceeded"
        if order.side == "buy" and moves.total > self.accounts[order.user].available:
            return "insufficient_funds"
        return None


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    with Desk(market_database) as desk:
        yield desk


@settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    outcomes=st.integers(2, 8),
    b=st.integers(20, 37).flatmap(lambda bits: st.integers(10**6, 2**bits)),
    fee_bps=st.sampled_from([0, 1, 100, 1_000]),
    funds=st.lists(FUNDS, min_size=USERS, max_size=USERS),
    batches=st.lists(st.lists(WISHES, min_size=1, max_size=12), min_size=1, max_size=5),
)
def test_trades_are_what_the_model_says(
    desk: Desk, outcomes: int, b: int, fee_bps: int, funds: list[int], batches: list[list[Wish]]
) -> None:
    run = next(_numbers)
    market = desk.market(outcomes=outcomes, b=b, fee_bps=fee_bps)
    (pool,) = desk.row("SELECT liquidity_pool FROM markets WHERE market_id = %s", market)
    assert pool in pools([0] * outcomes, b)
    model = Model(
        market=market,
        b=b,
        fee_bps=fee_bps,
        quantities=[0] * outcomes,
        pool=pool,
        accounts={
            desk.user(f"{run}-{number}", funds=available): Account(available, 1, [0] * outcomes)
            for number, available in enumerate(funds)
        },
    )

    sent: list[Order] = []
    for batch in batches:
        asked = [model.order(run, wish, sent) for wish in batch]
        for order, answer in zip(asked, desk.batch(market, asked), strict=True):
            model.take(order, answer)

    assert desk.row(
        "SELECT version, quantities, liquidity_pool FROM markets WHERE market_id = %s", market
    ) == (model.version, model.quantities, model.pool)
    assert desk.row(
        "SELECT coalesce(sum(balance), 0) FROM accounts WHERE market_id = %s AND kind = 'house_fees'", market
    ) == (model.fees,)
    for user, account in model.accounts.items():
        assert desk.available(user) == account.available
        held = desk.admin.execute(
            "SELECT outcome, shares FROM positions WHERE user_id = %s AND shares > 0 ORDER BY 1", [user]
        ).fetchall()
        assert held == [(outcome, shares) for outcome, shares in enumerate(account.held) if shares]
    desk.assert_books_agree()
