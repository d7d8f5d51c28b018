"""One chain behaves like another: this passes on the embedded chain and, where it is found, on anvil."""

from __future__ import annotations

import pytest
from web3.exceptions import BlockNotFound

from chaos.processes import wait_until
from tests.integration.chain_desk import GWEI, ChainDesk, RpcRefusal, desk, running_desk, until

__all__ = ["desk", "running_desk"]


@pytest.fixture
def manual(desk: ChainDesk) -> ChainDesk:
    """The chain as it was at its beginning, with blocks on demand only."""
    desk.rpc("evm_setAutomine", False)
    return desk


def test_a_transfer_moves_its_value_and_charges_its_gas(desk: ChainDesk) -> None:
    sender, receiver = desk.accounts[0], desk.stranger()
    before = desk.balance_wei(sender.address)
    receipt = desk.mined(desk.send(sender, to=receiver.address, value=5))
    assert receipt["status"] == 1
    assert receipt["gasUsed"] == receipt["cumulativeGasUsed"] == 21_000
    assert desk.balance_wei(receiver.address) == 5
    assert desk.balance_wei(sender.address) == before - 5 - 21_000 * receipt["effectiveGasPrice"]
    assert desk.nonce(sender) == 1


def test_the_price_of_gas_is_the_base_fee_and_the_tip(desk: ChainDesk) -> None:
    receipt = desk.mined(desk.send(desk.accounts[0], fee_gwei=20, tip_gwei=2))
    block = desk.web3.eth.get_block(receipt["blockNumber"])
    assert receipt["effectiveGasPrice"] == block["baseFeePerGas"] + 2 * GWEI


def test_the_base_fee_falls_after_an_empty_block(desk: ChainDesk) -> None:
    desk.rpc("anvil_mine", "0x2")
    first, second = (desk.web3.eth.get_block(desk.height() - back) for back in (1, 0))
    assert second["baseFeePerGas"] == first["baseFeePerGas"] - first["baseFeePerGas"] // 8


def test_a_block_names_its_parent_and_its_transactions(desk: ChainDesk) -> None:
    receipt = desk.mined(desk.send(desk.accounts[0]))
    block = desk.web3.eth.get_block(receipt["blockHash"], full_transactions=True)
    parent = desk.web3.eth.get_block(receipt["blockNumber"] - 1)
    assert block["parentHash"] == parent["hash"]
    (transaction,) = block["transactions"]
    assert not isinstance(transaction, bytes)
    assert transaction["hash"] == receipt["transactionHash"]
    assert transaction["from"] == desk.accounts[0].address
    assert desk.web3.eth.get_block(receipt["blockNumber"])["hash"] == block["hash"]
    assert desk.web3.eth.get_block_receipts(receipt["blockNumber"]) == [receipt]


def test_a_sender_without_money_is_refused(desk: ChainDesk) -> None:
    with pytest.raises(Exception, match=r"(?i)insufficient funds"):
        desk.send(desk.stranger(), nonce=0)
    poor = desk.accounts[1]
    with pytest.raises(Exception, match=r"(?i)insufficient funds"):
        desk.send(poor, value=desk.balance_wei(poor.address))
    assert desk.nonce(poor) == 0


def test_a_used_nonce_is_refused(desk: ChainDesk) -> None:
    raw = desk.signed(desk.accounts[0])
    sent = desk.web3.eth.send_raw_transaction(raw)
    desk.mined(sent)
    assert desk.web3.eth.get_raw_transaction(sent) == raw
    with pytest.raises(Exception, match="nonce too low"):
        desk.web3.eth.send_raw_transaction(raw)
    with pytest.raises(Exception, match="nonce too low"):
        desk.send(desk.accounts[0], nonce=0, value=2)


def test_what_cannot_be_executed_is_refused(desk: ChainDesk) -> None:
    sender = desk.accounts[0]
    with pytest.raises(Exception, match="intrinsic gas too low"):
        desk.send(sender, gas=20_999)
    with pytest.raises(Exception, match="higher than max fee"):
        desk.send(sender, fee_gwei=2, tip_gwei=3)
    with pytest.raises(Exception, match=r"(?i)chain"):
        desk.send(sender, chainId=desk.chain.chain_id + 1)
    with pytest.raises(Exception, match=r"(?i)gas limit|gas too high"):
        desk.send(sender, gas=30_000_001)
    with pytest.raises(RpcRefusal, match=r"(?i)decode"):
        desk.rpc("eth_sendRawTransaction", "0x02c0")
    assert desk.nonce(sender, "pending") == 0


