"""A relay stopped with SIGSTOP while it holds a lease, until another has its event; then it is back."""

from __future__ import annotations

import time

from chaos.child import Child
from chaos.faults.event_lock import EventLock, event_locked
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.leases import (
    Of,
    WaitSeconds,
    await_delivered,
    await_event,
    check_leases,
    unheard_call,
)
from chaos.faults.on_chain import custody_of
from chaos.faults.relays import backends_of
from chaos.http_messages import Evidence
from chaos.processes import wait_until
from chaos.supervisor import SupervisorError

# What may pass between the end of a lease and the next claim. A relay may be stopped while it holds what all
# others wait for, as the operator's row in the reference, until the database ends its transaction: 5 s there.
CLAIM_S_MAX = 10.0
# A relay that is back has marked what it had to mark before it has asked for more so many times.
STATEMENTS = 3
AT_WORK_S_MAX = 5.0


class PauseRelay(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGSTOP the relay whose call the world has, until another has claimed the event; healed by SIGCONT.

    The answer is delivered while it is stopped, so when it is back it marks an event that is another's. We
    hold the event's row then: a mark that touches it is seen to wait. Its undo is written before it stops.
    """

    target = "relay"
    of: Of = "withdrawal"
    wait_s: WaitSeconds = 10.0

    def check(self, world: World) -> None:
        check_leases(world, relays=2)

    def inject(self, world: World) -> Evidence:
        with unheard_call(world, self.of, self.wait_s) as call:
            began = time.monotonic()
            try:
                stopped = call.relay.pause()
            except SupervisorError as error:
                raise FaultError(str(error)) from None
            call.deliver()
        before = call.event
        timeout_s = custody_of(world).plan.lease_s + CLAIM_S_MAX
        event = await_event(
            world,
            before.event_id,
            lambda event: event.lease_token > before.lease_token or event.status != "pending",
            timeout_s=timeout_s,
        )
        if event is None:
            raise FaultError(f"nobody claimed event {before.event_id} within {timeout_s:.0f} s of the pause")
        if event.lease_token == before.lease_token:
            raise FaultError(f"{call.relay.name} was stopped too late: its event is {event.status}")
        return {
            **call.evidence,
            "stopped": [process.pid for process in stopped],
            "lease_token_after": event.lease_token,
            "claimed_s": round(time.monotonic() - began, 3),
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        relays = custody_of(world).relays
        late: Evidence = {}
        if landed:
            (paused,) = [relay for relay in relays if relay.name == landed["relay"]]
            with event_locked(world, landed["event_id"]) as lock:
                late = _resume(lock, paused)
        for relay in relays:
            relay.resume()
        return {**late, **await_delivered(world, landed)} if landed else {}


def _resume(lock: EventLock, relay: Child) -> Evidence:
    """Let the relay go on and mark what it has; whether its mark touched the event that is another's."""
    seen = {(one.pid, one.query_start) for one in backends_of(lock.observer, relay)}
    before = len(seen)
    touches = False

    def back_at_work() -> bool:
        nonlocal touches
        touches = lock.waiting(relay) is not None
        seen.update((one.pid, one.query_start) for one in backends_of(lock.observer, relay))
        return touches or len(seen) >= before + STATEMENTS

    relay.resume()
    # Where PostgreSQL sees other ports than ours, nothing can be seen of it.
    if before:
        wait_until(back_at_work, timeout_s=AT_WORK_S_MAX)
    return {
        "pid": relay.pid,
        "statements": len(seen) - before,
        "status_when_back": lock.event.status,
        "lease_token_when_back": lock.event.lease_token,
        "late_mark_touched_it": touches if before else None,
    }
