"""A chain in plain Python: blocks of transactions, a vault that they pay into and out of, reorganisations.

Hashes are SHA-256 of a name, so that a golden chain is the same every time.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field

from scenarios.history import FORMAT
from tests.golden.market import Row

CHAIN_ID = 31_337
FIRST_BLOCK = 1  # which made the contracts
CONFIRMATIONS = 3


def hash_of(name: str) -> str:
    """32 bytes that stand for a block, a transaction or a made-up word."""
    return "0x" + hashlib.sha256(name.encode()).hexdigest()


def address_of(name: str) -> str:
    """20 bytes that stand for an account."""
    return hash_of(name)[:42]


def word_of(withdrawal_id: str) -> str:
    """A withdrawal as the vault knows it."""
    return "0x" + uuid.UUID(withdrawal_id).hex + "00" * 16


OPERATOR = address_of("operator")


@dataclass(frozen=True)
class Transaction:
    """What a block executes: `kind` is deposit, payment, mint (into the vault), reverted or other."""

    hash: str
    kind: str
    facts: Row = field(default_factory=dict)

    @property
    def custody_micro(self) -> int:
        """What it brings into the vault."""
        sign = {"deposit": 1, "mint": 1, "payment": -1}.get(self.kind, 0)
        return sign * int(self.facts.get("amount_micro", 0))


@dataclass
class Block:
    """One block of the chain as it is now."""

    number: int
    hash: str
    timestamp_s: int
    transactions: list[Transaction]


class Chain:
    """The blocks, and what waits in the pool for the next."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.pool: list[Transaction] = []
        self._branches = 0
        self.mine(0)

    @property
    def head(self) -> Block:
        return self.blocks[-1]

    def block(self, number: int) -> Block | None:
        """The block with this number, None above the head and below the first."""
        place = number - FIRST_BLOCK
        return self.blocks[place] if 0 <= place < len(self.blocks) else None

    def has(self, number: int, block_hash: str) -> bool:
        """Whether this block is in the chain now."""
        found = self.block(number)
        return found is not None and found.hash == block_hash

    def send(self, transaction: Transaction) -> Transaction:
        """Give the node a transaction; one that it has already stays where it is."""
        known = [one for block in self.blocks for one in block.transactions] + self.pool
        if transaction not in known:
            self.pool.append(transaction)
        return transaction

    def drop(self, tx_hash: str) -> None:
        """Forget a transaction that is in no block."""
        self.pool = [one for one in self.pool if one.hash != tx_hash]

    def mine(self, timestamp_s: int) -> Block:
        """A block of everything that waits."""
        number = FIRST_BLOCK + len(self.blocks)
        name = f"block {number} of branch {self._branches}"
        self.blocks.append(Block(number, hash_of(name), timestamp_s, self.pool))
        self.pool = []
        return self.head

    def reorganise(self, depth: int, dropped: list[str]) -> tuple[list[str], list[str]]:
        """Other blocks in place of the newest, without these transactions; their hashes, old and new."""
        self._branches += 1
        replaced = self.blocks[-depth:]
        old = [block.hash for block in replaced]
        for block in replaced:
            block.hash = hash_of(f"block {block.number} of branch {self._branches}")
            block.transactions = [one for one in block.transactions if one.hash not in dropped]
        return old, [block.hash for block in replaced]

    def custody_micro(self, number: int) -> int:
        """What the vault holds after a block."""
        return sum(
            one.custody_micro for block in self.blocks if block.number <= number for one in block.transactions
        )

    def logs(self, kind: str, above: int = 0) -> list[Row]:
        """The vault's events of one kind in the blocks above a number, in the chain's order."""
        rows = []
        for block in self.blocks:
            logged = [one for one in block.transactions if one.kind in ("deposit", "payment")]
            place: Row = {"block_number": block.number, "block_hash": block.hash}
            rows += [
                place | {"tx_hash": one.hash, "log_index": number} | one.facts
                for number, one in enumerate(logged)
                if one.kind == kind and block.number > above
            ]
        return rows

    # -- the files of a run -------------------------------------------------------------------------------

    def head_row(self, *, time_ns: int, drained: bool, why: str | None) -> Row:
        """chain/head.json."""
        return {
            "format": FORMAT,
            "chain_id": CHAIN_ID,
            "vault": address_of("vault"),
            "usdc": address_of("usdc"),
            "operator": OPERATOR,
            "from_block": FIRST_BLOCK,
            "number": self.head.number,
            "hash": self.head.hash,
            "custody_micro": self.custody_micro(self.head.number),
            "confirmations": CONFIRMATIONS,
            "time_ns": time_ns,
            "drained": drained,
            "why": why,
        }

    def block_rows(self) -> list[Row]:
        """chain/blocks.jsonl."""
        return [
            {"number": block.number, "hash": block.hash, "timestamp_s": block.timestamp_s}
            for block in self.blocks
        ]


def deposit_of(name: str, sender: str, user_id: str, amount_micro: int) -> Transaction:
    """A call of the vault's `deposit`."""
    facts: Row = {"sender": sender, "user_id": user_id, "amount_micro": amount_micro}
    return Transaction(hash_of(name), "deposit", facts)


def payment_of(name: str, word: str, receiver: str, amount_micro: int) -> Transaction:
    """A call of the vault's `withdraw`, under a withdrawal's word or a made-up one."""
    known = word.endswith("00" * 16)
    facts: Row = {
        "word": word,
        "withdrawal_id": str(uuid.UUID(word[2:34])) if known else None,
        "receiver": receiver,
        "amount_micro": amount_micro,
    }
    return Transaction(hash_of(name), "payment", facts)
