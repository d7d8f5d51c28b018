"""One request and its reply in the hands of a fault: whole messages, and what may be done with them.

A fault gets an Exchange and drives it with awaits, on the proxy's slow path: forward the request on the
client's own upstream connection, send a copy aside on another one, relay, close or reset. Whatever it does
not do does not happen: nothing is forwarded or relayed on its behalf.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal, Protocol

from chaos.http_messages import Missed, Reply, Request
from chaos.http_upstream import Aside

Ending = Literal["reset", "close"]


class Held(Protocol):
    """A client's connection while a fault holds it."""

    closed: bool

    def forward_held(self, request: Request) -> asyncio.Future[Reply]: ...
    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def reset(self) -> None: ...
    def release(self) -> None: ...


class Exchange:
    """What a fault may do with one request of one client."""

    def __init__(self, client: Held, request: Request, other_upstream: int, hurry: asyncio.Event) -> None:
        self.request = request
        self.hit_ns = time.monotonic_ns()
        self.other_upstream = other_upstream
        self._client = client
        self._hurry = hurry

    @property
    def client_gone(self) -> bool:
        return self._client.closed

    def forward(self) -> asyncio.Future[Reply]:
        """Send the request on the client's own upstream connection, now; await the reply."""
        return self._client.forward_held(self.request)

    async def aside(self) -> Aside:
        """Another upstream connection, to the next server where there are several."""
        return await Aside.connect(self.other_upstream)

    def relay(self, data: bytes) -> None:
        """Give bytes to the client; raises Missed when it has gone."""
        if self._client.closed:
            raise Missed("the client had gone")
        self._client.write(data)

    def end(self, how: Ending) -> None:
        """End the client's connection: `reset` (RST), or `close` (FIN, after what was relayed)."""
        if self._client.closed:
            raise Missed("the client had gone")
        if how == "reset":
            self._client.reset()
        else:
            self._client.close()

    def release(self) -> None:
        """Give the connection back for its next request; the fault may go on without it."""
        self._client.release()

    async def wait(self, seconds: float) -> bool:
        """Pause; True when the whole time passed, False when healing cut it short."""
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return True
        return False