def test_a_transaction_waits_behind_a_gap_in_its_nonces(desk: ChainDesk) -> None:
    sender = desk.accounts[0]
    second = desk.send(sender, nonce=1)
    assert desk.receipt(second) is None
    assert desk.is_known(second)
    assert desk.nonce(sender, "pending") == 0
    desk.send(sender, nonce=0)
    desk.mined(second)
    assert desk.nonce(sender) == 2


def test_nothing_is_mined_until_asked_when_automine_is_off(manual: ChainDesk) -> None:
    sender = manual.accounts[0]
    hashes = [manual.send(sender, nonce=nonce) for nonce in range(3)]
    assert manual.receipt(hashes[0]) is None
    assert manual.nonce(sender) == 0
    assert manual.nonce(sender, "pending") == 3
    assert all(manual.web3.eth.get_raw_transaction(each)[0] == 2 for each in hashes)
    manual.rpc("evm_mine")
    assert [manual.mined(each)["transactionIndex"] for each in hashes] == [0, 1, 2]


def test_better_tips_are_mined_first(manual: ChainDesk) -> None:
    slow = manual.send(manual.accounts[0], fee_gwei=20, tip_gwei=1)
    fast = manual.send(manual.accounts[1], fee_gwei=40, tip_gwei=5)
    manual.rpc("evm_mine")
    assert manual.mined(fast)["transactionIndex"] == 0
    assert manual.mined(slow)["transactionIndex"] == 1


def test_a_transaction_is_replaced_by_one_that_pays_more(manual: ChainDesk) -> None:
    sender, receiver = manual.accounts[0], manual.stranger()
    first = manual.send(sender, to=receiver.address, value=1, fee_gwei=20, tip_gwei=1)
    with pytest.raises(Exception, match="replacement transaction underpriced"):
        manual.send(sender, to=receiver.address, value=2, nonce=0, fee_gwei=20, tip_gwei=1)
    second = manual.send(sender, to=receiver.address, value=2, nonce=0, fee_gwei=40, tip_gwei=2)
    assert not manual.is_known(first)
    manual.rpc("evm_mine")
    assert manual.mined(second)["status"] == 1
    assert manual.receipt(first) is None
    assert manual.balance_wei(receiver.address) == 2


def test_a_dropped_transaction_is_gone_until_it_is_sent_again(manual: ChainDesk) -> None:
    raw = manual.signed(manual.accounts[0])
    sent = manual.web3.eth.send_raw_transaction(raw)
    assert manual.rpc("anvil_dropTransaction", sent.to_0x_hex()) == sent.to_0x_hex()
    assert manual.rpc("anvil_dropTransaction", sent.to_0x_hex()) is None
    assert not manual.is_known(sent)
    manual.rpc("evm_mine")
    assert manual.nonce(manual.accounts[0]) == 0
    assert manual.web3.eth.send_raw_transaction(raw) == sent
    manual.rpc("evm_mine")
    assert manual.mined(sent)["status"] == 1


def test_blocks_come_at_an_interval(desk: ChainDesk) -> None:
    desk.rpc("evm_setIntervalMining", 1)
    sent = desk.send(desk.accounts[0])
    height = desk.height()
    until(lambda: desk.height() >= height + 2)
    assert desk.mined(sent)["status"] == 1
    desk.rpc("evm_setIntervalMining", 0)


def test_mining_goes_from_transactions_to_an_interval_to_nothing_and_back(desk: ChainDesk) -> None:
    sender = desk.accounts[0]
    interval_s = 1 if desk.chain.kind == "anvil" else 0.1  # anvil takes whole seconds

    def stands_still() -> bool:
        """No block comes by itself for longer than an interval."""
        height = desk.height()
        return not wait_until(lambda: desk.height() != height, timeout_s=interval_s + 0.4)

    for _ in range(2):
        for _ in range(3):  # each takes the place of the one before it
            desk.rpc("evm_setIntervalMining", interval_s)
        desk.rpc("evm_setAutomine", False)  # nothing to be turned off
        sent = desk.send(sender)
        assert desk.mined(sent)["status"] == 1
        desk.rpc("evm_setIntervalMining", 0)
        waiting = desk.send(sender)
        assert stands_still()
        assert desk.receipt(waiting) is None
        desk.rpc("evm_setIntervalMining", interval_s)
        desk.mined(waiting)
        desk.rpc("evm_setAutomine", True)
        assert stands_still()
        height = desk.height()
        assert desk.mined(desk.send(sender))["blockNumber"] == height + 1


