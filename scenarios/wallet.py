"""A user's wallet: its key, the message that links it, and the transactions that it signs.

The key follows from the run's seed and the user's number, so a seed gives the same wallets again.

Imported only where a plan has a chain: eth_account costs half a second and 30 MB in every load process.
"""

from __future__ import annotations

import functools
import hashlib
from datetime import UTC, datetime
from typing import NamedTuple, cast

from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from scenarios.history import Request
from scenarios.intents import Intent
from scenarios.node import ChainAccess, send_body

GWEI = 10**9
# Far above a development chain's base fee of 1 gwei, so that no deposit waits for a cheaper block.
MAX_FEE_WEI = 100 * GWEI
TIP_WEI = GWEI
TOKEN_GAS = 100_000
DEPOSIT_GAS = 200_000
ALLOWANCE_WITHOUT_END = 2**256 - 1


class Transaction(NamedTuple):
    """A signed transaction, to be sent as often as it takes: it can be executed once."""

    raw: bytes
    hash: str


class Signer:
    """An account that signs for one chain; used by wallets, and by whoever makes the dollars."""

    def __init__(self, key: str | bytes, chain_id: int) -> None:
        self._account = cast(LocalAccount, Account.from_key(key))
        self._chain_id = chain_id
        self.address = self._account.address

    def sign(self, to: str, data: bytes, *, gas: int, nonce: int) -> Transaction:
        """A call of a contract, as EIP-1559 has it."""
        signed = self._account.sign_transaction(
            {
                "type": 2,
                "chainId": self._chain_id,
                "nonce": nonce,
                "to": to_checksum_address(to),
                "value": 0,
                "data": data,
                "gas": gas,
                "maxFeePerGas": MAX_FEE_WEI,
                "maxPriorityFeePerGas": TIP_WEI,
            }
        )
        return Transaction(bytes(signed.raw_transaction), signed.hash.to_0x_hex())

    def sign_text(self, text: str) -> str:
        """The signature of a text, as EIP-191 has it."""
        return "0x" + bytes(self._account.sign_message(encode_defunct(text=text)).signature).hex()


class Wallet:
    """One user's wallet on the chain of a run; amounts in micro-USDC."""

    def __init__(self, access: ChainAccess, *, seed: int, number: int) -> None:
        key = hashlib.sha256(f"{seed}/{number}/wallet".encode()).digest()
        self._signer = Signer(key, access.chain_id)
        self._access = access
        self._next_nonce = 0
        self.address = self._signer.address

    def message(self, nonce: str) -> str:
        """What is signed to link this wallet, as EIP-4361 has it."""
        domain = self._access.wallet_domain
        return (
            f"{domain} wants you to sign in with your Ethereum account:\n{self.address}\n\n"
            f"Link this wallet; no money moves.\n\nURI: https://{domain}/wallets\nVersion: 1\n"
            f"Chain ID: {self._access.chain_id}\nNonce: {nonce}\n"
            f"Issued At: {datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}"
        )

    def sign_text(self, text: str) -> str:
        """The signature of a text, as EIP-191 has it."""
        return self._signer.sign_text(text)

    def allow(self, nonce: int) -> Transaction:
        """Let the vault take this wallet's dollars, as many as it is told to."""
        data = call_data("approve(address,uint256)", self._access.vault, ALLOWANCE_WITHOUT_END)
        return self._sign(self._access.usdc, data, gas=TOKEN_GAS, nonce=nonce)

    def deposit(self, user: str, amount_micro: int, *, nonce: int | None) -> Intent:
        """The intent to deposit; `nonce` as the node says, None when it did not say.

        Then the wallet goes by what it signed last. If the chain has lost that meanwhile there is a gap: the
        deposit waits until the next one, whose nonce the node says again, has filled it.
        """
        data = call_data("deposit(string,uint256)", user, amount_micro)
        nonce = self._next_nonce if nonce is None else nonce
        signed = self._sign(self._access.vault, data, gas=DEPOSIT_GAS, nonce=nonce)
        return Intent(
            "deposit",
            "POST",
            "/",
            send_body(signed.raw),
            request=Request(amount_micro=amount_micro),
            keyed=False,
            tx_hash=signed.hash,
        )

    def _sign(self, to: str, data: bytes, *, gas: int, nonce: int) -> Transaction:
        self._next_nonce = nonce + 1
        return self._signer.sign(to, data, gas=gas, nonce=nonce)


def mint(minter: Signer, usdc: str, to: str, amount_micro: int, *, nonce: int) -> Transaction:
    """Make dollars for an account, with the key that owns them."""
    return minter.sign(usdc, call_data("mint(address,uint256)", to, amount_micro), gas=TOKEN_GAS, nonce=nonce)


def call_data(signature: str, *arguments: str | int) -> bytes:
    """The data of a contract call: which function, and its arguments."""
    types = signature[signature.index("(") + 1 : -1].split(",")
    return _selector(signature) + encode(types, arguments)


@functools.cache
def _selector(signature: str) -> bytes:
    return keccak(text=signature)[:4]
