"""The database owner's connection, through which the faults of PostgreSQL act and look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from chaos.faults.fault import FaultError, World


@contextmanager
def owner_connection(world: World) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection in autocommit; whatever PostgreSQL refuses within it is a FaultError."""
    try:
        with psycopg.connect(
            world.admin_dsn, autocommit=True, connect_timeout=5, application_name="seatrial nemesis"
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise FaultError(f"PostgreSQL: {error}") from None
