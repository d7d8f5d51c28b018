"""A small real HTTP server that records every request as the bytes that came, and answers as it is told.

It frames requests with a parser of its own, so that it cannot share a mistake with the proxy. As a process
(`python -m tests.integration.recording_server PORT`) it answers 200 to everything.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

RESET = b"<reset>"  # an answer that is no answer: the connection is reset
WAIT_S_MAX = 10.0


@dataclass(frozen=True)
class Arrival:
    """One request, and which connection of the server it came on."""

    raw: bytes
    connection: int

    @property
    def key(self) -> str:
        for line in self.raw.split(b"\r\n\r\n", 1)[0].split(b"\r\n"):
            if line.lower().startswith(b"idempotency-key:"):
                return line.split(b":", 1)[1].strip().decode()
        return ""


def ok(content: bytes, *headers: bytes) -> bytes:
    """A plain 200."""
    lines = b"".join(line + b"\r\n" for line in headers)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(content), content)


def told(arrival: Arrival) -> bytes:
    """The usual answer: names the connection that the request came on."""
    return ok(b"connection %d" % arrival.connection)


class RecordingServer:
    """Listens on a loopback port of its own while it is entered; a thread for each connection."""

    def __init__(self, answer: Callable[[Arrival], bytes] = told, *, port: int = 0) -> None:
        self.answer = answer
        self.arrivals: list[Arrival] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> RecordingServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()
        self.drop_connections()
        for thread in self._threads:
            thread.join(WAIT_S_MAX)

    def stop_listening(self) -> None:
        """Connections from now on are refused."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # stopped before
        self._listener.close()

    def drop_connections(self) -> None:
        """Reset every connection that is open now."""
        with self._changed:
            for connection in self._open:
                reset(connection)

    def finish_connections(self) -> None:
        """End every connection that is open now in order."""
        with self._changed:
            for connection in self._open:
                connection.shutdown(socket.SHUT_WR)

    def await_arrivals(self, count: int) -> None:
        """Wait until that many requests have come; raises AssertionError when they do not."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.arrivals) >= count, WAIT_S_MAX)
        assert came, f"{len(self.arrivals)} of {count} requests arrived"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # no longer listening
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                self._open.add(connection)
            self._start(lambda connection=connection, number=number: self._serve(connection, number))  # type: ignore[misc]

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            buffer = b""
            while True:
                raw, buffer = read_request(connection, buffer)
                if not raw:
                    return
                arrival = Arrival(raw, number)
                with self._changed:
                    self.arrivals.append(arrival)
                    self._changed.notify_all()
                answer = self.answer(arrival)
                if answer.endswith(RESET):
                    connection.sendall(answer.removesuffix(RESET))
                    reset(connection)
                    return
                connection.sendall(answer)
                if b"connection: close" in answer.lower():
                    return
        except OSError:
            return  # the client's end of the matter
        finally:
            with self._changed:
                self._open.discard(connection)
                connection.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()


def reset(connection: socket.socket) -> None:
    """RST, also while another thread reads."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()


def read_request(connection: socket.socket, buffer: bytes) -> tuple[bytes, bytes]:
    """One whole request and the bytes after it; nothing when the connection ends before."""

    def more() -> bool:
        nonlocal buffer
        data = connection.recv(65536)
        buffer += data
        return bool(data)

    while b"\r\n\r\n" not in buffer:
        if not more():
            return b"", b""
    head_bytes = buffer.index(b"\r\n\r\n") + 4
    head = buffer[:head_bytes].lower()
    if b"expect: 100-continue" in head:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if b"transfer-encoding: chunked" in head:
        while b"0\r\n\r\n" not in buffer[head_bytes:]:
            if not more():
                return b"", b""
        total = buffer.index(b"0\r\n\r\n", head_bytes) + 5
    else:
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        total = head_bytes + (int(lengths[0].split(b":")[1]) if lengths else 0)
        while len(buffer) < total:
            if not more():
                return b"", b""
    return buffer[:total], buffer[total:]


if __name__ == "__main__":
    with RecordingServer(port=int(sys.argv[1])):
        threading.Event().wait()
