"""The proxy without faults: every byte passes once, and each end meets what happens to the other."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.ports import free_port
from chaos.proxy_control import ProxyControl, ProxyError
from tests.integration.proxied import Proxied, is_reset, proxied, receive, receive_all, trade
from tests.integration.recording_server import RESET, Arrival, RecordingServer, ok

LARGE = bytes(range(256)) * (16 * 1024)  # 4 MiB


@pytest.fixture(scope="module")
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as recording:
        yield recording


@pytest.fixture(scope="module")
def proxy(server: RecordingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(tmp_path_factory.mktemp("proxy"), server) as started:
        yield started


@pytest.fixture(autouse=True)
def _fresh(server: RecordingServer) -> None:
    server.arrivals.clear()


EXCHANGES = {
    "a length each": (trade("k1"), ok(b"fine")),
    "nothing to say": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ok(b"")),
    "a chunked request": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
        ok(b"fine"),
    ),
    "a chunked reply with a trailer": (
        trade("k1"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\nDigest: q\r\n\r\n",
    ),
    "a HEAD, whose reply has a length and no body": (
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n",
    ),
    "a 204": (trade("k1"), b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a 304 with a length": (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    ),
    "early hints before the reply": (
        trade("k1"),
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(b"fine"),
    ),
    "odd spelling": (
        b"PoSt /a%20b?c=%00 HTTP/1.1\r\nhOST:x\r\nX-Empty:\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
        b"X-Latin: \xe4\xf6\r\nCONTENT-length:   3 \r\n\r\n\x00\xff\n",
        b"HTTP/1.1 200\r\nx:y\r\ncontent-length: 1\r\n\r\n\x00",
    ),
    "large bodies": (trade("k1", body=LARGE), ok(LARGE)),
    "what the proxy cannot frame": (
        b"POST / HTTP/1.1\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
        ok(b"fine"),
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_every_byte_passes_in_both_directions(name: str, proxy: Proxied, server: RecordingServer) -> None:
    request, reply = EXCHANGES[name]
    server.answer = lambda _: reply
    with proxy.client() as client:
        for turn in (1, 2):  # the connection is as good afterwards as before
            client.sendall(request)
            assert receive(client, len(reply)) == reply
            assert [arrival.raw for arrival in server.arrivals] == [request] * turn


def test_a_request_that_comes_byte_by_byte_passes(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: ok(b"fine")
    request = trade("drip", body=b"abc")
    with proxy.client() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(request)):
            client.sendall(request[place : place + 1])
        assert receive(client, len(ok(b"fine"))) == ok(b"fine")
    assert [arrival.raw for arrival in server.arrivals] == [request]


def test_a_reply_without_length_ends_with_its_connection(proxy: Proxied, server: RecordingServer) -> None:
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + LARGE
    server.answer = lambda _: reply
    with proxy.client() as client:
        client.sendall(trade("k"))
        assert receive_all(client) == reply


def test_a_client_that_asks_first_is_told_to_continue(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: ok(b"fine")
    head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nIdempotency-Key: k\r\nContent-Length: 4\r\n\r\n"
    with proxy.client() as client:
        client.sendall(head)
        assert receive(client, 25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        assert receive(client, len(ok(b"fine"))) == ok(b"fine")
    assert [arrival.raw for arrival in server.arrivals] == [head + b"body"]


def test_pipelined_requests_arrive_once_each_and_in_order(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda arrival: ok(arrival.key.encode())
    requests = [trade(f"k{number}", body=b"x" * number) for number in range(40)]
    replies = b"".join(ok(f"k{number}".encode()) for number in range(40))
    with proxy.client() as client:
        client.sendall(b"".join(requests))
        assert receive(client, len(replies)) == replies
    assert [arrival.raw for arrival in server.arrivals] == requests


def test_one_client_connection_is_one_upstream_connection(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: ok(b"fine")
    before = server.connections
    for _ in range(3):
        with proxy.client() as client:
            for number in range(20):
                client.sendall(trade(f"k{number}"))
                receive(client, len(ok(b"fine")))
    assert server.connections == before + 3
    assert len({arrival.connection for arrival in server.arrivals}) == 3


def test_a_client_that_closed_its_sending_side_gets_its_reply(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: ok(b"fine")
    with proxy.client() as client:
        client.sendall(trade("k"))
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == ok(b"fine")


def test_a_reply_cut_off_is_a_reset_and_never_sent_again(proxy: Proxied, server: RecordingServer) -> None:
    cut = ok(b"x" * 1000)[:200]
    server.answer = lambda _: cut + RESET
    with proxy.client() as client:
        client.sendall(trade("k"))
        data = b""
        with pytest.raises(ConnectionResetError):  # noqa: PT012  the bytes before it may or may not come
            while piece := client.recv(65536):
                data += piece
        assert cut.startswith(data)
    assert len(server.arrivals) == 1


@pytest.mark.parametrize("how", ["reset", "orderly"])
def test_a_server_that_ends_the_connection_unanswered_is_a_reset(
    how: str, proxy: Proxied, server: RecordingServer
) -> None:
    def answer(_: Arrival) -> bytes:
        if how == "reset":
            return RESET
        server.finish_connections()
        return b""

    server.answer = answer
    with proxy.client() as client:
        client.sendall(trade("k"))
        assert is_reset(client)
    assert len(server.arrivals) == 1


def test_a_server_that_ends_an_idle_connection_ends_it_in_order(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: ok(b"fine")
    with proxy.client() as client:
        client.sendall(trade("k"))
        receive(client, len(ok(b"fine")))
        server.finish_connections()
        assert client.recv(1) == b""


def test_a_refused_upstream_is_a_reset(tmp_path: Path) -> None:
    with RecordingServer() as server, proxied(tmp_path, server) as proxy:
        server.stop_listening()
        # The reset may come as early as the end of the handshake.
        with pytest.raises(ConnectionResetError), proxy.client() as client:  # noqa: PT012
            client.sendall(trade("k"))
            client.recv(1)
        assert proxy.control.status()["refused"] == 1
        assert server.arrivals == []


def test_several_servers_take_turns(tmp_path: Path) -> None:
    with RecordingServer() as one, RecordingServer() as other, proxied(tmp_path, one, other) as proxy:
        for number in range(4):
            with proxy.client() as client:
                client.sendall(trade(f"k{number}"))
                receive(client, 10)
        assert [len(one.arrivals), len(other.arrivals)] == [2, 2]


def test_a_slow_reader_does_not_fill_the_proxy(tmp_path: Path) -> None:
    reply = ok(b"x" * 64 * 1024 * 1024)
    with RecordingServer(lambda _: reply) as server, proxied(tmp_path, server) as proxy:
        before = peak_memory_bytes(proxy)
        with proxy.client() as client:
            client.sendall(trade("k"))
            data = b""
            while len(data) < 1024 * 1024:
                data += client.recv(1024)
            assert data + receive(client, len(reply) - len(data)) == reply
        assert peak_memory_bytes(proxy) - before < 16 * 1024 * 1024


def peak_memory_bytes(proxy: Proxied) -> int:
    status = Path(f"/proc/{proxy.child.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_many_clients_at_once_get_each_their_own_replies(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda arrival: ok(arrival.key.encode())
    wrong: list[bytes] = []

    def client_of(name: int) -> None:
        with proxy.client() as client:
            for turn in range(50):
                expected = ok(f"{name}-{turn}".encode())
                client.sendall(trade(f"{name}-{turn}"))
                if (got := receive(client, len(expected))) != expected:
                    wrong.append(got)

    threads = [threading.Thread(target=client_of, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert len({arrival.key for arrival in server.arrivals}) == len(server.arrivals) == 800


def test_a_taken_port_ends_the_proxy_with_a_message(
    proxy: Proxied, server: RecordingServer, tmp_path: Path
) -> None:
    ports = ["--listen", str(proxy.listen), "--upstream", str(server.port), "--control", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-m", "chaos.http_proxy", *ports],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert str(tmp_path) not in done.stderr


def test_a_control_port_where_nobody_listens_is_an_error() -> None:
    with pytest.raises(ProxyError, match="does not listen"):
        ProxyControl(free_port()).connect(timeout_s=0.1)
