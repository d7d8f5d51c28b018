"""Connections to the server: the one that belongs to a client, and those for copies of requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from chaos.http_messages import Reply, ReplyCollector, Request, UpstreamLost
from chaos.http_transport import Brake

if TYPE_CHECKING:
    from chaos.http_connection import ClientConnection

CONNECT_TIMEOUT_S = 5.0


class UpstreamConnection(asyncio.Protocol):
    """The server's end of one client's connection; hands everything to the client's."""

    transport: asyncio.Transport
    brake: Brake

    def __init__(self, client: ClientConnection, port: int) -> None:
        self.port = port
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self.brake = Brake(self.transport)

    def data_received(self, data: bytes) -> None:
        self._client.reply_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.upstream_lost(exc)

    def pause_writing(self) -> None:
        self._client.upstream_full(True)

    def resume_writing(self) -> None:
        self._client.upstream_full(False)


class Aside(asyncio.Protocol):
    """A further connection to an upstream, for one copy of a request; its reply goes to the fault alone."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._transport: asyncio.Transport | None = None
        self._collector: ReplyCollector | None = None

    @staticmethod
    async def connect(port: int) -> Aside:
        """A connection that has not carried a byte; raises UpstreamLost when refused."""
        aside = Aside(port)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: aside, "127.0.0.1", port)
        except (OSError, TimeoutError) as error:
            raise UpstreamLost(f"no connection to upstream port {port}: {error}") from None
        return aside

    def send(self, request: Request) -> asyncio.Future[Reply]:
        """Send the request, once; its reply, or UpstreamLost, comes through the future."""
        assert self._transport is not None
        self._collector = ReplyCollector(to_head_request=request.is_head)
        if self._transport.is_closing():
            self._collector.lost("the upstream connection ended before the request was sent")
        else:
            self._transport.write(request.raw)
        return self._collector.reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        if self._collector is not None:
            self._collector.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._collector is not None:
            self._collector.ended(exc)
