"""The dollar and the vault through the server's client, on each chain that can be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from web3 import Web3

from reference_server.chain.client import Addresses, CustodyClient, connect
from reference_server.chain.connection import (
    ChainError,
    ChainRefused,
    ChainUnavailable,
    Fees,
    SignedTransaction,
    is_known,
    mined,
    send,
    succeed,
    suggested_fees,
)
from reference_server.chain.contracts import load_contract
from reference_server.chain.deploy import CALL_GAS, deploy, deposit, mint
from tests.integration.chain_desk import ChainDesk, desk, running_desk, until

__all__ = ["desk", "running_desk"]

ID = b"\x01" * 32
RECEIVER = "0x" + "ee" * 20
DOLLAR = 1_000_000


@dataclass
class Custody:
    """Deployed contracts, their owner, and a depositor with 1,000 dollars."""

    desk: ChainDesk
    addresses: Addresses
    client: CustodyClient
    owner: LocalAccount
    depositor: LocalAccount

    def deposit(self, user_id: str, amount_micro: int) -> None:
        deposit(
            self.desk.web3, self.addresses, key(self.depositor), user_id=user_id, amount_micro=amount_micro
        )

    def withdrawal(self, withdrawal_id: bytes = ID, amount_micro: int = 10 * DOLLAR) -> SignedTransaction:
        return self.client.sign_withdrawal(
            withdrawal_id,
            RECEIVER,
            amount_micro,
            nonce=self.client.next_nonce(),
            fees=suggested_fees(self.desk.web3),
        )

    def dollars_micro(self, address: str) -> int:
        usdc: Any = self.desk.web3.eth.contract(
            address=Web3.to_checksum_address(self.addresses.usdc), abi=load_contract("USDC").abi
        )
        return int(usdc.functions.balanceOf(Web3.to_checksum_address(address)).call())

    def call(self, sender: LocalAccount, contract: str, function: str, *arguments: Any) -> SignedTransaction:
        """A signed call of a contract's function."""
        address = self.addresses.usdc if contract == "USDC" else self.addresses.vault
        encoder = self.desk.web3.eth.contract(abi=load_contract(contract).abi)
        raw = self.desk.signed(
            sender,
            to=address,
            value=0,
            gas=CALL_GAS,
            data=encoder.encode_abi(function, list(arguments)),
        )
        return SignedTransaction(
            hash=Web3.keccak(raw).to_0x_hex(), raw=bytes(raw), nonce=self.desk.nonce(sender)
        )


@pytest.fixture
def custody(desk: ChainDesk) -> Custody:
    owner, depositor = desk.accounts[:2]
    addresses = deploy(desk.web3, key(owner))
    client = CustodyClient(desk.web3, addresses, operator_key=key(owner))
    mint(desk.web3, addresses, key(owner), to=depositor.address, amount_micro=1_000 * DOLLAR)
    return Custody(desk, addresses, client, owner, depositor)


def key(account: LocalAccount) -> str:
    return Web3.to_hex(account.key)


def test_a_deposit_is_an_event_that_names_its_user(custody: Custody) -> None:
    from_block = custody.desk.height() + 1
    custody.deposit("alice@example.com", 25 * DOLLAR)
    custody.deposit("x" * 64, 1)
    head = custody.client.block()
    assert head is not None
    first, second = custody.client.deposit_events(from_block, head.number)
    assert (first.user_id, first.amount_micro, first.sender) == (
        "alice@example.com",
        25 * DOLLAR,
        custody.depositor.address,
    )
    assert (second.user_id, second.amount_micro) == ("x" * 64, 1)
    assert second.place.block_hash == head.hash
    assert mined(custody.desk.web3, first.place.transaction_hash) is not None
    assert custody.client.deposit_events(head.number, head.number) == [second]
    assert custody.client.custody_balance() == 25 * DOLLAR + 1
    assert custody.client.custody_balance(first.place.block_number) == 25 * DOLLAR
    assert custody.dollars_micro(custody.depositor.address) == 975 * DOLLAR - 1


def test_a_deposit_for_what_is_no_text_is_an_event_without_a_user(custody: Custody) -> None:
    approve = custody.call(custody.depositor, "USDC", "approve", custody.addresses.vault, 5)
    succeed(custody.desk.web3, approve)
    named = custody.call(custody.depositor, "Vault", "deposit", "??", 5)
    data = bytes.fromhex(
        custody.desk.web3.eth.contract(abi=load_contract("Vault").abi).encode_abi("deposit", ["??", 5])[2:]
    ).replace(b"??", b"\xff\xfe")
    raw = custody.desk.signed(
        custody.depositor, to=custody.addresses.vault, value=0, gas=CALL_GAS, data=data, nonce=named.nonce
    )
    succeed(custody.desk.web3, SignedTransaction(Web3.keccak(raw).to_0x_hex(), bytes(raw), named.nonce))
    (event,) = custody.client.deposit_events(0, "latest")
    assert (event.user_id, event.amount_micro) == (None, 5)


