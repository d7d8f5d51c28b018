"""Blocks and receipts: plain data, their hashes, the logs' bloom, and the base fee's next value.

Hashes are keccak over RLP as everywhere. The three roots are digests of what they stand for, not Merkle
tries: nobody proves anything against this chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from eth_hash.auto import keccak

from reference_server.chain import rlp
from reference_server.chain.machine import FEES, Checkpoint, Event
from reference_server.chain.transactions import Transaction

GAS_LIMIT = 30_000_000
GAS_TARGET = GAS_LIMIT // 2
FIRST_BASE_FEE_WEI = 1_000_000_000
BASE_FEE_WEI_MIN = 7  # below it the formula cannot move any more
EMPTY_UNCLES = keccak(rlp.encode([]))
BLOOM_BYTES = 256


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one transaction; `first_log` is the index of its first log in the block."""

    transaction: Transaction
    index: int
    succeeded: bool
    gas_used: int
    cumulative_gas: int
    price_wei: int
    created: str | None
    first_log: int
    events: tuple[Event, ...]
    bloom: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is decided about a block before anything is executed in it."""

    timestamp: int
    base_fee_wei: int
    prevrandao: bytes


@dataclass(slots=True)
class Block:
    """One block; `checkpoint` is the machine's state after it."""

    number: int
    parent_hash: bytes
    conditions: Conditions
    state_root: bytes
    receipts: tuple[Receipt, ...]
    gas_used: int
    bloom: int
    transactions_root: bytes
    receipts_root: bytes
    hash: bytes = b""
    size: int = 0
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)

    @property
    def timestamp(self) -> int:
        return self.conditions.timestamp

    @property
    def base_fee_wei(self) -> int:
        return self.conditions.base_fee_wei

    @property
    def next_base_fee_wei(self) -> int:
        """The base fee of the block after this one (EIP-1559)."""
        return next_base_fee_wei(self.base_fee_wei, self.gas_used)


def seal(*, parent: Block | None, conditions: Conditions, receipts: Sequence[Receipt]) -> Block:
    """The block of these receipts on top of its parent, with its hash."""
    bloom = 0
    for receipt in receipts:
        bloom |= receipt.bloom
    receipts_root = keccak(b"".join(map(_digest, receipts)))
    block = Block(
        number=0 if parent is None else parent.number + 1,
        parent_hash=bytes(32) if parent is None else parent.hash,
        conditions=conditions,
        state_root=keccak((b"" if parent is None else parent.state_root) + receipts_root),
        receipts=tuple(receipts),
        gas_used=receipts[-1].cumulative_gas if receipts else 0,
        bloom=bloom,
        transactions_root=keccak(b"".join(receipt.transaction.hash for receipt in receipts)),
        receipts_root=receipts_root,
    )
    header = rlp.encode(_header(block))
    block.hash = keccak(header)
    block.size = len(header) + sum(len(receipt.transaction.raw) for receipt in receipts)
    return block


def next_base_fee_wei(base_fee_wei: int, gas_used: int) -> int:
    """An eighth up after a full block, an eighth down after an empty one (EIP-1559)."""
    change = base_fee_wei * abs(gas_used - GAS_TARGET) // GAS_TARGET // 8
    if gas_used > GAS_TARGET:
        return base_fee_wei + max(change, 1)
    return max(base_fee_wei - change, BASE_FEE_WEI_MIN)


def bloom_of(events: Iterable[Event]) -> int:
    """The 2048-bit filter of the addresses and topics in these logs (yellow paper, 4.3.1)."""
    bloom = 0
    for event in events:
        bloom |= _bloom_bits(bytes.fromhex(event.address[2:]))
        for topic in event.topics:
            bloom |= _bloom_bits(topic)
    return bloom


@lru_cache(maxsize=10_000)
def _bloom_bits(value: bytes) -> int:
    digest = keccak(value)
    bits = 0
    for at in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[at : at + 2], "big") & 2047)
    return bits


def _digest(receipt: Receipt) -> bytes:
    return keccak(
        rlp.encode(
            [
                receipt.transaction.hash,
                int(receipt.succeeded),
                receipt.cumulative_gas,
                [
                    [bytes.fromhex(event.address[2:]), list(event.topics), event.data]
                    for event in receipt.events
                ],
            ]
        )
    )


def _header(block: Block) -> list[rlp.Encodable]:
    return [
        block.parent_hash,
        EMPTY_UNCLES,
        bytes.fromhex(FEES[2:]),
        block.state_root,
        block.transactions_root,
        block.receipts_root,
        block.bloom.to_bytes(BLOOM_BYTES, "big"),
        0,
        block.number,
        GAS_LIMIT,
        block.gas_used,
        block.timestamp,
        b"",
        block.conditions.prevrandao,
        bytes(8),
        block.base_fee_wei,
    ]
