"""A run with a chain, recorded row by row: what users do there, and what goes on meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.golden.actions import Op
from tests.golden.chain import Chain, Transaction, address_of, deposit_of
from tests.golden.custody_books import CustodyBooks
from tests.golden.files import write_lines
from tests.golden.market import EPOCH, START_NS, Row
from tests.golden.outbox import ATTEMPTS_MAX, Receiver
from tests.golden.reconciliation import reconcile, wrong_accounts
from tests.golden.recorder import MS, PLAN, GoldenRun, S

BLOCK_NS = 500 * MS
EVENTS_MAX = 100

# What becomes of an attempt to deliver, beside the plain case: the receiver took it and its answer was
# withheld, it refused, or it took it and the relay was killed before it could mark that.
WITHHELD, REFUSED, UNMARKED = 0, 503, -1

MONEY_PLAN: Row = PLAN | {
    "name": "golden-money",
    "about": "a correct run with a chain, small enough to read",
    "scenario": "money_in_out",
    "stages": [{"name": "hold", "users": 4, "ramp_s": 0.0, "hold_s": 34.0}],
    "mix": {"buy_amount": 1.0, "deposit": 1.0, "withdraw": 1.0, "read_withdrawal": 1.0},
    "chain": {"attempts_max": ATTEMPTS_MAX},
    "faults": [
        {"fault": "drop_reply", "at_s": 5.0, "during_s": 1.0},
        {"fault": "replace_transaction", "at_s": 11.0},
        {"fault": "reorganise", "at_s": 17.0, "during_s": 3.0, "count": 2},
        {"fault": "poison_event", "at_s": 23.0},
        {"fault": "plant_drift", "at_s": 25.0, "during_s": 2.0, "count": 2},
    ],
}


class GoldenMoneyRun(GoldenRun):
    """A golden run with a chain; `chain` and `receiver` are for breaking, beside the views of `books`."""

    books: CustodyBooks

    def __init__(self) -> None:
        super().__init__(CustodyBooks(), MONEY_PLAN)
        self.chain = Chain()
        self.receiver = Receiver()
        self.drained = True
        self.why: str | None = None
        self.answers: dict[str, list[int]] = {}  # by event type and aggregate id, for the next attempts
        self.refused_event = ""  # by event type and aggregate id, refused at each attempt
        self._faults = 1

    # -- what users do ------------------------------------------------------------------------------------

    def wallet_nonce(self, user: str) -> Op:
        return self._op(
            user, "wallet_nonce", lambda _: (201, {}), endpoint="POST /api/wallets/nonces", keyed=False
        )

    def link_wallet(self, user: str) -> Op:
        def act(_: str) -> tuple[int, Row]:
            self.books.wallets[user] = address_of(f"wallet of {user}")
            return 201, {}

        return self._op(user, "link_wallet", act, endpoint="POST /api/wallets", keyed=False)

    def deposit(self, user: str, amount: int, *, names: str | None = None, sender: str = "") -> Op:
        """Money from a wallet, the user's if no other is named, on behalf of the user or whom it names."""
        wallet = sender or address_of(f"wallet of {user}")
        name = f"deposit of {user} at {self.now_ns}"
        transaction = deposit_of(name, wallet, names or user, amount)

        def act(_: str) -> tuple[int, Row]:
            self.chain.send(transaction)
            return 200, {"tx_hash": transaction.hash}

        request = {"amount_micro": amount}
        op = self._op(user, "deposit", act, endpoint="POST /", request=request, keyed=False)
        op.known = {"tx_hash": transaction.hash}
        return op

    def withdraw(self, user: str, amount: int) -> Op:
        def act(key: str) -> tuple[int, Row]:
            row = self.books.withdraw(user, key, amount)
            account = self.books.account("user_available", user_id=user)
            return 202, {
                "transaction_id": row["transaction_id"],
                "account_version": account["version"],
                "balance_micro": account["balance_micro"],
                "withdrawal_id": row["withdrawal_id"],
                "withdrawal_status": row["status"],
            }

        return self._withdrawal(user, amount, act)

    def refused_withdrawal(self, user: str, amount: int, code: str = "insufficient_funds") -> Op:
        return self._withdrawal(user, amount, lambda _: (422, {"code": code}))

    def _withdrawal(self, user: str, amount: int, act: Any) -> Op:
        return self._op(
            user, "withdraw", act, endpoint="POST /api/withdrawals", request={"amount_micro": amount}
        )

    def read_withdrawal(self, user: str, number: int) -> Op:
        """Ask how far the withdrawal with this number, from 1, is."""

        def act(_: str) -> tuple[int, Row]:
            row = self.withdrawal(number)
            return 200, {"withdrawal_id": row["withdrawal_id"], "withdrawal_status": row["status"]}

        return self._op(user, "read_withdrawal", act, keyed=False)

    # -- what goes on meanwhile ---------------------------------------------------------------------------

    def pass_blocks(self, count: int) -> None:
        """Let blocks come; the watcher looks at each, relay and reconciler do what is to be done."""
        for _ in range(count):
            self.tick(BLOCK_NS)
            self.chain.mine(self.unix_ns // S)
            self.look()

    def look(self) -> None:
        """One look of the watcher, then of relay and reconciler, and one of the probe."""
        self.tick()
        self.books.watch(self.chain)
        self.tick()
        reconcile(self.books, self.chain)
        self.relay()
        self.observe()

    def relay(self) -> None:
        """Deliver what can be delivered."""
        outbox = self.books.outbox
        for _ in range(EVENTS_MAX):
            if (event := outbox.next_event()) is None:
                return
            self.tick()
            outbox.claim(event)
            name = f"{event['event_type']} {event['aggregate_id']}"
            planned = self.answers.get(name, [])
            answer = REFUSED if name == self.refused_event else planned.pop(0) if planned else 200
            self.tick()
            if event["aggregate_type"] == "withdrawal":
                self._pay(json.loads(event["payload"]))
            else:
                self.receiver.arrive(event, 200 if answer == UNMARKED else answer, self.now_ns)
            self.tick()
            if answer == 200:
                outbox.mark_delivered(event)
            elif answer != UNMARKED:
                outbox.mark_failed(event, "NotDelivered: of 1 services 0 took it")
        raise AssertionError("the outbox is never empty")

    def _pay(self, payload: Row) -> None:
        row = next(
            one for one in self.rows("withdrawals") if one["withdrawal_id"] == payload["withdrawal_id"]
        )
        anew = payload.get("reason") == "replaced" and row["attempts"] == payload["attempts"]
        if row["attempts"] == 0 or anew:
            self.books.sent(row, self.chain.send(self.books.sign(row)).hash)
        else:
            self.books.sent(row, row["tx_hash"])

    def begin_fault(self, fault: str) -> str:
        """Plan and arm the next fault; its id."""
        self._faults += 1
        fault_id = f"f{self._faults:03}"
        self.fault("planned", fault_id=fault_id, fault=fault, at_s=0.0)
        self.fault("armed", fault_id=fault_id, fault=fault)
        return fault_id

    def in_pool(self, tx_hash: str, instead: Transaction) -> None:
        """Put another transaction in the place of one that waits."""
        self.chain.pool = [instead if one.hash == tx_hash else one for one in self.chain.pool]

    def wrong_accounts(self) -> list[Row]:
        return [
            {"account_id": int(item["item_id"]), "difference_micro": item["amount_micro"]}
            for item in wrong_accounts(self.books)
        ]

    @property
    def unix_ns(self) -> int:
        """The wall clock."""
        return int(EPOCH.timestamp()) * S + self.now_ns - START_NS

    # -- for breaking -------------------------------------------------------------------------------------

    def withdrawal(self, number: int) -> Row:
        """A withdrawal by its number, from 1."""
        return self.books.views["withdrawals"][number - 1]

    def deposits_of(self, op: Op) -> list[Row]:
        """The rows that an operation's deposit has in the books."""
        return [row for row in self.rows("deposits") if row["tx_hash"] == op.known["tx_hash"]]

    def event_row(self, event_type: str, aggregate_id: str, place: int = 0) -> Row:
        """An event of the outbox, by type and aggregate."""
        wanted = (event_type, aggregate_id)
        found = [
            row for row in self.rows("outbox_events") if (row["event_type"], row["aggregate_id"]) == wanted
        ]
        return found[place]

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, run: Path, *, writer: str = "load-0") -> Path:
        """Write the run directory; the folder."""
        super().write(run, writer=writer)
        (run / "chain").mkdir()
        head = self.chain.head_row(time_ns=self.now_ns, drained=self.drained, why=self.why)
        write_lines(run / "chain" / "head.json", [head])
        write_lines(run / "chain" / "blocks.jsonl", self.chain.block_rows())
        for kind in ("deposit", "payment"):
            write_lines(run / "chain" / f"{kind}s.jsonl", self.chain.logs(kind))
        write_lines(run / "deliveries.jsonl", self.receiver.deliveries)
        return run
