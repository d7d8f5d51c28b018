"""Blocks, transactions, receipts and logs as JSON-RPC shows them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from eth_hash.auto import keccak

from reference_server.chain.blocks import BLOOM_BYTES, EMPTY_UNCLES, GAS_LIMIT, Block, Receipt
from reference_server.chain.filters import Log
from reference_server.chain.machine import FEES
from reference_server.chain.transactions import Transaction

Json = dict[str, Any]


def hexadecimal(value: bytes) -> str:
    return "0x" + value.hex()


@lru_cache(maxsize=10_000)
def checksummed(address: str) -> str:
    """A lower-case address with the capitals that are its checksum (EIP-55)."""
    digits = address[2:]
    digest = keccak(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if check >= "8" else digit for digit, check in zip(digits, digest, strict=False)
    )


def bloom_bytes(bloom: int) -> str:
    return hexadecimal(bloom.to_bytes(BLOOM_BYTES, "big"))


def render_block(block: Block, *, full: bool) -> Json:
    """A block, with whole transactions or with their hashes."""
    return {
        "number": hex(block.number),
        "hash": hexadecimal(block.hash),
        "parentHash": hexadecimal(block.parent_hash),
        "nonce": "0x0000000000000000",
        "sha3Uncles": hexadecimal(EMPTY_UNCLES),
        "logsBloom": bloom_bytes(block.bloom),
        "transactionsRoot": hexadecimal(block.transactions_root),
        "stateRoot": hexadecimal(block.state_root),
        "receiptsRoot": hexadecimal(block.receipts_root),
        "miner": FEES,
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": "0x",
        "mixHash": hexadecimal(block.conditions.prevrandao),
        "size": hex(block.size),
        "gasLimit": hex(GAS_LIMIT),
        "gasUsed": hex(block.gas_used),
        "baseFeePerGas": hex(block.base_fee_wei),
        "timestamp": hex(block.timestamp),
        "uncles": [],
        "transactions": [
            render_transaction(receipt.transaction, block=block, receipt=receipt)
            if full
            else hexadecimal(receipt.transaction.hash)
            for receipt in block.receipts
        ],
    }


def render_transaction(
    transaction: Transaction, *, block: Block | None = None, receipt: Receipt | None = None
) -> Json:
    """A transaction, with its place on the chain once it has one."""
    body: Json = {
        "type": hex(transaction.type),
        "chainId": hex(transaction.chain_id),
        "hash": hexadecimal(transaction.hash),
        "from": checksummed(transaction.sender),
        "to": _address(transaction.to),
        "nonce": hex(transaction.nonce),
        "gas": hex(transaction.gas),
        "gasPrice": hex(receipt.price_wei if receipt else transaction.max_fee_wei),
        "value": hex(transaction.value_wei),
        "input": hexadecimal(transaction.data),
        "v": hex(transaction.v),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "blockHash": hexadecimal(block.hash) if block else None,
        "blockNumber": hex(block.number) if block else None,
        "transactionIndex": hex(receipt.index) if receipt else None,
    }
    if transaction.type >= 1:
        body["yParity"] = hex(transaction.v)
        body["accessList"] = [
            {"address": address, "storageKeys": [f"0x{key:064x}" for key in keys]}
            for address, keys in transaction.access_list
        ]
    if transaction.type == 2:
        body["maxFeePerGas"] = hex(transaction.max_fee_wei)
        body["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_wei)
    return body


def render_receipt(block: Block, receipt: Receipt) -> Json:
    transaction = receipt.transaction
    return {
        "type": hex(transaction.type),
        "transactionHash": hexadecimal(transaction.hash),
        "transactionIndex": hex(receipt.index),
        "blockHash": hexadecimal(block.hash),
        "blockNumber": hex(block.number),
        "from": checksummed(transaction.sender),
        "to": _address(transaction.to),
        "contractAddress": _address(receipt.created if receipt.succeeded else None),
        "status": hex(receipt.succeeded),
        "gasUsed": hex(receipt.gas_used),
        "cumulativeGasUsed": hex(receipt.cumulative_gas),
        "effectiveGasPrice": hex(receipt.price_wei),
        "logsBloom": bloom_bytes(receipt.bloom),
        "logs": [
            render_log(Log(event, block, receipt, receipt.first_log + place))
            for place, event in enumerate(receipt.events)
        ],
    }


def render_log(log: Log) -> Json:
    return {
        "address": checksummed(log.event.address),
        "topics": [hexadecimal(topic) for topic in log.event.topics],
        "data": hexadecimal(log.event.data),
        "blockHash": hexadecimal(log.block.hash),
        "blockNumber": hex(log.block.number),
        "blockTimestamp": hex(log.block.timestamp),
        "transactionHash": hexadecimal(log.receipt.transaction.hash),
        "transactionIndex": hex(log.receipt.index),
        "logIndex": hex(log.index),
        "removed": log.removed,
    }


def _address(value: str | None) -> str | None:
    return None if value is None else checksummed(value)
