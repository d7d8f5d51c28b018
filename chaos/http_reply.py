"""The way back: replies on their way to the client, each known from its first byte to its last."""

from __future__ import annotations

from collections.abc import Callable

from chaos.http_framing import HEAD_BYTES_MAX, Body, FramingError, UntilCloseBody, body_of, reply_framing


class ReplyRelay:
    """Passes bytes on as they come, and says when the reply to the request at hand is over.

    Bytes whose boundaries are not certain make it `plain`, for good: from there on it only passes them on.
    """

    def __init__(
        self, *, write: Callable[[bytes], None], over: Callable[[], None], unframed: Callable[[], None]
    ) -> None:
        self.awaiting = False  # a request is forwarded and its reply is not over
        self.plain = False
        self._write = write
        self._over = over
        self._unframed = unframed
        self._to_head_request = False
        self._head = b""  # the first part of a head that came in pieces
        self._body: Body | None = None

    @property
    def ends_with_connection(self) -> bool:
        """Whether the reply at hand has no length: the end of its connection completes it."""
        return isinstance(self._body, UntilCloseBody)

    def expect(self, *, to_head_request: bool) -> None:
        """The reply to a request that is being forwarded comes next."""
        self.awaiting = True
        self._to_head_request = to_head_request

    def feed(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._head:
            data, self._head = self._head + data, b""
        while data:
            if self.plain:
                self._write(data)
                return
            try:
                data = self._pass(data)
            except FramingError:
                self.plain = True
                self._unframed()

    def _pass(self, data: bytes) -> bytes:
        """Relay one piece of a reply; returns the bytes after it."""
        if self._body is not None:
            end = self._body.feed(data, 0)
            if end < 0:
                self._write(data)
                return b""
            self._body = None
            self._write(data[:end])
            self._finish()
            return data[end:]
        if not self.awaiting:  # unasked for, like the 408 of a server that waited too long
            raise FramingError("a reply without a request")
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > HEAD_BYTES_MAX:
                raise FramingError("a head without end")
            self._head = data
            return b""
        status, length = reply_framing(data[:end], to_head_request=self._to_head_request)
        if status >= 200 and length >= 0 and len(data) == end + length:
            self._write(data)
            self._finish()
            return b""
        self._write(data[:end])
        if status >= 200:
            if length:
                self._body = body_of(length)
            else:
                self._finish()
        return data[end:]

    def _finish(self) -> None:
        self.awaiting = False
        self._over()
