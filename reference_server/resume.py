"""`python -m reference_server resume`: let money move again, after a clean reconciliation."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys

import psycopg

from reference_server.pause import platform_state

REFUSED = "ST006"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resume`."""
    parser.add_argument("--dsn", help="owner of the database (default: SEATRIAL_DSN)")
    parser.add_argument("--reason", required=True, help="why it is safe again")


def run(options: argparse.Namespace) -> int:
    """Open the gate and print the platform's state; 1 when it may not be opened, 2 on usage."""
    dsn = options.dsn or os.environ.get("SEATRIAL_DSN")
    token = os.environ.get("SEATRIAL_ADMIN_TOKEN")
    if not dsn or not token:
        print(
            "resume: give --dsn or set SEATRIAL_DSN, and set SEATRIAL_ADMIN_TOKEN to your own token",
            file=sys.stderr,
        )
        return 2
    token_hash = hashlib.sha256(token.encode()).digest()
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            caller = connection.execute("SELECT user_id FROM api_authenticate(%s)", [token_hash]).fetchone()
            connection.execute("SELECT resume_trading(%s, %s)", [caller and caller[0], options.reason])
            print(json.dumps(platform_state(connection)))
    except psycopg.Error as error:
        print(f"resume: {error.diag.message_primary or str(error).strip()}", file=sys.stderr)
        return 1 if error.sqlstate == REFUSED else 2
    return 0
