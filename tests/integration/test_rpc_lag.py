"""A node that seems to stand still, compared with one that does: a copy of the chain at that block."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hexbytes import HexBytes
from web3 import Web3

from chaos.chain import ChainOptions, choose_chain
from chaos.control_line import ControlError
from chaos.processes import wait_until
from chaos.supervisor import Supervisor
from reference_server.chain.client import CustodyClient
from reference_server.chain.connection import connect, is_known, mined, suggested_fees
from reference_server.chain.deploy import deploy_contracts, deposit, mint
from tests.integration.broken_line import TIMEOUT_S, Line, Started, line_to
from tests.integration.chain_desk import ChainDesk
from tests.integration.recording_server import Arrival, RecordingServer, ok

MICRO = 1_000_000
ZERO_HASH = "0x" + "00" * 32
PATIENCE_S = 0.3  # for what must not happen


class Caller:
    """Calls on one connection, as they are answered."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def head(self) -> int:
        return int(self.ask("eth_blockNumber")["result"], 16)

    def ask(self, method: str, *params: Any) -> dict[str, Any]:
        """The result or error member, under its name."""
        call = {"jsonrpc": "2.0", "id": "x", "method": method, "params": params}
        return self._checked(self._client.post("/", json=call).json())

    def batch(self, calls: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        body = [{"jsonrpc": "2.0", "id": "x", "method": method, "params": params} for method, params in calls]
        return [self._checked(reply) for reply in self._client.post("/", json=body).json()]

    @staticmethod
    def _checked(reply: dict[str, Any]) -> dict[str, Any]:
        assert (reply.pop("jsonrpc"), reply.pop("id")) == ("2.0", "x")
        assert reply.keys() in ({"result"}, {"error"})
        return reply


class Lagging(NamedTuple):
    """A frozen line to a node that went on, a node that did not, and what happened since."""

    line: Line
    node: ChainDesk
    through: Caller
    straight: Caller
    still: Caller
    number: int
    head: int
    addresses: dict[str, str]
    new_hashes: list[str]
    old_hash: str
    new_block_hash: str
    old_block_hash: str


@pytest.fixture(scope="module")
def lagging(scratch: Path) -> Iterator[Lagging]:
    folder = scratch / "rpc_lag"
    options = ChainOptions(seed=5, slots_in_an_epoch=2)
    with Supervisor(folder / "one") as one, Supervisor(folder / "other") as other:
        chain = choose_chain("embedded", supervisor=one, data_dir=folder / "data", options=options)
        chain.start()
        desk = ChainDesk(chain)
        key, stranger = chain.accounts[0].private_key, chain.accounts[1]
        vault = deploy_contracts(desk.web3, key).addresses
        mint(desk.web3, vault, key, to=stranger.address, amount_micro=100 * MICRO)
        deposit(desk.web3, vault, stranger.private_key, user_id="1", amount_micro=3 * MICRO)
        number = desk.height()

        # The same chain again, which stays where it is.
        chain.stop()
        shutil.copytree(folder / "data", folder / "copy")
        chain.start()
        still = choose_chain("embedded", supervisor=other, data_dir=folder / "copy", options=options)
        still.start()
        with (
            line_to(one, chain.url) as line,
            Caller(line.url) as through,
            Caller(chain.url) as straight,
            Caller(still.url) as standing,
        ):
            assert line.control.freeze() == number
            deposit(desk.web3, vault, stranger.private_key, user_id="2", amount_micro=4 * MICRO)
            later = [desk.send(desk.accounts[index]).to_0x_hex() for index in (2, 3)]
            old_block, new_block = (desk.web3.eth.get_block(at) for at in (number, number + 2))
            yield Lagging(
                line=line,
                node=desk,
                through=through,
                straight=straight,
                still=standing,
                number=number,
                head=desk.height(),
                addresses={
                    "vault": vault.vault,
                    "usdc": vault.usdc,
                    "operator": chain.accounts[0].address,
                    "stranger": stranger.address,
                    "sender": desk.accounts[2].address,
                },
                new_hashes=[Web3.to_hex(new_block["transactions"][0]), *later],  # type: ignore[arg-type]
                old_hash=Web3.to_hex(old_block["transactions"][0]),  # type: ignore[arg-type]
                new_block_hash=Web3.to_hex(new_block["hash"]),
                old_block_hash=Web3.to_hex(old_block["hash"]),
            )
        still.stop()
        chain.stop()


def questions(at: Lagging) -> Iterator[tuple[str, list[Any]]]:
    """Everything about blocks that a client asks, of every block that matters, in every way to say it."""
    spellings: list[Any] = [
        "latest",
        "pending",
        "safe",
        "finalized",
        "earliest",
        0,
        at.number,
        str(at.number),
    ]
    spellings += [hex(at.number + step) for step in (-2, -1, 0, 1, 2, 4, 1000)]
    objects: list[Any] = [{"blockNumber": each} for each in spellings]
    objects += [{"blockHash": each} for each in (at.old_block_hash, at.new_block_hash, ZERO_HASH)]
    balance = {
        "to": at.addresses["usdc"],
        "data": "0x70a08231" + "00" * 12 + at.addresses["vault"][2:].lower(),
    }
    yield "eth_blockNumber", []
    for block in [*spellings, *objects]:
        yield "eth_call", [balance, block]
        yield "eth_getBalance", [at.addresses["sender"], block]
        yield "eth_getCode", [at.addresses["vault"], block]
        yield "eth_getStorageAt", [at.addresses["usdc"], "0x0", block]
        yield "eth_estimateGas", [balance, block]
        if block not in ("pending", {"blockNumber": "pending"}):
            yield "eth_getTransactionCount", [at.addresses["stranger"], block]
    for block in spellings:
        yield "eth_getBlockByNumber", [block, True]
        yield "eth_getBlockByNumber", [block, False]
        yield "eth_getBlockReceipts", [block]
        yield "eth_feeHistory", [4, block, [50]]
    yield "eth_call", [balance]
    yield "eth_call", [balance, None]
    yield "eth_getBalance", [at.addresses["sender"]]
    yield "eth_getTransactionCount", [at.addresses["sender"]]
    yield "eth_getStorageAt", [at.addresses["usdc"], "0x0"]
    yield "eth_getBlockByNumber", [None, False]
    yield "eth_getBlockReceipts", [None]
    for block_hash in (at.old_block_hash, at.new_block_hash, ZERO_HASH):
        yield "eth_getBlockByHash", [block_hash, True]
        yield "eth_getBlockReceipts", [{"blockHash": block_hash}]
        yield "eth_getLogs", [{"blockHash": block_hash}]
    for transaction_hash in (at.old_hash, *at.new_hashes, ZERO_HASH):
        yield "eth_getTransactionReceipt", [transaction_hash]
    yield "eth_getTransactionByHash", [at.old_hash]
    yield "eth_getTransactionByHash", [ZERO_HASH]
    for first, last in itertools.product(("absent", None, *spellings), repeat=2):
        bounds = {
            name: bound for name, bound in (("fromBlock", first), ("toBlock", last)) if bound != "absent"
        }
        yield "eth_getLogs", [{"address": at.addresses["vault"], **bounds}]
    # What no node understands is for the node to say.
    yield "eth_getBalance", []
    yield "eth_getBalance", [at.addresses["sender"], "no tag"]
    yield "eth_getBlockByNumber", ["0xzz", False]
    yield "eth_getBlockByHash", ["0x12"]
    yield "eth_getLogs", []
    yield "eth_getLogs", ["no filter"]
    yield "eth_getLogs", [{"fromBlock": {}}]
    yield "eth_nothing", [1]


def test_a_frozen_node_answers_as_one_that_stands_still(lagging: Lagging) -> None:
    asked = list(questions(lagging))
    wrong = [
        (call, said, meant)
        for call in asked
        if (said := lagging.through.ask(call[0], *call[1])) != (meant := lagging.still.ask(call[0], *call[1]))
    ]
    assert wrong == []
    # The same in one batch.
    assert lagging.through.batch(asked) == [lagging.still.ask(method, *params) for method, params in asked]
    # ... and the node would have said something else to many of them.
    different = sum(
        lagging.straight.ask(method, *params) != lagging.still.ask(method, *params)
        for method, params in asked
    )
    assert different > 100
    assert lagging.head == lagging.number + 4


def test_a_newer_transaction_seems_to_wait(lagging: Lagging) -> None:
    newer = lagging.new_hashes[1]
    real = lagging.straight.ask("eth_getTransactionByHash", newer)["result"]
    seeming = lagging.through.ask("eth_getTransactionByHash", newer)["result"]
    assert real["blockNumber"] is not None
    assert seeming == {
        **real,
        "blockHash": None,
        "blockNumber": None,
        "transactionIndex": None,
        "gasPrice": real["maxFeePerGas"],
    }


def test_the_pending_count_is_the_frozen_blocks(lagging: Lagging) -> None:
    sender = lagging.addresses["sender"]
    assert lagging.straight.ask("eth_getTransactionCount", sender, "pending") == {"result": "0x1"}
    assert lagging.through.ask("eth_getTransactionCount", sender, "pending") == {"result": "0x0"}


def test_changed_answers_are_counted(lagging: Lagging) -> None:
    def counted(method: str, *params: Any) -> int:
        before: int = lagging.line.control.status()["clamped"]
        lagging.through.ask(method, *params)
        after: int = lagging.line.control.status()["clamped"]
        return after - before

    assert counted("eth_blockNumber") == 1
    assert counted("eth_getBlockByNumber", "latest", False) == 1
    assert counted("eth_getLogs", {"fromBlock": hex(lagging.number + 1)}) == 1
    assert counted("eth_getTransactionReceipt", lagging.new_hashes[0]) == 1
    assert counted("eth_getTransactionReceipt", lagging.old_hash) == 0
    assert counted("eth_getBlockByNumber", hex(lagging.number), False) == 0
    assert counted("eth_getLogs", {"fromBlock": "0x0", "toBlock": hex(lagging.number)}) == 0
    assert counted("eth_chainId") == 0
    assert counted("eth_gasPrice") == 0


def test_filters_tell_nothing_new_until_the_thaw(scratch: Path) -> None:
    folder = scratch / "rpc_lag_filters"
    with Supervisor(folder) as supervisor:
        chain = choose_chain("embedded", supervisor=supervisor, data_dir=folder / "data")
        chain.start()
        desk = ChainDesk(chain)
        with line_to(supervisor, chain.url) as line, Caller(line.url) as caller:
            key = chain.accounts[0].private_key
            usdc = deploy_contracts(desk.web3, key).addresses
            number = caller.ask("eth_newFilter", {"address": usdc.usdc, "fromBlock": "0x0"})["result"]
            mint(desk.web3, usdc, key, to=chain.accounts[1].address, amount_micro=1)
            line.control.freeze()
            mint(desk.web3, usdc, key, to=chain.accounts[1].address, amount_micro=2)
            assert caller.ask("eth_getFilterChanges", number) == {"result": []}
            assert len(caller.ask("eth_getFilterLogs", number)["result"]) == 1
            line.control.thaw()
            assert len(caller.ask("eth_getFilterChanges", number)["result"]) == 2
            assert len(caller.ask("eth_getFilterLogs", number)["result"]) == 2
        chain.stop()


def test_a_client_sees_the_old_head_and_then_the_new_one(scratch: Path) -> None:
    folder = scratch / "rpc_lag_client"
    with Supervisor(folder) as supervisor:
        chain = choose_chain("embedded", supervisor=supervisor, data_dir=folder / "data")
        chain.start()
        desk = ChainDesk(chain)
        key, account = chain.accounts[0].private_key, chain.accounts[1]
        vault = deploy_contracts(desk.web3, key).addresses
        mint(desk.web3, vault, key, to=account.address, amount_micro=10)
        with line_to(supervisor, chain.url) as line:
            web3 = connect(line.url)
            client = CustodyClient(web3, vault)
            deposit(desk.web3, vault, account.private_key, user_id="1", amount_micro=3)
            before = client.block()
            assert before is not None
            assert line.control.freeze() == before.number == line.control.status()["frozen_at"]
            with pytest.raises(ControlError, match="frozen already"):
                line.control.freeze()

            assert client.block() == before
            assert line.control.status()["clamped"] == 0  # the node would have said the same

            # What is sent through the line while it is frozen reaches the node, and seems to wait.
            sent = desk.signed(desk.accounts[4])
            new = deposit(desk.web3, vault, account.private_key, user_id="2", amount_micro=4)
            transaction = web3.eth.send_raw_transaction(sent).to_0x_hex()
            assert desk.receipt(HexBytes(transaction)) is not None
            assert is_known(web3, transaction)
            assert mined(web3, transaction) is None
            assert client.block() == before
            assert web3.eth.block_number == before.number
            assert client.block(new.block_number) is None
            assert client.custody_balance() == 3
            assert [each.amount_micro for each in client.deposit_events(0, "latest")] == [3]
            assert suggested_fees(web3).max_priority_fee_wei > 0

            line.control.thaw()
            line.control.thaw()
            after = client.block(new.block_number)
            assert after is not None
            assert after.hash == new.block_hash
            assert client.custody_balance() == 7
            assert [each.amount_micro for each in client.deposit_events(0, "latest")] == [3, 4]
            assert mined(web3, transaction) is not None
            assert line.control.status()["frozen_at"] is None
        chain.stop()


def test_no_call_is_under_way_when_the_node_freezes(supervisor: Supervisor) -> None:
    slow = threading.Event()

    def answer(arrival: Arrival) -> bytes:
        if b"eth_gasPrice" in arrival.raw:
            assert slow.wait(TIMEOUT_S)
        return ok(b'{"jsonrpc":"2.0","id":"x","result":{"number":"0x5"}}')

    with (
        RecordingServer(answer) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        Caller(line.url) as early,
        Caller(line.url) as late,
    ):
        asking = Started(partial(early.ask, "eth_gasPrice"))
        node.await_arrivals(1)
        freezing = Started(line.control.freeze)
        assert wait_until(lambda: line.control.status()["freezing"], timeout_s=TIMEOUT_S)
        waiting = Started(partial(late.ask, "eth_chainId"))
        assert wait_until(lambda: "eth_chainId" in line.control.status()["requests"], timeout_s=TIMEOUT_S)
        assert not wait_until(lambda: len(node.arrivals) > 1, timeout_s=PATIENCE_S)
        assert not freezing.over
        slow.set()
        assert freezing.result() == 5
        asking.result()
        waiting.result()
        assert b"eth_chainId" in node.arrivals[-1].raw


def test_a_node_that_does_not_answer_is_not_frozen(supervisor: Supervisor) -> None:
    with (
        RecordingServer(lambda _: b"") as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
    ):
        with pytest.raises(ControlError, match="did not answer within 4 s"):
            line.control.freeze()
        assert line.control.status()["frozen_at"] is None
        node.answer = lambda _: ok(b'{"id":1,"result":null}')
        with pytest.raises(ControlError, match="does not say which block is its latest"):
            line.control.freeze()
        node.answer = lambda _: ok(b'{"id":1,"result":{"number":"0x5"}}')
        assert line.control.freeze() == 5


def is_past(caller: Caller, number: int) -> bool:
    return caller.head() > number


def test_nobody_sees_the_head_go_back(scratch: Path) -> None:
    """Freezes again and again while blocks come quickly and callers ask all the time."""
    folder = scratch / "rpc_lag_race"
    options = ChainOptions(block_time_s=0.01)
    with Supervisor(folder) as supervisor:
        chain = choose_chain("embedded", supervisor=supervisor, data_dir=folder / "data", options=options)
        chain.start()
        with (
            line_to(supervisor, chain.url) as line,
            Caller(line.url) as through,
            Caller(chain.url) as straight,
        ):
            over = threading.Event()

            def watch() -> list[int]:
                seen = []
                with Caller(line.url) as caller:
                    while not over.is_set():
                        seen.append(caller.head())
                return seen

            watchers = [Started(watch) for _ in range(4)]
            for _ in range(30):
                number = line.control.freeze()
                assert wait_until(partial(is_past, straight, number), timeout_s=TIMEOUT_S)
                assert through.head() == number
                line.control.thaw()
            over.set()
            for watcher in watchers:
                seen = watcher.result()
                assert len(set(seen)) > 10
                assert seen == sorted(seen)
        chain.stop()


def test_a_call_that_is_held_may_be_of_a_frozen_node(lagging: Lagging) -> None:
    hold = lagging.line.control.hold("eth_blockNumber")
    caller = Started(lagging.through.head)
    held = hold.wait(TIMEOUT_S)
    assert held is not None
    assert held.reply["result"] == hex(lagging.number)
    hold.deliver()
    assert caller.result() == lagging.number
