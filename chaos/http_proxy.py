"""The HTTP proxy process between clients and the server, in which the faults of requests happen.

`python -m chaos.http_proxy --listen PORT --upstream PORT --control PORT`, all on 127.0.0.1. Whatever no fault
selects passes byte by byte, once (chaos.http_connection). The control port speaks JSON lines: the nemesis
arms faults and heals them, the proxy answers each command and tells what became of each fault. When the last
controller has gone, all faults are healed: nobody is left to read about them.

Why not an existing proxy: none that can be installed here sees requests, so none can lose exactly the reply
to a trade that the server has executed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import signal
import sys
from typing import Any

import msgspec
import uvloop

from chaos.control_port import Answer, Command, ControlPort
from chaos.faults import FaultError, RequestFault, make_fault
from chaos.http_connection import ClientConnection
from chaos.proxy_triggers import Armed, Triggers

BACKLOG = 2_048


class ProxyCommand(Command, frozen=True, kw_only=True):
    """A line on the control port."""

    fault_id: str = ""
    fault: str = ""
    nth: int = 1
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class HttpProxy:
    """The state that all connections share; the counters are for tests and for a person who debugs."""

    def __init__(self, upstreams: list[int]) -> None:
        self.clients: set[ClientConnection] = set()
        self.control = ControlPort(ProxyCommand, obey=self._obey, abandoned=self._heal, refusal=FaultError)
        self.triggers = Triggers(self.control.tell)
        self.requests = 0
        self.refused = 0
        self.tunnels = 0
        self._upstreams = upstreams
        self._turn = itertools.cycle(upstreams)

    def next_upstream(self) -> int:
        """The port for the next client's connection: servers take turns."""
        return next(self._turn)

    def other_upstream(self, port: int) -> int:
        """The port for a copy of a request that went to `port`: another server's where there are several."""
        return self._upstreams[(self._upstreams.index(port) + 1) % len(self._upstreams)]

    def status(self) -> dict[str, Any]:
        """Counters since the start, and how many clients and waiting faults there are now."""
        return {
            "requests": self.requests,
            "refused": self.refused,
            "tunnels": self.tunnels,
            "clients": len(self.clients),
            "waiting": len(self.triggers.waiting),
        }

    def _heal(self) -> None:
        self.triggers.heal()

    def _obey(self, command: ProxyCommand) -> Answer:
        if command.command == "arm":
            fault = make_fault(command.fault, command.options)
            if not isinstance(fault, RequestFault):
                raise FaultError(f"{command.fault} is no fault of a request: the proxy cannot inject it")
            if command.nth < 1:
                raise FaultError(f"nth is {command.nth}: requests are counted from 1")
            self.triggers.arm(Armed(command.fault_id, fault, command.nth))
            return {}
        if command.command == "heal":
            self.triggers.heal()
            return {}
        if command.command == "status":
            return self.status()
        raise FaultError(f"no command {command.command!r}; the commands are arm, heal, status")


async def serve(listen: int, upstreams: list[int], control: int) -> None:
    """Serve until SIGTERM or SIGINT; raises OSError when a port is taken."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    proxy = HttpProxy(upstreams)
    listener = await loop.create_server(lambda: ClientConnection(proxy), "127.0.0.1", listen, backlog=BACKLOG)
    controls = await loop.create_server(proxy.control, "127.0.0.1", control)
    # Nothing made so far ever becomes garbage: a full collection must not stop the traffic to look at it.
    gc.collect()
    gc.freeze()
    await stop.wait()
    listener.close()
    controls.close()
    proxy.triggers.heal()
    for client in list(proxy.clients):
        client.reset()


def main(arguments: list[str] | None = None) -> int:
    """Parse the ports and serve."""
    parser = argparse.ArgumentParser(prog="python -m chaos.http_proxy", description="HTTP proxy with faults.")
    parser.add_argument("--listen", type=int, required=True, help="port for clients")
    parser.add_argument(
        "--upstream", type=int, required=True, action="append", help="port of a server; may be repeated"
    )
    parser.add_argument("--control", type=int, required=True, help="port for the nemesis")
    chosen = parser.parse_args(arguments)
    try:
        uvloop.run(serve(chosen.listen, chosen.upstream, chosen.control))
    except OSError as error:
        print(f"http_proxy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
