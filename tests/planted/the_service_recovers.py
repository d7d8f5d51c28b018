"""A server that comes back warms up for seconds: its health is fine, and it serves nobody."""

from __future__ import annotations

import argparse
import sys
import time

import psycopg

from reference_server.headers import RequestHeaders
from reference_server.problem import Problem

WARM_UP_S = 4.0


def has_markets(dsn: str) -> bool:
    """Whether this server is not the first on its database."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT api_markets()").fetchone()
    return row is not None and "marketId" in str(row[0])


def plant() -> None:
    """Refuse everybody for a while after a restart."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    if not has_markets(parser.parse_known_args(sys.argv)[0].dsn):
        return
    warm_s = time.monotonic() + WARM_UP_S
    token = RequestHeaders.token

    def when_warm(headers: RequestHeaders) -> bytes:
        if time.monotonic() < warm_s:
            raise Problem("overloaded", "warming up", headers=(("retry-after", "1"),))
        return token(headers)

    RequestHeaders.token = when_warm  # type: ignore[method-assign, assignment]
