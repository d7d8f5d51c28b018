"""The line to the node with holds: replies that are kept back, and calls that are sent twice."""

from __future__ import annotations

from functools import partial

import httpx
import psutil
import pytest

from chaos.chain import Chain
from chaos.control_line import ControlError
from chaos.processes import wait_until
from chaos.rpc_control import RpcControl
from chaos.supervisor import Supervisor
from reference_server.chain.connection import (
    ChainUnavailable,
    connect,
    is_known,
    mined,
    send,
)
from tests.integration.broken_line import (
    TIMEOUT_S,
    Line,
    Started,
    ask,
    chain,
    chain_supervisor,
    client_of,
    desk,
    line,
    line_to,
    request_of,
    transfer,
)
from tests.integration.chain_desk import ChainDesk, RpcRefusal
from tests.integration.proxied import receive
from tests.integration.recording_server import RecordingServer, ok

__all__ = ["chain", "chain_supervisor", "desk", "line"]

PATIENCE_S = 0.3  # for what must not happen


# --- holds


def test_a_lost_reply_leaves_the_transaction_at_the_node(line: Line, desk: ChainDesk) -> None:
    web3 = connect(line.url)
    signed = transfer(desk)
    hold = line.control.hold()
    sending = Started(lambda: send(web3, signed))
    held = hold.wait(TIMEOUT_S)
    assert held is not None
    assert held.method == "eth_sendRawTransaction"
    assert held.params == ["0x" + signed.raw.hex()]
    assert held.reply["result"] == signed.hash
    assert held.replies == [held.reply]
    assert held.peer_port in {each.laddr.port for each in psutil.Process().net_connections("tcp4")}
    assert not sending.over

    assert hold.drop() is True
    with pytest.raises(ChainUnavailable, match="reset"):
        sending.result()
    assert is_known(desk.web3, signed.hash)
    # ... and the same bytes may be sent again, through the same client.
    assert send(web3, signed) == signed.hash
    assert line.control.status()["holds"] == 0
    assert hold.deliver() is False


def test_a_held_reply_is_delivered_when_told(line: Line, desk: ChainDesk) -> None:
    web3 = connect(line.url)
    signed = transfer(desk)
    hold = line.control.hold()
    with pytest.raises(ControlError, match="has no reply yet"):
        hold.deliver()
    sending = Started(lambda: send(web3, signed))
    assert hold.wait(TIMEOUT_S) is not None
    assert mined(desk.web3, signed.hash) is not None
    assert not wait_until(lambda: sending.over, timeout_s=PATIENCE_S)
    assert hold.deliver() is True
    assert sending.result() == signed.hash
    assert hold.drop() is False


def test_a_hold_is_for_its_method_and_for_one_single_call(line: Line) -> None:
    hold = line.control.hold("eth_chainId")
    with httpx.Client(base_url=line.url, trust_env=False) as client:
        assert client.post("/", json={"id": 1, "method": "eth_blockNumber"}).json()["id"] == 1
        batch = client.post("/", json=[{"id": 1, "method": "eth_chainId"}]).json()
        assert batch[0]["result"] == "0x7a69"
        assert hold.wait(0) is None
        held = Started(lambda: client.post("/", json={"id": 3, "method": "eth_chainId"}).json())
        assert hold.wait(TIMEOUT_S) is not None
        assert (
            httpx.post(line.url, json={"id": 4, "method": "eth_chainId"}, trust_env=False).json()["id"] == 4
        )
        hold.deliver()
        assert held.result()["id"] == 3


def test_several_holds_are_reported_as_soon_as_their_reply_is_in(line: Line) -> None:
    holds = [line.control.hold("eth_chainId") for _ in range(3)]
    callers = []
    for number, hold in enumerate(holds):
        callers.append(Started(partial(ask, line, number)))
        held = hold.wait(TIMEOUT_S)
        assert held is not None
        assert held.reply["id"] == number
    assert line.control.status()["holds"] == 3
    for number in (2, 0, 1):
        assert not callers[number].over
        assert holds[number].deliver() is True
        assert callers[number].result()["id"] == number


def test_a_held_reply_is_delivered_in_time(chain: Chain, supervisor: Supervisor) -> None:
    with line_to(supervisor, chain.url, held_s_max=0.2) as line:
        hold = line.control.hold("eth_chainId")
        reply = httpx.post(line.url, json={"id": 1, "method": "eth_chainId"}, trust_env=False)
        assert reply.json()["result"] == "0x7a69"
        assert hold.wait(0) is not None
        assert line.control.status()["expired"] == 1
        assert hold.drop() is False