def test_many_blocks_are_mined_at_once(desk: ChainDesk) -> None:
    height = desk.height()
    desk.rpc("anvil_mine", "0xa")
    assert desk.height() == height + 10
    desk.rpc("anvil_mine", "0x2", "0x64")
    first, second = (desk.web3.eth.get_block(desk.height() - back)["timestamp"] for back in (1, 0))
    assert second - first == 100


def test_time_goes_where_it_is_told(desk: ChainDesk) -> None:
    before = desk.web3.eth.get_block("latest")["timestamp"]
    desk.rpc("evm_increaseTime", 10_000)
    desk.rpc("evm_mine")
    assert desk.web3.eth.get_block("latest")["timestamp"] >= before + 10_000
    wanted = before + 50_000
    desk.rpc("evm_setNextBlockTimestamp", wanted)
    desk.rpc("evm_mine")
    assert desk.web3.eth.get_block("latest")["timestamp"] == wanted
    with pytest.raises(RpcRefusal, match="lower than previous block"):
        desk.rpc("evm_setNextBlockTimestamp", before)


def test_tags_follow_the_head_at_their_distance(desk: ChainDesk) -> None:
    desk.rpc("anvil_mine", "0xa")
    head = desk.height()
    numbers = {
        tag: desk.web3.eth.get_block(tag)["number"] for tag in ("latest", "safe", "finalized", "earliest")
    }
    assert numbers == {"latest": head, "safe": head - 2, "finalized": head - 4, "earliest": 0}


def test_a_snapshot_brings_everything_back_once(desk: ChainDesk) -> None:
    sender, receiver = desk.accounts[0], desk.stranger()
    desk.mined(desk.send(sender, to=receiver.address, value=1))
    before = desk.web3.eth.get_block("latest")["hash"]
    balance = desk.balance_wei(sender.address)
    snapshot = desk.rpc("evm_snapshot")
    later = desk.rpc("evm_snapshot")
    sent = desk.send(sender, to=receiver.address, value=1)
    desk.mined(sent)
    assert desk.rpc("evm_revert", snapshot) is True
    assert desk.web3.eth.get_block("latest")["hash"] == before
    assert desk.balance_wei(receiver.address) == 1
    assert desk.balance_wei(sender.address) == balance
    assert desk.nonce(sender) == 1
    assert not desk.is_known(sent)
    assert desk.rpc("evm_revert", snapshot) is False
    assert desk.rpc("evm_revert", later) is False


def test_a_reorganisation_puts_other_blocks_in_place_of_the_last(desk: ChainDesk) -> None:
    sender, receiver = desk.accounts[0], desk.stranger()
    desk.mined(desk.send(sender, to=receiver.address, value=1))
    kept = desk.web3.eth.get_block("latest")
    lost = [desk.send(sender, to=receiver.address, value=10) for _ in range(1)]
    desk.mined(lost[0])
    desk.rpc("anvil_mine", "0x2")
    old = [desk.web3.eth.get_block(kept["number"] + above)["hash"] for above in (1, 2, 3)]

    desk.rpc("anvil_reorg", 3, [])

    assert desk.height() == kept["number"] + 3
    assert desk.web3.eth.get_block(kept["number"])["hash"] == kept["hash"]
    assert [desk.web3.eth.get_block(kept["number"] + above)["hash"] for above in (1, 2, 3)] != old
    for block_hash in old[:1]:
        with pytest.raises(BlockNotFound):
            desk.web3.eth.get_block(block_hash)
    assert desk.receipt(lost[0]) is None
    assert not desk.is_known(lost[0])
    assert desk.balance_wei(receiver.address) == 1
    assert desk.nonce(sender) == 1


def test_a_reorganisation_can_mine_another_transaction_instead(desk: ChainDesk) -> None:
    sender, receiver, other = desk.accounts[0], desk.stranger(), desk.stranger()
    first = desk.send(sender, to=receiver.address, value=10)
    desk.mined(first)
    desk.rpc("anvil_mine", "0x2")
    instead = desk.signed(sender, to=other.address, value=7, nonce=0)

    desk.rpc("anvil_reorg", 3, [[instead.to_0x_hex(), 1]])

    assert desk.receipt(first) is None
    assert desk.balance_wei(receiver.address) == 0
    assert desk.balance_wei(other.address) == 7
    block = desk.web3.eth.get_block(desk.height() - 1)
    assert block["transactions"] == [desk.web3.keccak(instead)]
    assert desk.nonce(sender) == 1


