"""What a trader asks for next, and what it remembers of the answers to decide that.

Pure: an intent follows from the seeded generator and the trader's own memory. Trades keep the market alive:
buyers prefer the cheaper outcome and sellers the dearer one, so prices wander and come back. A small part
asks for more than it may have, so that refusals occur in every run.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Literal, NamedTuple

import msgspec

from scenarios.history import Facts, Request
from scenarios.replies import AccountContent

MICRO = 1_000_000
AMOUNT_MICRO = (200_000, 20_000_000)
SHARES_MICRO = (500_000, 40_000_000)
LIMITED_SHARE = 0.3
DEPOSIT_MICRO = (1_000_000, 50_000_000)
WITHDRAWAL_MICRO = (500_000, 20_000_000)
OVERREACH_SHARE = 0.01
CHEAPER_SHARE = 0.7
REUSED_BY_THE_OTHER_SHARE = 0.3
REMEMBERED_WITHDRAWALS = 10
WITHDRAWALS = "/api/withdrawals"


class Venue(msgspec.Struct, frozen=True, kw_only=True):
    """The markets of a run: the hot one, and the one that is closed while users trade on it."""

    hot: int
    side: int
    outcomes: int
    fee_bps: int


class Intent(NamedTuple):
    """One thing a client wants: the request, and what the history says of it."""

    action: str
    method: Literal["GET", "POST"]
    path: str
    body: bytes = b""
    market: int | None = None
    request: Request | None = None
    keyed: bool = True
    repeatable: bool = True
    tx_hash: str | None = None  # of the transaction in the body, where the chain's node is asked

    @property
    def reading(self) -> str:
        """The action whose reply this one's is like: whatever comes under a reused key, it may be either."""
        return "withdraw" if self.path == WITHDRAWALS and self.keyed else self.action


class TradeBody(msgspec.Struct, rename="camel", omit_defaults=True):
    """The body of POST /api/trade."""

    market_id: int
    outcome: int
    side: str
    amount: int | None = None
    shares: int | None = None
    limit: int | None = None


_encode = msgspec.json.Encoder().encode


def trade(
    action: str,
    market: int,
    outcome: int,
    side: Literal["buy", "sell"],
    *,
    amount_micro: int | None = None,
    shares_micro: int | None = None,
    limit_micro: int | None = None,
) -> Intent:
    """The intent to trade; money in micro-USDC, shares in micro-shares."""
    return Intent(
        action,
        "POST",
        "/api/trade",
        _encode(TradeBody(market, outcome, side, amount_micro, shares_micro, limit_micro)),
        market,
        Request(
            outcome=outcome,
            side=side,
            shares_micro=shares_micro,
            amount_micro=amount_micro,
            limit_micro=limit_micro,
        ),
    )


def withdrawal(action: str, amount_micro: int) -> Intent:
    """The intent to take so much out to one's wallet."""
    body = _encode({"amount": amount_micro})
    return Intent(action, "POST", WITHDRAWALS, body, request=Request(amount_micro=amount_micro))


