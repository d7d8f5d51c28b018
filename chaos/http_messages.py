"""Whole HTTP messages, for the faults: a request, a reply, and the collector that gathers one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from chaos.http_framing import CHUNKED, UNTIL_CLOSE, Body, ChunkedBody, FramingError, body_of, header
from chaos.http_framing import reply_framing as framing_of_reply
from scenarios.history import digest

REPLY_BYTES_MAX = 64 * 1024 * 1024

Evidence = dict[str, Any]


class Missed(Exception):
    """The fault met a request but could not do what it is for; it stays armed for the next one."""


class UpstreamLost(Missed):
    """The upstream connection could not be made, or ended before the reply was whole."""


class Request:
    """A whole request as it came from the client."""

    def __init__(self, raw: bytes, head_bytes: int) -> None:
        self.raw = raw
        self.head = raw[:head_bytes]
        self.line = self.head.split(b" HTTP/", 1)[0].decode("latin-1")
        self.is_head = raw.startswith(b"HEAD ")

    def evidence(self) -> Evidence:
        """Names the request, so that the judge finds its operation in the history."""
        return {"request": self.line, "key": header(self.head, b"idempotency-key")}


class Reply:
    """A whole final reply; `raw` holds everything to relay, interim replies before it included."""

    def __init__(self, raw: bytes, head: bytes, status: int, content: bytes) -> None:
        self.raw = raw
        self.head = head
        self.status = status
        self.content = content
        self.time_ns = time.monotonic_ns()

    @property
    def hash(self) -> str:
        """Digest of the decoded body, as the history names replies."""
        return digest(self.content)

    @property
    def replayed(self) -> bool:
        return header(self.head, b"idempotent-replayed") == "true"

    def evidence(self) -> Evidence:
        return {"status": self.status, "reply_hash": self.hash, "replayed": self.replayed}


class ReplyCollector:
    """Gathers one whole reply from an upstream connection; `reply` is resolved or fails with UpstreamLost."""

    def __init__(self, *, to_head_request: bool) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        # A fault that was cancelled never awaits it: then its failure is nobody's business.
        self.reply.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._to_head_request = to_head_request
        self._raw = bytearray()
        self._message_start = 0  # of the message at hand, after interim replies
        self._body: Body | None = None
        self._body_start = 0
        self._fed = 0
        self._status = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes; returns those after the reply's end, to be treated as unasked for."""
        self._raw += data
        if len(self._raw) > REPLY_BYTES_MAX:
            self.lost(f"a reply of more than {REPLY_BYTES_MAX} bytes")
            return b""
        try:
            end = self._end()
        except FramingError as error:
            self.lost(f"a reply that cannot be framed: {error}")
            return b""
        if end < 0:
            return b""
        rest = bytes(self._raw[end:])
        self._finish(end)
        return rest

    def _end(self) -> int:
        while self._body is None:
            head_end = self._raw.find(b"\r\n\r\n", self._message_start)
            if head_end < 0:
                return -1
            head_end += 4
            head = bytes(self._raw[self._message_start : head_end])
            self._status, length = framing_of_reply(head, to_head_request=self._to_head_request)
            if self._status < 200:
                self._message_start = head_end
                continue
            self._body_start = self._fed = head_end
            self._body = ChunkedBody(keep=True) if length == CHUNKED else body_of(length)
            self._until_close = length == UNTIL_CLOSE
        start, self._fed = self._fed, len(self._raw)
        end = self._body.feed(bytes(self._raw[start:]), 0)
        return -1 if end < 0 else start + end

    def _finish(self, end: int) -> None:
        if self.reply.done():
            return
        body = self._body
        content = (
            bytes(body.content or b"")
            if isinstance(body, ChunkedBody)
            else bytes(self._raw[self._body_start : end])
        )
        head = bytes(self._raw[self._message_start : self._body_start])
        self.reply.set_result(Reply(bytes(self._raw[:end]), head, self._status, content))

    def ended(self, error: Exception | None) -> None:
        """The connection ended: that is the end of a reply without length, and the loss of any other."""
        if error is None and self._body is not None and self._until_close:
            self._finish(len(self._raw))
        self.lost("the upstream connection ended before the reply was whole")

    def lost(self, why: str) -> None:
        if not self.reply.done():
            self.reply.set_exception(UpstreamLost(why))