def test_a_transaction_that_was_reorganised_away_can_be_sent_again(desk: ChainDesk) -> None:
    sender, receiver = desk.accounts[0], desk.stranger()
    raw = desk.signed(sender, to=receiver.address, value=10)
    first = desk.mined(desk.web3.eth.send_raw_transaction(raw))
    desk.rpc("anvil_reorg", 1, [])
    again = desk.mined(desk.web3.eth.send_raw_transaction(raw))
    assert again["transactionHash"] == first["transactionHash"]
    assert again["blockHash"] != first["blockHash"]
    assert desk.balance_wei(receiver.address) == 10


def test_a_transactions_bytes_can_be_had_mined_or_waiting(manual: ChainDesk) -> None:
    raw = manual.signed(manual.accounts[0])
    sent = manual.web3.keccak(raw).to_0x_hex()
    assert manual.rpc("eth_getRawTransactionByHash", sent) is None
    manual.web3.eth.send_raw_transaction(raw)
    assert manual.rpc("eth_getRawTransactionByHash", sent) == raw.to_0x_hex()
    manual.rpc("evm_mine")
    assert manual.rpc("eth_getRawTransactionByHash", sent) == raw.to_0x_hex()
    manual.rpc("anvil_reorg", 1, [])
    assert manual.rpc("eth_getRawTransactionByHash", sent) is None


def test_the_pools_content_says_what_waits_by_sender_and_nonce(manual: ChainDesk) -> None:
    senders = manual.accounts[:2]
    hashes = [manual.send(sender, nonce=nonce) for sender in senders for nonce in (0, 1, 3)]

    def content(part: str) -> list[tuple[str, int, str]]:
        """Each transaction's sender, nonce and hash; the keys above it say the same."""
        found = []
        for sender, waiting in manual.rpc("txpool_content")[part].items():
            for nonce, transaction in waiting.items():
                assert (sender.lower(), int(nonce)) == (
                    transaction["from"].lower(),
                    int(transaction["nonce"], 16),
                )
                assert transaction["blockHash"] is None
                found.append((sender.lower(), int(nonce), transaction["hash"]))
        return sorted(found)

    expected = [
        (sender.address.lower(), nonce, sent.to_0x_hex())
        for (sender, nonce), sent in zip(
            ((sender, nonce) for sender in senders for nonce in (0, 1, 3)), hashes, strict=True
        )
    ]
    assert content("pending") == sorted(one for one in expected if one[1] < 2)
    assert content("queued") == sorted(one for one in expected if one[1] == 3)
    manual.rpc("evm_mine")
    assert content("pending") == []
    assert content("queued") == sorted(one for one in expected if one[1] == 3)


@pytest.mark.parametrize("empty", [True, False])
def test_a_block_of_the_same_content_in_the_same_place_has_another_hash(desk: ChainDesk, empty: bool) -> None:
    raws = [] if empty else [desk.signed(desk.accounts[0])]
    sent = [desk.web3.keccak(raw).to_0x_hex() for raw in raws]
    desk.rpc("anvil_mine", "0x1")
    hashes = []
    for _ in range(5):
        desk.rpc("anvil_reorg", 1, [[raw.to_0x_hex(), 0] for raw in raws])
        block = desk.rpc("eth_getBlockByNumber", "latest", False)
        assert block["transactions"] == sent
        for each in sent:
            assert desk.rpc("eth_getTransactionReceipt", each)["blockHash"] == block["hash"]
        hashes.append(block["hash"])
    assert len(set(hashes)) == 5


def test_a_rollback_takes_blocks_away(desk: ChainDesk) -> None:
    sender = desk.accounts[0]
    desk.mined(desk.send(sender))
    lost = desk.send(sender)
    desk.mined(lost)
    height = desk.height()
    desk.rpc("anvil_rollback", 1)
    assert desk.height() == height - 1
    assert desk.receipt(lost) is None
    assert desk.nonce(sender) == 1