class Trader:
    """One trader's mind: its generator, its money, its shares and the prices it saw last."""

    def __init__(self, venue: Venue, *, funds_micro: int, mix: dict[str, float], seed: str) -> None:
        self._venue = venue
        self._random = random.Random(seed)
        self._actions = [action for action, weight in mix.items() if weight > 0]
        self._weights = [mix[action] for action in self._actions]
        self.balance_micro = funds_micro
        self.shares: dict[tuple[int, int], int] = {}
        self._prices: dict[int, list[int]] = {}
        self._withdrawals: deque[str] = deque(maxlen=REMEMBERED_WITHDRAWALS)

    def choose(self) -> str:
        """The next action of the mix."""
        return self._random.choices(self._actions, self._weights)[0]

    def chance(self, share: float) -> bool:
        """True for this share of the calls."""
        return self._random.random() < share

    def pick(self, count: int) -> int:
        """One of `count` things."""
        return self._random.randrange(count)

    def buy_amount(self) -> Intent:
        """Spend an amount; now and then more than there is, or under a limit that the price may pass."""
        amount = self._size(AMOUNT_MICRO)
        if self.chance(OVERREACH_SHARE):
            amount = max(self.balance_micro, 0) + MICRO
        limit = None
        if self.chance(LIMITED_SHARE / 2):
            limit = int(amount * self._random.uniform(0.97, 1.03))
        market = self._venue.hot
        return trade(
            "buy_amount", market, self._cheaper(market), "buy", amount_micro=amount, limit_micro=limit
        )

    def buy_shares(self, market: int | None = None, action: str = "buy_shares") -> Intent:
        """Buy a number of shares, sometimes under a limit that the price may pass."""
        market = self._venue.hot if market is None else market
        outcome, shares = self._cheaper(market), self._size(SHARES_MICRO)
        limit = None
        if self.chance(LIMITED_SHARE):
            worth = self._worth(market, outcome, shares) * (1 + self._venue.fee_bps / 10_000)
            limit = max(int(worth * self._random.uniform(0.99, 1.04)), 1)
        return trade(action, market, outcome, "buy", shares_micro=shares, limit_micro=limit)

    def sell(self) -> Intent:
        """Sell part of a holding, now and then more than is held; buy when there is nothing to sell."""
        market = self._venue.hot
        held = [
            outcome for outcome in range(self._venue.outcomes) if self.shares.get((market, outcome), 0) > 0
        ]
        if not held:
            return self.buy_shares()
        prices = self._prices_of(market)
        outcome = max(held, key=prices.__getitem__)
        if self.chance(1 - CHEAPER_SHARE):
            outcome = held[self.pick(len(held))]
        holding = self.shares[market, outcome]
        shares = max(int(holding * self._random.uniform(0.2, 1.0)), min(holding, SHARES_MICRO[0]))
        if self.chance(OVERREACH_SHARE * 2):
            shares = holding + self._size(SHARES_MICRO)
        limit = None
        if self.chance(LIMITED_SHARE):
            worth = self._worth(market, outcome, shares) * (1 - self._venue.fee_bps / 10_000)
            limit = max(int(worth * self._random.uniform(0.96, 1.01)), 0)
        return trade("sell", market, outcome, "sell", shares_micro=shares, limit_micro=limit)

    def buy_on_side(self, *, closed: bool) -> Intent:
        """Buy on the side market; when it is known to be closed, only to be refused."""
        return self.buy_shares(self._venue.side, "buy_closed" if closed else "buy_shares")

    def deposit_micro(self) -> int:
        """How much to deposit, micro-USDC."""
        return self._size(DEPOSIT_MICRO)

    def withdraw(self) -> Intent:
        """Take money out to the wallet, now and then more than there is."""
        amount = self._size(WITHDRAWAL_MICRO)
        if self.chance(OVERREACH_SHARE * 2):
            # Deposits may have been credited since the balance was seen last.
            amount = max(self.balance_micro, 0) + 2 * DEPOSIT_MICRO[1]
        return withdrawal("withdraw", amount)

    def read_withdrawal(self) -> Intent:
        """Ask how far one of the last withdrawals is; look at the account when there is none."""
        if not self._withdrawals:
            return self.read_account()
        asked = self._withdrawals[self.pick(len(self._withdrawals))]
        return Intent("read_withdrawal", "GET", f"{WITHDRAWALS}/{asked}", keyed=False)

    def reuse(self, other: Intent) -> Intent:
        """A request unlike `other`, to be sent under its key, which must refuse it."""
        if "withdraw" in self._actions:
            withdrew = other.path == WITHDRAWALS
            if withdrew != self.chance(REUSED_BY_THE_OTHER_SHARE):
                amount = self._size(WITHDRAWAL_MICRO)
                taken = other.request.amount_micro if other.request else None
                return withdrawal("reuse_key", amount + 1 if amount == taken else amount)
        outcome = self.pick(self._venue.outcomes)
        taken = (other.request.shares_micro or 0) if other.request else 0
        shares = self._size(SHARES_MICRO)
        if shares == taken:
            shares += 1
        return trade("reuse_key", self._venue.hot, outcome, "buy", shares_micro=shares)

    def read_market(self) -> Intent:
        """Look at the prices."""
        market = self._venue.hot
        return Intent("read_market", "GET", f"/api/markets/{market}", market=market, keyed=False)

    def read_account(self) -> Intent:
        """Look at the account."""
        return Intent("read_account", "GET", "/api/account", keyed=False)

    def read_ledger(self) -> Intent:
        """Look at the newest entries."""
        return Intent("read_ledger", "GET", "/api/account/ledger?limit=20", keyed=False)

    def learn(self, intent: Intent, facts: Facts | None, content: msgspec.Struct | None) -> None:
        """Remember what an answer said; called once an operation, or a replay would count twice."""
        if facts is None:
            return
        if facts.market_id is not None and facts.prices_micro:
            self._prices[facts.market_id] = facts.prices_micro
        if facts.balance_micro is not None:
            self.balance_micro = facts.balance_micro
        if intent.action == "withdraw" and facts.withdrawal_id is not None:
            self._withdrawals.append(facts.withdrawal_id)
        if isinstance(content, AccountContent):
            # After an unknown outcome only the system knows what is held.
            self.shares = {(held.market_id, held.outcome): held.shares for held in content.positions}
        request = intent.request
        if facts.trade_id is not None and request is not None and request.outcome is not None:
            place = (intent.market or 0, request.outcome)
            signed = (facts.shares_micro or 0) * (1 if request.side == "buy" else -1)
            self.shares[place] = self.shares.get(place, 0) + signed

    def _size(self, bounds: tuple[int, int]) -> int:
        """A size between the bounds, each order of magnitude as likely as the next."""
        low, high = bounds
        return int(low * (high / low) ** self._random.random())

    def _prices_of(self, market: int) -> list[int]:
        return self._prices.get(market) or [MICRO // self._venue.outcomes] * self._venue.outcomes

    def _cheaper(self, market: int) -> int:
        if self.chance(CHEAPER_SHARE):
            prices = self._prices_of(market)
            return prices.index(min(prices))
        return self.pick(self._venue.outcomes)

    def _worth(self, market: int, outcome: int, shares_micro: int) -> float:
        """What the shares are worth at the price seen last, micro-USDC; the price will have moved."""
        return shares_micro * self._prices_of(market)[outcome] / MICRO
