"""The node: a chain, its pool of waiting transactions, and when and how blocks are made of them.

All its methods are synchronous and leave it whole; what they changed is on disk after `flush`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reference_server.chain.block_log import GenesisRecord
from reference_server.chain.blocks import GAS_LIMIT, Block
from reference_server.chain.chain import Chain, Step
from reference_server.chain.clock import Clock
from reference_server.chain.filters import Filters
from reference_server.chain.pool import Pool, PoolError
from reference_server.chain.transactions import (
    INITCODE_BYTES_MAX,
    Transaction,
    TransactionError,
    decode_transaction,
    intrinsic_gas,
)

NONCE_MAX = 2**64 - 2  # EIP-2681
MINE_MAX = 100_000  # blocks by one request


class NodeError(Exception):
    """A request that makes no sense on this chain as it is; says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment to come back to: the last step there was, and its place."""

    steps: int
    last: Step
    clock_offset_s: int


class Node:
    """One development node; raises BlockLogError when its chain cannot be opened."""

    def __init__(self, folder: Path, genesis: GenesisRecord, *, automine: bool = True) -> None:
        self.chain = Chain(folder, genesis)
        self.pool = Pool(self.chain.next_nonce)
        self.clock = Clock(self.chain.clock_offset_s)
        self.filters = Filters()
        self.automine = automine
        self.next_base_fee_wei: int | None = None
        self._snapshots: dict[int, Snapshot] = {}
        self._snapshots_taken = 0

    def flush(self) -> None:
        self.chain.flush()

    def close(self) -> None:
        self.chain.close()

    @property
    def pending_base_fee_wei(self) -> int:
        """The base fee of the next block."""
        if self.next_base_fee_wei is not None:
            return self.next_base_fee_wei
        return self.chain.head.next_base_fee_wei

    def send(self, raw: bytes) -> Transaction:
        """Take a signed transaction, mined at once with automine. Raises TransactionError, PoolError."""
        transaction = self.checked(raw)
        if self.chain.machine.balance_wei(transaction.sender) < transaction.cost_max_wei:
            raise PoolError("insufficient funds for gas * price + value")
        self.pool.add(transaction)
        self.filters.transaction_added(transaction)
        if self.automine:
            self._mine_ready()
        return transaction

    def checked(self, raw: bytes) -> Transaction:
        """The transaction of these bytes, if it can be valid on this chain; raises TransactionError."""
        transaction = decode_transaction(raw)
        if transaction.chain_id != self.chain.genesis.chain_id:
            raise TransactionError(f"invalid chain id for signer: have {transaction.chain_id}")
        if transaction.nonce > NONCE_MAX:
            raise TransactionError("nonce has max value")
        if transaction.gas > GAS_LIMIT:
            raise TransactionError("exceeds block gas limit")
        if transaction.gas < intrinsic_gas(transaction):
            raise TransactionError("intrinsic gas too low")
        if transaction.max_priority_fee_wei > transaction.max_fee_wei:
            raise TransactionError("max priority fee per gas higher than max fee per gas")
        if transaction.to is None and len(transaction.data) > INITCODE_BYTES_MAX:
            raise TransactionError("max initcode size exceeded")
        return transaction

    def mine(self, *, blocks: int = 1, interval_s: int | None = None, timestamp: int | None = None) -> None:
        """Make blocks of what waits, empty ones too: `interval_s` apart, or one at `timestamp`.

        Raises ClockError, NodeError.
        """
        if not 0 <= blocks <= MINE_MAX:
            raise NodeError(f"between 0 and {MINE_MAX} blocks can be mined at once")
        if timestamp is not None:
            self.clock.set_next(timestamp, parent_timestamp=self.chain.head.timestamp)
        for number in range(blocks):
            if interval_s is not None and number > 0:
                self.clock.set_next(self.chain.head.timestamp + interval_s, parent_timestamp=0)
            self._mine(self.pool.ready(self.pending_base_fee_wei))

    def rollback(self, depth: int) -> None:
        """Take the newest blocks away; their transactions are gone. Raises NodeError."""
        self._check_depth(depth, "Rollback")
        self._cut(self.chain.steps_up_to(self.chain.head.number - depth))

    def reorganise(self, depth: int, replacements: list[tuple[bytes, int]]) -> None:
        """Put as many other blocks in the place of the newest; their transactions are gone.

        A replacement is a signed transaction and the index, from 0, of the new block that it goes into; one
        that cannot be executed there is left out. Raises NodeError, TransactionError.
        """
        self._check_depth(depth, "Reorg")
        blocks: list[list[Transaction]] = [[] for _ in range(depth)]
        for raw, index in replacements:
            if not 0 <= index < depth:
                raise NodeError(
                    f"Block number for reorg tx will exceed the reorged chain height."
                    f" Block number {index} must not exceed (depth-1) {depth - 1}"
                )
            blocks[index].append(self.checked(raw))
        self._cut(self.chain.steps_up_to(self.chain.head.number - depth))
        for transactions in blocks:
            self._mine(transactions)

    def take_snapshot(self) -> int:
        """The number under which to come back to this moment."""
        steps = self.chain.steps
        self._snapshots[self._snapshots_taken] = Snapshot(len(steps), steps[-1], self.clock.offset_s)
        self._snapshots_taken += 1
        return self._snapshots_taken - 1

    def revert(self, number: int) -> bool:
        """Come back to a snapshot, which spends it and all later ones; False when it is not there."""
        snapshot = self._snapshots.get(number)
        self._snapshots = {taken: kept for taken, kept in self._snapshots.items() if taken < number}
        steps = self.chain.steps
        if snapshot is None or len(steps) < snapshot.steps or steps[snapshot.steps - 1] is not snapshot.last:
            return False
        self.clock = Clock(snapshot.clock_offset_s)
        self._cut(snapshot.steps)
        return True

    def give(self, address: str, balance_wei: int) -> None:
        """Set a balance; raises MachineError."""
        self.chain.give(address, balance_wei)

    def block(self, number: int) -> Block:
        """A block of the chain; raises NodeError when it has none of this number."""
        block = self.chain.block(number)
        if block is None:
            head = self.chain.head.number
            raise NodeError(f"BlockOutOfRangeError: block height is {head} but requested was {number}")
        return block

    def tagged(self, tag: str) -> Block | None:
        """The block that a tag names; None when it is no tag. The pending block is the head here."""
        head = self.chain.head.number
        epoch = self.chain.genesis.slots_in_an_epoch
        numbers = {
            "latest": head,
            "pending": head,
            "earliest": 0,
            "safe": max(head - epoch, 0),
            "finalized": max(head - 2 * epoch, 0),
        }
        return self.block(numbers[tag]) if tag in numbers else None

    def _check_depth(self, depth: int, what: str) -> None:
        head = self.chain.head.number
        if not 0 <= depth <= head:
            raise NodeError(
                f"{what} depth must not exceed current chain height: current height {head}, depth {depth}"
            )

    def _cut(self, steps: int) -> None:
        for block in self.chain.cut(steps):
            self.filters.block_removed(block)

    def _mine_ready(self) -> None:
        while any(
            self.chain.is_payable(transaction, self.pending_base_fee_wei)
            for transaction in self.pool.ready(self.pending_base_fee_wei)
        ):
            self._mine(self.pool.ready(self.pending_base_fee_wei))

    def _mine(self, candidates: Iterable[Transaction]) -> Block:
        base_fee_wei, self.next_base_fee_wei = self.pending_base_fee_wei, None
        timestamp = self.clock.stamp(self.chain.head.timestamp)
        self.chain.clock_offset_s = self.clock.offset_s
        block = self.chain.extend(candidates, timestamp=timestamp, base_fee_wei=base_fee_wei)
        self.pool.forget_mined({receipt.transaction.sender for receipt in block.receipts})
        self.filters.block_added(block)
        return block