def test_a_withdrawal_is_paid_once_whatever_is_sent_again(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    assert custody.client.find_withdrawal(ID) is None
    first = custody.withdrawal()
    succeed(custody.desk.web3, first)
    found = custody.client.find_withdrawal(ID)
    assert found is not None
    assert found.place.transaction_hash == first.hash
    assert (found.receiver.lower(), found.amount_micro) == (RECEIVER, 10 * DOLLAR)

    assert send(custody.desk.web3, first) == first.hash  # the node has it: no refusal, and no effect
    with pytest.raises(ChainRefused, match="reverted"):
        succeed(custody.desk.web3, custody.withdrawal(amount_micro=20 * DOLLAR))

    assert custody.client.custody_balance() == 90 * DOLLAR
    assert custody.dollars_micro(RECEIVER) == 10 * DOLLAR
    assert custody.client.withdrawal_events(0, "latest") == [found]


def test_only_the_operator_withdraws_and_only_the_owner_mints(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    thief = custody.depositor
    calls: list[tuple[str, str, list[Any]]] = [
        ("Vault", "withdraw", [ID, thief.address, 1]),
        ("USDC", "mint", [thief.address, 1]),
        ("USDC", "transferFrom", [custody.addresses.vault, thief.address, 1]),
    ]
    for contract, function, arguments in calls:
        with pytest.raises(ChainRefused, match="reverted"):
            succeed(custody.desk.web3, custody.call(thief, contract, function, *arguments))
    assert custody.client.custody_balance() == 100 * DOLLAR
    assert custody.client.find_withdrawal(ID) is None


def test_a_withdrawal_of_more_than_there_is_reverts_and_can_be_paid_later(custody: Custody) -> None:
    custody.deposit("alice", 5 * DOLLAR)
    with pytest.raises(ChainRefused, match="reverted"):
        succeed(custody.desk.web3, custody.withdrawal())
    assert custody.client.custody_balance() == 5 * DOLLAR
    custody.deposit("alice", 5 * DOLLAR)
    succeed(custody.desk.web3, custody.withdrawal())
    assert custody.client.custody_balance() == 0


def test_a_call_that_reverts_says_why(custody: Custody) -> None:
    vault: Any = custody.desk.web3.eth.contract(
        address=Web3.to_checksum_address(custody.addresses.vault), abi=load_contract("Vault").abi
    )
    receiver = Web3.to_checksum_address(RECEIVER)
    with pytest.raises(Exception, match="not the operator"):
        vault.functions.withdraw(ID, receiver, 1).call({"from": custody.depositor.address})
    with pytest.raises(Exception, match="balance too low"):
        vault.functions.withdraw(ID, receiver, 1).estimate_gas({"from": custody.owner.address})
    with pytest.raises(Exception, match="allowance too low"):
        vault.functions.deposit("alice", 1).call({"from": custody.depositor.address})


def test_an_estimate_is_enough_for_the_transaction(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    vault: Any = custody.desk.web3.eth.contract(
        address=Web3.to_checksum_address(custody.addresses.vault), abi=load_contract("Vault").abi
    )
    function = vault.functions.withdraw(ID, Web3.to_checksum_address(RECEIVER), DOLLAR)
    gas = function.estimate_gas({"from": custody.owner.address})
    raw = custody.desk.signed(
        custody.owner,
        to=custody.addresses.vault,
        value=0,
        gas=gas,
        data=custody.client._vault.encode_abi("withdraw", [ID, Web3.to_checksum_address(RECEIVER), DOLLAR]),
    )
    receipt = custody.desk.mined(custody.desk.web3.eth.send_raw_transaction(raw))
    assert receipt["status"] == 1
    assert receipt["gasUsed"] <= gas
    (log, transfer) = sorted(receipt["logs"], key=lambda log: log["address"] != custody.addresses.vault)
    assert {log["logIndex"], transfer["logIndex"]} == {0, 1}


def test_a_reorganised_withdrawal_is_not_found_and_its_bytes_pay_it_again(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    signed = custody.withdrawal()
    succeed(custody.desk.web3, signed)
    custody.desk.rpc("anvil_reorg", 1, [])
    assert custody.client.find_withdrawal(ID) is None
    assert not is_known(custody.desk.web3, signed.hash)
    assert custody.client.custody_balance() == 100 * DOLLAR
    succeed(custody.desk.web3, signed)
    found = custody.client.find_withdrawal(ID)
    assert found is not None
    assert found.place.transaction_hash == signed.hash
    assert custody.client.custody_balance() == 90 * DOLLAR


def test_a_reorganised_deposit_has_another_block_or_is_gone(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    (before,) = custody.client.deposit_events(0, "latest")
    raw = custody.desk.rpc("eth_getTransactionByHash", before.place.transaction_hash)
    assert raw["blockHash"] == before.place.block_hash
    custody.desk.rpc("anvil_reorg", 1, [])
    assert custody.client.deposit_events(0, "latest") == []
    assert custody.client.custody_balance() == 0
    block = custody.client.block(before.place.block_number)
    assert block is not None
    assert block.hash != before.place.block_hash


def test_what_is_put_into_other_blocks_keeps_its_hash_and_its_logs_follow(custody: Custody) -> None:
    desk = custody.desk
    custody.deposit("alice", 5 * DOLLAR)
    custody.deposit("bob", 7 * DOLLAR)
    before = custody.client.deposit_events(0, "latest")
    first, last = (one.place.block_number for one in before)

    def blocks() -> list[Any]:
        return [desk.rpc("eth_getBlockByNumber", hex(number), False) for number in range(first, last + 1)]

    old = blocks()
    hashes = [sent for block in old for sent in block["transactions"]]
    raws = [desk.rpc("eth_getRawTransactionByHash", sent) for sent in hashes]
    places = [1, 1, 2]

    desk.rpc("anvil_reorg", last - first + 1, list(zip(raws, places, strict=True)))

    new = blocks()
    assert {block["hash"] for block in old} & {block["hash"] for block in new} == set()
    assert [block["transactions"] for block in new] == [[], hashes[:2], hashes[2:]]
    for sent, place in zip(hashes, places, strict=True):
        receipt = desk.rpc("eth_getTransactionReceipt", sent)
        found = desk.rpc("eth_getTransactionByHash", sent)
        assert (receipt["status"], receipt["blockHash"]) == ("0x1", new[place]["hash"])
        assert (found["hash"], found["blockHash"]) == (sent, new[place]["hash"])
        assert {log["blockHash"] for log in receipt["logs"]} == {new[place]["hash"]}
    after = custody.client.deposit_events(0, "latest")
    assert [(one.place.transaction_hash, one.user_id, one.amount_micro) for one in after] == [
        (one.place.transaction_hash, one.user_id, one.amount_micro) for one in before
    ]
    assert [(one.place.block_number, one.place.block_hash) for one in after] == [
        (int(new[place]["number"], 16), new[place]["hash"]) for place in (1, 2)
    ]
    assert custody.client.custody_balance() == 12 * DOLLAR


def test_a_stuck_withdrawal_is_replaced_under_the_same_id(custody: Custody) -> None:
    custody.deposit("alice", 100 * DOLLAR)
    custody.desk.rpc("evm_setAutomine", False)
    nonce, fees = custody.client.next_nonce(), suggested_fees(custody.desk.web3)
    first = custody.client.send_withdrawal(ID, RECEIVER, DOLLAR, nonce=nonce, fees=fees)
    more = Fees(max_fee_wei=2 * fees.max_fee_wei, max_priority_fee_wei=2 * fees.max_priority_fee_wei)
    second = custody.client.send_withdrawal(ID, RECEIVER, DOLLAR, nonce=nonce, fees=more)
    assert (is_known(custody.desk.web3, first), is_known(custody.desk.web3, second)) == (False, True)
    custody.desk.rpc("evm_mine")
    until(lambda: mined(custody.desk.web3, second) is not None)
    found = custody.client.find_withdrawal(ID)
    assert found is not None
    assert found.place.transaction_hash == second
    assert custody.dollars_micro(RECEIVER) == DOLLAR


def test_a_node_that_does_not_answer_is_no_refusal(custody: Custody) -> None:
    unreachable = connect("http://127.0.0.1:1", timeout_s=2)
    with pytest.raises(ChainUnavailable):
        CustodyClient(unreachable, custody.addresses)
    with pytest.raises(ChainUnavailable):
        send(unreachable, custody.withdrawal())
    with pytest.raises(ChainError, match="operator's key"):
        _ = CustodyClient(custody.desk.web3, custody.addresses).operator


def test_log_filters_select_by_address_and_topic(custody: Custody) -> None:
    custody.deposit("alice", DOLLAR)
    custody.deposit("bob", DOLLAR)
    topic = Web3.keccak(text="Deposit(address,string,uint256)").to_0x_hex()
    sender = "0x" + custody.depositor.address[2:].lower().rjust(64, "0")
    desk, vault, usdc = custody.desk, custody.addresses.vault, custody.addresses.usdc

    def count(**wanted: Any) -> int:
        return len(desk.rpc("eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", **wanted}))

    assert count(address=vault) == 2
    assert count(address=[vault, usdc]) == count()
    assert count(address=vault, topics=[topic]) == 2
    assert count(topics=[[topic, "0x" + "22" * 32], sender]) == 2
    assert count(address=vault, topics=[None, sender]) == 2
    assert count(address=usdc, topics=[topic]) == 0
    assert count(address=vault, fromBlock="latest") == 1
    head = desk.rpc("eth_getBlockByNumber", "latest", False)
    assert len(desk.rpc("eth_getLogs", {"blockHash": head["hash"], "address": vault})) == 1


def test_a_log_filter_tells_of_what_came(custody: Custody) -> None:
    wanted = custody.desk.rpc("eth_newFilter", {"address": custody.addresses.vault})
    custody.deposit("alice", DOLLAR)
    (log,) = custody.desk.rpc("eth_getFilterChanges", wanted)
    assert log["removed"] is False
    assert custody.desk.rpc("eth_getFilterChanges", wanted) == []
