"""The books of money in and out in plain Python: deposits, withdrawals, and a watcher that follows a chain.

It does what docs/money.md says, one step at a time; `watch` is one look of the watcher.
"""

from __future__ import annotations

import uuid

from reports.books import MONEY_VIEWS
from tests.golden.chain import CONFIRMATIONS, FIRST_BLOCK, OPERATOR, Chain, Transaction, payment_of, word_of
from tests.golden.market import EXTERNAL, Books, Row
from tests.golden.outbox import Outbox


def usdc(micro: int) -> str:
    """Micro-USDC as people write it."""
    return f"{micro / 1_000_000:g} USDC"


class CustodyBooks(Books):
    """One correct system that users bring money into and take it out of."""

    def __init__(self) -> None:
        super().__init__()
        self.views |= {view: [] for view in MONEY_VIEWS}
        self.suspense = self._account("suspense")
        self.in_flight = self._account("withdraw_in_flight")
        self.owed = self._account("suspense_receivable")
        self.views["accounts"][self.owed - 1]["floor_micro"] = None
        self.outbox = Outbox(self)
        self.wallets: dict[str, str] = {}
        self.paused = False
        self.head = (FIRST_BLOCK, "")  # of the watcher's last look
        self.checkpoints: list[tuple[int, str]] = []
        self._next_nonce = 0

    # -- deposits -----------------------------------------------------------------------------------------

    def credit(self, log: Row) -> None:
        """Book a deposit that is deep enough; one that is booked stays."""
        row = self._deposit_row(log)
        if row is None:
            row = self._seen(log)
        elif row["status"] != "seen":
            return
        owner = self._owner(log)
        row |= {"block_number": log["block_number"], "block_hash": log["block_hash"], "booked_at": self.wall}
        row |= {"status": "suspended" if owner is None else "credited", "user_id": owner}
        receiver = self.suspense if owner is None else self._available(owner)
        moves = [(EXTERNAL, -row["amount_micro"]), (receiver, row["amount_micro"])]
        row["transaction_id"] = self._transact("deposit", owner, None, None, moves)["transaction_id"]
        facts = {"deposit_id": row["deposit_id"], "tx_hash": row["tx_hash"]}
        if owner is None:
            title = "A deposit of nobody known is in suspense"
            payload = {"title": title, "sender": row["sender"], "amount_micro": row["amount_micro"]} | facts
            deposit_id = row["deposit_id"]
            self.outbox.enqueue(
                "deposit", str(deposit_id), "alert.deposit_suspended", payload, f"deposit:{deposit_id}"
            )
            return
        self.settle(owner, row["amount_micro"])
        title = f"Deposit of {usdc(row['amount_micro'])} credited to {owner}"
        key = f"notice:{row['transaction_id']}"
        self.outbox.notice(owner, "notice.deposit_credited", title, row["amount_micro"], facts, key)

    def reverse(self, row: Row) -> int | None:
        """Undo a deposit whose block is gone; the receivable that it left."""
        before = row["status"]
        row |= {"status": "reversed", "reversed_at": self.wall}
        if before == "suspended":
            moves = [(self.suspense, -row["amount_micro"]), (EXTERNAL, row["amount_micro"])]
            self._transact("reverse_deposit", None, None, None, moves)
            return None
        cause = f"deposit {row['deposit_id']} was reorganised away after it was spent"
        left = self.take_back(row["user_id"], row["amount_micro"], "reverse_deposit", cause)
        title = f"Deposit of {usdc(row['amount_micro'])} taken back from {row['user_id']}"
        facts = {"deposit_id": row["deposit_id"], "tx_hash": row["tx_hash"]}
        key = f"notice:reversed:{row['deposit_id']}"
        self.outbox.notice(row["user_id"], "notice.deposit_reversed", title, row["amount_micro"], facts, key)
        return left

    def take_back(self, user_id: str, amount: int, kind: str, cause: str) -> int | None:
        """Money that is not in custody any more; what the user has spent is owed: the receivable's id."""
        account = self.account("user_available", user_id=user_id)
        there = min(account["balance_micro"], amount)
        if there > 0:
            self._transact(kind, user_id, None, None, [(account["account_id"], -there), (EXTERNAL, there)])
        if there == amount:
            return None
        moves = [(self.owed, there - amount), (EXTERNAL, amount - there)]
        receivable = {
            "receivable_id": len(self.views["receivables"]) + 1,
            "user_id": user_id,
            "transaction_id": self._transact(kind, user_id, None, None, moves)["transaction_id"],
            "cause": cause,
            "amount_micro": amount - there,
            "owed_micro": amount - there,
            "created_at": self.wall,
        }
        self.views["receivables"].append(receivable)
        return len(self.views["receivables"])

    def settle(self, user_id: str, amount: int) -> None:
        """Pay off what a user owes, oldest first."""
        open_rows = [row for row in self.views["receivables"] if row["user_id"] == user_id]
        left = min(amount, sum(row["owed_micro"] for row in open_rows))
        if left:
            moves = [(self._available(user_id), -left), (self.owed, left)]
            self._transact("settle_receivable", user_id, None, None, moves)
        for row in open_rows:
            paid = min(row["owed_micro"], left)
            row["owed_micro"] -= paid
            left -= paid

    def assign(self, deposit_id: int, user_id: str) -> None:
        """Give a deposit out of suspense to its owner."""
        row = next(row for row in self.views["deposits"] if row["deposit_id"] == deposit_id)
        moves = [(self.suspense, -row["amount_micro"]), (self._available(user_id), row["amount_micro"])]
        self._transact("assign_deposit", user_id, None, None, moves)
        row |= {"status": "credited", "user_id": user_id}
        self.settle(user_id, row["amount_micro"])

    # -- withdrawals --------------------------------------------------------------------------------------

    def withdraw(self, user_id: str, key: str, amount: int) -> Row:
        """Reserve money and tell the relay; the withdrawal."""
        number = len(self.views["withdrawals"]) + 1
        moves = [(self._available(user_id), -amount), (self.in_flight, amount)]
        row: Row = {
            "withdrawal_id": str(uuid.UUID(int=0x5EA7_0000_0000_4000_8000_0000_0000_0000 + number)),
            "user_id": user_id,
            "address": self.wallets[user_id],
            "amount_micro": amount,
            "status": "reserved",
            "transaction_id": self._transact("withdraw", user_id, key, None, moves)["transaction_id"],
            "end_transaction_id": None,
            "reason": None,
            "tx_hash": None,
            "block_number": None,
            "block_hash": None,
            "attempts": 0,
            "sends": 0,
            "created_at": self.wall,
            "sent_at": None,
            "changed_at": self.wall,
        }
        self.views["withdrawals"].append(row)
        withdrawal_id = row["withdrawal_id"]
        payload = {"withdrawal_id": withdrawal_id, "address": row["address"], "amount_micro": amount}
        key = f"withdrawal:{withdrawal_id}"
        self.outbox.enqueue("withdrawal", withdrawal_id, "withdrawal.requested", payload, key)
        return row

    def sign(self, row: Row) -> Transaction:
        """Write down the next transaction that is to pay a withdrawal."""
        row["attempts"] += 1
        name = f"payment {row['withdrawal_id']} attempt {row['attempts']}"
        signed = payment_of(name, word_of(row["withdrawal_id"]), row["address"], row["amount_micro"])
        self.views["withdrawal_attempts"].append(
            {
                "withdrawal_id": row["withdrawal_id"],
                "attempt": row["attempts"],
                "operator": OPERATOR,
                "nonce": self._next_nonce,
                "tx_hash": signed.hash,
                "created_at": self.wall,
            }
        )
        self._next_nonce += 1
        return signed

    def sent(self, row: Row, tx_hash: str) -> None:
        """A relay has seen to it that the chain has this transaction."""
        row |= {"status": "sent"} if row["status"] == "reserved" else {}
        row |= {"tx_hash": tx_hash, "sends": row["sends"] + 1, "sent_at": self.wall, "changed_at": self.wall}

    def resend(self, row: Row, reason: str) -> None:
        """Have a relay see to a withdrawal again."""
        payload = {"withdrawal_id": row["withdrawal_id"], "attempts": row["attempts"], "reason": reason}
        key = f"withdrawal:{row['withdrawal_id']}:{row['sends']}"
        self.outbox.enqueue("withdrawal", row["withdrawal_id"], "withdrawal.resend", payload, key)

    def give_back(self, row: Row, reason: str) -> None:
        """Return what no transaction can pay any more."""
        moves = [
            (self.in_flight, -row["amount_micro"]),
            (self._available(row["user_id"]), row["amount_micro"]),
        ]
        end = self._transact("return_withdraw", row["user_id"], None, None, moves)["transaction_id"]
        row |= {"status": "returned", "reason": reason, "end_transaction_id": end, "changed_at": self.wall}
        self._tell(row, "notice.withdrawal_returned", "returned", {"reason": reason})

    def pay(self, log: Row) -> None:
        """Book a payment that is deep enough; one that nobody asked for is only told of."""
        row = self._paid_by(log)
        if row is None:
            place = f"{log['tx_hash']}:{log['log_index']}"
            payload = {"title": "The vault paid what nobody asked for"} | log
            self.outbox.enqueue("payment", place, "alert.unknown_payment", payload, f"payment:{place}")
            return
        if row["status"] == "returned":
            cause = f"withdrawal {row['withdrawal_id']} was paid after it was returned"
            self.take_back(row["user_id"], row["amount_micro"], "withdraw_final", cause)
        elif row["status"] != "final":
            moves = [(self.in_flight, -row["amount_micro"]), (EXTERNAL, row["amount_micro"])]
            end = self._transact("withdraw_final", row["user_id"], None, None, moves)["transaction_id"]
            row["end_transaction_id"] = end
            self._tell(row, "notice.withdrawal_paid", "paid", {"tx_hash": log["tx_hash"]})
        row |= {"status": "final", "reason": None, "changed_at": self.wall} | _place_of(log)

    def undo(self, row: Row) -> None:
        """A payment whose block is gone is under way again."""
        moves = [(EXTERNAL, -row["amount_micro"]), (self.in_flight, row["amount_micro"])]
        self._transact("undo_withdraw", row["user_id"], None, None, moves)
        row |= {"status": "sent", "block_number": None, "block_hash": None, "changed_at": self.wall}

    # -- the watcher --------------------------------------------------------------------------------------

    def watch(self, chain: Chain) -> None:
        """Look at the chain once: undo what is gone, book what is deep, write down what is above."""
        head = chain.head
        self.checkpoints = self.checkpoints or [(FIRST_BLOCK - 1, "")]
        fork = next(point for point in reversed(self.checkpoints) if point[1] == "" or chain.has(*point))
        end = max(fork[0], head.number - CONFIRMATIONS)
        if not self.paused and (fork != self.checkpoints[-1] or end > fork[0]):
            self._book(chain, fork, end)
        booked = fork[0] if self.paused else end
        self._view(chain, booked)
        self.head = (head.number, head.hash)
        if not self.paused:
            self._see_to_unmined(chain, end)

    def _book(self, chain: Chain, fork: tuple[int, str], end: int) -> None:
        for row in self.views["withdrawals"]:
            if row["status"] == "final" and not chain.has(row["block_number"], row["block_hash"]):
                self.undo(row)
        for log in chain.logs("payment", above=fork[0]):
            if log["block_number"] <= end:
                self.pay(log)
        receivables = [
            self.reverse(row)
            for row in self.views["deposits"]
            if row["status"] in ("credited", "suspended")
            and not chain.has(row["block_number"], row["block_hash"])
        ]
        for log in chain.logs("deposit", above=fork[0]):
            if log["block_number"] <= end:
                self.credit(log)
        for number in receivables:
            if number is not None and (row := self.views["receivables"][number - 1])["owed_micro"]:
                title = f"A user owes {row['owed_micro']} micro-USDC: {row['cause']}"
                payload = {"title": title, "user_id": row["user_id"], "owed_micro": row["owed_micro"]}
                key = f"receivable:{number}"
                self.outbox.enqueue("receivable", str(number), "alert.receivable", payload, key)
        self.checkpoints = [point for point in self.checkpoints if point[0] <= fork[0]]
        if (block := chain.block(end)) is not None and end > fork[0]:
            self.checkpoints.append((end, block.hash))

    def _view(self, chain: Chain, booked: int) -> None:
        """What is above the cursor: deposits and payments that are not deep enough."""
        logs = chain.logs("deposit", above=booked)
        places = {(log["tx_hash"], log["block_hash"]) for log in logs}
        deposits = self.views["deposits"]
        deposits[:] = [
            row
            for row in deposits
            if row["status"] != "seen" or (row["tx_hash"], row["block_hash"]) in places
        ]
        for log in logs:
            if self._deposit_row(log) is None:
                self._seen(log)
        payments = chain.logs("payment", above=booked)
        for row in self.views["withdrawals"]:
            if row["status"] in ("final", "returned"):
                continue
            paid_by = [log for log in payments if self._paid_by(log) is row]
            if not paid_by and row["status"] == "mined":
                row.update(status="sent", block_number=None, block_hash=None, changed_at=self.wall)
            elif paid_by and row["block_hash"] != paid_by[0]["block_hash"]:
                row.update({"status": "mined", "changed_at": self.wall} | _place_of(paid_by[0]))

    def _see_to_unmined(self, chain: Chain, end: int) -> None:
        """What failed in a deep block is given back; what lost its nonce there is to be sent anew."""
        deep = {one.hash: one for block in chain.blocks if block.number <= end for one in block.transactions}
        for row in self.views["withdrawals"]:
            if row["status"] != "sent" or row["tx_hash"] is None:
                continue
            if (found := deep.get(row["tx_hash"])) is not None and found.kind == "reverted":
                self.give_back(row, "reverted")
            if any(one.facts.get("instead_of") == row["tx_hash"] for one in deep.values()):
                self.resend(row, "replaced")

    # -- within -------------------------------------------------------------------------------------------

    def _deposit_row(self, log: Row) -> Row | None:
        """The row of this log that is not reversed."""
        for row in self.views["deposits"]:
            same = (row["tx_hash"], row["log_index"]) == (log["tx_hash"], log["log_index"])
            if same and row["status"] != "reversed":
                return row
        return None

    def _seen(self, log: Row) -> Row:
        row: Row = {
            "deposit_id": 1 + max((one["deposit_id"] for one in self.views["deposits"]), default=0),
            "named_user_id": log["user_id"],
            "user_id": None,
            "status": "seen",
            "transaction_id": None,
            "seen_at": self.wall,
            "booked_at": None,
            "reversed_at": None,
        } | {name: value for name, value in log.items() if name != "user_id"}
        self.views["deposits"].append(row)
        return row

    def _owner(self, log: Row) -> str | None:
        """Whom the log names, else whose wallet it came from."""
        if any(row["user_id"] == log["user_id"] for row in self.views["accounts"]):
            return str(log["user_id"])
        return next((user for user, address in self.wallets.items() if address == log["sender"]), None)

    def _paid_by(self, log: Row) -> Row | None:
        """The withdrawal that a payment agrees with."""
        wanted = (log["withdrawal_id"], log["receiver"], log["amount_micro"])
        for row in self.views["withdrawals"]:
            if (row["withdrawal_id"], row["address"], row["amount_micro"]) == wanted:
                return row
        return None

    def _tell(self, row: Row, event_type: str, what: str, facts: Row) -> None:
        title = f"Withdrawal of {usdc(row['amount_micro'])} by {row['user_id']} {what}"
        facts = {"withdrawal_id": row["withdrawal_id"]} | facts
        key = f"notice:{row['end_transaction_id']}"
        self.outbox.notice(row["user_id"], event_type, title, row["amount_micro"], facts, key)

    def _available(self, user_id: str) -> int:
        return int(self.account("user_available", user_id=user_id)["account_id"])


def _place_of(log: Row) -> Row:
    return {name: log[name] for name in ("tx_hash", "block_number", "block_hash")}
