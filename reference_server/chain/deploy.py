"""Deploying the contracts, and bringing money into them: for tests, trials and development chains."""

from __future__ import annotations

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


def deploy(web3: Web3, owner_key: str) -> Addresses:
    """Deploy the dollar and the vault, owned and operated by this key's account; raises ChainError."""
    owner = account_of(owner_key).address
    usdc = _create(web3, owner_key, "USDC", owner)
    return Addresses(usdc=usdc, vault=_create(web3, owner_key, "Vault", usdc, owner))


def mint(web3: Web3, addresses: Addresses, owner_key: str, *, to: str, amount_micro: int) -> Mined:
    """Make dollars for this account and wait until they are there; raises ChainError."""
    return _call(web3, owner_key, "USDC", addresses.usdc, "mint", Web3.to_checksum_address(to), amount_micro)


def deposit(web3: Web3, addresses: Addresses, sender_key: str, *, user_id: str, amount_micro: int) -> Mined:
    """Approve, deposit on behalf of a user, wait until it is mined; raises ChainError."""
    _call(web3, sender_key, "USDC", addresses.usdc, "approve", addresses.vault, amount_micro)
    return _call(web3, sender_key, "Vault", addresses.vault, "deposit", user_id, amount_micro)


def _create(web3: Web3, owner_key: str, name: str, *arguments: str) -> str:
    compiled = load_contract(name)
    factory = web3.eth.contract(abi=compiled.abi, bytecode=compiled.bytecode)
    data = factory.constructor(*arguments).data_in_transaction
    created = _succeed(web3, owner_key, {"data": data, "gas": DEPLOY_GAS}).contract
    assert created is not None
    return created


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
