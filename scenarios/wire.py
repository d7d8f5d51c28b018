"""One HTTP/1.1 connection that puts every request on the wire exactly once.

Each exchange is one request and at most one reply:

1. an idle connection that the other side has closed, or has written to, is dropped unseen;
2. a connection is opened if there is none: a refusal here is the one failure known to have had no effect;
3. the request is written once, and one reply is read before the deadline;
4. after anything but a complete reply the connection is closed; the next exchange opens a fresh one.

Why not geventhttpclient's HTTPClient.request, which Locust's FastHttpUser is made of: it answers a lost
reply to a GET by sending the request again, once for every place in its connection pool and once more
(2.6.1), with no setting against it, and its timeout is one per read, so that a reply of one byte a second
never ends. An attempt that may be several arrivals cannot be judged.

Why a reply must have its length: one that ends where the connection ends cannot be told from one that was
cut, so it is taken for cut.
"""

from __future__ import annotations

import errno
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent.socket as gsocket
import httptools

REPLY_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 16 * 1024


class WireError(Exception):
    """The exchange has no complete reply. `kind` names what was seen, in one word where one is enough."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Refused(WireError):
    """The connection was refused before a byte of the request was sent."""

    def __init__(self) -> None:
        super().__init__("refused")


class Reply(NamedTuple):
    """A complete reply. `retry_after_s` is None where the header is absent or is not a number of seconds."""

    status: int
    body: bytes
    problem: bool
    replayed: bool
    retry_after_s: float | None


class Address(NamedTuple):
    """A resolved http:// base URL."""

    host_header: str
    family: int
    address: tuple[str, int]


def resolve(base_url: str) -> Address:
    """Resolve an http:// URL once for all users; raises ValueError with what is wrong with it."""
    parts = urlsplit(base_url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{base_url!r} is not a http:// URL of a host")
    if parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"{base_url!r} has more than http://host:port")
    port = parts.port or 80
    try:
        found = gsocket.getaddrinfo(parts.hostname, port, 0, gsocket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{base_url!r}: the host has no address: {error}") from None
    family, _, _, _, address = found[0]
    return Address(parts.netloc, family, (str(address[0]), int(address[1])))


class _ReplyReader:
    """Receives the parser's calls for one reply; anything after its end is left for the caller to refuse."""

    __slots__ = (
        "body",
        "complete",
        "keep_alive",
        "parser",
        "problem",
        "replayed",
        "retry_after_s",
        "size",
        "status",
        "surplus",
    )

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body: list[bytes] = []
        self.size = 0
        self.status = 0
        self.complete = False
        self.surplus = False
        self.keep_alive = False
        self.problem = False
        self.replayed = False
        self.retry_after_s: float | None = None

    def on_message_begin(self) -> None:
        if self.complete:
            self.surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        # The lengths sort out nearly every header before a copy in lower case is made.
        length = len(name)
        if length == 12 and name.lower() == b"content-type":
            self.problem = value.lower().startswith(b"application/problem+json")
        elif length == 19 and name.lower() == b"idempotent-replayed":
            self.replayed = value.strip().lower() == b"true"
        elif length == 11 and name.lower() == b"retry-after":
            digits = value.strip()
            self.retry_after_s = float(digits) if digits.isdigit() and len(digits) < 10 else None

    def on_body(self, data: bytes) -> None:
        if self.complete:
            return
        self.body.append(data)
        self.size += len(data)
        if self.size > REPLY_BYTES_MAX:
            raise WireError("oversized")

    def on_message_complete(self) -> None:
        if self.complete:
            return
        status = self.parser.get_status_code()
        if status < 200:
            # An interim reply (100 Continue); the real one follows on the same connection.
            self.body.clear()
            return
        self.status = status
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()


class Wire:
    """A connection to one address, opened when needed; used by one greenlet at a time."""

    __slots__ = ("_address", "_socket", "opened")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket: gsocket.socket | None = None
        self.opened = 0

    def exchange(self, request: bytes, *, patience_s: float) -> Reply:
        """Send the request once and return its complete reply; raises Refused or another WireError."""
        deadline = time.monotonic() + patience_s
        connection = self._live_connection(deadline)
        try:
            reader = self._read_reply(connection, request, deadline)
        except TimeoutError:
            self.close()
            raise WireError("timeout") from None
        except httptools.HttpParserCallbackError as error:
            self.close()
            cause = error.__context__
            raise cause if isinstance(cause, WireError) else WireError("garbage") from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
            raise WireError("garbage") from None
        except OSError as error:
            self.close()
            raise WireError(_errno_name(error)) from None
        except BaseException:
            self.close()
            raise
        if reader.surplus or not reader.keep_alive:
            self.close()
        return Reply(
            reader.status, b"".join(reader.body), reader.problem, reader.replayed, reader.retry_after_s
        )

    def close(self) -> None:
        """Drop the connection; the next exchange opens a fresh one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read_reply(self, connection: gsocket.socket, request: bytes, deadline: float) -> _ReplyReader:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        connection.sendall(request)
        reader = _ReplyReader()
        feed = reader.parser.feed_data
        received = False
        while not reader.complete:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            data = connection.recv(READ_BYTES)
            if not data:
                raise WireError("truncated" if received else "closed")
            received = True
            feed(data)
        return reader

    def _live_connection(self, deadline: float) -> gsocket.socket:
        if self._socket is not None:
            if self._is_quiet(self._socket):
                return self._socket
            self.close()
        connection = gsocket.socket(self._address.family, gsocket.SOCK_STREAM)
        try:
            connection.setsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY, 1)
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            connection.connect(self._address.address)
        except ConnectionRefusedError:
            connection.close()
            raise Refused from None
        except TimeoutError:
            connection.close()
            raise WireError("connect_timeout") from None
        except OSError as error:
            connection.close()
            raise WireError("connect_" + _errno_name(error)) from None
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        self.opened += 1
        return connection

    @staticmethod
    def _is_quiet(connection: gsocket.socket) -> bool:
        """Whether an idle connection is open and has nothing to say, as it must between exchanges."""
        connection.settimeout(0.0)
        try:
            connection.recv(1, gsocket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _errno_name(error: OSError) -> str:
    """The failure in one word: `reset`, `broken_pipe`, or the errno's own name in lower case."""
    if isinstance(error, ConnectionResetError):
        return "reset"
    if isinstance(error, BrokenPipeError):
        return "broken_pipe"
    return errno.errorcode.get(error.errno or 0, "os_error").lower()
