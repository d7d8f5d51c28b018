"""A call that a relay has made and has not heard the answer to: its event, its lease, its process.

The node or the receiver has the call by then, and only the answer is kept back: a withdrawal's on the line to
the node, a notice's at its receiver. The event is found in the books, by the hash of what was
sent or by the key of what arrived; the relay is the one that owns the socket which the call came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec

from chaos.child import Child
from chaos.faults.fault import Custody, FaultError, World
from chaos.faults.on_chain import asking, custody_of, on_the_line
from chaos.faults.owner import owner_connection
from chaos.faults.relays import Connection, caller
from chaos.http_messages import Evidence
from chaos.processes import wait_until

# A relay that is gone or asleep is replaced when its lease is over: faults that wait for it stay bounded.
LEASE_S_MAX = 10.0
# How their keys begin.
NOTICES = "notice:"
DELIVERED_S_MAX = 12.0
EVENTS = """
SELECT e.event_id, e.event_type, e.dedup_key, e.status, e.attempts, e.lease_token, e.last_error
  FROM books.outbox_events AS e
"""
OF_ID = f"{EVENTS} WHERE e.event_id = %s"
OF_KEY = f"{EVENTS} WHERE e.dedup_key = %s AND e.status <> 'delivered'"
OF_TRANSACTION = f"""{EVENTS}
  JOIN books.withdrawal_attempts AS a
    ON e.aggregate_type = 'withdrawal' AND e.aggregate_id = a.withdrawal_id::text
 WHERE a.tx_hash = %s AND e.status = 'pending'
 ORDER BY e.event_id LIMIT 1
"""

Of: TypeAlias = Literal["withdrawal", "notice"]
# How long a fault waits for a call that it can hit.
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=15)]


class EventState(NamedTuple):
    """An event of the outbox as the books show it."""

    event_id: int
    event_type: str
    dedup_key: str
    status: str
    attempts: int
    lease_token: int
    last_error: str | None


@dataclass(frozen=True)
class Held:
    """What is kept back: where it came from, what names it, and both ends that it may take."""

    peer_port: int
    query: str
    name: str
    evidence: Evidence
    deliver: Callable[[], object]
    drop: Callable[[], object]


@dataclass(frozen=True)
class UnheardCall:
    """One relay's call; `deliver` or `drop` its answer, else it is delivered at the end of the block."""

    relay: Child
    event: EventState
    deliver: Callable[[], object]
    drop: Callable[[], object]
    evidence: Evidence


def check_leases(world: World, *, relays: int = 1) -> None:
    """Raise FaultError unless there are so many relays, whose leases end soon enough to wait for that."""
    custody = custody_of(world)
    if len(custody.relays) < relays:
        raise FaultError(f"this fault needs {relays} relays: the run has {len(custody.relays)}")
    if custody.plan.lease_s > LEASE_S_MAX:
        raise FaultError(f"this fault waits for leases to end: lease_s may be {LEASE_S_MAX:.0f} at most")


@contextmanager
def unheard_call(world: World, of: Of, wait_s: float) -> Iterator[UnheardCall]:
    """The next call of a relay, held; raises FaultError when none comes within `wait_s`."""
    custody = custody_of(world)
    held_call = _held_send if of == "withdrawal" else _held_arrival
    deadline = time.monotonic() + wait_s
    while (left_s := deadline - time.monotonic()) > 0:
        with on_the_line(), held_call(custody, left_s) as held:
            if held is None:
                break
            relay = caller(custody, held.peer_port)
            with owner_connection(world) as connection:
                event = first_event(connection, held.query, held.name)
            # None: somebody else's, or a nonce spent on nothing; it is delivered, and the next waited for.
            if relay is not None and event is not None:
                named = {
                    "of": of,
                    **held.evidence,
                    "event_id": event.event_id,
                    "event_type": event.event_type,
                    "attempts": event.attempts,
                    "lease_token": event.lease_token,
                    "relay": relay.name,
                    "pid": relay.pid,
                }
                yield UnheardCall(relay, event, held.deliver, held.drop, named)
                return
    raise FaultError(f"nothing to hit: no relay told anybody of a {of} within {wait_s:.1f} s")


def first_event(connection: Connection, query: str, parameter: object) -> EventState | None:
    """The first event that a query of EVENTS finds."""
    row = connection.execute(query, [parameter]).fetchone()
    return None if row is None else EventState(*row)


def read_event(connection: Connection, event_id: int) -> EventState:
    """The event as it is now."""
    event = first_event(connection, OF_ID, event_id)
    if event is None:
        raise FaultError(f"the outbox has lost event {event_id}")
    return event


def await_event(
    world: World, event_id: int, condition: Callable[[EventState], bool], *, timeout_s: float
) -> EventState | None:
    """The event as soon as the condition holds of it; None when it does not within `timeout_s`."""
    found: list[EventState] = []
    with owner_connection(world) as connection:

        def holds() -> bool:
            event = read_event(connection, event_id)
            found.extend([event] if condition(event) else [])
            return bool(found)

        return found[0] if wait_until(holds, timeout_s=timeout_s) else None


def await_delivered(world: World, landed: Evidence) -> Evidence:
    """Wait until the event of a fault is delivered, by whoever gets its lease; raises FaultError."""
    began = time.monotonic()
    event_id = landed["event_id"]
    timeout_s = custody_of(world).plan.lease_s + DELIVERED_S_MAX
    event = await_event(world, event_id, lambda event: event.status == "delivered", timeout_s=timeout_s)
    if event is None:
        raise FaultError(f"event {event_id} was not delivered within {timeout_s:.0f} s")
    delivered = {
        "event_id": event_id,
        "attempts": event.attempts,
        "delivered_under": event.lease_token,
        "delivered_s": round(time.monotonic() - began, 3),
    }
    if "key" in landed:
        with on_the_line():
            delivered["arrivals"] = custody_of(world).receiver.arrivals(landed["key"])
    return delivered


@contextmanager
def _held_send(custody: Custody, timeout_s: float) -> Iterator[Held | None]:
    """The next transaction that a relay sends and the node takes."""
    from eth_utils.crypto import keccak

    keccak(b"")  # its library is loaded by the first call, which is not to be while a relay waits
    hold = custody.rpc.hold("eth_sendRawTransaction")
    try:
        call = hold.wait(timeout_s)
        if call is None:
            yield None
            return
        tx_hash = "0x" + keccak(hexstr=call.params[0]).hex()
        with asking():
            known = custody.ask("eth_getTransactionByHash", tx_hash) is not None
        evidence = {"tx_hash": tx_hash, "known": known, "held_ns": call.time_ns}
        yield Held(call.peer_port, OF_TRANSACTION, tx_hash, evidence, hold.deliver, hold.drop)
    finally:
        hold.cancel()


@contextmanager
def _held_arrival(custody: Custody, timeout_s: float) -> Iterator[Held | None]:
    """The next notice that arrives at the receiver."""
    receiver = custody.receiver
    receiver.hold_next(NOTICES)
    try:
        arrival = receiver.await_held(timeout_s)
        if arrival is None:
            yield None
            return
        key = arrival.key or ""
        evidence = {"key": key, "held_ns": arrival.time_ns}
        yield Held(arrival.peer_port, OF_KEY, key, evidence, receiver.release, receiver.drop)
    finally:
        receiver.release()