def test_a_hold_may_be_cancelled(line: Line) -> None:
    armed = line.control.hold("eth_chainId")
    armed.cancel()
    assert ask(line)["id"] == 1
    holding = line.control.hold("eth_chainId")
    caller = Started(partial(ask, line))
    assert holding.wait(TIMEOUT_S) is not None
    holding.cancel()
    assert caller.result()["id"] == 1
    holding.cancel()
    assert line.control.status()["holds"] == 0


def test_a_caller_that_dies_while_it_waits_leaves_its_reply(line: Line, desk: ChainDesk) -> None:
    signed = transfer(desk)
    hold = line.control.hold()
    with client_of(line) as client:
        client.sendall(request_of("eth_sendRawTransaction", "0x" + signed.raw.hex()))
        held = hold.wait(TIMEOUT_S)
        assert held is not None
        assert held.peer_port == client.getsockname()[1]
    assert wait_until(lambda: line.control.status()["callers"] == 0, timeout_s=TIMEOUT_S)
    assert hold.drop() is False
    assert is_known(desk.web3, signed.hash)


def test_a_call_whose_caller_died_before_the_reply_is_still_held(supervisor: Supervisor) -> None:
    with (
        RecordingServer(lambda _: ok(b'{"id":1,"result":"0x1"}')) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
    ):
        gone = [False]

        def answer(_: object) -> bytes:
            assert wait_until(lambda: gone[0], timeout_s=TIMEOUT_S)
            return ok(b'{"id":1,"result":"0x1"}')

        node.answer = answer
        hold = line.control.hold("eth_chainId")
        with client_of(line) as client:
            client.sendall(request_of("eth_chainId"))
            node.await_arrivals(1)
        assert wait_until(lambda: line.control.status()["callers"] == 0, timeout_s=TIMEOUT_S)
        gone[0] = True
        held = hold.wait(TIMEOUT_S)
        assert held is not None
        assert held.reply["result"] == "0x1"
        assert hold.deliver() is False


def test_all_is_healed_when_the_controller_has_gone(line: Line) -> None:
    holding, _armed = line.control.hold("eth_chainId"), line.control.hold("eth_chainId")
    caller = Started(partial(ask, line))
    assert holding.wait(TIMEOUT_S) is not None
    line.control.freeze()
    line.control.close()
    assert caller.result()["id"] == 1
    assert ask(line)["id"] == 1
    fresh = RpcControl(line.control.port)
    fresh.connect(timeout_s=TIMEOUT_S)
    status = fresh.status()
    assert (status["frozen_at"], status["holds"]) == (None, 0)
    fresh.close()
    with pytest.raises(ControlError, match="the line to the node has gone"):
        line.control.hold()


# --- repetitions


def test_a_repeated_call_reaches_the_node_twice_and_is_answered_once(line: Line, desk: ChainDesk) -> None:
    web3 = connect(line.url)
    signed = transfer(desk)
    repeat = line.control.repeat()
    assert send(web3, signed) == signed.hash
    held = repeat.wait(TIMEOUT_S)
    assert held is not None
    first, second = held.replies
    assert first["result"] == signed.hash
    assert held.reply == first
    # What the node says to bytes that it has executed.
    with pytest.raises(RpcRefusal) as refused:
        desk.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex())
    assert second["error"] == refused.value.args[0]
    assert mined(desk.web3, signed.hash) is not None
    assert line.control.status()["requests"]["eth_sendRawTransaction"] == 1


def test_the_two_copies_come_one_after_the_other(supervisor: Supervisor) -> None:
    call = request_of("eth_sendRawTransaction", "0x00")
    replies = [ok(b'{"id":1,"result":"first"}'), ok(b'{"id":1,"error":{"message":"known"}}')]
    with (
        RecordingServer(lambda _: replies[len(node.arrivals) - 1]) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        repeat = line.control.repeat()
        client.sendall(call)
        assert receive(client, len(replies[0])) == replies[0]
        held = repeat.wait(TIMEOUT_S)
        assert held is not None
        assert [arrival.raw for arrival in node.arrivals] == [call, call]
        assert held.replies == [{"id": 1, "result": "first"}, {"id": 1, "error": {"message": "known"}}]


def test_a_reply_outlives_the_node_that_gave_it(line: Line, desk: ChainDesk) -> None:
    web3 = connect(line.url)
    signed = transfer(desk)
    hold = line.control.hold()
    sending = Started(lambda: send(web3, signed))
    assert hold.wait(TIMEOUT_S) is not None
    desk.chain.kill()
    try:
        assert not sending.over
        assert hold.deliver() is True
        assert sending.result() == signed.hash
    finally:
        desk.chain.restart_after_kill()
    assert is_known(desk.web3, signed.hash)
