"""Where HTTP/1.1 messages begin and end in a stream of bytes; nothing else is understood of them.

Only the head's framing fields are read (RFC 9112, section 6): Content-Length, Transfer-Encoding, and for
replies the status and whether the request was HEAD. Whatever two parsers could read differently (bare line
feeds, folded lines, both lengths at once) is a FramingError, on which the proxy stops framing and passes the
connection on as plain bytes: the server, not the proxy, then answers for it.

Why not httptools: its callbacks cost several microseconds a message, as much as all the rest of the passing.
"""

from __future__ import annotations

from typing import Protocol

HEAD_BYTES_MAX = 64 * 1024  # twice what servers accept; more is not a head
CHUNK_LINE_BYTES_MAX = 4096

CHUNKED = -1
UNTIL_CLOSE = -2


class FramingError(Exception):
    """Bytes whose message boundary is not certain."""


class Body(Protocol):
    """The part of a message that is still to come."""

    def feed(self, data: bytes, start: int) -> int:
        """Index after the body's last byte in data, or -1 when more is to come; raises FramingError."""


def request_framing(head: bytes) -> int:
    """Length of the request body in bytes, or CHUNKED; `head` ends with its empty line."""
    line = head[: head.find(b"\r\n")]
    if not line.endswith((b" HTTP/1.1", b" HTTP/1.0")) or line.count(b" ") != 2 or line[:1] == b" ":
        raise FramingError("not a request line")
    if line.startswith(b"CONNECT "):
        raise FramingError("CONNECT makes a tunnel")
    length = _declared_length(head)
    return 0 if length is None else length


def reply_framing(head: bytes, *, to_head_request: bool) -> tuple[int, int]:
    """Status, and length of the reply body in bytes, CHUNKED or UNTIL_CLOSE."""
    if not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or not head[9:12].isdigit():
        raise FramingError("not a status line")
    status = int(head[9:12])
    if status == 101:
        raise FramingError("the connection changes its protocol")
    if status < 200 or status in (204, 304) or to_head_request:
        return status, 0
    length = _declared_length(head)
    return status, UNTIL_CLOSE if length is None else length


def _declared_length(head: bytes) -> int | None:
    if head.count(b"\n") != head.count(b"\r\n") or b"\r\n " in head or b"\r\n\t" in head:
        raise FramingError("bare line feeds or folded lines")
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    coding = lower.find(b"\r\ntransfer-encoding:")
    if coding >= 0:
        if at >= 0 or _value(lower, coding + 20) != b"chunked":
            raise FramingError("Transfer-Encoding other than a lone chunked")
        return CHUNKED
    if at < 0:
        return None
    if lower.find(b"\r\ncontent-length:", at + 17) >= 0:
        raise FramingError("Content-Length twice")
    digits = _value(lower, at + 17)
    if not digits.isdigit() or len(digits) > 15:
        raise FramingError("Content-Length is not a number")
    return int(digits)


def _value(head: bytes, start: int) -> bytes:
    return head[start : head.find(b"\r\n", start)].strip(b" \t")


def header(head: bytes, name: bytes) -> str | None:
    """The first value of a field, None when absent; `name` in lower case."""
    at = head.lower().find(b"\r\n" + name + b":")
    return None if at < 0 else _value(head, at + len(name) + 3).decode("latin-1")


class LengthBody:
    """A body of a declared number of bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    def feed(self, data: bytes, start: int) -> int:
        available = len(data) - start
        if available >= self._left:
            end = start + self._left
            self._left = 0
            return end
        self._left -= available
        return -1


class UntilCloseBody:
    """A body that ends with its connection."""

    def feed(self, data: bytes, start: int) -> int:
        del data, start
        return -1


class ChunkedBody:
    """A chunked body; keeps the decoded bytes in `content` when asked to.

    States: a size line, that many bytes and their line end, again; after a size of 0 trailer lines up to an
    empty one.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.content: bytearray | None = bytearray() if keep else None
        self._line = b""
        self._data_left = 0  # of this chunk, its line end included
        self._trailer = False

    def feed(self, data: bytes, start: int) -> int:
        size = len(data)
        while start < size:
            if self._data_left:
                start = self._take_data(data, start)
                continue
            line_end = data.find(b"\n", start)
            if line_end < 0 or line_end - start > CHUNK_LINE_BYTES_MAX:
                self._line += data[start:]
                if len(self._line) > CHUNK_LINE_BYTES_MAX:
                    raise FramingError("a chunk line without end")
                return -1
            line = self._line + data[start : line_end + 1]
            self._line = b""
            start = line_end + 1
            if not line.endswith(b"\r\n"):
                raise FramingError("a chunk line with a bare line feed")
            if self._trailer:
                if line == b"\r\n":
                    return start
                continue
            length = _chunk_size(line)
            self._trailer = length == 0
            self._data_left = length + 2 if length else 0
        return -1

    def _take_data(self, data: bytes, start: int) -> int:
        taken = min(self._data_left, len(data) - start)
        if self.content is not None:
            self.content += data[start : start + max(0, min(taken, self._data_left - 2))]
        self._data_left -= taken
        return start + taken


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    try:
        if not digits or len(digits) > 12 or not digits.isalnum():
            raise ValueError
        return int(digits, 16)
    except ValueError:
        raise FramingError("a chunk size that is no hexadecimal number") from None


def body_of(length: int) -> Body:
    """What follows a head whose framing said `length`."""
    if length == CHUNKED:
        return ChunkedBody()
    return UntilCloseBody() if length == UNTIL_CLOSE else LengthBody(length)
