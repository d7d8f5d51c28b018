"""The proxy's two ends of one client: its connection, and the upstream connection that belongs to it.

One client connection has one upstream connection, made when the client connects and ended with it, so what
happens to one end is what the other would have met directly:

1. Requests go upstream one at a time, each once; further ones that the client pipelined wait in the inbox.
2. A request that a fault selects is held until it is whole, then the fault drives it (chaos.http_exchange).
3. Upstream refused, or lost while a request is open: the client's connection is reset. The proxy never
   answers in the server's place, and never sends again.
4. Upstream closed between requests: the client's connection is closed.
5. What cannot be framed turns the connection into a tunnel of plain bytes, which no fault can hit.

Why not a pool of upstream connections: a client would meet the death of connections that are not its own,
and a request on a connection that has just idled out would call for the silent re-send we forbid.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from chaos.http_exchange import Exchange
from chaos.http_framing import HEAD_BYTES_MAX, Body, FramingError, body_of, header, request_framing
from chaos.http_messages import Reply, ReplyCollector, Request
from chaos.http_reply import ReplyRelay
from chaos.http_transport import Brake, meets_itself, reset
from chaos.http_upstream import CONNECT_TIMEOUT_S, UpstreamConnection

if TYPE_CHECKING:
    from chaos.http_proxy import HttpProxy
    from chaos.proxy_triggers import Armed

INBOX_BYTES_MAX = 256 * 1024
HALF_CLOSED_S_MAX = 60.0  # how long a client that has closed its sending side may wait for its reply


class ClientConnection(asyncio.Protocol):
    """A client, and the state of the message that passes in each direction."""

    def __init__(self, proxy: HttpProxy) -> None:
        self.closed = False
        self.left = asyncio.Event()  # the client has ended its side, or both
        self._proxy = proxy
        self._transport: asyncio.Transport
        self._upstream: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._inbox = b""  # read, not forwarded yet
        self._request_body: Body | None = None  # of a request whose head is forwarded
        self._selected: tuple[Armed, int, int] | None = None  # fault, bytes of the head, of the request
        self._held = False  # a fault has the request and the reply
        self._collector: ReplyCollector | None = None
        self._half_closed = False
        self._deadline: asyncio.TimerHandle | None = None

    # --- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._brake = Brake(self._transport)
        self._replies = ReplyRelay(
            write=self._transport.write, over=self._reply_over, unframed=self._unframed
        )
        self._proxy.clients.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                port = self._proxy.next_upstream()
                _, upstream = await loop.create_connection(
                    lambda: UpstreamConnection(self, port), "127.0.0.1", port
                )
        except (OSError, TimeoutError):
            self._proxy.refused += 1
            self.reset()
            return
        if self.closed or meets_itself(upstream.transport):
            upstream.transport.abort()
            self.reset()
            return
        self._upstream = upstream
        self._take_inbox()

    def data_received(self, data: bytes) -> None:
        if self._inbox:
            data = self._inbox + data
            self._inbox = b""
        self._advance(data)

    def _advance(self, data: bytes) -> None:
        """Forward what may be forwarded, keep the rest."""
        while data:
            upstream = self._upstream
            if upstream is None or self._held:
                self._keep(data)
                return
            if self._replies.plain:
                upstream.transport.write(data)
                return
            if self._request_body is not None:
                data = self._pass_request_body(self._request_body, upstream, data)
            elif self._replies.awaiting:
                self._keep(data)
                return
            else:
                rest = self._begin(upstream, data)
                if rest is None:
                    self._inbox = data
                    return
                data = rest

    def _begin(self, upstream: UpstreamConnection, data: bytes) -> bytes | None:
        """Start a request; returns the bytes that it left over, None when it needs more of them first."""
        if self._selected is None:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(data) > HEAD_BYTES_MAX:
                    self._make_tunnel()
                    return data
                return None
            head = data[:end]
            try:
                length = request_framing(head)
            except FramingError:
                self._make_tunnel()
                return data
            self._proxy.requests += 1
            triggers = self._proxy.triggers
            armed = triggers.match(head) if triggers.waiting and _can_be_held(head, length) else None
            if armed is None:
                self._replies.expect(to_head_request=head.startswith(b"HEAD "))
                if len(data) == end + length:
                    upstream.transport.write(data)
                    return b""
                upstream.transport.write(head)
                if length:
                    self._request_body = body_of(length)
                return data[end:]
            self._selected = (armed, end, end + length)
        armed, head_bytes, total = self._selected
        if len(data) < total:
            return None
        self._selected = None
        self._held = True
        exchange = Exchange(
            self, Request(data[:total], head_bytes), self._proxy.other_upstream(upstream.port), armed.hurry
        )
        self._proxy.triggers.strike(armed, exchange)
        return data[total:]

    def _pass_request_body(self, body: Body, upstream: UpstreamConnection, data: bytes) -> bytes:
        try:
            end = body.feed(data, 0)
        except FramingError:
            self._make_tunnel()
            return data
        if end < 0:
            upstream.transport.write(data)
            return b""
        self._request_body = None
        upstream.transport.write(data[:end])
        return data[end:]

    def _keep(self, data: bytes) -> None:
        self._inbox = data
        if len(data) > INBOX_BYTES_MAX:
            self._brake.set("the inbox is full", True)

    def _take_inbox(self) -> None:
        self._brake.set("the inbox is full", False)
        if self._inbox:
            data, self._inbox = self._inbox, b""
            self._advance(data)
        if self._half_closed and not self._open_request():
            self.close()

    def _make_tunnel(self) -> None:
        self._proxy.tunnels += 1
        self._replies.plain = True

    def eof_received(self) -> bool:
        """A client that has closed its sending side still gets the replies to its whole requests."""
        self._half_closed = True
        self.left.set()
        connecting = self._upstream is None and bool(self._inbox)
        if self._replies.plain and self._upstream is not None:
            self._upstream.transport.write_eof()
        elif not connecting and not self._open_request():
            return False
        self._deadline = asyncio.get_running_loop().call_later(HALF_CLOSED_S_MAX, self.reset)
        return True

    def _open_request(self) -> bool:
        return self._held or (self._replies.awaiting and self._request_body is None) or self._replies.plain

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed = True
        self.left.set()
        self._proxy.clients.discard(self)
        if self._selected is not None:
            self._proxy.triggers.give_up(self._selected[0])
            self._selected = None
        if self._deadline is not None:
            self._deadline.cancel()
        # A request that a fault is forwarding goes its way; what was written to the server still arrives.
        if self._upstream is not None and not self._held:
            self._upstream.transport.close()

    # --- the upstream's side

    def reply_received(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._collector is None:
            self._replies.feed(data)
        elif self._collector.feed(data):
            self.reset()  # more than the reply: whatever it is, nobody asked for it

    def _reply_over(self) -> None:
        if self._inbox or self._half_closed:
            self._take_inbox()

    def _unframed(self) -> None:
        self._proxy.tunnels += 1
        self._take_inbox()

    def upstream_lost(self, error: Exception | None) -> None:
        """The server has ended the connection."""
        self._upstream = None
        if self._collector is not None:
            self._collector.ended(error)
        if self.closed or self._held:  # the fault decides what its client sees
            return
        whole = error is None and self._replies.ends_with_connection
        request_open = self._replies.awaiting or self._selected is not None or bool(self._inbox)
        if (request_open and not whole) or (error is not None and self._replies.plain):
            self.reset()
        else:
            self.close()

    # --- what a fault asks for (Held)

    def forward_held(self, request: Request) -> asyncio.Future[Reply]:
        """Send a held request to the server."""
        self._collector = ReplyCollector(to_head_request=request.is_head)
        if self._upstream is None:
            self._collector.lost("the upstream connection had ended")
        else:
            self._upstream.transport.write(request.raw)
        return self._collector.reply

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def release(self) -> None:
        """The fault is done with this connection; idempotent."""
        if not self._held:
            return
        self._held = False
        collector, self._collector = self._collector, None
        gone = self.closed or self._transport.is_closing()
        if gone or self._upstream is None or (collector is not None and not collector.reply.done()):
            # Gone on one side, or a reply still to come that nobody waits for: the connection ends here.
            if self._upstream is not None:
                self._upstream.transport.close()
            if not gone:
                self.close()
            return
        self._take_inbox()

    def close(self) -> None:
        """End the connection after everything written has been sent."""
        self._transport.close()

    def reset(self) -> None:
        """End the connection with RST; idempotent."""
        reset(self._transport)

    # --- neither side may outrun the other

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.brake.set("the client is slow", True)

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.brake.set("the client is slow", False)

    def upstream_full(self, full: bool) -> None:
        self._brake.set("the upstream is slow", full)


def _can_be_held(head: bytes, length: int) -> bool:
    """Whether a fault may hold a request until it is whole: bounded, and sent without asking first."""
    return 0 <= length <= INBOX_BYTES_MAX - len(head) and header(head, b"expect") is None
