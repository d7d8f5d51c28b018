"""The chain: blocks on one machine, extended, cut back and looked at, and rebuilt from its log.

Its history is a list of steps, each with the machine's checkpoint after it: the genesis block, then blocks
and gifts (balances that were set between blocks). Going back to any step is one call to the machine; the
state at an older block is had by going back to it, looking, and executing again what came after.

Records are collected and reach the disk with `flush`, which whoever answers a client calls before the
answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from eth_hash.auto import keccak

from reference_server.chain.accounts import DevelopmentAccount, development_accounts
from reference_server.chain.block_log import (
    BlockLog,
    BlockLogError,
    BlockRecord,
    CutRecord,
    GenesisRecord,
    GiftRecord,
    Record,
)
from reference_server.chain.blocks import (
    FIRST_BASE_FEE_WEI,
    GAS_LIMIT,
    Block,
    Conditions,
    Receipt,
    seal,
)
from reference_server.chain.execution import conditions_of, enter_block, execute, record_of, transactions_of
from reference_server.chain.machine import Checkpoint, Machine, MachineError
from reference_server.chain.transactions import Transaction


@dataclass(slots=True)
class Gift:
    """A balance that was set between two blocks."""

    address: str
    balance_wei: int
    checkpoint: Checkpoint | None = field(default=None, repr=False)


Step = Block | Gift


class Chain:
    """One chain and its log; raises BlockLogError when the log is damaged or not what its execution gives."""

    def __init__(self, folder: Path, genesis: GenesisRecord) -> None:
        """Open the chain in this folder; it begins with `genesis` when there is none yet."""
        self.log = BlockLog(folder)
        self._unwritten: list[Record] = []
        self.recorded = 0  # since it was opened
        self._sealed = 0
        self.clock_offset_s = 0
        try:
            records = self.log.read()
            found = next(records, None)
            if found is None:
                self._record(genesis)
                found = genesis
            if not isinstance(found, GenesisRecord):
                raise BlockLogError(f"{self.log.path} does not begin with a genesis")
            self.genesis = found
            self._begin()
            for record in records:
                self._replay(record)
            self.flush()
        except BaseException:
            self.log.close()
            raise

    def _begin(self) -> None:
        genesis = self.genesis
        self.machine = Machine(chain_id=genesis.chain_id)
        self.accounts: list[DevelopmentAccount] = development_accounts(genesis.seed, genesis.accounts)
        for account in self.accounts:
            self.machine.endow(account.address, int(genesis.balance_wei))
        self.steps: list[Step] = []
        self._positions: list[int] = []  # of each block's step
        self._by_hash: dict[bytes, Block] = {}
        self._mined: dict[bytes, tuple[Block, Receipt]] = {}
        self._nonces: dict[str, int] = {}
        first = seal(
            parent=None,
            conditions=Conditions(
                timestamp=genesis.timestamp,
                base_fee_wei=FIRST_BASE_FEE_WEI,
                prevrandao=keccak(b"seatrial genesis %d" % genesis.seed),
            ),
            receipts=[],
        )
        self._add(first)

    def close(self) -> None:
        self.flush()
        self.log.close()

    @property
    def head(self) -> Block:
        head = self.steps[self._positions[-1]]
        assert isinstance(head, Block)
        return head

    def take_unwritten(self) -> list[Record]:
        """The records that are not in the log yet, for the caller to append to it."""
        records, self._unwritten = self._unwritten, []
        return records

    def flush(self) -> None:
        """Have everything on disk; after an OSError the process must end, for it is ahead of its log."""
        if records := self.take_unwritten():
            self.log.append(records)

    def block(self, number: int) -> Block | None:
        if not 0 <= number < len(self._positions):
            return None
        block = self.steps[self._positions[number]]
        assert isinstance(block, Block)
        return block

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        return self._by_hash.get(block_hash)

    def mined(self, transaction_hash: bytes) -> tuple[Block, Receipt] | None:
        """The block of a transaction and its receipt."""
        return self._mined.get(transaction_hash)

    def next_nonce(self, address: str) -> int:
        """The nonce of a sender's next transaction, by the head."""
        return self._nonces.get(address, 0)

    def nonce_at(self, address: str, number: int) -> int:
        """The nonce of an account or a contract after this block."""
        if address not in self._nonces:
            with self.state_at(number):
                return self.machine.nonce_of_contract(address)
        for later in range(number + 1, len(self._positions)):
            for receipt in self.block(later).receipts:  # type: ignore[union-attr]
                if receipt.transaction.sender == address:
                    return receipt.transaction.nonce
        return self._nonces[address]

    def is_payable(self, transaction: Transaction, base_fee_wei: int) -> bool:
        """Whether it is its sender's turn, and the sender can pay for it in a block with this base fee."""
        return (
            transaction.nonce == self.next_nonce(transaction.sender)
            and transaction.max_fee_wei >= base_fee_wei
            and self.machine.balance_wei(transaction.sender) >= transaction.cost_max_wei
        )

    def extend(self, candidates: Iterable[Transaction], *, timestamp: int, base_fee_wei: int) -> Block:
        """A new head of those candidates that can be executed now.

        The candidates may be drawn lazily: a sender's nonce is raised before the next one is asked for.
        """
        # Counts what was cut away too: a block that replaces an equal one must have another hash.
        prevrandao = keccak(b"seatrial %d %d" % (self.genesis.seed, self._sealed + 1))
        conditions = Conditions(timestamp=timestamp, base_fee_wei=base_fee_wei, prevrandao=prevrandao)
        enter_block(self.machine, self.head.number + 1, conditions)
        receipts: list[Receipt] = []
        for transaction in candidates:
            gas_left = GAS_LIMIT - (receipts[-1].cumulative_gas if receipts else 0)
            if transaction.gas <= gas_left and self.is_payable(transaction, base_fee_wei):
                # What the machine refuses to begin has changed nothing, and is not part of the block.
                with suppress(MachineError):
                    receipts.append(self._execute(transaction, conditions, receipts))
        block = self._seal(conditions, receipts)
        self._record(record_of(block, clock_offset_s=self.clock_offset_s))
        return block

    def give(self, address: str, balance_wei: int) -> None:
        """Set a balance; raises MachineError."""
        self.machine.give(address, balance_wei)
        self._record(GiftRecord(address=address, balance_wei=str(balance_wei)))
        self._add(Gift(address=address, balance_wei=balance_wei))

    def steps_up_to(self, number: int) -> int:
        """How many steps there are up to this block, with the balances set after it."""
        return self._positions[number + 1] if number + 1 < len(self._positions) else len(self.steps)

    def cut(self, steps: int) -> list[Block]:
        """Go back to the first so many steps; the blocks that are no more, newest first."""
        if steps == len(self.steps):
            return []
        self._record(CutRecord(steps=steps))
        return self._cut(steps)

    @contextmanager
    def state_at(self, number: int) -> Iterator[None]:
        """Have the machine in the state after this block; what is done within is taken back."""
        end = self.steps_up_to(number)
        later = self.steps[end:]
        if later:
            self._rewind(end)
        try:
            block = self.block(number)
            assert block is not None
            enter_block(self.machine, number, block.conditions)
            with self.machine.trial():
                yield
        finally:
            for step in later:
                self._again(step)

    def _record(self, record: Record) -> None:
        self._unwritten.append(record)
        self.recorded += 1

    def _rewind(self, steps: int) -> None:
        last = self.steps[steps - 1]
        assert last.checkpoint is not None
        last.checkpoint = self.machine.rewind(last.checkpoint)

    def _cut(self, steps: int) -> list[Block]:
        self._rewind(steps)
        removed = self.steps[steps:]
        del self.steps[steps:]
        blocks = [step for step in reversed(removed) if isinstance(step, Block)]
        for block in blocks:
            self._positions.pop()
            del self._by_hash[block.hash]
            for receipt in reversed(block.receipts):
                del self._mined[receipt.transaction.hash]
                self._nonces[receipt.transaction.sender] = receipt.transaction.nonce
        return blocks

    def _again(self, step: Step) -> None:
        """Execute a step that was executed before."""
        if isinstance(step, Gift):
            self.machine.give(step.address, step.balance_wei)
        else:
            enter_block(self.machine, step.number, step.conditions)
            for receipt in step.receipts:
                outcome = self.machine.execute(receipt.transaction, price_wei=receipt.price_wei)
                if outcome.gas_used != receipt.gas_used:
                    raise BlockLogError(f"block {step.number} used other gas when it was executed again")
        step.checkpoint = self.machine.checkpoint()

    def _seal(self, conditions: Conditions, receipts: list[Receipt]) -> Block:
        self._sealed += 1
        block = seal(parent=self.head, conditions=conditions, receipts=receipts)
        self._add(block)
        return block

    def _add(self, step: Step) -> None:
        step.checkpoint = self.machine.checkpoint()
        if isinstance(step, Block):
            self._positions.append(len(self.steps))
            self._by_hash[step.hash] = step
            for receipt in step.receipts:
                self._mined[receipt.transaction.hash] = (step, receipt)
        self.steps.append(step)

    def _execute(self, transaction: Transaction, conditions: Conditions, before: list[Receipt]) -> Receipt:
        last = before[-1] if before else None
        receipt = execute(self.machine, transaction, conditions.base_fee_wei, last)
        self._nonces[transaction.sender] = transaction.nonce + 1
        return receipt

    def _replay(self, record: Record) -> None:
        match record:
            case BlockRecord():
                self.clock_offset_s = record.clock_offset_s
                conditions = conditions_of(record)
                enter_block(self.machine, self.head.number + 1, conditions)
                receipts: list[Receipt] = []
                for transaction in transactions_of(record):
                    receipts.append(self._execute(transaction, conditions, receipts))
                block = self._seal(conditions, receipts)
                if block.hash.hex() != record.hash:
                    raise BlockLogError(
                        f"{self.log.path}: block {block.number} gave another hash when it was executed again"
                    )
            case GiftRecord():
                self.machine.give(record.address, int(record.balance_wei))
                self._add(Gift(address=record.address, balance_wei=int(record.balance_wei)))
            case CutRecord():
                self._cut(record.steps)
            case GenesisRecord():
                raise BlockLogError(f"{self.log.path} has a second genesis")
