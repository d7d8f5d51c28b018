"""A connection to a node over JSON-RPC: its errors in two kinds, and transactions signed before they are
sent.

What a sender must not confuse: a node that *refuses* (ChainRefused) will not execute the transaction; one
that does not answer (ChainUnavailable) may have it. So a transaction has its hash before it is sent, no
request is made twice behind the caller's back (web3 would repeat even eth_sendRawTransaction), and sending
the same bytes again is always safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from web3 import Web3
from web3.exceptions import (
    BlockNotFound,
    ContractLogicError,
    RequestTimedOut,
    TimeExhausted,
    TransactionNotFound,
    Web3Exception,
    Web3RPCError,
)
from web3.providers import HTTPProvider
from web3.types import TxParams

TIMEOUT_S = 10.0
RECEIPT_TIMEOUT_S = 30.0


class ChainError(Exception):
    """The chain did not do what was asked."""


class ChainUnavailable(ChainError):
    """No answer, or not a whole one: what was sent may have arrived."""


class ChainRefused(ChainError):
    """The node answered that it will not do it, and in its words why."""


@dataclass(frozen=True, slots=True)
class Fees:
    """What a unit of gas may cost, and how much of that is for being quick."""

    max_fee_wei: int
    max_priority_fee_wei: int


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction ready to be sent, as often as it takes: it can be executed once."""

    hash: str
    raw: bytes
    nonce: int


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block; one that did not succeed has reverted, and spent its nonce too."""

    succeeded: bool
    block_number: int
    block_hash: str
    contract: str | None


def connect(url: str, *, timeout_s: float = TIMEOUT_S) -> Web3:
    """A connection to a node; nothing is asked yet."""
    return Web3(HTTPProvider(url, {"timeout": timeout_s}, exception_retry_configuration=None))


@contextmanager
def talking() -> Iterator[None]:
    """Turn what web3 and requests raise into ChainRefused and ChainUnavailable; "not found" stays itself."""
    try:
        yield
    except (BlockNotFound, TransactionNotFound):
        raise
    except (RequestTimedOut, TimeExhausted) as error:
        raise ChainUnavailable(str(error)) from None
    except (Web3RPCError, ContractLogicError) as error:
        raise ChainRefused(str(error)) from None
    except (requests.RequestException, Web3Exception, OSError, ValueError) as error:
        raise ChainUnavailable(f"{type(error).__name__}: {error}") from None


def account_of(key: str) -> LocalAccount:
    """The account of a private key."""
    return cast(LocalAccount, Account.from_key(key))


def suggested_fees(web3: Web3) -> Fees:
    """Enough for the next blocks: twice the base fee, and the node's tip."""
    with talking():
        tip = web3.eth.max_priority_fee
        base_fee = web3.eth.get_block("latest").get("baseFeePerGas", 0)
    return Fees(max_fee_wei=2 * base_fee + tip, max_priority_fee_wei=tip)


def next_nonce(web3: Web3, address: str, *, waiting: bool = True) -> int:
    """The nonce of the account's next transaction: behind all that wait, or else behind the mined."""
    with talking():
        return web3.eth.get_transaction_count(
            Web3.to_checksum_address(address), "pending" if waiting else "latest"
        )


def sign(
    account: LocalAccount, transaction: TxParams, *, chain_id: int, nonce: int, fees: Fees
) -> SignedTransaction:
    """Sign a transaction that has its receiver, data and gas."""
    fields: dict[str, Any] = {
        "value": 0,
        **transaction,
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "maxFeePerGas": fees.max_fee_wei,
        "maxPriorityFeePerGas": fees.max_priority_fee_wei,
    }
    signed = account.sign_transaction(fields)
    return SignedTransaction(hash=signed.hash.to_0x_hex(), raw=bytes(signed.raw_transaction), nonce=nonce)


def send(web3: Web3, transaction: SignedTransaction) -> str:
    """Send signed bytes; no matter if the node has them. Raises ChainRefused, ChainUnavailable."""
    try:
        with talking():
            web3.eth.send_raw_transaction(transaction.raw)
    except ChainRefused:
        if not is_known(web3, transaction.hash):
            raise
    return transaction.hash


def is_known(web3: Web3, transaction_hash: str) -> bool:
    """Whether the node has this transaction, mined or waiting."""
    try:
        with talking():
            web3.eth.get_transaction(HexStr(transaction_hash))
    except TransactionNotFound:
        return False
    return True


def mined(web3: Web3, transaction_hash: str) -> Mined | None:
    """The block that a transaction is in; None when it is in none."""
    try:
        with talking():
            receipt = web3.eth.get_transaction_receipt(HexStr(transaction_hash))
    except TransactionNotFound:
        return None
    return Mined(
        succeeded=receipt["status"] == 1,
        block_number=receipt["blockNumber"],
        block_hash=receipt["blockHash"].to_0x_hex(),
        contract=receipt["contractAddress"],
    )


def succeed(web3: Web3, transaction: SignedTransaction, *, timeout_s: float = RECEIPT_TIMEOUT_S) -> Mined:
    """Send a transaction and wait until it is mined; raises ChainRefused when it reverted."""
    send(web3, transaction)
    with talking():
        web3.eth.wait_for_transaction_receipt(HexStr(transaction.hash), timeout_s, 0.05)
    found = mined(web3, transaction.hash)
    if found is None or not found.succeeded:
        raise ChainRefused(f"{transaction.hash} was mined but reverted")
    return found
