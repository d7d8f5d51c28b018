"""`python -m reference_server dead-letters`: events that could not be delivered, to inspect and to replay.

Without further words it prints each as one line of JSON, the oldest death first. `--replay ID...` or
`--replay-all` makes them pending again under the same id and dedup key; the relays do the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import dict_row

Connection: TypeAlias = psycopg.Connection[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dead-letters`."""
    parser.add_argument(
        "--dsn",
        default=os.environ.get("SEATRIAL_RELAY_DSN"),
        help="PostgreSQL, as the role seatrial_relay (default: $SEATRIAL_RELAY_DSN)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--replay", metavar="ID", type=int, nargs="+", help="deliver these again")
    which.add_argument("--replay-all", action="store_true", help="deliver all of them again")


def run(options: argparse.Namespace) -> int:
    """List or replay; 1 when an id is not that of a dead letter, 2 with a message when it cannot be done."""
    if not options.dsn:
        print("dead-letters: no database: give --dsn or set SEATRIAL_RELAY_DSN", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(
            options.dsn, autocommit=True, connect_timeout=10, row_factory=dict_row
        ) as connection:
            letters = connection.execute("SELECT * FROM dead_letters()").fetchall()
            if options.replay_all:
                return replay(connection, [letter["event_id"] for letter in letters])
            if options.replay:
                return replay(connection, options.replay)
    except psycopg.Error as error:
        print(f"dead-letters: {str(error).strip()}", file=sys.stderr)
        return 2
    for letter in letters:
        print(json.dumps(letter, default=str, ensure_ascii=False))
    return 0


def replay(connection: Connection, event_ids: list[int]) -> int:
    """Make events pending again, the oldest first; 1 when one of them is not dead."""
    code = 0
    for event_id in sorted(event_ids):
        row = connection.execute("SELECT replay_dead_letter(%s) AS replayed", [event_id]).fetchone()
        if row is not None and row["replayed"]:
            print(json.dumps({"event_id": event_id, "replayed": True}))
        else:
            print(f"dead-letters: event {event_id} is not a dead letter", file=sys.stderr)
            code = 1
    return code
