"""A PostgreSQL backend of the application terminated, preferably in the middle of its work."""

from __future__ import annotations

import time

from chaos.faults.fault import FaultError, ProcessFault, Seconds, World
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence

POLL_S = 0.002
GONE_MS_MAX = 5_000
# The harness's own connections say so in their names; everybody else in the database is the application.
APPLICATION = """
    datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND application_name NOT LIKE 'seatrial%%'
"""
TERMINATE = f"""
WITH victim AS MATERIALIZED (
    SELECT pid, backend_start::text AS backend_start, state, application_name FROM pg_stat_activity
     WHERE {APPLICATION} AND (state <> 'idle' OR %(idle_too)s)
     ORDER BY (state = 'idle'), query_start DESC LIMIT 1)
SELECT pid, backend_start, state, application_name, pg_terminate_backend(pid, {GONE_MS_MAX}) FROM victim
"""
STILL_THERE = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND backend_start::text = %s"


class TerminateBackend(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """pg_terminate_backend on one backend: an active one if there is any within `active_s`, else an idle one.

    Nothing to undo: PostgreSQL goes on, and the application connects again by itself.
    """

    target = "postgres"
    active_s: Seconds = 1.0

    def inject(self, world: World) -> Evidence:
        began = time.monotonic()
        victim = None
        with owner_connection(world) as connection:
            while victim is None:
                idle_too = time.monotonic() - began >= self.active_s
                victim = connection.execute(TERMINATE, {"idle_too": idle_too}).fetchone()
                if victim is None and idle_too:
                    raise FaultError("the application has no backend in this database")
                time.sleep(POLL_S)  # bounded by active_s; the condition is an active backend
            pid, backend_start, state, name, gone = victim
            row = connection.execute(STILL_THERE, [pid, backend_start]).fetchone()
        if not gone or row != (0,):
            raise FaultError(f"backend {pid} was still there {GONE_MS_MAX} ms after its termination")
        return {"pid": pid, "backend_start": backend_start, "state": state, "application": name, "gone": True}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        del landed
        with owner_connection(world) as connection:
            row = connection.execute(
                f"SELECT count(*) FROM pg_stat_activity WHERE {APPLICATION}", {}
            ).fetchone()
        assert row is not None
        return {"backends": row[0]}
