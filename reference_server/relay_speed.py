"""How fast the relay is: events of a handler that does nothing, delivered by one relay process and by two.

    python -m reference_server.relay_speed --dsn DSN [--events 20000] [--aggregates 5000]

DSN is the owner of a database in which the schema is installed; the events stay in it. The time runs from the
start of the processes to the last delivery, so it includes their start-up. The target is 1,000 events a
second with one relay; exit 1 when it is missed, or when an event left late or out of order.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any, TypeAlias

import psycopg

TARGET_PER_S = 1_000
TIMEOUT_S = 120.0
# Each event holds a lock until its transaction ends: not too many in one.
EVENTS_PER_TRANSACTION = 500

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reference_server.relay_speed", description=__doc__)
    parser.add_argument("--dsn", required=True, help="owner of a database with the schema")
    parser.add_argument("--events", type=int, default=20_000, help="how many (default: %(default)s)")
    parser.add_argument("--aggregates", type=int, default=5_000, help="of how many (default: %(default)s)")
    options = parser.parse_args()
    kept = True
    print(f"{'relays':>6} {'events':>10} {'aggregates':>10} {'seconds':>8} {'events/s':>9}  order")
    with psycopg.connect(options.dsn, autocommit=True, connect_timeout=10) as connection:
        for relays in (1, 2):
            first = enqueue(connection, events=options.events, aggregates=options.aggregates)
            took_s = deliver(connection, options.dsn, relays=relays, first=first)
            inverted = inversions(connection, first)
            rate = options.events / took_s
            print(
                f"{relays:6} {options.events:10,} {options.aggregates:10,} {took_s:8.2f} {rate:9,.0f}  "
                + ("kept" if inverted == 0 else f"{inverted} inverted"),
                flush=True,
            )
            kept = kept and inverted == 0 and (rate >= TARGET_PER_S or relays > 1)
    print(f"target: {TARGET_PER_S:,} events/s with one relay")
    return 0 if kept else 1


def enqueue(connection: Connection, *, events: int, aggregates: int) -> int:
    """Write the events; the id of the first."""
    (last,) = row(connection, "SELECT coalesce(max(event_id), 0) FROM outbox_events")
    for begin in range(0, events, EVENTS_PER_TRANSACTION):
        connection.execute(
            """SELECT enqueue_event(
                          'measure', (n %% %s)::text, 'measure.relay', '{}', format('measure:%%s:%%s', %s, n))
                 FROM generate_series(%s::bigint, %s::bigint) AS n ORDER BY n %% %s""",
            [aggregates, last, begin, min(begin + EVENTS_PER_TRANSACTION, events) - 1, aggregates],
        )
    return int(last) + 1


def deliver(connection: Connection, dsn: str, *, relays: int, first: int) -> float:
    """Run relays until everything from `first` on is delivered; the seconds. Raises TimeoutError."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "reference_server", "relay", "--dsn", dsn, "--seed", "1"]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(relays)]
    try:
        deadline = started_s + TIMEOUT_S
        while time.monotonic() < deadline:
            (left,) = row(
                connection,
                """SELECT count(*) FROM (SELECT FROM outbox_events
                    WHERE status <> 'delivered' AND event_id >= %s LIMIT 1) AS open""",
                first,
            )
            if left == 0:
                return time.monotonic() - started_s
            time.sleep(0.02)  # until the deadline
        raise TimeoutError(f"not delivered within {TIMEOUT_S:.0f} s")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


def inversions(connection: Connection, first: int) -> int:
    """How many events were delivered before an earlier one of their aggregate."""
    (inverted,) = row(
        connection,
        """SELECT count(*) FROM (
               SELECT delivered_at < lag(delivered_at) OVER aggregate AS inverted
                 FROM outbox_events WHERE event_id >= %s
               WINDOW aggregate AS (PARTITION BY aggregate_type, aggregate_id ORDER BY event_id)) AS pairs
            WHERE inverted""",
        first,
    )
    return int(inverted)


def row(connection: Connection, query: Any, *parameters: object) -> tuple[Any, ...]:
    """The only row of a query."""
    found = connection.execute(query, parameters).fetchone()
    assert found is not None
    return found


if __name__ == "__main__":
    sys.exit(main())
