"""Ports of 127.0.0.1 for what the harness starts, outside the kernel's ephemeral range.

Why not bind to port 0 and ask: that port is one the kernel also gives to clients. A client that keeps
connecting to a server that was killed is in time given the server's own port, connects to itself, and the
server cannot come back.
"""

from __future__ import annotations

import itertools
import os
import socket

PORTS = range(20_000, 32_000)
# Begins where the pid says, so that runs side by side seldom try the same one, and never repeats itself.
_steps = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """A port that nobody listens on now, and another one at each call; raises OSError when all are taken."""
    for _ in PORTS:
        port = PORTS[next(_steps) % len(PORTS)]
        if port_is_free(port):
            return port
    raise OSError(f"no free port from {PORTS.start} to {PORTS.stop - 1} on 127.0.0.1")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
