"""The vault and its dollar as the harness sees them: their logs as rows, and calls signed for them.

Known by the signatures in docs/chain.md only: any contracts with the same ones will do. Everything that
asks takes `ask`, which is `chaos.rpc.Rpc.ask` or `Custody.ask`. Amounts are micro-dollars; addresses, hashes
and words are 0x and lower-case digits.

The libraries of the chain are slow to import and needed only with one, so they are imported within.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

import msgspec

Ask: TypeAlias = Callable[..., Any]

DEPOSIT_EVENT = "Deposit(address,string,uint256)"
WITHDRAWAL_EVENT = "Withdrawal(bytes32,address,uint256)"
# More than any call of these contracts uses.
CALL_GAS = 200_000
# What is asked for at once: nodes limit the range of a search.
BLOCKS_MAX = 1_000
MINED_TIMEOUT_S = 15.0
POLL_S = 0.02
_ID_BYTES = 16


class VaultError(Exception):
    """A log that is not the vault's, or a call that was not mined in time or reverted; says which."""


class DepositLog(msgspec.Struct, frozen=True, kw_only=True):
    """Money that came into the vault; `user_id` is null where what was given is no text."""

    block_number: int
    block_hash: str
    tx_hash: str
    log_index: int
    sender: str
    user_id: str | None
    amount_micro: int


class PaymentLog(msgspec.Struct, frozen=True, kw_only=True):
    """Money that left the vault; `withdrawal_id` is null where the word cannot be a withdrawal's."""

    block_number: int
    block_hash: str
    tx_hash: str
    log_index: int
    word: str
    withdrawal_id: str | None
    receiver: str
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Fees:
    """What a unit of gas may cost, and how much of that is for being quick, in wei."""

    max_fee_wei: int
    tip_wei: int

    def over(self, other: Fees) -> Fees:
        """These, but at least twice the other's: enough to take a transaction's place in any pool."""
        return Fees(max(self.max_fee_wei, 2 * other.max_fee_wei), max(self.tip_wei, 2 * other.tip_wei))


@dataclass(frozen=True, slots=True)
class SignedCall:
    """A transaction ready to be sent, as often as it takes: it can be executed once."""

    hash: str
    raw: str
    nonce: int


def load_libraries() -> None:
    """Import what encodes and signs ahead of time: on a busy machine a fault would wait seconds for it."""
    for name in ("eth_abi.abi", "eth_account", "eth_utils.crypto"):
        importlib.import_module(name)


# --- the logs


def deposit_logs(ask: Ask, vault: str, from_block: int, to_block: int) -> list[DepositLog]:
    """The deposits in these blocks, both included, in the chain's order; raises RpcError, VaultError."""
    return [_deposit(log) for log in _logs(ask, vault, topic(DEPOSIT_EVENT), from_block, to_block)]


def payment_logs(ask: Ask, vault: str, from_block: int, to_block: int) -> list[PaymentLog]:
    """The payments in these blocks, both included, in the chain's order; raises RpcError, VaultError."""
    return [_payment(log) for log in _logs(ask, vault, topic(WITHDRAWAL_EVENT), from_block, to_block)]


@lru_cache
def topic(signature: str) -> str:
    """The first topic of an event's logs: the keccak of its signature."""
    from eth_utils.crypto import keccak

    return "0x" + keccak(text=signature).hex()


def word_of(withdrawal_id: str) -> str:
    """A withdrawal as the vault knows it: the 16 bytes of its UUID, then zeros."""
    return "0x" + UUID(withdrawal_id).bytes.hex() + "00" * _ID_BYTES


def uuid_of(word: str) -> str | None:
    """The withdrawal of a word; None when it cannot be one's."""
    value = bytes.fromhex(word.removeprefix("0x"))
    return None if any(value[_ID_BYTES:]) else str(UUID(bytes=value[:_ID_BYTES]))


# --- calls


def mint_data(to: str, amount_micro: int) -> str:
    """Dollars out of nothing, by their owner."""
    return _call("mint(address,uint256)", to, amount_micro)


def transfer_data(to: str, amount_micro: int) -> str:
    """Dollars from whoever sends this."""
    return _call("transfer(address,uint256)", to, amount_micro)


def deposit_data(user_id: str, amount_micro: int) -> str:
    """The sender's dollars into the vault on behalf of a user; the vault needs an allowance."""
    return _call("deposit(string,uint256)", user_id, amount_micro)


def withdraw_data(word: str, to: str, amount_micro: int) -> str:
    """Dollars out of the vault under this word, by its operator."""
    return _call(
        "withdraw(bytes32,address,uint256)", bytes.fromhex(word.removeprefix("0x")), to, amount_micro
    )


def is_deposit(data: str) -> bool:
    """Whether these bytes call `deposit`."""
    return data.startswith(_selector("deposit(string,uint256)"))


def is_withdrawal(data: str) -> bool:
    """Whether these bytes call `withdraw`."""
    return data.startswith(_selector("withdraw(bytes32,address,uint256)")) and len(data) == 2 + 8 + 3 * 64


