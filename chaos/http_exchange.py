"""One request and its reply in the hands of a fault: whole messages, and what may be done with them.

A fault gets an Exchange and drives it with awaits, on the proxy's slow path: forward the request on the
client's own upstream connection, send a copy aside on another one, relay, close or reset. Whatever it does
not do does not happen: nothing is forwarded or relayed on its behalf.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from chaos.http_messages import Evidence, Missed, Reply, Request
from chaos.http_upstream import Aside


class Held(Protocol):
    """A client's connection while a fault holds it."""

    closed: bool
    left: asyncio.Event  # the client has ended its side, or both

    def forward_held(self, request: Request) -> asyncio.Future[Reply]: ...
    def write(self, data: bytes) -> None: ...
    def reset(self) -> None: ...
    def release(self) -> None: ...


class Exchange:
    """What a fault may do with one request of one client."""

    def __init__(self, client: Held, request: Request, other_upstream: int, hurry: asyncio.Event) -> None:
        self.request = request
        self.hit_ns = time.monotonic_ns()
        self.bytes_upstream = 0
        self._client = client
        self._other_upstream = other_upstream
        self._hurry = hurry
        self._released = False

    def evidence(self) -> Evidence:
        """Which request was hit and when, and how many bytes of it went to the server, copies included."""
        return {**self.request.evidence(), "hit_ns": self.hit_ns, "bytes_upstream": self.bytes_upstream}

    def forward(self) -> asyncio.Future[Reply]:
        """Send the request on the client's own upstream connection, now; await the reply."""
        self.bytes_upstream += len(self.request.raw)
        return self._client.forward_held(self.request)

    async def aside(self) -> Aside:
        """Another upstream connection, to the next server where there are several."""
        return await Aside.connect(self._other_upstream)

    def send_copy(self, aside: Aside) -> asyncio.Future[Reply]:
        """Send the request on that connection, now; await the reply."""
        self.bytes_upstream += len(self.request.raw)
        return aside.send(self.request)

    def relay(self, reply: Reply) -> None:
        """Give the reply to the client; raises Missed when it has gone."""
        if self._client.closed:
            raise Missed("the client had gone")
        self._client.write(reply.raw)

    def reset(self) -> None:
        """End the client's connection with RST; raises Missed when it had gone by itself."""
        if self._client.left.is_set():
            raise Missed("the client had gone")
        self.abandon()

    def abandon(self) -> None:
        """End the client's connection, if the fault still holds it."""
        if not self._released:
            self._client.reset()
            self.release()

    def release(self) -> None:
        """Give the connection back for its next request; the fault may go on without it."""
        if not self._released:
            self._released = True
            self._client.release()

    async def client_leaves(self, seconds: float) -> bool:
        """Wait for the client to end its side; False when `seconds` are over or healing cut them short."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._client.left, self._hurry)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._client.left.is_set()

    async def wait(self, seconds: float) -> bool:
        """Pause; True when the whole time passed, False when healing cut it short."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return True
        return False
