"""The client of custody: what the server asks the chain about the vault, and the withdrawals it sends to it.

A withdrawal whose reply was lost is resolved by looking: `find_withdrawal` by its id, or `is_known` and
`mined` (connection.py) by the hash that `sign_withdrawal` gave before it was sent. The vault pays an id
once, so the same bytes may be sent again; nothing is ever sent under a new id. Amounts are micro-dollars,
as in the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eth_abi.abi import decode
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound
from web3.types import LogReceipt

from reference_server.chain.connection import (
    ChainError,
    Fees,
    SignedTransaction,
    account_of,
    connect,
    next_nonce,
    send,
    sign,
    talking,
)
from reference_server.chain.contracts import load_contract

__all__ = [
    "Addresses",
    "BlockReference",
    "CustodyClient",
    "Deposit",
    "Place",
    "Withdrawal",
    "connect",
]

# More than a withdrawal uses on any chain, so that sending one needs no estimate.
WITHDRAWAL_GAS = 200_000
DEPOSIT_EVENT = "Deposit(address,string,uint256)"
WITHDRAWAL_EVENT = "Withdrawal(bytes32,address,uint256)"

Block = int | Literal["latest", "safe", "finalized"]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the contracts are, with their checksums."""

    usdc: str
    vault: str


@dataclass(frozen=True, slots=True)
class BlockReference:
    """A block, and the one before it, by which a reorganisation shows."""

    number: int
    hash: str
    parent_hash: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event is on the chain; the transaction's hash and the log's index are its identity."""

    transaction_hash: str
    log_index: int
    block_number: int
    block_hash: str


@dataclass(frozen=True, slots=True)
class Deposit:
    """Money that came into custody; no user where the id that was given is not even text."""

    place: Place
    sender: str
    user_id: str | None
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Money that left custody under its withdrawal id."""

    place: Place
    withdrawal_id: bytes
    receiver: str
    amount_micro: int


class CustodyClient:
    """One vault and its dollar; every method raises ChainUnavailable and ChainRefused."""

    def __init__(self, web3: Web3, addresses: Addresses, *, operator_key: str | None = None) -> None:
        """The operator's key is needed for withdrawals only."""
        self.web3 = web3
        self.addresses = addresses
        self._operator = account_of(operator_key) if operator_key else None
        self._vault_address = Web3.to_checksum_address(addresses.vault)
        self._usdc = web3.eth.contract(
            address=Web3.to_checksum_address(addresses.usdc), abi=load_contract("USDC").abi
        )
        self._vault = web3.eth.contract(address=self._vault_address, abi=load_contract("Vault").abi)
        with talking():
            self.chain_id = web3.eth.chain_id

    def block(self, block: Block = "latest") -> BlockReference | None:
        """A block by its number or tag; None when the chain does not have it."""
        try:
            with talking():
                found = self.web3.eth.get_block(block)
        except BlockNotFound:
            return None
        return BlockReference(
            number=found["number"],
            hash=found["hash"].to_0x_hex(),
            parent_hash=found["parentHash"].to_0x_hex(),
            timestamp=found["timestamp"],
        )

    def custody_balance(self, block: Block = "latest") -> int:
        """The micro-dollars in the vault after this block."""
        with talking():
            return int(self._usdc.functions.balanceOf(self._vault_address).call(block_identifier=block))

    def deposit_events(self, from_block: int, to_block: Block) -> list[Deposit]:
        """The deposits in these blocks, both included, in the chain's order."""
        return [_deposit(log) for log in self._logs(DEPOSIT_EVENT, from_block, to_block)]

    def withdrawal_events(self, from_block: int, to_block: Block) -> list[Withdrawal]:
        """The withdrawals in these blocks, both included, in the chain's order."""
        return [_withdrawal(log) for log in self._logs(WITHDRAWAL_EVENT, from_block, to_block)]

    def find_withdrawal(self, withdrawal_id: bytes, *, from_block: int = 0) -> Withdrawal | None:
        """The withdrawal that was paid under this id, by the head; there is at most one."""
        logs = self._logs(WITHDRAWAL_EVENT, from_block, "latest", withdrawal_id)
        return _withdrawal(logs[0]) if logs else None

    @property
    def operator(self) -> str:
        """The address that withdrawals are sent from; raises ChainError without its key."""
        if self._operator is None:
            raise ChainError("withdrawals need the operator's key")
        return self._operator.address

    def next_nonce(self, *, waiting: bool = True) -> int:
        """The nonce of the operator's next transaction: behind all that wait, or else behind the mined."""
        return next_nonce(self.web3, self.operator, waiting=waiting)

    def sign_withdrawal(
        self, withdrawal_id: bytes, to: str, amount_micro: int, *, nonce: int, fees: Fees
    ) -> SignedTransaction:
        """The transaction that pays this withdrawal; store its hash before it is sent."""
        if self._operator is None:
            raise ChainError("withdrawals need the operator's key")
        data = self._vault.encode_abi("withdraw", [withdrawal_id, Web3.to_checksum_address(to), amount_micro])
        return sign(
            self._operator,
            {"to": self._vault_address, "data": data, "gas": WITHDRAWAL_GAS},
            chain_id=self.chain_id,
            nonce=nonce,
            fees=fees,
        )

    def send_withdrawal(
        self, withdrawal_id: bytes, to: str, amount_micro: int, *, nonce: int, fees: Fees
    ) -> str:
        """Sign a withdrawal and send it; the transaction's hash."""
        signed = self.sign_withdrawal(withdrawal_id, to, amount_micro, nonce=nonce, fees=fees)
        return send(self.web3, signed)

    def _logs(self, event: str, from_block: int, to_block: Block, *topics: bytes) -> list[LogReceipt]:
        with talking():
            return self.web3.eth.get_logs(
                {
                    "address": self._vault_address,
                    "topics": [Web3.keccak(text=event), *map(HexBytes, topics)],
                    "fromBlock": from_block,
                    "toBlock": to_block,
                }
            )


def _place(log: LogReceipt) -> Place:
    return Place(
        transaction_hash=log["transactionHash"].to_0x_hex(),
        log_index=log["logIndex"],
        block_number=log["blockNumber"],
        block_hash=log["blockHash"].to_0x_hex(),
    )


def _deposit(log: LogReceipt) -> Deposit:
    # As bytes: anybody can deposit for what is no text, and that must not stop the watcher.
    user_id, amount_micro = decode(["bytes", "uint256"], log["data"])
    return Deposit(
        place=_place(log),
        sender=_address(log["topics"][1]),
        user_id=_text(user_id),
        amount_micro=amount_micro,
    )


def _withdrawal(log: LogReceipt) -> Withdrawal:
    return Withdrawal(
        place=_place(log),
        withdrawal_id=bytes(log["topics"][1]),
        receiver=_address(log["topics"][2]),
        amount_micro=decode(["uint256"], log["data"])[0],
    )


def _address(topic: HexBytes) -> str:
    return Web3.to_checksum_address(topic[-20:])


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
