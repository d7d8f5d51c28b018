"""What the proxy does with a connection beside writing: stop reading it for a while, and reset it."""

from __future__ import annotations

import asyncio
import socket
import struct

_LINGER_NONE = struct.pack("ii", 1, 0)


class Brake:
    """Stops the reading of one connection while there is any reason to."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._reasons: set[str] = set()

    def set(self, reason: str, on: bool) -> None:
        """Add a reason or take it away."""
        before = bool(self._reasons)
        if on:
            self._reasons.add(reason)
        else:
            self._reasons.discard(reason)
        if before == bool(self._reasons) or self._transport.is_closing():
            return
        if on:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def reset(transport: asyncio.Transport) -> None:
    """End a connection with RST, so that nobody can take it for the end of a message."""
    if transport.is_closing():
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()


def meets_itself(transport: asyncio.Transport) -> bool:
    """Whether a connection to a port where nobody listens was given that very port as its source.

    TCP then connects it to itself: it would echo the request, and keep the server from its port.
    """
    return bool(transport.get_extra_info("sockname") == transport.get_extra_info("peername"))
