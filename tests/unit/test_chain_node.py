"""The node: whatever happens to it, its log gives the same chain again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from reference_server.chain.block_log import BlockLogError, GenesisRecord
from reference_server.chain.contracts import load_contract
from reference_server.chain.filters import Filter, Log, LogQuery
from reference_server.chain.machine import BANK, FEES, MachineError
from reference_server.chain.node import Node, NodeError
from reference_server.chain.pool import PoolError

GENESIS = GenesisRecord(
    chain_id=31_337, seed=3, accounts=4, balance_wei=str(10**21), timestamp=1_700_000_000, slots_in_an_epoch=2
)
STRANGERS = ["0x" + f"{number:02x}" * 20 for number in range(0xA0, 0xA5)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, GENESIS)
    yield node
    node.close()


def signer(node: Node, index: int) -> LocalAccount:
    return cast(LocalAccount, Account.from_key(node.chain.accounts[index].private_key))


def signed(node: Node, index: int = 0, **fields: Any) -> bytes:
    """A transfer of 1 wei, unless something else is said."""
    account = signer(node, index)
    transaction = {
        "type": 2,
        "chainId": GENESIS.chain_id,
        "nonce": node.pool.next_nonce(account.address.lower()),
        "to": bytes.fromhex(STRANGERS[0][2:]),
        "value": 1,
        "gas": 21_000,
        "maxFeePerGas": 20 * 10**9,
        "maxPriorityFeePerGas": 10**9,
        "data": b"",
        **fields,
    }
    return bytes(account.sign_transaction(transaction).raw_transaction)


def call(name: str, types: list[str], *arguments: Any) -> bytes:
    """A contract call's data."""
    return keccak(text=f"{name}({','.join(types)})")[:4] + encode(types, arguments)


def test_random_histories_are_replayed_to_the_last_hash_and_balance(tmp_path: Path) -> None:
    for seed in range(6):
        folder = tmp_path / str(seed)
        node = Node(folder, GENESIS)
        play(node, random.Random(seed), steps=120)
        before = fingerprint(node)
        node.close()
        again = Node(folder, GENESIS)
        assert fingerprint(again) == before, f"seed {seed}"
        again.close()


def test_no_ether_appears_or_disappears(node: Node) -> None:
    everyone = [account.address for account in node.chain.accounts] + [*STRANGERS, FEES, BANK]

    def total() -> int:
        return sum(node.chain.machine.balance_wei(address) for address in everyone)

    before = total()
    play(node, random.Random(11), steps=150, contracts=False)
    assert total() == before


