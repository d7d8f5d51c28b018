"""Whole calls of HTTP clients, for processes that decide on a request's body: gathered, then answered.

One call of a connection is at hand at a time; what a client sends before its answer waits. What cannot be
framed, or is longer than the bounds, is a reset.

Why not uvicorn: an application on it can not reset a connection, nor learn that its caller has gone while the
answer is kept back.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import msgspec

from chaos.http_framing import CHUNKED, HEAD_BYTES_MAX, ChunkedBody, FramingError, header, request_framing
from chaos.http_transport import Brake, reset

BODY_BYTES_MAX = 16 * 1024 * 1024
INBOX_BYTES_MAX = 256 * 1024


def json_of(body: bytes) -> Any:
    """What a body says; None when it is no JSON, or too deep to be read."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def json_reply(body: bytes, *, status: str = "200 OK") -> bytes:
    """A whole reply of our own."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Call:
    """One whole request; `body` is without the chunks' framing, `raw` is every byte as it came."""

    def __init__(self, connection: CallConnection, *, raw: bytes, head_bytes: int, body: bytes) -> None:
        self.raw = raw
        self.head_bytes = head_bytes
        self.head = raw[:head_bytes]
        self.body = body
        self.peer_port = connection.peer_port
        self.time_ns = time.monotonic_ns()
        self._connection = connection

    @property
    def gone(self) -> bool:
        """Whether the caller has ended its connection."""
        return self._connection.gone

    def is_of(self, connection: CallConnection) -> bool:
        """Whether it came on this connection."""
        return self._connection is connection

    def answer(self, raw: bytes) -> bool:
        """Give a whole reply; False when the caller has gone."""
        return self._connection.answer(raw)

    def reset(self) -> bool:
        """End the caller's connection with RST; False when it has gone by itself."""
        return self._connection.reset()


class CallConnection(asyncio.Protocol):
    """A client; subclasses say what becomes of its calls."""

    def __init__(self) -> None:
        self.gone = False
        self.peer_port = 0
        self._transport: asyncio.Transport
        self._inbox = bytearray()
        self._at_hand = False
        self._closing = False  # the call at hand is its connection's last
        self._head_bytes = 0  # of the request that is being gathered
        self._length = 0
        self._chunks = ChunkedBody()
        self._fed = 0  # of the inbox, what the chunks have been fed
        self._searched = 0  # of the inbox, where no head ends

    # --- for subclasses

    def connected(self) -> None:
        """The connection is there."""

    def called(self, call: Call) -> None:
        """A whole request: answer or reset it, now or later."""
        raise NotImplementedError

    def left(self) -> None:
        """The connection has ended; a call that is at hand can no longer be answered."""

    @property
    def at_hand(self) -> bool:
        """Whether a call waits for its answer."""
        return self._at_hand

    @property
    def idle(self) -> bool:
        """Whether nothing is at hand, and nothing has begun to come."""
        return not self._at_hand and not self._inbox

    def close_after_answer(self) -> None:
        """Take no call after the one at hand."""
        self._closing = True

    def answer(self, raw: bytes) -> bool:
        """Answer the call at hand, then take the next; False when the caller has gone."""
        if self.gone or self._transport.is_closing():
            return False
        self._at_hand = False
        self._transport.write(raw)
        if self._closing:
            self._transport.close()
        else:
            self._brake.set("the inbox is full", False)
            self._gather()
        return True

    def close(self) -> None:
        """End the connection after everything written has been sent."""
        self._transport.close()

    def reset(self) -> bool:
        """End the connection with RST; False when it had ended."""
        if self.gone or self._transport.is_closing():
            return False
        reset(self._transport)
        return True

    # --- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._brake = Brake(self._transport)
        self.peer_port = self._transport.get_extra_info("peername")[1]
        self.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.gone = True
        self.left()

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if not self._at_hand:
            self._gather()
        elif len(self._inbox) > INBOX_BYTES_MAX:
            self._brake.set("the inbox is full", True)

    # --- gathering

    def _gather(self) -> None:
        """Take the next request out of the inbox, when it is whole."""
        try:
            found = self._next()
        except FramingError:
            self.reset()
            return
        if found is None:
            return
        head_bytes, end, body = found
        raw = bytes(self._inbox[:end])
        del self._inbox[:end]
        self._head_bytes = self._searched = 0
        self._at_hand = True
        self._closing = _is_last(raw[:head_bytes])
        self.called(Call(self, raw=raw, head_bytes=head_bytes, body=body))

    def _next(self) -> tuple[int, int, bytes] | None:
        """Where the head ends and where the request, and its body; None when it is not whole yet."""
        inbox = self._inbox
        if not self._head_bytes:
            end = inbox.find(b"\r\n\r\n", self._searched) + 4
            if end < 4:
                self._searched = max(0, len(inbox) - 3)
                if len(inbox) > HEAD_BYTES_MAX:
                    raise FramingError("a head without end")
                return None
            self._length = request_framing(bytes(inbox[:end]))
            self._head_bytes = self._fed = end
            self._chunks = ChunkedBody(keep=True)
        head_bytes = self._head_bytes
        if self._length != CHUNKED:
            if self._length > BODY_BYTES_MAX:
                raise FramingError("a body beyond the bound")
            end = head_bytes + self._length
            return (head_bytes, end, bytes(inbox[head_bytes:end])) if len(inbox) >= end else None
        start, self._fed = self._fed, len(inbox)
        over = self._chunks.feed(bytes(inbox[start:]), 0)
        if len(inbox) - head_bytes > BODY_BYTES_MAX:
            raise FramingError("a body beyond the bound")
        return None if over < 0 else (head_bytes, start + over, bytes(self._chunks.content or b""))


def _is_last(head: bytes) -> bool:
    """Whether a request asks for its connection's end."""
    wanted = (header(head, b"connection") or "").lower()
    return wanted == "close" or (b" HTTP/1.0\r\n" in head and wanted != "keep-alive")
