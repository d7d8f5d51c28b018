"""The faults of processes on a real server and a real cluster: proof that they landed, and what survives."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from chaos.child import Child
from chaos.cluster import Postgres
from chaos.faults import FaultError, ProcessFault, make_fault
from chaos.ports import free_port
from chaos.postgres import choose_postgres
from chaos.processes import Identity, identify, is_alive, wait_until
from chaos.proxy_control import ProxyControl
from chaos.supervisor import Supervisor
from chaos.target import (
    REFERENCE_COMMAND,
    TargetError,
    await_healthy,
    create_database,
    install,
    spawn_server,
)

WAIT_S = 20.0
ENTRIES_OF_KEYS = """
SELECT count(*) FROM books.transactions t WHERE t.idempotency_key = ANY(%s)
"""


@dataclass
class RealWorld:
    """The reference server on an embedded PostgreSQL of its own, as a run has them."""

    servers: list[Child]
    postgres: Postgres
    admin_dsn: str
    url: str
    admin_token: str
    proxy: ProxyControl | None = None
    custody: None = None
    acknowledged: list[str] = field(default_factory=list)

    def server_healthy(self, timeout_s: float) -> bool:
        try:
            await_healthy(self.url, timeout_s=timeout_s)
        except TargetError:
            return False
        return True

    def fund(self, client: httpx.Client, key: str) -> bool:
        """Move money; whether the server acknowledged it."""
        body = {"account": "house_treasury", "amount": 1_000_000}
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {self.admin_token}"}
        try:
            reply = client.post(f"{self.url}/api/fundings", json=body, headers=headers)
        except httpx.HTTPError:
            return False
        if reply.status_code == httpx.codes.CREATED:
            self.acknowledged.append(key)
            return True
        return False

    def booked(self, keys: list[str]) -> int:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            row = connection.execute(ENTRIES_OF_KEYS, [keys]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def world() -> Iterator[RealWorld]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="seatrial-", dir=memory) as name,
        Supervisor(Path(name)) as supervisor,
    ):
        scratch = Path(name)
        postgres = choose_postgres("embedded", supervisor=supervisor, data_dir=scratch / "pgdata")
        postgres.start()
        admin_dsn = create_database(postgres.dsn, "seatrial_faults")
        access = install(REFERENCE_COMMAND, admin_dsn, scratch / "install.log")
        port = free_port()
        server = spawn_server(
            supervisor, REFERENCE_COMMAND, access, name="server-0", port=port, strategy="batch"
        )
        url = f"http://127.0.0.1:{port}"
        await_healthy(url, child=server)
        yield RealWorld([server], postgres, admin_dsn, url, access.admin_token)
        server.terminate()
        postgres.stop()


@pytest.fixture
def traffic(world: RealWorld) -> Iterator[None]:
    """Money moves all the time while the test runs, under keys of its own."""
    enough = threading.Event()

    def move(name: int) -> None:
        number = 0
        with httpx.Client(timeout=2, trust_env=False) as client:
            while not enough.is_set():
                number += 1
                world.fund(client, f"traffic-{os.urandom(4).hex()}-{name}-{number}")

    threads = [threading.Thread(target=move, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(world.acknowledged) >= 20, timeout_s=WAIT_S)
    yield
    enough.set()
    for thread in threads:
        thread.join(WAIT_S)
    keys = list(world.acknowledged)
    world.acknowledged.clear()
    assert world.booked(keys) == len(keys), "what was acknowledged is in the books, once"


def process_fault(name: str, **options: Any) -> ProcessFault:
    fault = make_fault(name, options)
    assert isinstance(fault, ProcessFault)
    return fault


def await_served(world: RealWorld) -> None:
    """Wait until money moves again."""
    before = len(world.acknowledged)
    assert wait_until(lambda: len(world.acknowledged) > before, timeout_s=WAIT_S)


@pytest.mark.usefixtures("traffic")
def test_a_killed_server_is_dead_by_sigkill_and_comes_back_as_another_process(world: RealWorld) -> None:
    fault = process_fault("kill_server")
    before = identify(world.servers[0].pid)
    assert before is not None
    landed = fault.inject(world)
    assert not is_alive(before)
    assert (landed["pid"], landed["returncode"]) == (before.pid, -9)
    assert not world.server_healthy(0.05)
    healed = fault.heal(world, landed)
    assert healed["pid"] == world.servers[0].pid != before.pid
    assert healed["pid_before"] == before.pid
    assert 0 < healed["healthy_s"] < WAIT_S
    await_served(world)


@pytest.mark.usefixtures("traffic")
def test_a_killed_cluster_is_dead_to_the_last_backend_and_recovers(world: RealWorld) -> None:
    fault = process_fault("kill_postgres")
    before = [identity for identity in map(identify, world.postgres.pids()) if isinstance(identity, Identity)]
    landed = fault.inject(world)
    assert set(landed["pids"]) >= {process.pid for process in before[:1]}
    assert not any(map(is_alive, before))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(world.admin_dsn, connect_timeout=2)
    healed = fault.heal(world, landed)
    assert healed["postmaster_start_time"] != landed["postmaster_start_time"]
    assert healed["postmaster_start_time_before"] == landed["postmaster_start_time"]
    assert 0 < healed["recovery_s"] < WAIT_S
    await_served(world)


@pytest.mark.usefixtures("traffic")
def test_a_terminated_backend_was_the_applications_and_is_gone(world: RealWorld) -> None:
    fault = process_fault("terminate_backend")
    with psycopg.connect(world.admin_dsn, autocommit=True, application_name="seatrial watcher") as watcher:
        landed = fault.inject(world)
        left = watcher.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND backend_start::text = %s",
            [landed["pid"], landed["backend_start"]],
        ).fetchone()
    assert left == (0,)
    assert landed["application"] == "reference_server"
    assert landed["gone"] is True
    assert fault.heal(world, landed)["backends"] >= 1
    await_served(world)


def test_where_no_backend_is_active_an_idle_one_is_terminated(world: RealWorld) -> None:
    assert world.server_healthy(WAIT_S)
    landed = process_fault("terminate_backend", active_s=0).inject(world)
    assert landed["gone"] is True


def test_the_harness_never_terminates_its_own_backends(world: RealWorld) -> None:
    dsn = create_database(world.postgres.dsn, "seatrial_own")
    lonely = RealWorld([], world.postgres, dsn, world.url, "")
    with psycopg.connect(dsn, autocommit=True, application_name="seatrial probe") as probe:
        with pytest.raises(FaultError, match="no backend"):
            process_fault("terminate_backend", active_s=0.05).inject(lonely)
        assert probe.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("name", ["kill_server", "kill_postgres", "terminate_backend"])
def test_healing_what_was_never_broken_breaks_nothing(name: str, world: RealWorld) -> None:
    pids = (world.servers[0].pid, sorted(world.postgres.pids())[0])
    process_fault(name).heal(world, {})
    assert (world.servers[0].pid, sorted(world.postgres.pids())[0]) == pids
    assert world.server_healthy(WAIT_S)


def test_a_restart_that_never_happened_is_not_taken_for_recovery(world: RealWorld) -> None:
    fault = process_fault("kill_postgres")
    with psycopg.connect(world.admin_dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_postmaster_start_time()::text").fetchone()
    assert row is not None
    with pytest.raises(FaultError, match="never restarted"):
        fault.heal(world, {"postmaster_start_time": row[0], "pids": [1]})
