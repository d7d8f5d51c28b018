"""A run recorded row by row: clients that act on a correct market, and what a trial writes beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scenarios.history import FORMAT, digest
from tests.golden.files import write_lines, write_views
from tests.golden.market import EPOCH, START_NS, Books, Row

MS = 1_000_000
S = 1_000_000_000
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

PLAN: Row = {
    "name": "golden",
    "about": "a correct run, small enough to read",
    "scenario": "hot_market",
    "stages": [{"name": "hold", "users": 4, "ramp_s": 0.0, "hold_s": 20.0}],
    "mix": {"buy_amount": 1.0},
    "market": {"outcomes": 2, "b_micro": B, "fee_bps": FEE_BPS, "user_funds_micro": 200_000_000},
    "faults": [{"fault": "drop_reply", "at_s": 5.0, "during_s": 1.0, "count": 1}],
    "thresholds": {"steady_p99_ms": 1000.0, "trades_per_s": 0.1},
    "service": {"recovery_s": 3.0},
}


def entry_digest(entry: Row) -> str:
    """What the probe keeps of an entry: md5 of its fields joined by |."""
    fields = (
        "entry_id",
        "transaction_id",
        "account_id",
        "account_version",
        "debit_micro",
        "credit_micro",
        "balance_after_micro",
    )
    return hashlib.md5("|".join(str(entry[name]) for name in fields).encode()).hexdigest()


class Op:
    """One operation under way: what its rows repeat, and the answer once the books have one."""

    def __init__(self, row: Row, *, endpoint: str, act: Callable[[], tuple[int, Row]]) -> None:
        self.row = row
        self.endpoint = endpoint
        self.act = act
        self.attempt = 0
        self.invoke_ns = 0
        self.answer: Row | None = None


class GoldenRun:
    """The rows of a run directory while they are being written, and afterwards for breaking."""

    def __init__(self) -> None:
        self.books = Books()
        self.history: list[Row] = []
        self.faults: list[Row] = []
        self.samples: list[Row] = []
        self.probes: list[Row] = []
        self.events: list[Row] = []
        self.plan: Row = {
            "format": FORMAT,
            "run": "golden",
            "seed": 7,
            "plan": json.loads(json.dumps(PLAN)),
            "target": {"kind": "golden"},
            "versions": {},
            "machine": {},
            "git_commit": None,
            "started_at": EPOCH.isoformat(),
            "monotonic_ns": START_NS,
            "unix_ns": int(EPOCH.timestamp()) * S,
        }
        self.manifest: Row = {}
        self.now_ns = START_NS
        self._operations = 0

    # -- the clock ----------------------------------------------------------------------------------------

    def tick(self, nanoseconds: int = MS) -> int:
        """Let time pass; the new time."""
        self.now_ns += nanoseconds
        self.books.time_ns = self.now_ns
        return self.now_ns

    def wait_until(self, time_ns: int) -> None:
        self.tick(max(time_ns - self.now_ns, 0))

    # -- operations ---------------------------------------------------------------------------------------

    def invoke(self, op: Op, *, late_ns: int = 0) -> None:
        """Write the invoke row of the next attempt; it was intended `late_ns` before."""
        op.attempt += 1
        op.invoke_ns = self.tick()
        self.history.append(
            {"type": "invoke", "time_ns": self.now_ns, "intended_ns": self.now_ns - late_ns}
            | op.row
            | {"attempt": op.attempt}
        )

    def execute(self, op: Op) -> None:
        """Let the system execute the operation now; a second time it only finds the stored answer."""
        self.tick()
        if op.answer is not None:
            return
        status, reply = op.act()
        reply_hash = digest(json.dumps([op.row["operation"], status, reply]).encode())
        op.answer = {"status": status, "reply_hash": reply_hash}
        op.answer |= {"facts": reply} if status < 300 else {"code": reply["code"]}
        stored = status < 300 or (status == 422 and reply["code"] != "idempotency_key_reused")
        if "key" in op.row and stored:
            self.books.remember(
                op.row["user"],
                op.row["key"],
                op.endpoint,
                op.row["request_hash"],
                status,
                reply_hash,
                reply.get("transaction_id"),
            )

    def complete(self, op: Op, *, replayed: bool = False) -> None:
        """The client gets the answer."""
        assert op.answer is not None
        row = self._completion(op, "ok" if op.answer["status"] < 300 else "fail") | op.answer
        self.history.append(row | {"replayed": True} if replayed else row)

    def lose(self, op: Op, error: str = "timeout") -> None:
        """The client gets no answer."""
        self.history.append(self._completion(op, "info") | {"error": error})

    def do(self, op: Op) -> Op:
        """A whole operation of one attempt."""
        self.invoke(op, late_ns=MS // 2)
        self.execute(op)
        self.complete(op)
        return op

    def _completion(self, op: Op, kind: str) -> Row:
        self.tick()
        return {
            "type": kind,
            "time_ns": self.now_ns,
            "process": op.row["process"],
            "operation": op.row["operation"],
            "attempt": op.attempt,
            "latency_ns": self.now_ns - op.invoke_ns,
        }

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
    ) -> Op:
        """A buy that the system refuses with this code."""
        request: Row = {"outcome": 0, "side": "buy", "shares_micro": shares}
        return self._op(
            user,
            action,
            lambda _: (422, {"code": code}),
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

    # -- what the trial writes ----------------------------------------------------------------------------

    def event(self, event: str, **more: Any) -> None:
        self.events.append({"time_ns": self.tick(), "event": event} | more)

    def fault(self, state: str, **evidence: Any) -> None:
        row: Row = {"time_ns": self.tick(), "fault_id": "f001", "fault": "drop_reply", "state": state}
        self.faults.append(row | ({"evidence": evidence} if evidence else {}))

    def observe(self) -> None:
        """One second's sample and probe."""
        self.tick()
        quiet = {"load": {"cpu_percent": 12.0, "rss_bytes": 90_000_000}}
        quiet["server"] = {"cpu_percent": 30.0, "rss_bytes": 80_000_000}
        self.samples.append(
            {"time_ns": self.now_ns, "phase": "hold", "users": 4, "in_flight": 1, "processes": quiet}
            | {"commits": len(self.books.views["transactions"]), "lock_waits": 0, "health_ms": 2.5}
        )
        entries = self.books.views["entries"]
        counts = {"every_transaction_balances": len(self.books.views["transactions"])}
        counts |= {"money_is_conserved": len(self.books.views["accounts"])}
        counts |= {"balances_equal_entries": len(self.books.views["accounts"])}
        self.probes.append(
            {
                "time_ns": self.now_ns,
                "snapshot": f"{len(self.probes) + 1}:1:",
                "took_ms": 3.5,
                "results": {name: {"examined": count, "violations": 0} for name, count in counts.items()},
                "entries": [[entry["entry_id"], entry_digest(entry)] for entry in entries[-5:]],
            }
        )

    # -- for breaking -------------------------------------------------------------------------------------

    def rows(self, view: str) -> list[Row]:
        """The rows of one view of the books."""
        return self.books.views[view]

    def entry(self, entry_id: int) -> Row:
        return self.books.views["entries"][entry_id - 1]

    def trade(self, trade_id: int) -> Row:
        return self.books.views["trades"][trade_id - 1]

    def completions(self, kind: str, action: str) -> list[Row]:
        """Completion rows of one type of the operations with one action, in order."""
        names = {row["operation"] for row in self.history if row.get("action") == action}
        return [row for row in self.history if row["type"] == kind and row["operation"] in names]

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, run: Path, *, writer: str = "load-0") -> Path:
        """Write the run directory; the folder."""
        (run / "history").mkdir(parents=True)
        (run / "state").mkdir()
        (run / "plan.json").write_text(json.dumps(self.plan) + "\n")
        header = {"type": "header", "format": FORMAT, "writer": writer, "time_ns": START_NS}
        end = {"type": "end", "time_ns": self.now_ns, "rows": len(self.history) + 1}
        write_lines(run / "history" / f"{writer}.jsonl", [header, *self.history, end])
        for name in ("faults", "samples", "probes", "events"):
            write_lines(run / f"{name}.jsonl", getattr(self, name))
        write_views(run / "state", self.books.views)
        counts = {view: len(rows) for view, rows in self.books.views.items()}
        (run / "state" / "manifest.json").write_text(json.dumps(self.manifest | {"rows": counts}) + "\n")
        return run
