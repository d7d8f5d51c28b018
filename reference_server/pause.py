"""`python -m reference_server pause`: stop all money at once; returns when nothing is in motion any more."""

from __future__ import annotations

import argparse
import json
import os
import sys

import psycopg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pause`."""
    parser.add_argument("--dsn", help="owner of the database (default: SEATRIAL_DSN)")
    parser.add_argument("--reason", required=True, help="why, for whoever resumes")


def run(options: argparse.Namespace) -> int:
    """Close the gate and print the platform's state; 2 when the database refuses."""
    dsn = options.dsn or os.environ.get("SEATRIAL_DSN")
    if not dsn:
        print("pause: give --dsn or set SEATRIAL_DSN", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            connection.execute("SELECT pause_trading(%s)", [options.reason])
            print(json.dumps(platform_state(connection)))
    except psycopg.Error as error:
        print(f"pause: {str(error).strip()}", file=sys.stderr)
        return 2
    return 0


def platform_state(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    """The platform's state as it is printed."""
    row = connection.execute("SELECT row_to_json(s) FROM platform_state AS s").fetchone()
    assert row is not None
    return row[0]
