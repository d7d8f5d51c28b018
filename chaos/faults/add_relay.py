"""One relay more beside the others, for a while."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

from chaos.child import Child
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.on_chain import custody_of
from chaos.faults.owner import owner_connection
from chaos.faults.relays import backends_of, connections_to, is_there
from chaos.http_messages import Evidence
from chaos.processes import wait_until
from chaos.supervisor import SupervisorError
from chaos.target import last_words

NAME = "relay-more"
CONNECTED_S_MAX = 15.0


class AddRelay(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start one relay more; healed by SIGTERM after `hold_s` at work.

    No undo of its own: with the harness gone the watchdog ends every relay.
    """

    target = "relay"
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 3.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        others = sum(relay.alive for relay in custody.relays)
        began = time.monotonic()
        try:
            relay = custody.spawn_relay(NAME)
        except SupervisorError as error:
            raise FaultError(str(error)) from None
        custody.relays.append(relay)
        with owner_connection(world) as connection:
            port = connection.info.port
            wait_until(lambda: connections_to(relay, port) > 0 or not relay.alive, timeout_s=CONNECTED_S_MAX)
            backends = backends_of(connection, relay)
        connections = connections_to(relay, port)
        if not connections:
            state = "did not connect" if relay.alive else f"exited {relay.returncode}: {last_words(relay)}"
            raise FaultError(f"{NAME} {state} within {CONNECTED_S_MAX:.0f} s")
        return {
            "relay": NAME,
            "pid": relay.pid,
            "others": others,
            "connections": connections,
            "backends": [[backend.pid, backend.backend_start] for backend in backends],
            "connected_s": round(time.monotonic() - began, 3),
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        relays = custody_of(world).relays
        added = next((relay for relay in relays if relay.name == NAME), None)
        if added is None:
            return {}
        began = time.monotonic()
        if landed:
            wait_until(lambda: not added.alive, timeout_s=self.hold_s)
        worked_s = round(time.monotonic() - began, 3)
        relays.remove(added)
        _end(added)
        backends = landed.get("backends", [])
        with owner_connection(world) as connection:
            left = [pid for pid, start in backends if is_there(connection, pid, start)]
        return {"worked_s": worked_s, "returncode": added.returncode, "backends_left": left}


def _end(relay: Child) -> None:
    try:
        relay.terminate()
    except SupervisorError as error:
        raise FaultError(str(error)) from None
