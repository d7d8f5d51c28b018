"""A market and its ledger in plain Python, slow and obvious: what the golden runs' books are made with.

Costs are exact: Decimal with 60 digits, where the system under test uses float8. The golden trades are
chosen small enough that both give the same integers.
"""

from __future__ import annotations

import datetime
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import Any

Row = dict[str, Any]

EXACT = Context(prec=60)
EPOCH = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
START_NS = 1_000_000_000_000

EXTERNAL, TREASURY = 1, 2


def exact_cost(quantities: list[int], b: int) -> int:
    """Cint(q) in micro-USDC: max(q) + ceil(b ln sum exp((q_i - max(q)) / b))."""
    with localcontext(EXACT):
        most = max(quantities)
        total = sum((Decimal(q - most) / b).exp() for q in quantities)
        return most + int((b * Decimal(total).ln()).to_integral_value(ROUND_CEILING))


def exact_prices(quantities: list[int], b: int) -> list[int]:
    """Micro-USDC a share, by largest remainder: they sum to 1,000,000."""
    with localcontext(EXACT):
        weights = [(Decimal(q - max(quantities)) / b).exp() for q in quantities]
        exact = [weight * 1_000_000 / sum(weights) for weight in weights]
    prices = [int(price) for price in exact]
    by_rest = sorted(range(len(prices)), key=lambda i: (prices[i] - exact[i], i))
    for i in by_rest[: 1_000_000 - sum(prices)]:
        prices[i] += 1
    return prices


