"""A user's wallet: the same for a seed, understood by who reads its messages and its transactions."""

from __future__ import annotations

import msgspec
import pytest
from eth_abi.abi import decode
from eth_utils.crypto import keccak

from reference_server.chain.transactions import Transaction, decode_transaction
from reference_server.siwe import Audience, parse_message, prove_wallet
from scenarios.history import Request
from scenarios.node import ChainAccess
from scenarios.wallet import DEPOSIT_GAS, Signer, Wallet, call_data, mint

VAULT = "0x" + "ab" * 20
USDC = "0x" + "cd" * 20
ACCESS = ChainAccess(
    rpc="http://127.0.0.1:8545",
    chain_id=31_337,
    usdc=USDC,
    vault=VAULT,
    minter_key="0x" + "11" * 32,
    confirmations=3,
    wallet_domain="market.example:8443",
)


def wallet(seed: int = 7, number: int = 0) -> Wallet:
    return Wallet(ACCESS, seed=seed, number=number)


def sent_in(body: bytes) -> Transaction:
    """The transaction in the body of a request to the node, as a node reads it."""
    sent = msgspec.json.decode(body)
    assert (sent["jsonrpc"], sent["method"]) == ("2.0", "eth_sendRawTransaction")
    (raw,) = sent["params"]
    return decode_transaction(bytes.fromhex(raw.removeprefix("0x")))


def test_a_seed_gives_the_same_wallets_again() -> None:
    addresses = [wallet(7, number).address for number in range(20)]
    assert addresses == [wallet(7, number).address for number in range(20)]
    others = [wallet(8, number).address for number in range(20)]
    assert len({*addresses, *others}) == 40


def test_a_signed_message_proves_the_wallet() -> None:
    mine = wallet()
    message = mine.message("n" * 32)
    proven = prove_wallet(message, mine.sign_text(message), Audience("market.example:8443", 31_337))
    assert (proven.address, proven.nonce) == (mine.address.lower(), "n" * 32)
    assert parse_message(message).chain_id == 31_337


def test_a_deposit_is_a_call_of_the_vault_by_the_wallet() -> None:
    mine = wallet()
    sent = sent_in(mine.deposit("run-u007", 12_345_678, nonce=4).body)
    assert sent.sender.lower() == mine.address.lower()
    assert (sent.type, sent.chain_id, sent.nonce, sent.gas) == (2, 31_337, 4, DEPOSIT_GAS)
    assert (str(sent.to).lower(), sent.value_wei) == (VAULT, 0)
    assert sent.data[:4] == keccak(text="deposit(string,uint256)")[:4]
    assert decode(["string", "uint256"], sent.data[4:]) == ("run-u007", 12_345_678)


def test_a_deposit_is_named_by_the_hash_of_its_bytes() -> None:
    intent = wallet().deposit("u", 5_000_000, nonce=0)
    assert intent.tx_hash == "0x" + sent_in(intent.body).hash.hex()
    assert (intent.action, intent.keyed, intent.request) == (
        "deposit",
        False,
        Request(amount_micro=5_000_000),
    )


def test_a_wallet_that_hears_no_nonce_goes_on_from_its_last() -> None:
    mine = wallet()
    intents = [mine.deposit("u", 1_000_000, nonce=asked) for asked in (None, None, 9, None)]
    assert [sent_in(intent.body).nonce for intent in intents] == [0, 1, 9, 10]


def test_the_vault_may_take_what_it_is_told_to() -> None:
    allowed = decode_transaction(wallet().allow(0).raw)
    assert str(allowed.to).lower() == USDC
    assert allowed.data == call_data("approve(address,uint256)", VAULT, 2**256 - 1)


def test_dollars_are_made_by_the_minter() -> None:
    minter = Signer(ACCESS.minter_key, ACCESS.chain_id)
    made = mint(minter, USDC, VAULT, 10**17, nonce=2)
    sent = decode_transaction(made.raw)
    assert (sent.sender.lower(), sent.nonce) == (minter.address.lower(), 2)
    assert made.hash == "0x" + sent.hash.hex()
    assert decode(["address", "uint256"], sent.data[4:]) == (VAULT, 10**17)


@pytest.mark.parametrize(
    ("signature", "selector"),
    [
        # The selectors that every ERC-20 has.
        ("approve(address,uint256)", "095ea7b3"),
        ("transfer(address,uint256)", "a9059cbb"),
    ],
)
def test_a_call_names_its_function(signature: str, selector: str) -> None:
    assert call_data(signature, VAULT, 1)[:4].hex() == selector
