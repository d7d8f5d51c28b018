"""A notice that its receiver refuses every time: it dies, an alert tells of it, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, LiteralString

from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.leases import (
    NOTICES,
    OF_KEY,
    WaitSeconds,
    await_delivered,
    await_event,
    first_event,
    read_event,
)
from chaos.faults.on_chain import custody_of, on_the_line, until
from chaos.faults.owner import owner_connection
from chaos.faults.relays import Connection
from chaos.http_messages import Evidence

ATTEMPTS_MAX = 20
DEAD_S_MAX = 25.0
ALERT_S_MAX = 5.0
# The alert that tells of a death is an event of its own, and so delivered when the receiver has it.
ALERT = """
SELECT event_id FROM books.outbox_events
 WHERE event_type = 'alert.dead_letter' AND payload::json ->> 'event_id' = %s AND status = 'delivered'
 ORDER BY event_id DESC LIMIT 1
"""
# What of other aggregates was delivered between two moments of the database's clock.
MEANWHILE = """
SELECT count(*) FROM books.outbox_events AS e, books.outbox_events AS poisoned
 WHERE poisoned.event_id = %s
   AND (e.aggregate_type, e.aggregate_id) <> (poisoned.aggregate_type, poisoned.aggregate_id)
   AND e.delivered_at BETWEEN %s::timestamptz AND poisoned.died_at
"""


class PoisonEvent(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Refuse the next notice until it is dead and an alert tells so; healed by a replay under the same id.

    No undo of its own: with the harness gone the receiver refuses nothing any more.
    """

    target = "receiver"
    wait_s: WaitSeconds = 10.0

    def check(self, world: World) -> None:
        custody = custody_of(world)
        if custody.plan.attempts_max > ATTEMPTS_MAX:
            raise FaultError(f"an event would not die in time: attempts_max may be {ATTEMPTS_MAX} at most")

    def inject(self, world: World) -> Evidence:
        receiver = custody_of(world).receiver
        with owner_connection(world) as connection, on_the_line():
            receiver.refuse_next(NOTICES)
            refused = until(receiver.refused, timeout_s=self.wait_s)
            if refused is None:
                raise FaultError(f"nothing to refuse: no notice arrived within {self.wait_s:.1f} s")
            key = refused[0]
            began, began_at = time.monotonic(), _clock(connection)
            event = first_event(connection, OF_KEY, key)
            if event is None:
                raise FaultError(f"the outbox has no event {key!r} that is to be delivered")
            dead = await_event(
                world, event.event_id, lambda one: one.status != "pending", timeout_s=DEAD_S_MAX
            )
            if dead is None or dead.status != "dead":
                now = read_event(connection, event.event_id)
                raise FaultError(f"event {event.event_id} is {now.status} after {now.attempts} refusals")
            dead_s = round(time.monotonic() - began, 3)
            alert_id = _await_alert(connection, event.event_id)
            others = _one(connection, MEANWHILE, [event.event_id, began_at])
            return {
                "key": key,
                "event_id": event.event_id,
                "event_type": event.event_type,
                "lease_token": dead.lease_token,
                "attempts": dead.attempts,
                "refusals": receiver.arrivals(key),
                "last_error": dead.last_error,
                "dead_s": dead_s,
                "alert_id": alert_id,
                "others_delivered": others,
            }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        custody = custody_of(world)
        with on_the_line():
            refused = custody.receiver.refused()
            custody.receiver.accept()
        with owner_connection(world) as connection:
            event = first_event(connection, OF_KEY, refused[0]) if refused is not None else None
        if event is None:
            return {}
        if event.status != "dead":
            return await_delivered(world, {"event_id": event.event_id, **landed})
        done = custody.command("dead-letters", "--replay", str(event.event_id))
        if done.returncode != 0:
            raise FaultError(f"dead-letters --replay exited {done.returncode}: {done.stderr.strip()[-500:]}")
        delivered = await_delivered(world, {"event_id": event.event_id, "key": event.dedup_key})
        return {"replayed": done.stdout.strip(), **delivered}


def _await_alert(connection: Connection, event_id: int) -> int:
    """Wait until the world has been told of a death; the alert's own event."""
    row = until(lambda: connection.execute(ALERT, [str(event_id)]).fetchone(), timeout_s=ALERT_S_MAX)
    if row is None:
        raise FaultError(f"no alert of the death of event {event_id} was delivered in {ALERT_S_MAX:.0f} s")
    return int(row[0])


def _clock(connection: Connection) -> str:
    return str(_one(connection, "SELECT clock_timestamp()::text", []))


def _one(connection: Connection, query: LiteralString, parameters: Sequence[object]) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
