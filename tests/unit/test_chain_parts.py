"""The parts of the chain by themselves: pool, clock, the log on disk, filters, blocks and JSON-RPC."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from reference_server.chain.block_log import BlockLog, BlockLogError, CutRecord, GiftRecord, Record
from reference_server.chain.blocks import GAS_LIMIT, bloom_of, next_base_fee_wei
from reference_server.chain.clock import Clock, ClockError
from reference_server.chain.filters import Filter, Filters, LogQuery
from reference_server.chain.machine import Event
from reference_server.chain.pool import Pool, PoolError
from reference_server.chain.rpc import Rpc
from reference_server.chain.transactions import Transaction

ALICE, BOB = "0x" + "aa" * 20, "0x" + "bb" * 20


def waiting(sender: str, nonce: int, *, fee: int = 100, tip: int = 10, mark: int = 0) -> Transaction:
    return Transaction(
        hash=bytes([mark, nonce, fee % 256, tip % 256]) + bytes.fromhex(sender[2:]),
        raw=b"",
        type=2,
        sender=sender,
        chain_id=1,
        nonce=nonce,
        max_priority_fee_wei=tip,
        max_fee_wei=fee,
        gas=21_000,
        to=None,
        value_wei=0,
        data=b"",
        access_list=(),
        v=0,
        r=1,
        s=1,
    )


def test_the_pool_gives_the_best_tip_first_and_each_sender_in_order() -> None:
    nonces: dict[str, int] = defaultdict(int)
    pool = Pool(lambda sender: nonces[sender])
    for transaction in (
        waiting(ALICE, 1, tip=99),
        waiting(ALICE, 0, tip=1),
        waiting(BOB, 0, tip=5),
        waiting(BOB, 2, tip=50),
    ):
        pool.add(transaction)
    drawn = []
    for transaction in pool.ready(1):
        drawn.append((transaction.sender, transaction.nonce))
        nonces[transaction.sender] += 1
    assert drawn == [(BOB, 0), (ALICE, 0), (ALICE, 1)]
    pool.forget_mined({ALICE, BOB})
    pool.add(waiting(ALICE, 2))
    pending, queued = pool.content()
    assert [(each.sender, each.nonce) for each in pending] == [(ALICE, 2)]
    assert [(each.sender, each.nonce) for each in queued] == [(BOB, 2)]


def test_one_that_is_not_mined_keeps_back_the_ones_behind_it() -> None:
    pool = Pool(lambda _: 0)
    pool.add(waiting(ALICE, 0))
    pool.add(waiting(ALICE, 1))
    assert [each.nonce for each in pool.ready(1)] == [0]


def test_a_replacement_pays_a_tenth_more_on_both_fees() -> None:
    pool = Pool(lambda _: 0)
    first = waiting(ALICE, 0, fee=100, tip=10)
    pool.add(first)
    with pytest.raises(PoolError, match="already known"):
        pool.add(first)
    for fee, tip in ((109, 11), (110, 10), (200, 10)):
        with pytest.raises(PoolError, match="underpriced"):
            pool.add(waiting(ALICE, 0, fee=fee, tip=tip))
    assert pool.get(first.hash) is first
    pool.add(waiting(ALICE, 0, fee=110, tip=11))
    assert pool.get(first.hash) is None
    assert len(pool) == 1


def test_a_dropped_transaction_leaves_a_gap() -> None:
    pool = Pool(lambda _: 0)
    for nonce in range(3):
        pool.add(waiting(ALICE, nonce))
    assert pool.next_nonce(ALICE) == 3
    assert pool.drop(waiting(ALICE, 1).hash)
    assert not pool.drop(waiting(ALICE, 1).hash)
    assert pool.next_nonce(ALICE) == 1
    with pytest.raises(PoolError, match="nonce too low"):
        Pool(lambda _: 5).add(waiting(ALICE, 4))


def test_the_clock_goes_ahead_and_never_back() -> None:
    clock = Clock()
    now = clock.stamp(0)
    assert clock.stamp(now + 1_000) == now + 1_000
    assert clock.increase(5_000) == 5_000
    assert clock.stamp(0) >= now + 5_000
    clock.set_next(now + 90_000, parent_timestamp=now)
    assert clock.stamp(now) == now + 90_000
    assert clock.stamp(0) >= now + 90_000
    with pytest.raises(ClockError, match="lower than previous"):
        clock.set_next(now - 1, parent_timestamp=now)


def test_a_log_torn_at_any_byte_keeps_all_whole_records(tmp_path: Path) -> None:
    records: list[Record] = [GiftRecord(address=ALICE, balance_wei="5"), CutRecord(steps=3)]
    log = BlockLog(tmp_path / "whole")
    log.append(records)
    log.append([CutRecord(steps=4)])
    log.close()
    whole = log.path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "blocks.log").write_bytes(whole[:size])
        log = BlockLog(folder)
        found = list(log.read())
        assert found == [*records, CutRecord(steps=4)][: sum(end <= size for end in ends)]
        log.append([CutRecord(steps=9)])
        assert list(log.read()) == [*found, CutRecord(steps=9)]
        log.close()


def test_a_log_damaged_before_its_end_is_refused_where_it_is(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append([CutRecord(steps=1), CutRecord(steps=2), CutRecord(steps=3)])
    log.close()
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(lines[0] + lines[1].replace(b"2", b"7") + lines[2])
    damaged = BlockLog(tmp_path)
    with pytest.raises(BlockLogError, match=f"damaged at byte {len(lines[0])}"):
        list(damaged.read())
    damaged.close()


def test_a_log_has_one_owner(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    with pytest.raises(BlockLogError, match="another process"):
        BlockLog(tmp_path)
    log.close()
    BlockLog(tmp_path).close()


def test_the_base_fee_moves_by_an_eighth_at_most() -> None:
    assert next_base_fee_wei(800, 0) == 700
    assert next_base_fee_wei(800, GAS_LIMIT) == 900
    assert next_base_fee_wei(800, GAS_LIMIT // 2) == 800
    assert next_base_fee_wei(7, 0) == 7
    assert next_base_fee_wei(7, GAS_LIMIT) == 8


def test_topics_match_by_place_and_by_any_of_several() -> None:
    one, two, three = (bytes([digit]) * 32 for digit in (1, 2, 3))
    event = Event(address=ALICE, topics=(one, two), data=b"")
    assert bloom_of([event]).bit_count() <= 9
    for topics, expected in (
        ((), True),
        ((frozenset([one]),), True),
        ((None, frozenset([two])), True),
        ((frozenset([three, one]), None), True),
        ((frozenset([two]),), False),
        ((None, None, None), False),
    ):
        assert LogQuery(topics=topics).matches(event) is expected
    assert not LogQuery(addresses=frozenset([BOB])).matches(event)


def test_filters_are_bounded_and_the_longest_unasked_goes_first() -> None:
    filters = Filters()
    first, second = filters.install(Filter("blocks")), filters.install(Filter("blocks"))
    assert filters.take_changes(first) == []
    for _ in range(999):
        filters.install(Filter("blocks"))
    assert filters.get(second) is None
    assert filters.get(first) is not None


class Methods:
    """Two methods, for the envelope's tests."""

    def add(self, left: int, right: int = 1) -> int:
        return left + right

    def fail(self) -> None:
        raise ZeroDivisionError

    def _hidden(self) -> None:
        raise AssertionError


