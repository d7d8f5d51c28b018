"""A run recorded row by row: clients that act on a correct market, and what a trial writes beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from scenarios.history import FORMAT, digest
from tests.golden.actions import FEE_BPS, Actions, B, Op
from tests.golden.files import write_lines, write_views
from tests.golden.market import EPOCH, START_NS, Books, Row

__all__ = ["MS", "PLAN", "GoldenRun", "Op", "S", "entry_digest"]

MS = 1_000_000
S = 1_000_000_000

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

# What the faults of money in and out hit.
TARGETS = {
    "replace_transaction": "chain",
    "reorganise": "chain",
    "poison_event": "receiver",
    "plant_drift": "custody",
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


class GoldenRun(Actions):
    """The rows of a run directory while they are being written, and afterwards for breaking."""

    def __init__(self, books: Books | None = None, plan: Row = PLAN) -> None:
        super().__init__(books or Books())
        self.history: list[Row] = []
        self.faults: list[Row] = []
        self.samples: list[Row] = []
        self.probes: list[Row] = []
        self.events: list[Row] = []
        self.plan: Row = {
            "format": FORMAT,
            "run": "golden",
            "seed": 7,
            "plan": json.loads(json.dumps(plan)),
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
        row = self._completion(op, "info") | {"error": error}
        self.history.append(row | {"facts": op.known} if op.known else row)

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

    # -- what the trial writes ----------------------------------------------------------------------------

    def event(self, event: str, **more: Any) -> None:
        self.events.append({"time_ns": self.tick(), "event": event} | more)

    def fault(
        self, state: str, *, fault_id: str = "f001", fault: str = "drop_reply", **evidence: Any
    ) -> None:
        row: Row = {"time_ns": self.tick(), "fault_id": fault_id, "fault": fault, "state": state}
        row |= {"target": TARGETS[fault]} if fault in TARGETS else {}
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
        results: Row = {name: {"examined": count, "violations": 0} for name, count in counts.items()}
        if wrong := self.wrong_accounts():
            results["balances_equal_entries"] |= {"violations": len(wrong), "witness": wrong}
        self.probes.append(
            {
                "time_ns": self.now_ns,
                "snapshot": f"{len(self.probes) + 1}:1:",
                "took_ms": 3.5,
                "results": results,
                "entries": [[entry["entry_id"], entry_digest(entry)] for entry in entries[-5:]],
            }
        )

    def wrong_accounts(self) -> list[Row]:
        """What a reading of the balances would find now."""
        return []

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