class Books:
    """The state of one correct system; `views` holds the rows of every view, as docs/books.md names them."""

    def __init__(self) -> None:
        self.views: dict[str, list[Row]] = {
            name: []
            for name in (
                "accounts",
                "transactions",
                "entries",
                "markets",
                "trades",
                "positions",
                "prices",
                "idempotency_keys",
            )
        }
        self.time_ns = START_NS
        self._account("external_onchain")
        self._account("house_treasury")

    def open_user(self, user_id: str) -> None:
        self._account("user_available", user_id=user_id)
        self._account("user_reserved", user_id=user_id)

    def fund(self, owner: str, key: str, account_id: int, amount: int) -> Row:
        """Money from outside; the transaction row."""
        return self._transact("fund", owner, key, None, [(EXTERNAL, -amount), (account_id, amount)])

    def create_market(self, owner: str, key: str, outcomes: int, b: int, fee_bps: int) -> Row:
        """A market with its subsidy paid in; the market row."""
        quantities = [0] * outcomes
        pool = exact_cost(quantities, b)
        market_id = len(self.views["markets"]) + 1
        pool_account = self._account("market_pool", market_id=market_id)
        self._account("house_fees", market_id=market_id)
        self._transact("create_market", owner, key, market_id, [(TREASURY, -pool), (pool_account, pool)])
        market: Row = {
            "market_id": market_id,
            "status": "open",
            "outcomes": outcomes,
            "b_micro": b,
            "fee_bps": fee_bps,
            "version": 0,
            "pool_micro": pool,
            "subsidy_micro": pool,
            "quantities": quantities,
            "closed_version": None,
            "created_at": self.wall,
        }
        self.views["markets"].append(market)
        self._price(market)
        return market

    def trade(
        self,
        user_id: str,
        key: str,
        market_id: int,
        outcome: int,
        side: str,
        shares: int,
        *,
        amount: int | None = None,
        limit: int | None = None,
    ) -> Row:
        """Execute one trade; the trade row, with the user's account_version and balance added."""
        market = self.market(market_id)
        sign = 1 if side == "buy" else -1
        market["quantities"][outcome] += sign * shares
        pool = exact_cost(market["quantities"], market["b_micro"])
        cost = sign * (pool - market["pool_micro"])
        fee = -(-cost * market["fee_bps"] // 10_000)
        market["pool_micro"] = pool
        market["version"] += 1
        account = self.account("user_available", user_id=user_id)
        moves = [
            (account["account_id"], -cost - fee if side == "buy" else cost - fee),
            (self.account("market_pool", market_id=market_id)["account_id"], sign * cost),
            (self.account("house_fees", market_id=market_id)["account_id"], fee),
        ]
        transaction = self._transact("trade", user_id, key, market_id, [move for move in moves if move[1]])
        row: Row = {
            "trade_id": len(self.views["trades"]) + 1,
            "transaction_id": transaction["transaction_id"],
            "market_id": market_id,
            "market_version": market["version"],
            "user_id": user_id,
            "idempotency_key": key,
            "outcome": outcome,
            "side": side,
            "shares_micro": shares,
            "amount_micro": amount,
            "limit_micro": limit,
            "cost_micro": cost,
            "fee_micro": fee,
            "pool_after_micro": pool,
            "created_at": self.wall,
        }
        self.views["trades"].append(row)
        self._price(market)
        self._hold(market_id, user_id, outcome, sign * shares)
        return row | {"account_version": account["version"], "balance_micro": account["balance_micro"]}

    def shares_for(self, market_id: int, outcome: int, amount: int) -> int:
        """The most shares whose cost and fee stay within the amount: bisection on the exact cost."""
        market = self.market(market_id)
        low, high = 0, market["pool_micro"] + amount + 1
        while high - low > 1:
            middle = (low + high) // 2
            quantities = list(market["quantities"])
            quantities[outcome] += middle
            cost = exact_cost(quantities, market["b_micro"]) - market["pool_micro"]
            total = cost - (-cost * market["fee_bps"] // 10_000)
            low, high = (middle, high) if total <= amount else (low, middle)
        return low

    def close(self, market_id: int) -> Row:
        """Close a market; the market row."""
        market = self.market(market_id)
        market["status"] = "closed"
        market["version"] += 1
        market["closed_version"] = market["version"]
        return market

    def remember(
        self,
        user_id: str,
        key: str,
        endpoint: str,
        request_hash: str,
        status: int,
        body_hash: str,
        transaction_id: int | None,
    ) -> None:
        """Store the answer of a key."""
        self.views["idempotency_keys"].append(
            {
                "user_id": user_id,
                "idempotency_key": key,
                "endpoint": endpoint,
                "request_hash": request_hash,
                "status": status,
                "body_hash": body_hash,
                "transaction_id": transaction_id,
                "created_at": self.wall,
            }
        )

    def market(self, market_id: int) -> Row:
        return self.views["markets"][market_id - 1]

    def account(self, kind: str, *, user_id: str | None = None, market_id: int | None = None) -> Row:
        """The account of this kind and owner."""
        for row in self.views["accounts"]:
            if (row["kind"], row["user_id"], row["market_id"]) == (kind, user_id, market_id):
                return row
        raise KeyError((kind, user_id, market_id))

    def prices(self, market_id: int) -> list[int]:
        market = self.market(market_id)
        return exact_prices(market["quantities"], market["b_micro"])

    @property
    def wall(self) -> datetime.datetime:
        """The wall-clock time of the monotonic instant `time_ns`."""
        return EPOCH + datetime.timedelta(microseconds=(self.time_ns - START_NS) // 1000)

    def _account(self, kind: str, *, user_id: str | None = None, market_id: int | None = None) -> int:
        account_id = len(self.views["accounts"]) + 1
        self.views["accounts"].append(
            {
                "account_id": account_id,
                "kind": kind,
                "user_id": user_id,
                "market_id": market_id,
                "balance_micro": 0,
                "version": 0,
                "floor_micro": None if kind == "external_onchain" else 0,
            }
        )
        return account_id

    def _transact(
        self,
        kind: str,
        owner: str | None,
        key: str | None,
        market_id: int | None,
        moves: list[tuple[int, int]],
    ) -> Row:
        transaction: Row = {
            "transaction_id": len(self.views["transactions"]) + 1,
            "kind": kind,
            "user_id": owner,
            "idempotency_key": key,
            "market_id": market_id,
            "created_at": self.wall,
        }
        self.views["transactions"].append(transaction)
        for account_id, gain in moves:
            account = self.views["accounts"][account_id - 1]
            account["balance_micro"] += gain
            account["version"] += 1
            self.views["entries"].append(
                {
                    "entry_id": len(self.views["entries"]) + 1,
                    "transaction_id": transaction["transaction_id"],
                    "account_id": account_id,
                    "account_version": account["version"],
                    "user_id": account["user_id"],
                    "kind": kind,
                    "debit_micro": max(-gain, 0),
                    "credit_micro": max(gain, 0),
                    "balance_after_micro": account["balance_micro"],
                    "created_at": self.wall,
                }
            )
        return transaction

    def _price(self, market: Row) -> None:
        self.views["prices"].append(
            {
                "market_id": market["market_id"],
                "market_version": market["version"],
                "prices_micro": exact_prices(market["quantities"], market["b_micro"]),
            }
        )

    def _hold(self, market_id: int, user_id: str, outcome: int, shares: int) -> None:
        for row in self.views["positions"]:
            if (row["market_id"], row["user_id"], row["outcome"]) == (market_id, user_id, outcome):
                row["shares_micro"] += shares
                return
        self.views["positions"].append(
            {"market_id": market_id, "user_id": user_id, "outcome": outcome, "shares_micro": shares}
        )
