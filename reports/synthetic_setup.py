"""The set-up of a synthetic run: an admin's operations one after another, and what they put into the books.

The load goes on from their ids: transaction 1 funds the treasury, 2 and 3 open the two markets, 4 to 103
fund the users, and 104 is a trade on the side market, which then closes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from reports.books import VIEWS
from scenarios.history import Completion, Facts, Invoke, Request, digest

Row = dict[str, Any]

START_NS = 10_000_000_000
B_MICRO = 1_000_000_000
FEE_BPS = 100
USERS = 100
FUNDS_MICRO = 1_000_000_000_000
TREASURY_MICRO = 10_000_000_000
SIDE_SHARES_MICRO = 1_000_000
ADMIN = "admin"
EXTERNAL, TREASURY, HOT_POOL, HOT_FEES, SIDE_POOL, SIDE_FEES, FIRST_USER = 1, 2, 3, 4, 5, 6, 7
TRADER = "trader-0"


def cost_micro(one: int, other: int) -> int:
    """Cint of a market of two outcomes."""
    most, apart = (one, one - other) if one > other else (other, other - one)
    return most + math.ceil(B_MICRO * math.log1p(math.exp(-apart / B_MICRO)))


SUBSIDY_MICRO = cost_micro(0, 0)
SIDE_COST_MICRO = cost_micro(SIDE_SHARES_MICRO, 0) - SUBSIDY_MICRO
SIDE_FEE_MICRO = -(-SIDE_COST_MICRO * FEE_BPS // 10_000)


class Setup:
    """Lines of the history with their times, and rows of every view of the books but accounts."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.views: dict[str, list[Row]] = {view: [] for view in VIEWS}
        self._now_ns = START_NS
        self._accounts: dict[int, tuple[int, int]] = {}
        self._operations = 0
        self._fund(TREASURY, TREASURY_MICRO, None)
        for market, pool in ((1, HOT_POOL), (2, SIDE_POOL)):
            self._open_market(market, pool)
        for number in range(USERS):
            user = f"trader-{number}"
            self._record("create_user", 201, Facts(user_id=user))
            self._fund(FIRST_USER + 2 * number, FUNDS_MICRO, user)
        self._trade_on_the_side()
        self._close_the_side()

    def _fund(self, account_id: int, amount: int, user: str | None) -> None:
        transaction_id = self._transact(
            "fund", ADMIN, None, [(EXTERNAL, -amount, None), (account_id, amount, user)]
        )
        version, balance = self._accounts[account_id]
        facts = Facts(
            transaction_id=transaction_id, user_id=user, account_version=version, balance_micro=balance
        )
        self._record("fund", 201, facts, request=Request(amount_micro=amount, to_user=user))

    def _open_market(self, market: int, pool: int) -> None:
        moves = [(TREASURY, -SUBSIDY_MICRO, None), (pool, SUBSIDY_MICRO, None)]
        transaction_id = self._transact("create_market", ADMIN, market, moves)
        self._price(market, 0, 500_000)
        facts = Facts(
            market_id=market, market_version=0, prices_micro=[500_000] * 2, transaction_id=transaction_id
        )
        self._record("create_market", 201, facts)

    def _trade_on_the_side(self) -> None:
        cost, fee, shares = SIDE_COST_MICRO, SIDE_FEE_MICRO, SIDE_SHARES_MICRO
        moves = [(FIRST_USER, -cost - fee, TRADER), (SIDE_POOL, cost, None), (SIDE_FEES, fee, None)]
        transaction_id = self._transact("trade", TRADER, 2, moves)
        price = round(1_000_000 / (1 + math.exp(-shares / B_MICRO)))
        self._price(2, 1, price)
        trade: Row = {"trade_id": 1, "transaction_id": transaction_id, "market_id": 2, "market_version": 1}
        trade |= {"user_id": TRADER, "idempotency_key": self._key, "outcome": 0, "side": "buy"}
        trade |= {"shares_micro": shares, "cost_micro": cost, "fee_micro": fee}
        trade |= {"pool_after_micro": SUBSIDY_MICRO + cost, "created_at": self._wall}
        self.views["trades"].append(trade)
        version, balance = self._accounts[FIRST_USER]
        facts = Facts(
            trade_id=1,
            market_id=2,
            market_version=1,
            cost_micro=cost,
            fee_micro=fee,
            shares_micro=shares,
            prices_micro=[price, 1_000_000 - price],
            transaction_id=transaction_id,
            account_version=version,
            balance_micro=balance,
        )
        request = Request(outcome=0, side="buy", shares_micro=shares)
        self._record("buy_shares", 200, facts, user=TRADER, market=2, request=request)
        position = {"market_id": 2, "user_id": TRADER, "outcome": 0, "shares_micro": shares}
        self.views["positions"].append(position)

    def _close_the_side(self) -> None:
        self._now_ns += 5_000_000
        facts = Facts(market_id=2, market_version=2)
        self._record("close_market", 200, facts, market=2)
        request = Request(outcome=0, side="buy", shares_micro=SIDE_SHARES_MICRO)
        self._record("buy_closed", 422, None, user=TRADER, market=2, request=request, code="market_closed")

    def _transact(
        self, kind: str, owner: str, market: int | None, moves: Sequence[tuple[int, int, str | None]]
    ) -> int:
        self._now_ns += 5_000_000
        transaction_id = len(self.views["transactions"]) + 1
        row: Row = {"transaction_id": transaction_id, "kind": kind, "user_id": owner, "market_id": market}
        self.views["transactions"].append(row | {"idempotency_key": self._key, "created_at": self._wall})
        for account_id, gain, user in moves:
            version, balance = self._accounts.get(account_id, (0, 0))
            self._accounts[account_id] = version + 1, balance + gain
            entry: Row = {"entry_id": len(self.views["entries"]) + 1, "transaction_id": transaction_id}
            entry |= {"account_id": account_id, "account_version": version + 1, "user_id": user, "kind": kind}
            entry |= {"debit_micro": max(-gain, 0), "credit_micro": max(gain, 0)}
            entry |= {"balance_after_micro": balance + gain, "created_at": self._wall}
            self.views["entries"].append(entry)
        return transaction_id

    def _price(self, market: int, version: int, price: int) -> None:
        prices = [price, 1_000_000 - price]
        self.views["prices"].append({"market_id": market, "market_version": version, "prices_micro": prices})

    def _record(
        self,
        action: str,
        status: int,
        facts: Facts | None,
        *,
        user: str = ADMIN,
        market: int | None = None,
        request: Request | None = None,
        code: str | None = None,
    ) -> None:
        """The two rows of an operation that was executed just now, and its stored answer."""
        name = self._key
        self._operations += 1
        keyed = action != "create_user"
        if not keyed:
            self._now_ns += 5_000_000
        asks, answers = digest(f"{name} asks".encode()), digest(f"{name} answers".encode())
        invoke = Invoke(
            time_ns=self._now_ns - 2_000_000,
            intended_ns=self._now_ns - 2_000_000,
            process=user,
            operation=name,
            attempt=1,
            action=action,
            user=user,
            key=name if keyed else None,
            market=market,
            request_hash=asks,
            request=request,
        )
        answer = Completion(
            type="fail" if code else "ok",
            time_ns=self._now_ns + 1_000_000,
            process=user,
            operation=name,
            attempt=1,
            latency_ns=3_000_000,
            status=status,
            code=code,
            reply_hash=answers,
            facts=facts,
        )
        for row in (invoke, answer):
            self.lines.append((row.time_ns, msgspec.json.encode(row).decode()))
        if keyed:
            transaction_id = facts.transaction_id if facts else None
            stored: Row = {"user_id": user, "idempotency_key": name, "endpoint": f"POST {action}"}
            stored |= {"request_hash": asks, "status": status, "body_hash": answers}
            stored |= {"transaction_id": transaction_id, "created_at": self._wall}
            self.views["idempotency_keys"].append(stored)

    @property
    def _key(self) -> str:
        return f"s-setup-{self._operations}"

    @property
    def _wall(self) -> str:
        return datetime.fromtimestamp(self._now_ns / 1e9, UTC).isoformat()
