"""The whole PostgreSQL cluster killed with SIGKILL under load, and recovered from its write-ahead log."""

from __future__ import annotations

import time

from chaos.cluster import Postgres, PostgresError
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence
from chaos.processes import identify, is_alive


class KillPostgres(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGKILL postmaster and backends; healed when PostgreSQL has recovered and answers a query.

    Its undo is the cluster's own: a harness that dies leaves a watchdog that ends PostgreSQL and removes it.
    """

    target = "postgres"

    def check(self, world: World) -> None:
        _cluster(world)

    def inject(self, world: World) -> Evidence:
        postgres = _cluster(world)
        started = _started(world)
        processes = [process for process in map(identify, postgres.pids()) if process is not None]
        began_ns = time.monotonic_ns()
        try:
            postgres.kill()
        except PostgresError as error:
            raise FaultError(str(error)) from None
        dead = [process.pid for process in processes if not is_alive(process)]
        # In a virtual machine's container there are no pids to be seen: then its silence is the proof.
        if len(dead) < len(processes) or _answers(world):
            raise FaultError(f"PostgreSQL outlived SIGKILL: of its processes {processes} {dead} are dead")
        return {"pids": dead, "postmaster_start_time": started, "kill_ns": began_ns}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        before = landed.get("postmaster_start_time")
        try:
            recovery_s = _cluster(world).restart_after_kill()
        except PostgresError as error:
            raise FaultError(str(error)) from None
        started = _started(world)
        if landed and started == before:
            raise FaultError(f"PostgreSQL still runs since {started}: it was never restarted")
        return {
            "recovery_s": round(recovery_s, 3),
            "postmaster_start_time": started,
            "postmaster_start_time_before": before,
        }


def _cluster(world: World) -> Postgres:
    if world.postgres is None or not world.postgres.can_kill:
        raise FaultError("kill_postgres needs a PostgreSQL that Seatrial starts: embedded or docker")
    return world.postgres


def _answers(world: World) -> bool:
    try:
        _started(world)
    except FaultError:
        return False
    return True


def _started(world: World) -> str:
    with owner_connection(world) as connection:
        row = connection.execute("SELECT pg_postmaster_start_time()::text").fetchone()
    assert row is not None
    return str(row[0])
