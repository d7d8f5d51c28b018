"""Deploying the contracts, and bringing money into them: for tests, trials and development chains."""

from __future__ import annotations

from typing import NamedTuple

from web3 import Web3
from web3.types import TxParams

from reference_server.chain.client import Addresses
from reference_server.chain.connection import (
    Mined,
    account_of,
    next_nonce,
    sign,
    succeed,
    suggested_fees,
    talking,
)
from reference_server.chain.contracts import load_contract

DEPLOY_GAS = 3_000_000
CALL_GAS = 200_000


class Deployment(NamedTuple):
    """Where the contracts are, and the block from which on the vault can have events."""

    addresses: Addresses
    block: int


def deploy(web3: Web3, owner_key: str) -> Addresses:
    """Deploy the dollar and the vault, owned and operated by this key's account; raises ChainError."""
    return deploy_contracts(web3, owner_key).addresses


def deploy_contracts(web3: Web3, owner_key: str) -> Deployment:
    """As `deploy`; says the vault's block too."""
    owner = account_of(owner_key).address
    usdc, _ = _create(web3, owner_key, "USDC", owner)
    vault, block = _create(web3, owner_key, "Vault", usdc, owner)
    return Deployment(Addresses(usdc=usdc, vault=vault), block)


def mint(web3: Web3, addresses: Addresses, owner_key: str, *, to: str, amount_micro: int) -> Mined:
    """Make dollars for this account and wait until they are there; raises ChainError."""
    return _call(web3, owner_key, "USDC", addresses.usdc, "mint", Web3.to_checksum_address(to), amount_micro)


def deposit(web3: Web3, addresses: Addresses, sender_key: str, *, user_id: str, amount_micro: int) -> Mined:
    """Approve, deposit on behalf of a user, wait until it is mined; raises ChainError."""
    _call(web3, sender_key, "USDC", addresses.usdc, "approve", addresses.vault, amount_micro)
    return _call(web3, sender_key, "Vault", addresses.vault, "deposit", user_id, amount_micro)


def _create(web3: Web3, owner_key: str, name: str, *arguments: str) -> tuple[str, int]:
    """A contract's address and block."""
    compiled = load_contract(name)
    factory = web3.eth.contract(abi=compiled.abi, bytecode=compiled.bytecode)
    data = factory.constructor(*arguments).data_in_transaction
    created = _succeed(web3, owner_key, {"data": data, "gas": DEPLOY_GAS})
    assert created.contract is not None
    return created.contract, created.block_number


def _call(web3: Web3, key: str, name: str, address: str, function: str, *arguments: str | int) -> Mined:
    to = Web3.to_checksum_address(address)
    data = web3.eth.contract(address=to, abi=load_contract(name).abi).encode_abi(function, list(arguments))
    return _succeed(web3, key, {"to": to, "data": data, "gas": CALL_GAS})


def _succeed(web3: Web3, key: str, transaction: TxParams) -> Mined:
    account = account_of(key)
    with talking():
        chain_id = web3.eth.chain_id
    nonce, fees = next_nonce(web3, account.address), suggested_fees(web3)
    return succeed(web3, sign(account, transaction, chain_id=chain_id, nonce=nonce, fees=fees))
