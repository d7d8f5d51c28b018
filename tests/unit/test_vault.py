"""The harness's own words of the vault agree with the libraries of the chain, and with the contracts' ABI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from eth_abi.abi import encode
from eth_account import Account
from hexbytes import HexBytes
from web3 import Web3

from chaos.vault import (
    DEPOSIT_EVENT,
    WITHDRAWAL_EVENT,
    Fees,
    VaultError,
    address_of,
    await_mined,
    deposit_data,
    deposit_logs,
    is_deposit,
    is_withdrawal,
    mint_data,
    payment_logs,
    sign_call,
    topic,
    transfer_data,
    uuid_of,
    withdraw_data,
    word_in,
    word_of,
)
from reference_server.chain.contracts import load_contract
from reference_server.withdrawal_ids import id_of
from reference_server.withdrawal_ids import word_of as word_of_the_server

KEY = "0x" + "11" * 32
ACCOUNT = "0x" + "ab" * 20
VAULT = "0x" + "cd" * 20
WITHDRAWAL = "1f0c3c62-6f6e-4c7e-9f0a-1a2b3c4d5e6f"


def a_log(topics: list[str], data: bytes, **place: Any) -> dict[str, Any]:
    """A log as a node shows it, mixed case and all."""
    return {
        "address": VAULT,
        "topics": topics,
        "data": "0x" + data.hex(),
        "blockNumber": "0x10",
        "blockHash": "0x" + "AA" * 32,
        "transactionHash": "0x" + "BB" * 32,
        "logIndex": "0x2",
        **place,
    }


def node(answers: dict[str, Callable[..., Any]]) -> tuple[Callable[..., Any], list[tuple[Any, ...]]]:
    """What answers these methods, and the list of what it was asked."""
    asked: list[tuple[Any, ...]] = []

    def ask(method: str, *params: Any) -> Any:
        asked.append((method, *params))
        return answers[method](*params)

    return ask, asked


@pytest.mark.parametrize(("name", "event"), [("Deposit", DEPOSIT_EVENT), ("Withdrawal", WITHDRAWAL_EVENT)])
def test_the_events_are_those_of_the_contract(name: str, event: str) -> None:
    abi = load_contract("Vault").abi
    (found,) = [one for one in abi if one["type"] == "event" and one["name"] == name]
    assert event == f"{name}({','.join(one['type'] for one in found['inputs'])})"
    assert topic(event) == Web3.keccak(text=event).to_0x_hex()


def test_calls_are_encoded_as_the_abi_says() -> None:
    web3 = Web3()
    usdc = web3.eth.contract(abi=load_contract("USDC").abi)
    vault = web3.eth.contract(abi=load_contract("Vault").abi)
    to = Web3.to_checksum_address(ACCOUNT)
    word = word_of(WITHDRAWAL)
    assert mint_data(ACCOUNT, 5) == usdc.encode_abi("mint", [to, 5])
    assert transfer_data(ACCOUNT, 6) == usdc.encode_abi("transfer", [to, 6])
    assert deposit_data("ann", 7) == vault.encode_abi("deposit", ["ann", 7])
    assert withdraw_data(word, ACCOUNT, 8) == vault.encode_abi("withdraw", [HexBytes(word), to, 8])


def test_a_withdrawal_is_told_from_other_calls_and_shows_its_word() -> None:
    data = withdraw_data(word_of(WITHDRAWAL), ACCOUNT, 8)
    assert is_withdrawal(data)
    assert uuid_of(word_in(data)) == WITHDRAWAL
    assert not is_withdrawal(deposit_data("ann", 7))
    assert not is_withdrawal(data[:-2])
    assert not is_withdrawal("0x")
    assert is_deposit(deposit_data("ann", 7))
    assert not is_deposit(data)


def test_words_are_those_of_the_server() -> None:
    assert word_of(WITHDRAWAL) == "0x" + word_of_the_server(UUID(WITHDRAWAL)).hex()
    assert uuid_of(word_of(WITHDRAWAL)) == WITHDRAWAL
    foreign = "0x" + "00" * 31 + "01"
    assert uuid_of(foreign) is None
    assert id_of(HexBytes(foreign)) is None


def test_a_signed_call_has_the_hash_and_the_sender_that_the_chain_will_see() -> None:
    call = sign_call(KEY, to=VAULT, data=deposit_data("ann", 7), nonce=3, fees=Fees(50, 2), chain_id=31_337)
    assert call.hash == Web3.keccak(HexBytes(call.raw)).to_0x_hex()
    assert call.nonce == 3
    assert Account.recover_transaction(call.raw).lower() == address_of(KEY)


def test_fees_that_take_a_place_are_at_least_double() -> None:
    assert Fees(10, 3).over(Fees(20, 1)) == Fees(40, 3)


def test_a_deposit_is_read_from_its_log() -> None:
    sender = "0x" + "00" * 12 + "Ab" * 20
    data = encode(["string", "uint256"], ["ann", 7_000_000])
    ask, asked = node({"eth_getLogs": lambda _: [a_log([topic(DEPOSIT_EVENT), sender], data)]})
    (deposit,) = deposit_logs(ask, VAULT, 3, 16)
    assert (deposit.block_number, deposit.log_index) == (16, 2)
    assert (deposit.block_hash, deposit.tx_hash) == ("0x" + "aa" * 32, "0x" + "bb" * 32)
    assert (deposit.sender, deposit.user_id, deposit.amount_micro) == (ACCOUNT, "ann", 7_000_000)
    (wanted,) = [params for _, params in asked]
    assert (wanted["fromBlock"], wanted["toBlock"]) == ("0x3", "0x10")
    assert (wanted["address"], wanted["topics"]) == (VAULT, [topic(DEPOSIT_EVENT)])


def test_a_deposit_for_what_is_no_text_names_nobody() -> None:
    data = encode(["bytes", "uint256"], [b"\xff\xfe", 1])
    ask, _ = node({"eth_getLogs": lambda _: [a_log([topic(DEPOSIT_EVENT), "0x" + "00" * 32], data)]})
    (deposit,) = deposit_logs(ask, VAULT, 1, 1)
    assert deposit.user_id is None


@pytest.mark.parametrize(
    ("word", "withdrawal_id"), [(word_of(WITHDRAWAL), WITHDRAWAL), ("0x" + "ee" * 32, None)]
)
def test_a_payment_is_read_from_its_log(word: str, withdrawal_id: str | None) -> None:
    topics = [topic(WITHDRAWAL_EVENT), word, "0x" + "00" * 12 + "AB" * 20]
    ask, _ = node({"eth_getLogs": lambda _: [a_log(topics, encode(["uint256"], [9]))]})
    (payment,) = payment_logs(ask, VAULT, 1, 20)
    assert (payment.word, payment.withdrawal_id) == (word, withdrawal_id)
    assert (payment.receiver, payment.amount_micro) == (ACCOUNT, 9)


def test_a_log_that_is_not_the_vaults_is_named() -> None:
    ask, _ = node({"eth_getLogs": lambda _: [a_log([topic(DEPOSIT_EVENT), "0x" + "00" * 32], b"\x01")]})
    with pytest.raises(VaultError, match=r"0xBB.* is not the vault's"):
        deposit_logs(ask, VAULT, 1, 1)


def test_a_long_range_is_asked_for_in_pieces_that_meet() -> None:
    ask, asked = node({"eth_getLogs": lambda _: []})
    assert deposit_logs(ask, VAULT, 5, 2_004) == []
    ranges = [(int(wanted["fromBlock"], 16), int(wanted["toBlock"], 16)) for _, wanted in asked]
    assert ranges == [(5, 1_004), (1_005, 2_004)]


@pytest.mark.parametrize(
    ("receipt", "message"),
    [(None, "in no block after"), ({"status": "0x0", "blockNumber": "0x7"}, "reverted in block 7")],
)
def test_what_is_not_executed_is_no_success(receipt: dict[str, str] | None, message: str) -> None:
    ask, _ = node({"eth_getTransactionReceipt": lambda _: receipt})
    with pytest.raises(VaultError, match=message):
        await_mined(ask, "0x01", timeout_s=0)


def test_what_is_executed_names_its_block() -> None:
    ask, _ = node({"eth_getTransactionReceipt": lambda _: {"status": "0x1", "blockNumber": "0x7"}})
    assert await_mined(ask, "0x01", timeout_s=0) == 7
