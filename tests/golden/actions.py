"""What the clients of a golden run can do, each as an operation that the correct market answers."""

from __future__ import annotations

from collections.abc import Callable

from scenarios.history import digest
from tests.golden.market import Books, Row

ADMIN = "admin"
B = 100_000_000
FEE_BPS = 100

TOLD = (
    "trade_id",
    "market_id",
    "market_version",
    "cost_micro",
    "fee_micro",
    "shares_micro",
    "transaction_id",
    "account_version",
    "balance_micro",
)


class Op:
    """One operation under way: what its rows repeat, and the answer once the books have one."""

    def __init__(self, row: Row, *, endpoint: str, act: Callable[[], tuple[int, Row]]) -> None:
        self.row = row
        self.endpoint = endpoint
        self.act = act
        self.attempt = 0
        self.invoke_ns = 0
        self.answer: Row | None = None
        self.known: Row = {}  # facts that the client knows whatever comes back


class Actions:
    """Makes operations, which a recorder then invokes, executes and completes."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self._operations = 0

    def _op(
        self,
        user: str,
        action: str,
        act: Callable[[str], tuple[int, Row]],
        *,
        endpoint: str = "",
        market: int | None = None,
        request: Row | None = None,
        key: str | None = None,
        keyed: bool = True,
    ) -> Op:
        self._operations += 1
        name = f"g-{user}-{self._operations}"
        row: Row = {"process": user, "operation": name, "attempt": 0, "action": action, "user": user}
        key = key or name
        if keyed:
            row["key"] = key
        if market is not None:
            row["market"] = market
        if endpoint.startswith("POST"):
            row["request_hash"] = digest(f"{endpoint} {market} {request} {action}".encode())
        if request is not None:
            row["request"] = {name: value for name, value in request.items() if value is not None}
        return Op(row, endpoint=endpoint, act=lambda: act(key))

    def create_user(self, user: str) -> Op:
        def act(_: str) -> tuple[int, Row]:
            self.books.open_user(user)
            return 201, {"user_id": user}

        return self._op(ADMIN, "create_user", act, endpoint="POST /api/users", keyed=False)

    def fund(self, user: str | None, amount: int) -> Op:
        def act(key: str) -> tuple[int, Row]:
            kind = "house_treasury" if user is None else "user_available"
            account = self.books.account(kind, user_id=user)
            transaction = self.books.fund(ADMIN, key, account["account_id"], amount)
            facts: Row = {"transaction_id": transaction["transaction_id"], "user_id": user}
            facts |= {"account_version": account["version"], "balance_micro": account["balance_micro"]}
            return 201, {name: value for name, value in facts.items() if value is not None}

        request = {"amount_micro": amount, "to_user": user}
        return self._op(ADMIN, "fund", act, endpoint="POST /api/fundings", request=request)

    def create_market(self, outcomes: int) -> Op:
        def act(key: str) -> tuple[int, Row]:
            market = self.books.create_market(ADMIN, key, outcomes, B, FEE_BPS)
            return 201, self._market_facts(market["market_id"]) | {
                "transaction_id": self.books.views["transactions"][-1]["transaction_id"]
            }

        return self._op(ADMIN, "create_market", act, endpoint="POST /api/markets")

    def close_market(self, market: int) -> Op:
        def act(_: str) -> tuple[int, Row]:
            self.books.close(market)
            return 200, self._market_facts(market)

        return self._op(ADMIN, "close_market", act, endpoint=f"POST /api/markets/{market}", market=market)

    def buy(
        self,
        user: str,
        market: int,
        outcome: int,
        shares: int | None = None,
        *,
        amount: int | None = None,
        limit: int | None = None,
    ) -> Op:
        """A buy of shares, or for an amount."""
        request = {"outcome": outcome, "side": "buy", "shares_micro": shares, "amount_micro": amount}
        action = "buy_shares" if amount is None else "buy_amount"
        return self._trade(user, action, market, request | {"limit_micro": limit})

    def sell(self, user: str, market: int, outcome: int, shares: int, *, limit: int | None = None) -> Op:
        request = {"outcome": outcome, "side": "sell", "shares_micro": shares, "limit_micro": limit}
        return self._trade(user, "sell", market, request)

    def refused(
        self,
        user: str,
        market: int,
        code: str,
        *,
        action: str = "buy_shares",
        key: str | None = None,
        shares: int = 10**14,
        status: int = 422,
    ) -> Op:
        """A buy that the system refuses with this code."""
        request: Row = {"outcome": 0, "side": "buy", "shares_micro": shares}
        return self._op(
            user,
            action,
            lambda _: (status, {"code": code}),
            endpoint="POST /api/trade",
            market=market,
            request=request,
            key=key,
        )

    def _trade(self, user: str, action: str, market: int, request: Row) -> Op:
        def act(key: str) -> tuple[int, Row]:
            amount, limit = request.get("amount_micro"), request["limit_micro"]
            shares = request["shares_micro"]
            if amount is not None:
                shares = self.books.shares_for(market, request["outcome"], amount)
            trade = self.books.trade(
                user, key, market, request["outcome"], request["side"], shares, amount=amount, limit=limit
            )
            return 200, {name: trade[name] for name in TOLD} | {"prices_micro": self.books.prices(market)}

        return self._op(user, action, act, endpoint="POST /api/trade", market=market, request=request)

    def read_market(self, user: str, market: int) -> Op:
        return self._op(
            user, "read_market", lambda _: (200, self._market_facts(market)), market=market, keyed=False
        )

    def read_account(self, user: str) -> Op:
        def act(_: str) -> tuple[int, Row]:
            account = self.books.account("user_available", user_id=user)
            return 200, {
                "account_version": account["version"],
                "balance_micro": account["balance_micro"],
                "user_id": user,
            }

        return self._op(user, "read_account", act, keyed=False)

    def read_ledger(self, user: str) -> Op:
        def act(_: str) -> tuple[int, Row]:
            account = self.books.account("user_available", user_id=user)
            entry = [e for e in self.books.views["entries"] if e["account_id"] == account["account_id"]][-1]
            return 200, {
                "transaction_id": entry["transaction_id"],
                "account_version": entry["account_version"],
                "balance_micro": entry["balance_after_micro"],
            }

        return self._op(user, "read_ledger", act, keyed=False)

    def _market_facts(self, market: int) -> Row:
        return {
            "market_id": market,
            "market_version": self.books.market(market)["version"],
            "prices_micro": self.books.prices(market),
        }
