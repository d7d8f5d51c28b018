"""The line to the node without holds: what passes, what is refused, and nodes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from chaos.chain import Chain
from chaos.control_line import ControlError
from chaos.ports import free_port
from chaos.processes import wait_until
from chaos.rpc_control import RpcControl
from chaos.supervisor import ROOT, Supervisor
from reference_server.chain.connection import (
    ChainUnavailable,
    connect,
    is_known,
)
from tests.integration.broken_line import (
    TIMEOUT_S,
    Line,
    Started,
    chain,
    chain_supervisor,
    client_of,
    desk,
    line,
    line_to,
    post,
    request_of,
)
from tests.integration.chain_desk import ChainDesk
from tests.integration.proxied import is_reset, receive
from tests.integration.recording_server import RESET, Arrival, RecordingServer, ok

__all__ = ["chain", "chain_supervisor", "desk", "line"]

PATIENCE_S = 0.3  # for what must not happen


# --- what passes

PASSING = {
    "a call": request_of("eth_chainId"),
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
    calls = [request_of("eth_chainId", number=number) for number in range(20)]
    slow = threading.Event()

    def answer(arrival: Arrival) -> bytes:
        assert slow.wait(TIMEOUT_S)
        return ok(arrival.raw)

    with (
        RecordingServer(answer) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        client.sendall(calls[0])
        node.await_arrivals(1)
        client.sendall(b"".join(calls[1:]))
        assert not wait_until(lambda: len(node.arrivals) > 1, timeout_s=PATIENCE_S)
        slow.set()
        expected = b"".join(ok(call) for call in calls)
        assert receive(client, len(expected)) == expected
        assert [arrival.raw for arrival in node.arrivals] == calls


def test_a_caller_that_does_not_wait_is_read_from_later(supervisor: Supervisor) -> None:
    call = request_of("eth_chainId", "x" * 8192)
    with (
        RecordingServer(lambda _: ok(b"{}")) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        hold = line.control.hold("eth_chainId")
        client.sendall(call)
        assert hold.wait(TIMEOUT_S) is not None
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):  # noqa: PT012  when the buffers of the kernel are full
            while sent < 64 << 20:
                sent += client.send(call[sent % len(call) :])
        assert sent < 64 << 20
        client.settimeout(TIMEOUT_S)
        hold.deliver()
        expected = ok(b"{}") * (1 + sent // len(call))
        assert receive(client, len(expected)) == expected


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
        "freezing": False,
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


# --- nodes that die


def test_a_node_that_refuses_is_a_reset(supervisor: Supervisor) -> None:
    with line_to(supervisor, f"http://127.0.0.1:{free_port()}") as line:
        # The reset may come as early as the end of the handshake, and comes before a byte is sent.
        with pytest.raises(ConnectionResetError), client_of(line) as client:
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
            client.sendall(request_of("eth_chainId"))
            assert is_reset(client)
        assert len(node.arrivals) == 1
        assert line.control.status()["lost"] == 1
        # The hold had no reply to keep: it is for the next call.
        node.answer = lambda _: ok(b'{"id":1,"result":"0x1"}')
        with client_of(line) as client:
            client.sendall(request_of("eth_chainId"))
            assert hold.wait(TIMEOUT_S) is not None
            hold.deliver()
            assert receive(client, 15) == b"HTTP/1.1 200 OK"


def test_a_node_that_ends_an_idle_connection_ends_it_in_order(supervisor: Supervisor) -> None:
    with (
        RecordingServer(lambda _: ok(b"fine")) as node,
        line_to(supervisor, f"http://127.0.0.1:{node.port}") as line,
        client_of(line) as client,
    ):
        client.sendall(request_of("eth_chainId"))
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
