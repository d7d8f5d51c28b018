"""The line to the node: what passes, replies that are kept back, calls sent twice, and nodes that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from web3.types import Wei

from chaos.chain import Chain, choose_chain
from chaos.control_line import ControlError
from chaos.ports import free_port
from chaos.processes import wait_until
from chaos.rpc_control import RpcControl
from chaos.supervisor import ROOT, Supervisor
from reference_server.chain.connection import (
    ChainUnavailable,
    Fees,
    SignedTransaction,
    account_of,
    connect,
    is_known,
    mined,
    send,
    sign,
)
from tests.integration.broken_line import TIMEOUT_S, Line, Started, line_to
from tests.integration.chain_desk import ChainDesk, RpcRefusal
from tests.integration.proxied import is_reset, receive
from tests.integration.recording_server import RESET, RecordingServer, ok

GWEI = 10**9
PATIENCE_S = 0.3  # for what must not happen


@pytest.fixture(scope="module")
def chain_supervisor(scratch: Path) -> Iterator[Supervisor]:
    with Supervisor(scratch / "rpc_proxy") as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def chain(chain_supervisor: Supervisor, scratch: Path) -> Iterator[Chain]:
    """A node that mines each transaction at once; tests may kill it if they start it again."""
    chain = choose_chain("embedded", supervisor=chain_supervisor, data_dir=scratch / "rpc_proxy" / "data")
    chain.start()
    yield chain
    chain.stop()


@pytest.fixture
def line(chain: Chain, chain_supervisor: Supervisor) -> Iterator[Line]:
    with line_to(chain_supervisor, chain.url) as started:
        yield started


@pytest.fixture
def desk(chain: Chain) -> ChainDesk:
    """Straight to the node."""
    return ChainDesk(chain)


def transfer(desk: ChainDesk, sender: int = 0) -> SignedTransaction:
    """A transfer of 1 wei that has not been sent."""
    account = account_of(desk.chain.accounts[sender].private_key)
    return sign(
        account,
        {"to": desk.accounts[9].address, "value": Wei(1), "gas": 21_000},
        chain_id=desk.chain.chain_id,
        nonce=desk.nonce(account),
        fees=Fees(max_fee_wei=20 * GWEI, max_priority_fee_wei=GWEI),
    )


def request(method: str, *params: Any, number: int = 1) -> bytes:
    """One call as bytes."""
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    return post(body)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def ask(line: Line, number: int = 1) -> Any:
    """The reply to eth_chainId, on a connection of its own."""
    call = {"jsonrpc": "2.0", "id": number, "method": "eth_chainId"}
    return httpx.post(line.url, json=call, timeout=TIMEOUT_S, trust_env=False).json()


def client_of(line: Line) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=TIMEOUT_S)


# --- what passes

PASSING = {
    "a call": request("eth_chainId"),
    "a batch": post(b'[{"id":1,"method":"eth_chainId"},{"id":2,"method":"eth_blockNumber"}]'),
    "a notification": post(b'{"method":"eth_chainId"}'),
    "odd spelling": post(b'{ "method":"eth_chainId"  ,"id":"\\u0041", "extra":[1e400], "id":"B"}'),
    "no JSON": post(b"\x00\xff"),
    "no call": post(b"[]"),
    "another method": b"GET /x?y HTTP/1.1\r\nX-Odd:  1\r\n\r\n",
    "a chunked call": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r\n0\r\n\r\n",
    "8 MiB": post(b'"' + b"x" * (8 << 20) + b'"'),
}
REPLIES = {
    "a length": ok(b'{"id":1,"result":"0x1"}', b"X-Odd:  1"),
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a refusal": b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
}


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("name", PASSING)
def test_every_byte_passes_once(name: str, reply: str, supervisor: Supervisor) -> None:
    with (
        RecordingServer(lambda _: REPLIES[reply]) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        for turn in (1, 2):  # the connection is as good afterwards as before
            client.sendall(PASSING[name])
            assert receive(client, len(REPLIES[reply])) == REPLIES[reply]
            assert [arrival.raw for arrival in node.arrivals] == [PASSING[name]] * turn
        assert {arrival.connection for arrival in node.arrivals} == {1}


def test_pipelined_calls_arrive_one_at_a_time_and_in_order(supervisor: Supervisor) -> None:
    calls = [request("eth_chainId", number=number) for number in range(20)]
    with (
        RecordingServer(lambda arrival: ok(arrival.raw)) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        client.sendall(b"".join(calls))
        expected = b"".join(ok(call) for call in calls)
        assert receive(client, len(expected)) == expected
        assert [arrival.raw for arrival in node.arrivals] == calls


def test_the_line_counts_by_method(line: Line) -> None:
    with httpx.Client(base_url=line.url, trust_env=False) as client:
        client.post("/", json={"id": 1, "method": "eth_chainId"})
        client.post("/", json=[{"id": 1, "method": "eth_chainId"}, {"id": 2, "method": "eth_gasPrice"}])
        client.post("/", content=b"no call")
        for number in range(300):
            client.post("/", json={"id": 1, "method": f"made_up_{number}"})
        status = line.control.status()
    requests = status.pop("requests")
    assert requests["eth_chainId"] == 2
    assert requests["eth_gasPrice"] == 1
    assert len(requests) <= 201
    assert sum(requests.values()) == 304
    assert status == {
        "refused": 0,
        "lost": 0,
        "callers": 1,
        "holds": 0,
        "expired": 0,
        "frozen_at": None,
        "clamped": 0,
    }


@pytest.mark.parametrize("way", ["length", "chunks", "head"])
def test_what_is_too_long_is_a_reset(way: str, supervisor: Supervisor) -> None:
    piece = b"x" * (1 << 20)
    begin = {
        "length": b"POST / HTTP/1.1\r\nContent-Length: 16777217\r\n\r\n",
        "chunks": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "head": b"POST / HTTP/1.1\r\nX-Long: ",
    }[way]
    with (
        RecordingServer() as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        with pytest.raises(ConnectionError):  # noqa: PT012  as soon as the line has had enough
            client.sendall(begin)
            for _ in range(20):
                client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if way == "chunks" else piece)
            client.recv(1)
        assert node.arrivals == []


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
        client.sendall(request("eth_sendRawTransaction", "0x" + signed.raw.hex()))
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
            client.sendall(request("eth_chainId"))
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
    call = request("eth_sendRawTransaction", "0x00")
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


# --- nodes that die


def test_a_node_that_refuses_is_a_reset(supervisor: Supervisor) -> None:
    with line_to(supervisor, f"http://127.0.0.1:{free_port()}") as line:
        # The reset may come as early as the end of the handshake.
        with pytest.raises(ConnectionResetError), client_of(line) as client:  # noqa: PT012
            client.sendall(request("eth_chainId"))
            client.recv(1)
        with pytest.raises(ChainUnavailable):
            is_known(connect(line.url), "0x" + "00" * 32)
        assert line.control.status()["refused"] == 2
        with pytest.raises(ControlError, match="cannot freeze"):
            line.control.freeze()


@pytest.mark.parametrize("how", ["reset", "orderly", "cut"])
def test_a_node_that_ends_the_connection_unanswered_is_a_reset(how: str, supervisor: Supervisor) -> None:
    with RecordingServer() as node, line_to(supervisor, f"http://127.0.0.1:{node.port}") as line:

        def answer(_: object) -> bytes:
            if how == "orderly":
                node.finish_connections()
                return b""
            return RESET if how == "reset" else ok(b"x" * 1000)[:200] + RESET

        node.answer = answer
        hold = line.control.hold("eth_chainId")
        with client_of(line) as client:
            client.sendall(request("eth_chainId"))
            assert is_reset(client)
        assert len(node.arrivals) == 1
        assert line.control.status()["lost"] == 1
        # The hold had no reply to keep: it is for the next call.
        node.answer = lambda _: ok(b'{"id":1,"result":"0x1"}')
        with client_of(line) as client:
            client.sendall(request("eth_chainId"))
            assert hold.wait(TIMEOUT_S) is not None
            hold.deliver()
            assert receive(client, 15) == b"HTTP/1.1 200 OK"


def test_a_node_that_ends_an_idle_connection_ends_it_in_order(supervisor: Supervisor) -> None:
    with (
        RecordingServer(lambda _: ok(b"fine")) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        client.sendall(request("eth_chainId"))
        receive(client, len(ok(b"fine")))
        node.finish_connections()
        assert client.recv(1) == b""


def test_a_node_that_was_killed_works_again_at_once(line: Line, desk: ChainDesk) -> None:
    web3 = connect(line.url)
    chain = desk.chain
    with httpx.Client(base_url=line.url, trust_env=False) as client:
        call = {"id": 1, "method": "eth_blockNumber"}
        head = client.post("/", json=call).json()["result"]
        assert web3.eth.block_number == int(head, 16)
        chain.kill()
        for _ in range(2):
            with pytest.raises(ChainUnavailable):
                is_known(web3, "0x" + "00" * 32)
            with pytest.raises(httpx.TransportError):
                client.post("/", json=call)
        chain.restart_after_kill()
        # The first try: nothing of the old connections is in the way.
        assert client.post("/", json=call).json()["result"] == head
        assert not is_known(web3, "0x" + "00" * 32)


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


# --- the process


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://192.0.2.1:1", "http://127.0.0.1:1/key", "http://127.0.0.1"]
)
def test_a_node_elsewhere_is_refused(url: str) -> None:
    done = run("--listen", str(free_port()), "--upstream", url, "--control", str(free_port()))
    assert done.returncode == 2
    assert url in done.stderr


def test_a_taken_port_ends_the_line_with_a_message(line: Line) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run("--listen", str(line.port), "--upstream", url, "--control", str(free_port()))
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chaos.rpc_proxy", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)


def test_an_unknown_command_is_refused(line: Line) -> None:
    with pytest.raises(ControlError, match="no command 'nothing'"):
        line.control.ask("nothing")
    with pytest.raises(ControlError, match="needs a method"):
        line.control.hold("")


def test_a_line_that_dies_is_heard_of(chain: Chain, tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        listen, control = free_port(), free_port()
        child = supervisor.spawn(
            "line",
            [
                *(sys.executable, "-m", "chaos.rpc_proxy", "--listen", str(listen)),
                *("--upstream", chain.url, "--control", str(control)),
            ],
        )
        controller = RpcControl(control)
        controller.connect(timeout_s=TIMEOUT_S)
        lost: list[bool] = []
        controller.lost = lambda: lost.append(True)
        hold = controller.hold()
        waiting = Started(lambda: hold.wait(TIMEOUT_S))
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ControlError, match="the line to the node has gone"):
            waiting.result()
        assert wait_until(lambda: lost == [True], timeout_s=TIMEOUT_S)
        controller.close()
