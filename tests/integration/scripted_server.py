"""A TCP server that does to each request what its script says, and keeps every request that arrived."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

ACCEPT_TIMEOUT_S = 0.1
IDLE_TIMEOUT_S = 30.0
TRICKLE_INTERVAL_S = 0.05
JOIN_TIMEOUT_S = 10.0


class Act(NamedTuple):
    """What is sent back for one request, and what becomes of the connection: keep, close, reset or hold.

    With `trickle` the data is sent a byte at a time.
    """

    data: bytes = b""
    then: str = "keep"


CLOSE = Act(then="close")
RESET = Act(then="reset")
SILENCE = Act(then="hold")


class Arrival(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    whole: bytes


class ScriptedServer:
    """Asks `script` for an act for each arrival; the script gets its number, from 0, and the arrival."""

    def __init__(self, script: Callable[[int, Arrival], Act]) -> None:
        self.arrivals: list[Arrival] = []
        self.connections = 0
        self._script = script
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(ACCEPT_TIMEOUT_S)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            self._start(self._talk, connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(ACCEPT_TIMEOUT_S)
        with connection:
            while (arrival := self._receive(connection)) is not None:
                with self._lock:
                    number = len(self.arrivals)
                    self.arrivals.append(arrival)
                act = self._script(number, arrival)
                if act.then == "trickle":
                    self._trickle(connection, act.data)
                elif act.data:
                    connection.sendall(act.data)
                if act.then == "hold":
                    self._stopped.wait(IDLE_TIMEOUT_S)
                if act.then == "reset":
                    # A close with unsent data to wait for nothing is a reset on the wire.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if act.then != "keep":
                    return

    def _receive(self, connection: socket.socket) -> Arrival | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._some(connection)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            body += self._some(connection)
        method, path, _ = lines[0].split(" ")
        return Arrival(method, path, headers, body, head + b"\r\n\r\n" + body)

    def _trickle(self, connection: socket.socket, data: bytes) -> None:
        for byte in data:
            with contextlib.suppress(OSError):  # the other side has gone away
                connection.sendall(bytes([byte]))
            self._stopped.wait(TRICKLE_INTERVAL_S)

    def _some(self, connection: socket.socket) -> bytes:
        while not self._stopped.is_set():
            try:
                return connection.recv(65_536)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return b""
        return b""


def answer(status: int, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    """A complete reply."""
    head = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *headers, "", ""]).encode("ascii") + body
