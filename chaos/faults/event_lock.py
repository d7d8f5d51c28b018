"""The row of an event, locked by its owner: whoever wants to mark the event waits, and is seen to wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from chaos.child import Child
from chaos.faults.fault import Custody, FaultError, World
from chaos.faults.leases import EventState, read_event
from chaos.faults.on_chain import custody_of
from chaos.faults.owner import owner_connection
from chaos.faults.relays import Connection, caller, is_there

GONE_MS_MAX = 5_000
LOCK_MS_MAX = 5_000
LOCK = "SELECT event_id FROM books.outbox_events WHERE event_id = %s FOR UPDATE"
WAITING = """
SELECT pid, backend_start::text, client_port, left(query, 200) FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND %s = ANY (pg_blocking_pids(pid))
"""
TERMINATE = "SELECT pg_terminate_backend(%s, %s)"


class Waiting(NamedTuple):
    """A backend that waits for the event, and the statement it waits in."""

    pid: int
    backend_start: str
    client_port: int
    statement: str


class EventLock:
    """The lock while it is held; `event` is the event as it was when the lock was got."""

    def __init__(self, custody: Custody, observer: Connection, holder_pid: int, event: EventState) -> None:
        self.event = event
        self.observer = observer
        self._custody = custody
        self._holder_pid = holder_pid

    def waiting(self, relay: Child, *, or_unknown: bool = False) -> Waiting | None:
        """The backend by which this relay waits for the event, if it does.

        `or_unknown`: or one that no relay can be told to have, for PostgreSQL may see other ports than ours.
        """
        wanted = (relay, None) if or_unknown else (relay,)
        for row in self.observer.execute(WAITING, [self._holder_pid]):
            waiting = Waiting(*row)
            if caller(self._custody, waiting.client_port) in wanted:
                return waiting
        return None

    def terminate(self, waiting: Waiting) -> None:
        """End a backend that waits, and with it its transaction; raises FaultError when it stays."""
        self.observer.execute(TERMINATE, [waiting.pid, GONE_MS_MAX])
        if is_there(self.observer, waiting.pid, waiting.backend_start):
            raise FaultError(f"backend {waiting.pid} outlived its termination by {GONE_MS_MAX} ms")


@contextmanager
def event_locked(world: World, event_id: int) -> Iterator[EventLock]:
    """Hold an event's row; raises FaultError when it cannot be had in 5 s."""
    with owner_connection(world) as observer, owner_connection(world) as holder, holder.transaction():
        holder.execute(f"SET LOCAL lock_timeout = {LOCK_MS_MAX}")
        holder.execute(LOCK, [event_id])
        yield EventLock(custody_of(world), observer, holder.info.backend_pid, read_event(observer, event_id))
