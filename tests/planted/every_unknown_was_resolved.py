"""A report that somebody runs on the server's role is still reading when the load is long over."""

from __future__ import annotations

import threading

import psycopg

from tests.planted.arguments import dsn_of_server

COMMANDS = ("serve",)
LASTS_S = 120


def plant() -> None:
    """Keep a backend of the application busy from the start until the process ends."""

    def report() -> None:
        with psycopg.connect(dsn_of_server()) as connection:
            connection.execute("SELECT pg_sleep(%s)", [LASTS_S])

    threading.Thread(target=report, daemon=True).start()