def test_nothing_goes_back_beyond_the_beginning(desk: ChainDesk) -> None:
    height = desk.height()
    with pytest.raises(RpcRefusal, match="must not exceed current chain height"):
        desk.rpc("anvil_reorg", height + 1, [])
    with pytest.raises(RpcRefusal, match="must not exceed current chain height"):
        desk.rpc("anvil_rollback", height + 1)
    desk.rpc("anvil_mine", "0x2")
    with pytest.raises(RpcRefusal, match="must not exceed"):
        desk.rpc("anvil_reorg", 2, [[desk.signed(desk.accounts[0]).to_0x_hex(), 2]])
    assert desk.height() == height + 2


def test_a_balance_can_be_set_up_and_down(desk: ChainDesk) -> None:
    account = desk.give(desk.stranger(), 10)
    assert desk.balance_wei(account.address) == 10 * 10**18
    desk.give(account, 3)
    assert desk.balance_wei(account.address) == 3 * 10**18
    assert desk.mined(desk.send(account))["status"] == 1


def test_older_states_can_be_asked_for(desk: ChainDesk) -> None:
    sender, receiver = desk.accounts[0], desk.stranger()
    numbers = [
        desk.mined(desk.send(sender, to=receiver.address, value=value))["blockNumber"] for value in (1, 2, 3)
    ]
    assert [desk.balance_wei(receiver.address, number) for number in numbers] == [1, 3, 6]
    assert desk.balance_wei(receiver.address) == 6
    for place, number in enumerate(numbers):
        assert desk.web3.eth.get_transaction_count(sender.address, number) == place + 1


def test_filters_tell_of_blocks_and_of_waiting_transactions(manual: ChainDesk) -> None:
    blocks = manual.rpc("eth_newBlockFilter")
    waiting = manual.rpc("eth_newPendingTransactionFilter")
    sent = manual.send(manual.accounts[0])
    until(lambda: sent.to_0x_hex() in manual.rpc("eth_getFilterChanges", waiting))
    manual.rpc("evm_mine")
    manual.rpc("evm_mine")
    head = manual.rpc("eth_getBlockByNumber", "latest", False)
    assert manual.rpc("eth_getFilterChanges", blocks) == [head["parentHash"], head["hash"]]
    assert manual.rpc("eth_getFilterChanges", blocks) == []
    assert manual.rpc("eth_uninstallFilter", blocks) is True
    assert manual.rpc("eth_uninstallFilter", blocks) is False


def test_the_fee_history_and_the_gas_price_are_those_of_the_blocks(desk: ChainDesk) -> None:
    desk.mined(desk.send(desk.accounts[0], tip_gwei=3))
    history = desk.web3.eth.fee_history(1, "latest", [50])
    head = desk.web3.eth.get_block("latest")
    assert history["oldestBlock"] == head["number"]
    assert history["baseFeePerGas"][0] == head["baseFeePerGas"]
    assert history["gasUsedRatio"] == [21_000 / head["gasLimit"]]
    assert history["reward"] == [[3 * GWEI]]
    assert desk.web3.eth.gas_price >= history["baseFeePerGas"][1]
    assert desk.web3.eth.max_priority_fee > 0


def test_what_is_not_there_is_null_and_what_makes_no_sense_an_error(desk: ChainDesk) -> None:
    nothing = "0x" + "11" * 32
    assert desk.rpc("eth_getBlockByNumber", hex(10**6), False) is None
    assert desk.rpc("eth_getBlockByHash", nothing, False) is None
    assert desk.rpc("eth_getTransactionByHash", nothing) is None
    assert desk.rpc("eth_getRawTransactionByHash", nothing) is None
    assert desk.rpc("eth_getTransactionReceipt", nothing) is None
    for method, *parameters in (
        ("eth_nothing",),
        ("eth_getBalance",),
        ("eth_getBalance", "0x1", "latest"),
        ("eth_getBalance", nothing[:42], hex(10**6)),
        ("eth_getFilterChanges", "0xffff"),
        ("eth_getLogs", {"blockHash": nothing}),
    ):
        with pytest.raises(RpcRefusal):
            desk.rpc(method, *parameters)


def test_a_plain_transfer_is_estimated_at_its_gas(desk: ChainDesk) -> None:
    transaction = {"from": desk.accounts[0].address, "to": desk.stranger().address, "value": "0x1"}
    assert int(desk.rpc("eth_estimateGas", transaction), 16) == 21_000
