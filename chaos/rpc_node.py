"""A connection to the node: one request at a time, each sent once, and its whole reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from chaos.http_messages import Reply, ReplyCollector, Request, UpstreamLost
from chaos.http_transport import meets_itself
from chaos.rpc_calls import Json, outcome, read_reply, request_of

CONNECT_TIMEOUT_S = 5.0


class NodeConnection(asyncio.Protocol):
    """One connection; `ended` is called when the node ends it."""

    def __init__(self, port: int, ended: Callable[[], None]) -> None:
        self.port = port
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._collector: ReplyCollector | None = None

    @staticmethod
    async def connect(port: int, *, ended: Callable[[], None] = lambda: None) -> NodeConnection:
        """A connection that has not carried a byte; raises UpstreamLost when the node cannot be reached."""
        node = NodeConnection(port, ended)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: node, "127.0.0.1", port
                )
        except (OSError, TimeoutError) as error:
            raise UpstreamLost(f"no connection to the node on port {port}: {error}") from None
        if meets_itself(transport):
            transport.abort()
            raise UpstreamLost(f"nobody listens on port {port}")
        return node

    def send(self, request: Request) -> asyncio.Future[Reply]:
        """Send a request, once; its reply, or UpstreamLost, comes through the future."""
        assert self._collector is None or self._collector.reply.done(), "one request at a time"
        self._collector = ReplyCollector(to_head_request=request.is_head)
        if self._transport is None or self._transport.is_closing():
            self._collector.lost("the node had ended the connection")
        else:
            self._transport.write(request.raw)
        return self._collector.reply

    async def ask(self, method: str, params: list[Any]) -> Json:
        """The `result` or `error` of a call of our own; raises UpstreamLost."""
        reply = await self.send(request_of(method, params, port=self.port))
        return outcome(read_reply(reply.content))

    def close(self) -> None:
        """End the connection; `ended` is not called for it."""
        self._ended = lambda: None
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        # Bytes that nothing asked for: whose they are can never be known again.
        if self._collector is None or self._collector.reply.done() or self._collector.feed(data):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._collector is not None:
            self._collector.ended(exc)
        self._ended()