def word_in(data: str) -> str:
    """The word that a call of `withdraw` pays."""
    return "0x" + data[10:74]


def balance_of(ask: Ask, usdc: str, account: str, block: int | str = "latest") -> int:
    """An account's dollars after a block; raises RpcError."""
    call = {"to": usdc, "data": _call("balanceOf(address)", account)}
    return int(ask("eth_call", call, hex(block) if isinstance(block, int) else block), 16)


# --- sending


def address_of(key: str) -> str:
    """The address of a private key, in lower case."""
    from eth_account import Account

    return str(Account.from_key(key).address).lower()


def suggested_fees(ask: Ask) -> Fees:
    """Enough for the next blocks: twice the base fee, and the node's tip; raises RpcError."""
    tip_wei = int(ask("eth_maxPriorityFeePerGas"), 16)
    base_fee_wei = int(ask("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    return Fees(2 * base_fee_wei + tip_wei, tip_wei)


def next_nonce(ask: Ask, address: str, *, waiting: bool = True) -> int:
    """The nonce of its next transaction: behind all that wait, or else behind the mined; raises RpcError."""
    return int(ask("eth_getTransactionCount", address, "pending" if waiting else "latest"), 16)


def sign_call(
    key: str, *, to: str, data: str = "0x", nonce: int, fees: Fees, chain_id: int, gas: int = CALL_GAS
) -> SignedCall:
    """A call of `to` that moves none of the chain's own money; it has its hash before it is sent."""
    from eth_account import Account

    signed = Account.from_key(key).sign_transaction(
        {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": bytes.fromhex(to.removeprefix("0x")),
            "value": 0,
            "data": data,
            "gas": gas,
            "maxFeePerGas": fees.max_fee_wei,
            "maxPriorityFeePerGas": fees.tip_wei,
        }
    )
    return SignedCall(
        hash="0x" + bytes(signed.hash).hex(), raw="0x" + bytes(signed.raw_transaction).hex(), nonce=nonce
    )


def receipt_of(ask: Ask, tx_hash: str) -> dict[str, Any] | None:
    """What became of a transaction; None while no block has it. Raises RpcError."""
    found: dict[str, Any] | None = ask("eth_getTransactionReceipt", tx_hash)
    return found


def await_mined(ask: Ask, tx_hash: str, *, timeout_s: float = MINED_TIMEOUT_S) -> int:
    """The block that executed it, waited for; raises RpcError, VaultError when it reverted or none did."""
    deadline = time.monotonic() + timeout_s
    while (receipt := receipt_of(ask, tx_hash)) is None:
        if time.monotonic() > deadline:
            raise VaultError(f"{tx_hash} was in no block after {timeout_s:.0f} s")
        time.sleep(POLL_S)  # bounded by timeout_s; the condition is its receipt
    if int(receipt["status"], 16) != 1:
        raise VaultError(f"{tx_hash} reverted in block {int(receipt['blockNumber'], 16)}")
    return int(receipt["blockNumber"], 16)


# --- within


def _logs(ask: Ask, vault: str, event: str, from_block: int, to_block: int) -> Iterator[dict[str, Any]]:
    for first in range(from_block, to_block + 1, BLOCKS_MAX):
        last = min(first + BLOCKS_MAX - 1, to_block)
        wanted = {"address": vault, "topics": [event], "fromBlock": hex(first), "toBlock": hex(last)}
        yield from ask("eth_getLogs", wanted)


def _deposit(log: dict[str, Any]) -> DepositLog:
    # As bytes: anybody can deposit for what is no text.
    user_id, amount_micro = _decoded(["bytes", "uint256"], log)
    return DepositLog(
        **_place(log), sender=_address(log["topics"][1]), user_id=_text(user_id), amount_micro=amount_micro
    )


def _payment(log: dict[str, Any]) -> PaymentLog:
    word = log["topics"][1].lower()
    (amount_micro,) = _decoded(["uint256"], log)
    return PaymentLog(
        **_place(log),
        word=word,
        withdrawal_id=uuid_of(word),
        receiver=_address(log["topics"][2]),
        amount_micro=amount_micro,
    )


def _place(log: dict[str, Any]) -> dict[str, Any]:
    return {
        "block_number": int(log["blockNumber"], 16),
        "block_hash": log["blockHash"].lower(),
        "tx_hash": log["transactionHash"].lower(),
        "log_index": int(log["logIndex"], 16),
    }


def _decoded(types: list[str], log: dict[str, Any]) -> tuple[Any, ...]:
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        return tuple(decode(types, bytes.fromhex(log["data"].removeprefix("0x"))))
    except DecodingError as error:
        raise VaultError(f"a log of {log['transactionHash']} is not the vault's: {error}") from None


def _address(indexed: str) -> str:
    return "0x" + indexed[-40:].lower()


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


@lru_cache
def _selector(signature: str) -> str:
    return topic(signature)[:10]


def _call(signature: str, *arguments: str | int | bytes) -> str:
    from eth_abi.abi import encode

    types = signature[signature.index("(") + 1 : -1].split(",")
    return _selector(signature) + encode(types, arguments).hex()
