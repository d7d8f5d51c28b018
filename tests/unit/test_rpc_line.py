"""The line to the node, its pure parts: what a JSON-RPC request is, and what is asked of a frozen node."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.rpc_calls import RpcCall, outcome, read_calls, read_reply, request_of
from chaos.rpc_lag import BLOCK_AT, STATE_AT, TOUCHED, Frozen, as_number, plan, revise
from chaos.rpc_proxy import port_of

FROZEN = Frozen(100, {"latest": 100, "pending": 100, "safe": 68, "finalized": 36})

numbers = st.integers(0, 200)
tags = st.sampled_from(["latest", "pending", "safe", "finalized", "earliest"])
plain = st.one_of(tags, st.none(), numbers, numbers.map(hex), numbers.map(str))
blocks = st.one_of(plain, plain.map(lambda block: {"blockNumber": block}))


def calls_of(*methods: str) -> list[RpcCall]:
    return [RpcCall(method=method, params=[], number=number) for number, method in enumerate(methods)]


def test_a_body_is_a_call_a_batch_or_neither() -> None:
    assert read_calls(b'{"method":"a","id":0}') == calls_of("a")[0]
    assert read_calls(b'[{"method":"a","id":0},{"method":"b","id":1}]') == calls_of("a", "b")
    assert read_calls(b'{"method":"a","params":null}') == RpcCall(method="a", params=[], asks=False)
    assert read_calls(b'{"method":"a","params":[1],"id":null}') == RpcCall(method="a", params=[1])
    neither = [b"", b"\xff", b"{}", b"[]", b"1", b'"a"', b'{"method":1}', b'{"method":"a","params":{"b":1}}']
    neither += [b'[{"method":"a"},{}]', b'[[{"method":"a"}]]', b"[" * 10_000]
    assert [read_calls(body) for body in neither] == [None] * len(neither)


def test_a_reply_has_a_result_or_an_error() -> None:
    assert outcome({"id": 1, "result": None}) == {"result": None}
    assert outcome({"id": 1, "error": {"code": 1}}) == {"error": {"code": 1}}
    assert outcome(read_reply(b"<html>"))["error"]["code"] == -32_603
    assert read_reply(b"[1]") == {}
    assert calls_of("a")[0].reply({"result": 5}) == {"jsonrpc": "2.0", "id": 0, "result": 5}


def test_a_request_of_our_own_is_whole() -> None:
    made = request_of("eth_chainId", ["ü"], port=8545)
    head, body = made.raw.split(b"\r\n\r\n", 1)
    assert made.head == head + b"\r\n\r\n"
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": ["ü"]}


@given(st.sampled_from(sorted(STATE_AT.items())), blocks)
def test_no_state_after_the_frozen_head_is_asked_for(where: tuple[str, int], block: Any) -> None:
    method, at = where
    planned = plan(method, ["0x1"] * at + [block], FROZEN)
    named = block.get("blockNumber") if isinstance(block, dict) else block
    if planned.answer is not None:
        assert planned.answer["error"]["code"] == -32_602
        asked = as_number(named)
        assert asked is not None
        assert asked > FROZEN.number
        return
    *before, asked = planned.params
    assert before == ["0x1"] * at
    if named in ("earliest",):
        assert asked == block
    else:
        name = asked.get("blockNumber") if isinstance(asked, dict) else asked
        number = as_number(name)
        assert number is not None
        assert number <= FROZEN.number
        assert number == FROZEN.tags.get("latest" if named is None else str(named), as_number(named))


@given(st.sampled_from(sorted(BLOCK_AT.items())), plain)
def test_a_block_after_the_frozen_head_is_null(where: tuple[str, int], block: Any) -> None:
    method, at = where
    planned = plan(method, ["0x1"] * at + [block], FROZEN)
    number = as_number(block)
    newer = number is not None and number > FROZEN.number
    assert planned.answer == ({"result": None} if newer else None)
    asked = as_number(planned.params[at])
    assert newer or block == "earliest" or (asked is not None and asked <= FROZEN.number)


@given(st.fixed_dictionaries({}, optional={"fromBlock": plain, "toBlock": plain, "address": st.just("0x1")}))
def test_no_log_after_the_frozen_head_is_asked_for(wanted: dict[str, Any]) -> None:
    given_before = dict(wanted)
    planned = plan("eth_getLogs", [wanted], FROZEN)
    assert wanted == given_before  # it is the caller's
    first = as_number(wanted.get("fromBlock"))
    if first is not None and first > FROZEN.number:
        assert planned.answer == {"result": []}
        return
    assert planned.answer is None
    asked = planned.params[0]
    for name in ("fromBlock", "toBlock"):
        bound = as_number(asked.get(name))
        assert asked.get(name) == "earliest" or (bound is not None and bound <= FROZEN.number)
    assert asked.get("address") == wanted.get("address")


@pytest.mark.parametrize("method", ["eth_sendRawTransaction", "eth_chainId", "evm_mine", "txpool_content"])
def test_what_is_about_no_block_is_not_touched(method: str) -> None:
    assert method not in TOUCHED


def test_what_is_newer_is_taken_out() -> None:
    new, old = {"blockNumber": "0x65", "blockHash": "0x1", "transactionIndex": "0x0"}, {"blockNumber": "0x64"}
    assert revise("eth_blockNumber", "0x65", FROZEN) == "0x64"
    assert revise("eth_getTransactionReceipt", new, FROZEN) is None
    assert revise("eth_getTransactionReceipt", old, FROZEN) == old
    assert revise("eth_getTransactionReceipt", None, FROZEN) is None
    assert revise("eth_getFilterLogs", [old, new], FROZEN) == [old]
    assert revise("eth_getBlockByHash", {"number": "0x65"}, FROZEN) is None
    assert revise("eth_getBlockByHash", {"number": "0x64"}, FROZEN) == {"number": "0x64"}
    waiting = {"blockNumber": None, "blockHash": None, "transactionIndex": None}
    assert revise("eth_getTransactionByHash", new, FROZEN) == waiting
    assert revise("eth_getTransactionByHash", {**new, "maxFeePerGas": "0x9", "gasPrice": "0x2"}, FROZEN) == {
        **waiting,
        "maxFeePerGas": "0x9",
        "gasPrice": "0x9",
    }


def test_the_node_is_on_this_machine() -> None:
    assert port_of("http://127.0.0.1:8545") == port_of("http://localhost:8545/") == 8545
    for url in (
        "http://192.0.2.1:1",
        "https://127.0.0.1:1",
        "http://127.0.0.1",
        "http://127.0.0.1:1/key",
        "",
    ):
        with pytest.raises(ValueError, match="'"):
            port_of(url)