def ask(body: Any) -> Any:
    reply = Rpc(Methods()).answer(body if isinstance(body, bytes) else json.dumps(body).encode())
    return json.loads(reply) if reply else None


def request(method: Any, *parameters: Any, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters), **members}


def test_a_request_is_answered_under_its_id() -> None:
    assert ask(request("add", 2, id="x")) == {"jsonrpc": "2.0", "id": "x", "result": 3}
    assert ask([request("add", 1, id=1), request("add", 1, 1, id=2)]) == [
        {"jsonrpc": "2.0", "id": 1, "result": 2},
        {"jsonrpc": "2.0", "id": 2, "result": 2},
    ]
    notification = request("add", 1)
    del notification["id"]
    assert ask(notification) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32_700),
        (b"\xff", -32_700),
        (b"7", -32_600),
        (b"[]", -32_600),
        (b"{}", -32_600),
        (request("nothing"), -32_601),
        (request("_hidden"), -32_601),
        (request("__init__"), -32_601),
        (request("add"), -32_602),
        (request("add", 1, 2, 3), -32_602),
        (request("add", params={"left": 1}), -32_602),
    ],
)
def test_what_cannot_be_answered_is_an_error_with_its_code(body: Any, code: int) -> None:
    assert ask(body)["error"]["code"] == code


def test_a_method_that_fails_does_not_take_the_node_down(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(request("fail"))["error"]["code"] == -32_603
    assert "ZeroDivisionError" in caplog.text
