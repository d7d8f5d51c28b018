"""Executing a block's transactions on the machine, and blocks as records of the log."""

from __future__ import annotations

from reference_server.chain.block_log import BlockRecord
from reference_server.chain.blocks import GAS_LIMIT, Block, Conditions, Receipt, bloom_of
from reference_server.chain.machine import Machine, Surroundings
from reference_server.chain.transactions import Transaction, decode_transaction


def enter_block(machine: Machine, number: int, conditions: Conditions) -> None:
    """Have the machine be in this block."""
    machine.enter(
        Surroundings(
            number=number,
            timestamp=conditions.timestamp,
            gas_limit=GAS_LIMIT,
            prevrandao=conditions.prevrandao,
        )
    )


def execute(machine: Machine, transaction: Transaction, base_fee_wei: int, last: Receipt | None) -> Receipt:
    """Execute a transaction after the block's last one, which is not there for the first; its receipt."""
    price_wei = transaction.price_wei(base_fee_wei)
    outcome = machine.execute(transaction, price_wei=price_wei)
    return Receipt(
        transaction=transaction,
        index=last.index + 1 if last else 0,
        succeeded=outcome.succeeded,
        gas_used=outcome.gas_used,
        cumulative_gas=outcome.gas_used + (last.cumulative_gas if last else 0),
        price_wei=price_wei,
        created=outcome.created,
        first_log=last.first_log + len(last.events) if last else 0,
        events=outcome.events,
        bloom=bloom_of(outcome.events),
    )


def record_of(block: Block, *, clock_offset_s: int) -> BlockRecord:
    """What the log says of a block."""
    return BlockRecord(
        hash=block.hash.hex(),
        timestamp=block.timestamp,
        base_fee_wei=block.base_fee_wei,
        prevrandao=block.conditions.prevrandao.hex(),
        clock_offset_s=clock_offset_s,
        transactions=[
            (receipt.transaction.sender, receipt.transaction.raw.hex()) for receipt in block.receipts
        ],
    )


def conditions_of(record: BlockRecord) -> Conditions:
    return Conditions(
        timestamp=record.timestamp,
        base_fee_wei=record.base_fee_wei,
        prevrandao=bytes.fromhex(record.prevrandao),
    )


def transactions_of(record: BlockRecord) -> list[Transaction]:
    return [decode_transaction(bytes.fromhex(raw), sender=sender) for sender, raw in record.transactions]