def play(node: Node, random: random.Random, *, steps: int, contracts: bool = True) -> None:
    """Whatever a client may do, in any order."""
    usdc: list[bytes] = []
    snapshots: list[int] = []

    def transfer() -> None:
        to = bytes.fromhex(random.choice(STRANGERS)[2:])
        send(node, signed(node, random.randrange(4), to=to, value=random.randrange(10**18)))

    def gap() -> None:
        index = random.randrange(4)
        nonce = node.pool.next_nonce(signer(node, index).address.lower()) + random.randrange(1, 3)
        send(node, signed(node, index, nonce=nonce))

    def deploy() -> None:
        code = bytes.fromhex(load_contract("USDC").bytecode[2:])
        owner = signer(node, 0)
        transaction = node.send(
            signed(node, 0, to=b"", value=0, gas=2_000_000, data=code + encode(["address"], [owner.address]))
        )
        if mined := node.chain.mined(transaction.hash):
            assert mined[1].created is not None
            usdc.append(bytes.fromhex(mined[1].created[2:]))

    def mint() -> None:
        if usdc:
            index = random.randrange(2)  # the owner, or somebody who is refused
            data = call("mint", ["address", "uint256"], random.choice(STRANGERS), random.randrange(10**9))
            send(node, signed(node, index, to=random.choice(usdc), value=0, gas=200_000, data=data))

    def mine() -> None:
        node.mine(blocks=random.randrange(1, 3))

    def give() -> None:
        node.give(random.choice(STRANGERS), random.randrange(10**20))

    def reorganise() -> None:
        depth = random.randrange(min(4, node.chain.head.number + 1))
        replacements = [
            (signed(node, random.randrange(4)), random.randrange(depth)) for _ in range(depth // 2)
        ]
        node.reorganise(depth, replacements)

    def snapshot() -> None:
        snapshots.append(node.take_snapshot())

    def revert() -> None:
        if snapshots:
            node.revert(snapshots.pop(random.randrange(len(snapshots))))

    def look_back() -> None:
        # Reading must leave no trace: not in the state, and not in what later transactions cost.
        with node.chain.state_at(random.randrange(node.chain.head.number + 1)):
            node.chain.machine.balance_wei(random.choice(STRANGERS))
        node.chain.machine.code(random.choice(STRANGERS))

    def toggle() -> None:
        node.automine = not node.automine

    acts: list[Callable[[], None]] = [transfer, transfer, gap, mine, give, reorganise, snapshot, revert]
    acts += [look_back, toggle] + ([deploy, mint, mint] if contracts else [])
    for _ in range(steps):
        random.choice(acts)()


def send(node: Node, raw: bytes) -> None:
    try:
        node.send(raw)
    except PoolError:
        return  # a nonce that is used, say: that is part of life


def fingerprint(node: Node) -> list[Any]:
    """All that a client can see of the chain, at the head and at a few older blocks."""
    chain = node.chain
    accounts = [account.address for account in chain.accounts] + STRANGERS
    blocks = [chain.block(number) for number in range(chain.head.number + 1)]
    seen: list[Any] = [block.hash for block in blocks if block]
    for number in {0, chain.head.number // 2, chain.head.number}:
        with chain.state_at(number):
            seen += [chain.machine.balance_wei(address) for address in accounts]
        seen += [chain.nonce_at(address, number) for address in accounts]
    return seen


def test_a_contract_lies_where_its_sender_and_nonce_put_it(node: Node) -> None:
    code = bytes.fromhex(load_contract("USDC").bytecode[2:]) + encode(["address"], [STRANGERS[0]])
    created = []
    for _ in range(2):
        node.send(signed(node, to=b"\x01" * 20))
        transaction = node.send(signed(node, to=b"", value=0, gas=2_000_000, data=code))
        mined = node.chain.mined(transaction.hash)
        assert mined is not None
        created.append(mined[1].created)
    import reference_server.chain.transactions as transactions

    sender = node.chain.accounts[0].address
    assert created == [transactions.created_address(sender, nonce) for nonce in (1, 3)]


def test_a_failed_transaction_spends_its_nonce_and_its_gas_and_moves_nothing(node: Node) -> None:
    code = bytes.fromhex(load_contract("USDC").bytecode[2:]) + encode(["address"], [STRANGERS[0]])
    deployed = node.chain.mined(node.send(signed(node, to=b"", value=0, gas=2_000_000, data=code)).hash)
    assert deployed is not None
    assert deployed[1].created is not None
    before = node.chain.machine.balance_wei(node.chain.accounts[1].address)
    data = call("mint", ["address", "uint256"], STRANGERS[1], 5)
    to = bytes.fromhex(deployed[1].created[2:])
    failed = node.chain.mined(node.send(signed(node, 1, to=to, value=0, gas=100_000, data=data)).hash)
    assert failed is not None
    receipt = failed[1]
    assert (receipt.succeeded, receipt.events) == (False, ())
    after = node.chain.machine.balance_wei(node.chain.accounts[1].address)
    assert before - after == receipt.gas_used * receipt.price_wei
    assert node.chain.next_nonce(node.chain.accounts[1].address) == 1


def test_a_block_is_never_fuller_than_its_gas_limit(node: Node) -> None:
    node.automine = False
    for _ in range(3):
        node.send(signed(node, gas=15_000_000))
    node.mine()
    # Two promise all of the block's gas, though they use little of it: the third would find too little left.
    assert len(node.chain.head.receipts) == 3
    assert node.chain.head.gas_used == 63_000
    for _ in range(2):
        node.send(signed(node, gas=29_990_000))
    node.mine()
    assert len(node.chain.head.receipts) == 1


def test_a_fee_below_the_base_fee_waits_until_that_has_fallen(node: Node) -> None:
    node.next_base_fee_wei = 10**9
    low = node.send(signed(node, maxFeePerGas=9 * 10**8, maxPriorityFeePerGas=1))
    assert node.chain.mined(low.hash) is None
    node.mine()
    assert node.chain.mined(low.hash) is None
    node.mine()
    assert node.chain.mined(low.hash) is not None


def test_who_has_become_poor_waits(node: Node) -> None:
    node.automine = False
    sender = node.chain.accounts[0].address
    rich = node.send(signed(node, value=10**18))
    node.give(sender, 10**17)
    node.mine()
    assert node.chain.mined(rich.hash) is None
    height = node.chain.head.number
    node.automine = True
    node.send(signed(node, 1))
    assert node.chain.head.number == height + 1
    node.give(sender, 2 * 10**18)
    node.mine()
    assert node.chain.mined(rich.hash) is not None


def test_a_replaced_block_of_the_same_content_has_another_hash(node: Node) -> None:
    node.mine()
    before = node.chain.head
    node.reorganise(1, [])
    assert node.chain.head.number == before.number
    assert node.chain.head.hash != before.hash


def test_a_replacement_that_cannot_be_executed_is_left_out(node: Node) -> None:
    raw = signed(node, nonce=5)
    node.mine()
    node.reorganise(1, [(raw, 0)])
    assert node.chain.head.receipts == ()


def test_balances_that_were_set_before_a_reorganised_block_stay(node: Node) -> None:
    node.mine()
    node.give(STRANGERS[0], 77)
    node.mine()
    node.reorganise(1, [])
    assert node.chain.machine.balance_wei(STRANGERS[0]) == 77
    node.reorganise(2, [])
    assert node.chain.machine.balance_wei(STRANGERS[0]) == 0


def test_a_contracts_balance_cannot_be_set(node: Node) -> None:
    code = bytes.fromhex(load_contract("USDC").bytecode[2:]) + encode(["address"], [STRANGERS[0]])
    mined = node.chain.mined(node.send(signed(node, to=b"", value=0, gas=2_000_000, data=code)).hash)
    assert mined is not None
    assert mined[1].created is not None
    with pytest.raises(MachineError, match="is a contract"):
        node.give(mined[1].created, 5)


def test_a_snapshot_whose_past_was_reorganised_is_gone(node: Node) -> None:
    node.mine(blocks=2)
    number = node.take_snapshot()
    node.reorganise(1, [])
    assert node.revert(number) is False


def test_a_filter_hears_of_removed_logs_before_the_new_ones(node: Node) -> None:
    code = bytes.fromhex(load_contract("USDC").bytecode[2:])
    owner = node.chain.accounts[0].address
    deployment = node.send(
        signed(node, to=b"", value=0, gas=2_000_000, data=code + encode(["address"], [owner]))
    )
    mined = node.chain.mined(deployment.hash)
    assert mined is not None
    assert mined[1].created is not None
    number = node.filters.install(Filter("logs", LogQuery(addresses=frozenset([mined[1].created]))))
    data = call("mint", ["address", "uint256"], STRANGERS[1], 5)
    raw = signed(node, to=bytes.fromhex(mined[1].created[2:]), value=0, gas=100_000, data=data)
    node.send(raw)
    node.reorganise(1, [(raw, 0)])
    changes = node.filters.take_changes(number) or []
    logs = [change for change in changes if isinstance(change, Log)]
    assert [log.removed for log in logs] == [False, True, False]
    assert logs[0].block.hash == logs[1].block.hash != logs[2].block.hash


def test_too_many_blocks_at_once_are_refused(node: Node) -> None:
    with pytest.raises(NodeError, match="at once"):
        node.mine(blocks=10**9)


def test_a_log_that_gives_another_hash_is_refused(tmp_path: Path) -> None:
    from reference_server.chain.block_log import BlockLog, BlockRecord

    node = Node(tmp_path, GENESIS)
    node.mine()
    node.close()
    log = BlockLog(tmp_path)
    _, block = log.read()
    assert isinstance(block, BlockRecord)
    log.append([block])  # its parent is another now
    log.close()
    with pytest.raises(BlockLogError, match="another hash"):
        Node(tmp_path, GENESIS)
