"""A PostgreSQL of ours, embedded or in a container: started, killed, paused, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.cluster import server_version
from chaos.postgres import Postgres, PostgresError, choose_postgres
from chaos.processes import identify, is_alive, wait_gone, wait_until
from chaos.supervisor import ROOT, Supervisor

# A harness with a paused cluster, which waits to be killed.
HARNESS = """
import json, pathlib, signal, sys
from chaos.postgres import choose_postgres
from chaos.supervisor import Supervisor
kind, run = sys.argv[1], pathlib.Path(sys.argv[2])
supervisor = Supervisor(run)
postgres = choose_postgres(kind, supervisor=supervisor, data_dir=run / "pg", durable=False)
supervisor.undo_remove(run / "pg")
postgres.start()
postgres.pause()
print(json.dumps({"dsn": postgres.dsn, "pids": postgres.pids()}), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module", params=["embedded", pytest.param("docker", marks=pytest.mark.docker)])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind that Seatrial can kill; the container where an engine answers."""
    kind = str(request.param)
    if kind == "docker":
        request.getfixturevalue("docker_engine")
    return kind


@contextmanager
def run_directory(scratch: Path) -> Iterator[Path]:
    """A run directory that the server's user may enter, as he may not enter tmp_path."""
    run = Path(tempfile.mkdtemp(prefix="seatrial-", dir=scratch.parent))
    try:
        yield run
    finally:
        shutil.rmtree(run)


@pytest.fixture
def run(scratch: Path) -> Iterator[Path]:
    with run_directory(scratch) as run:
        yield run


@pytest.fixture(scope="module")
def shared(kind: str, scratch: Path) -> Iterator[tuple[Postgres, Supervisor]]:
    """A cluster as for load, for the tests that leave it running, and who supervises it."""
    extra = {"work_mem": "7MB", "max_wal_size": "256MB"}
    with run_directory(scratch) as run, Supervisor(run) as supervisor:
        cluster = choose_postgres(kind, supervisor=supervisor, data_dir=run / "pg", settings=extra)
        try:
            cluster.start()
            yield cluster, supervisor
        finally:
            cluster.stop()


@pytest.fixture
def cluster(shared: tuple[Postgres, Supervisor]) -> Postgres:
    return shared[0]


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def containers() -> set[str]:
    """Names of the engine's containers that are ours, running or not."""
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient().client
    found = {container.name for container in client.containers.list(all=True, filters={"name": "seatrial-"})}
    client.close()
    return found


def test_a_killed_cluster_comes_back_with_what_it_had_committed(cluster: Postgres) -> None:
    with psycopg.connect(cluster.dsn) as connection:
        connection.execute("CREATE TABLE entries (id int)")
        connection.execute("INSERT INTO entries VALUES (1), (2)")
        connection.commit()
        connection.execute("INSERT INTO entries VALUES (3)")
        before = [identify(pid) for pid in cluster.pids()]
        cluster.kill()
        assert before
        assert not any(process is not None and is_alive(process) for process in before)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        server_version(cluster.dsn)
    for _ in range(3):
        assert cluster.restart_after_kill() > 0
        assert rows(cluster.dsn, "SELECT id FROM entries ORDER BY id") == [(1,), (2,)]
        cluster.kill()
    cluster.restart_after_kill()


def test_a_paused_cluster_answers_nobody_until_it_is_resumed(cluster: Postgres) -> None:
    answered = threading.Event()
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        cluster.pause()
        assert {psutil.Process(pid).status() for pid in cluster.pids()} <= {
            psutil.STATUS_STOPPED,
            psutil.STATUS_DISK_SLEEP,
            psutil.STATUS_SLEEPING,  # how a frozen container looks
        }

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                server_version(cluster.dsn, connect_timeout_s=2)
            assert not answered.is_set()
        finally:
            cluster.resume()
            asking.join(10)
    assert answered.is_set()


def test_a_paused_cluster_can_be_killed(cluster: Postgres) -> None:
    cluster.pause()
    cluster.kill()
    cluster.restart_after_kill()
    assert rows(cluster.dsn, "SELECT 1") == [(1,)]


def test_a_cluster_that_another_hand_killed_starts_again(shared: tuple[Postgres, Supervisor]) -> None:
    cluster, supervisor = shared
    with psycopg.connect(cluster.dsn):
        everyone = [process for process in map(identify, cluster.pids()) if process is not None]
        os.kill(everyone[0].pid, signal.SIGKILL)
        assert wait_gone(everyone[:1], timeout_s=10) == []
        assert [child.name for child in supervisor.dead()] == ["postgres"] * (cluster.kind == "embedded")
        cluster.restart_after_kill()
    assert rows(cluster.dsn, "SELECT 1") == [(1,)]
    assert supervisor.dead() == []
    assert wait_gone(everyone, timeout_s=5) == []


def test_it_listens_on_loopback_alone(cluster: Postgres) -> None:
    port = int(str(conninfo_to_dict(cluster.dsn)["port"]))
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_nobody_enters_without_the_password(cluster: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        server_version(make_conninfo(cluster.dsn, password="guessed"))


def test_a_run_for_load_is_durable_and_takes_extra_settings(cluster: Postgres) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "work_mem", "max_wal_size")
    values = [rows(cluster.dsn, f"SHOW {name}")[0][0] for name in names]
    assert values == ["on", "on", "on", "on", "7MB", "256MB"]
    assert cluster.version == rows(cluster.dsn, "SHOW server_version")[0][0]


def test_its_log_is_kept_with_the_run_through_kills(shared: tuple[Postgres, Supervisor]) -> None:
    cluster, supervisor = shared
    log = supervisor.logs / "postgres.log"
    for life in range(3):
        with psycopg.connect(cluster.dsn, autocommit=True) as connection:
            connection.execute(f"DO $$ BEGIN RAISE LOG 'words of life %.', {life}; END $$")
        cluster.kill()
        cluster.restart_after_kill()
    assert wait_until(lambda: "words of life 2." in log.read_text(), timeout_s=10)
    said = re.findall(r"LOG:  words of life (\d)\.|(not properly shut down)", log.read_text())
    crash = ("", "not properly shut down")
    first = said.index(("0", ""))
    assert said[first : first + 5] == [("0", ""), crash, ("1", ""), crash, ("2", "")]


def test_stop_ends_it_in_order_and_leaves_nothing(kind: str, run: Path) -> None:
    before = containers() if kind == "docker" else set()
    with Supervisor(run) as supervisor:
        cluster = choose_postgres(kind, supervisor=supervisor, data_dir=run / "pg", durable=False)
        cluster.start()
        everyone = [identify(pid) for pid in cluster.pids()]
        cluster.stop()
        cluster.stop()
        assert "database system is shut down" in (supervisor.logs / "postgres.log").read_text()
        assert supervisor.dead() == []
    assert everyone
    assert not any(process is not None and is_alive(process) for process in everyone)
    if kind == "docker":
        assert containers() <= before


def test_a_cluster_that_cannot_start_says_why(kind: str, run: Path) -> None:
    before = containers() if kind == "docker" else set()
    wrong = {"shared_buffers": "plenty"}
    with Supervisor(run) as supervisor:
        cluster = choose_postgres(
            kind, supervisor=supervisor, data_dir=run / "pg", durable=False, settings=wrong
        )
        with pytest.raises(PostgresError, match='invalid value for parameter "shared_buffers": "plenty"'):
            cluster.start()
    if kind == "docker":
        assert containers() <= before


def test_nothing_is_left_when_the_harness_is_killed(kind: str, run: Path) -> None:
    before = containers() if kind == "docker" else set()
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, kind, str(run)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as harness:
        assert harness.stdout is not None
        told = json.loads(harness.stdout.readline())
        everyone = [identify(child.pid) for child in psutil.Process(harness.pid).children()]
        everyone += [identify(pid) for pid in told["pids"]]
        lock = run / "pg" / "postmaster.pid"
        segment = lock.read_text().splitlines()[6].split()[1] if kind == "embedded" else None
        harness.kill()
    assert wait_gone([process for process in everyone if process is not None], timeout_s=20) == []
    assert not (run / "undo.jsonl").exists()
    assert not (run / "pg").exists()
    if kind == "docker":
        assert containers() <= before
    elif sys.platform == "linux":
        shared = Path("/proc/sysvipc/shm").read_text().splitlines()
        assert segment not in [line.split()[1] for line in shared]
