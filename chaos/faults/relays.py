"""Who is who among the relays: whose socket a call came from, and which backends of PostgreSQL serve whom."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import psutil
import psycopg

from chaos.child import Child
from chaos.faults.fault import Custody

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

BACKENDS = """
SELECT pid, backend_start::text, query_start::text FROM pg_stat_activity
 WHERE datname = current_database() AND client_port = ANY (%s) AND pid <> pg_backend_pid()
"""
THERE = "SELECT count(*) FROM pg_stat_activity WHERE (pid, backend_start::text) = (%s, %s)"


class Backend(NamedTuple):
    """A backend of PostgreSQL; its start tells it from every other owner of its pid."""

    pid: int
    backend_start: str
    query_start: str | None


def caller(custody: Custody, port: int) -> Child | None:
    """The relay whose process or descendant calls from this port of 127.0.0.1, if one does."""
    for relay in custody.relays:
        if port in local_ports(relay):
            return relay
    return None


def local_ports(child: Child) -> set[int]:
    """The local ports of a child's established TCP connections, its descendants' too."""
    return {connection.laddr.port for connection in _established(child)}


def connections_to(child: Child, port: int) -> int:
    """How many established TCP connections a child and its descendants have to this port."""
    return sum(connection.raddr.port == port for connection in _established(child))


def backends_of(connection: Connection, child: Child) -> list[Backend]:
    """The backends that serve a child; none where a container's mapping hides their ports."""
    return [Backend(*row) for row in connection.execute(BACKENDS, [list(local_ports(child))])]


def is_there(connection: Connection, pid: int, backend_start: str) -> bool:
    """Whether this backend, and not another of its pid, is still there."""
    return connection.execute(THERE, [pid, backend_start]).fetchone() == (1,)


def _established(child: Child) -> list[Any]:
    found: list[Any] = []
    for process in child.processes():
        try:
            found += psutil.Process(process.pid).net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
    return [connection for connection in found if connection.status == psutil.CONN_ESTABLISHED]
