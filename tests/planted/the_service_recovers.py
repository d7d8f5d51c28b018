"""A server that comes back warms up for seconds: its health is fine, and it serves nobody."""

from __future__ import annotations

import time

import psycopg

from reference_server.headers import RequestHeaders
from reference_server.problem import Problem
from tests.planted.arguments import dsn_of_server

COMMANDS = ("serve",)
WARM_UP_S = 4.0


def has_markets(dsn: str) -> bool:
    """Whether this server is not the first on its database."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT api_markets()").fetchone()
    return row is not None and "marketId" in str(row[0])


def plant() -> None:
    """Refuse everybody for a while after a restart."""
    if not has_markets(dsn_of_server()):
        return
    warm_s = time.monotonic() + WARM_UP_S
    token = RequestHeaders.token

    def when_warm(headers: RequestHeaders) -> bytes:
        if time.monotonic() < warm_s:
            raise Problem("overloaded", "warming up", headers=(("retry-after", "1"),))
        return token(headers)

    RequestHeaders.token = when_warm  # type: ignore[method-assign, assignment]
