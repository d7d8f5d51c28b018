"""A relay killed with SIGKILL between what it told the world and its mark that it did, or in that mark."""

from __future__ import annotations

import signal
from typing import Literal

from chaos.child import Child
from chaos.faults.event_lock import Waiting, event_locked
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.leases import (
    Of,
    UnheardCall,
    WaitSeconds,
    await_delivered,
    check_leases,
    read_event,
    unheard_call,
)
from chaos.faults.on_chain import custody_of
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence
from chaos.processes import wait_until
from chaos.supervisor import SupervisorError

MARK_S_MAX = 8.0


class KillRelay(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGKILL a relay whose call was taken and not marked; healed when the event is delivered all the same.

    `before_mark`: it never hears the answer. `in_mark`: it hears it, and its mark waits for the event's row,
    which we hold; then its backend is terminated too, and the mark rolled back. No undo of its own: with the
    harness gone its connections end, and so do lock and hold.
    """

    target = "relay"
    moment: Literal["before_mark", "in_mark"] = "before_mark"
    of: Of = "withdrawal"
    wait_s: WaitSeconds = 10.0

    def check(self, world: World) -> None:
        check_leases(world)

    def inject(self, world: World) -> Evidence:
        with unheard_call(world, self.of, self.wait_s) as call:
            evidence = {"moment": self.moment, **call.evidence}
            if self.moment == "in_mark":
                evidence |= _kill_in_mark(world, call)
            else:
                evidence |= _kill(call.relay)
                call.drop()
        with owner_connection(world) as connection:
            after = read_event(connection, call.event.event_id)
        # Under a higher token it is another relay's work, and may be done already.
        if after.status != "pending" and after.lease_token == call.event.lease_token:
            raise FaultError(f"event {after.event_id} was marked {after.status} by the relay that was killed")
        return {**evidence, "status_after": after.status, "lease_token_after": after.lease_token}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        started = [_start(relay) for relay in custody_of(world).relays if not relay.alive]
        if not landed:
            return {"started": started}
        return {"started": started, "pid_before": landed["pid"], **await_delivered(world, landed)}


def _kill(relay: Child) -> Evidence:
    try:
        relay.kill()
    except SupervisorError as error:
        raise FaultError(str(error)) from None
    if relay.returncode != -signal.SIGKILL:
        raise FaultError(f"{relay.name} was not killed by SIGKILL, its exit is {relay.returncode}")
    return {"returncode": relay.returncode}


def _start(relay: Child) -> int:
    try:
        relay.start()
    except SupervisorError as error:
        raise FaultError(str(error)) from None
    return relay.pid


def _kill_in_mark(world: World, call: UnheardCall) -> Evidence:
    """Let the relay hear the answer, and kill it while its mark waits for the event's row."""
    found: list[Waiting] = []
    with event_locked(world, call.event.event_id) as lock:
        call.deliver()

        def marks() -> bool:
            waiting = lock.waiting(call.relay, or_unknown=True)
            found.extend([] if waiting is None else [waiting])
            return bool(found)

        if not wait_until(marks, timeout_s=MARK_S_MAX):
            raise FaultError(f"{call.relay.name} did not come to mark its event within {MARK_S_MAX:.0f} s")
        # The relay first, so that it does not mark again on another connection.
        killed = _kill(call.relay)
        lock.terminate(found[0])
    return {**killed, "backend": found[0].pid, "statement": found[0].statement}
