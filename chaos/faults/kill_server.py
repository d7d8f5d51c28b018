"""The server process killed with SIGKILL under load, and started again on the same port."""

from __future__ import annotations

import signal
import time
from typing import Annotated

import msgspec

from chaos.child import Child
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.http_messages import Evidence
from chaos.supervisor import SupervisorError

HEALTHY_S_MAX = 15.0


class KillServer(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGKILL the `server`-th server process with its descendants; healed when it answers its health check.

    No undo of its own: with the harness gone the watchdog ends the servers, killed or not.
    """

    target = "server"
    server: Annotated[int, msgspec.Meta(ge=0)] = 0

    def check(self, world: World) -> None:
        self._child(world)

    def inject(self, world: World) -> Evidence:
        child = self._child(world)
        if not child.alive:
            raise FaultError(f"{child.name} had ended before, exit {child.returncode}")
        pid = child.pid
        began_ns = time.monotonic_ns()
        try:
            child.kill()
        except SupervisorError as error:
            raise FaultError(str(error)) from None
        if child.returncode != -signal.SIGKILL:
            raise FaultError(f"{child.name} ended by itself, exit {child.returncode}")
        return {"pid": pid, "returncode": child.returncode, "kill_ns": began_ns}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        child = self._child(world)
        began = time.monotonic()
        try:
            if not child.alive:
                child.start()
        except SupervisorError as error:
            raise FaultError(str(error)) from None
        # In slices, so that a server that ends at once is not waited for to the end.
        while not world.server_healthy(0.5):
            if not child.alive:
                raise FaultError(
                    f"{child.name} exited {child.returncode} when started again: {child.log_tail()}"
                )
            if time.monotonic() - began > HEALTHY_S_MAX:
                raise FaultError(f"{child.name} was not healthy within {HEALTHY_S_MAX:.0f} s of its restart")
        return {
            "pid": child.pid,
            "pid_before": landed.get("pid"),
            "healthy_s": round(time.monotonic() - began, 3),
        }

    def _child(self, world: World) -> Child:
        if self.server >= len(world.servers):
            raise FaultError(f"no server {self.server}: this run started {len(world.servers)}")
        return world.servers[self.server]
