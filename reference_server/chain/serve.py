"""The node as a process: JSON-RPC over HTTP on loopback, blocks at an interval, and a graceful end.

Nothing is shown before it is on disk: a request is executed at once and answered after the fsync of all that
was executed until then. Requests that arrive during an fsync share the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from reference_server.chain.development_methods import DevelopmentMethods
from reference_server.chain.eth_methods import EthMethods
from reference_server.chain.node import Node
from reference_server.chain.rpc import Rpc

BODY_BYTES_MAX = 10_000_000
BACKLOG = 1_024
KEEP_ALIVE_S = 75
GRACEFUL_S = 5

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger("reference_server.chain")


class Server(uvicorn.Server):
    """uvicorn's server, which says when it serves and ends with exit code 0 when it is asked to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class Service:
    """The ASGI application of one node, and its interval mining."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._writing: asyncio.Task[None] | None = None
        self._mined: asyncio.Task[None] | None = None
        self._written = 0  # of the chain's records, how many are on disk
        self._interval: asyncio.TimerHandle | None = None
        self._rpc = Rpc(EthMethods(node), DevelopmentMethods(node, self.set_interval))

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":
            await respond(send, 405, b'{"error":"send JSON-RPC requests by POST"}')
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                await respond(send, 413, b'{"error":"the request is too long"}')
                return
            if not message.get("more_body"):
                break
        reply = self._rpc.answer(body)
        await self.flushed()
        await respond(send, 200, reply)

    async def flushed(self) -> None:
        """Wait until all that has happened so far is on disk."""
        recorded = self._node.chain.recorded
        while self._written < recorded:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            # Many wait for it: that one of them is cancelled is nothing to the others.
            await asyncio.shield(self._writing)

    def set_interval(self, seconds: float) -> None:
        """Make a block every so many seconds from now on; 0 ends it."""
        if self._interval is not None:
            self._interval.cancel()
            self._interval = None
        if seconds > 0:
            self._interval = asyncio.get_running_loop().call_later(seconds, self._mine, seconds)

    def _mine(self, seconds: float) -> None:
        # The next one first: a block that fails must not be the last.
        self.set_interval(seconds)
        self._node.mine()
        self._mined = asyncio.create_task(self.flushed())

    async def _write(self) -> None:
        recorded = self._node.chain.recorded
        try:
            # In a thread: what arrives meanwhile is executed, and shares the next one.
            await asyncio.to_thread(self._node.chain.log.append, self._node.chain.take_unwritten())
        except OSError:
            # The chain in memory is ahead of the one on disk and can never be shown: better to be gone.
            log.exception("cannot write the log; the node ends")
            logging.shutdown()
            os._exit(1)
        self._written = recorded
        self._writing = None


async def respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve(
    node: Node, listener: socket.socket, *, block_time_s: float, ready: Callable[[], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT; `ready` is called once the node can be asked."""
    service = Service(node)
    service.set_interval(block_time_s)
    server = Server(
        uvicorn.Config(
            service,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACEFUL_S,
        ),
        ready,
    )
    await server.serve(sockets=[listener])
    service.set_interval(0)
    await service.flushed()
