"""The proxy process with a recording server behind it, and a client that speaks in bytes."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.ports import free_port
from chaos.proxy_control import Happened, ProxyControl
from chaos.supervisor import Child, Supervisor
from tests.integration.recording_server import RecordingServer

TIMEOUT_S = 10.0


class Proxied:
    """One proxy process, its control connection, and what it told."""

    def __init__(self, child: Child, listen: int, control: ProxyControl) -> None:
        self.child = child
        self.listen = listen
        self.control = control
        self.happened: list[Happened] = []
        self._changed = threading.Condition()
        control.listener = self._hear

    def _hear(self, happened: Happened) -> None:
        with self._changed:
            self.happened.append(happened)
            self._changed.notify_all()

    def await_happened(self, count: int = 1) -> list[Happened]:
        """Wait until the proxy has told of that many faults."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.happened) >= count, TIMEOUT_S), self.happened
            return list(self.happened)

    @contextmanager
    def client(self) -> Iterator[socket.socket]:
        """A connection to the proxy."""
        with socket.create_connection(("127.0.0.1", self.listen), timeout=TIMEOUT_S) as connection:
            yield connection


@contextmanager
def proxied(run: Path, *upstreams: RecordingServer) -> Iterator[Proxied]:
    """A proxy in front of these servers."""
    listen, control = free_port(), free_port()
    command = [sys.executable, "-m", "chaos.http_proxy", "--listen", str(listen), "--control", str(control)]
    for upstream in upstreams:
        command += ["--upstream", str(upstream.port)]
    with Supervisor(run) as supervisor:
        child = supervisor.spawn("proxy", command)
        proxy = ProxyControl(control)
        proxy.connect(timeout_s=TIMEOUT_S)
        try:
            yield Proxied(child, listen, proxy)
        finally:
            proxy.close()
        child.terminate()
        assert child.log_tail() == "", "the proxy had something to complain about"


def trade(key: str, *, path: str = "/api/trade", body: bytes = b'{"side":"buy"}') -> bytes:
    """A request that moves money."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def receive(connection: socket.socket, count: int) -> bytes:
    """Exactly this many bytes, or fewer when the connection ends in order; a reset raises."""
    data = b""
    while len(data) < count:
        piece = connection.recv(min(1 << 20, count - len(data)))
        if not piece:
            break
        data += piece
    return data


def receive_all(connection: socket.socket) -> bytes:
    """Everything until the connection ends in order; a reset raises."""
    return receive(connection, 1 << 40)


def is_reset(connection: socket.socket) -> bool:
    """Whether the connection ends with a reset and without a byte before it."""
    try:
        data = connection.recv(65536)
    except ConnectionResetError:
        return True
    raise AssertionError(f"not reset: {data[:200]!r}")
