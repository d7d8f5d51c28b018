"""Fixtures that every level shares: one PostgreSQL a session, a fresh database a test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.docker_engine import engine_trouble, image_name, image_trouble
from chaos.postgres import DSN_VARIABLE, Postgres, choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND, Access, create_database, install

_numbers = itertools.count(1)


@dataclass(frozen=True)
class MarketDatabase:
    """How to reach one copy: as its owner, its server, its judge, and over HTTP as its administrator."""

    admin_dsn: str
    app_dsn: str
    judge_dsn: str
    admin_token: str


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: functional tests need no disk."""
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="seatrial-", dir=memory if in_memory else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def supervisor(scratch: Path) -> Iterator[Supervisor]:
    """A supervisor for what lives as long as the session."""
    with Supervisor(scratch) as supervisor:
        supervisor.undo_remove(scratch)
        yield supervisor


@pytest.fixture(scope="session")
def postgres(scratch: Path, supervisor: Supervisor) -> Iterator[Postgres]:
    """The session's PostgreSQL: the one that SEATRIAL_POSTGRES_DSN names, else embedded, without fsync."""
    spec = os.environ.get(DSN_VARIABLE) or "embedded"
    postgres = choose_postgres(spec, supervisor=supervisor, data_dir=scratch / "pgdata", durable=False)
    postgres.start()
    yield postgres
    postgres.stop()


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Skips where no container can be had; in CI only for the reason that was announced."""
    reason = os.environ.get("SEATRIAL_NO_DOCKER") or engine_trouble() or image_trouble(image_name())
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """A fresh empty database; its owner's DSN."""
    dsn = create_database(postgres.dsn, _fresh_name())
    yield dsn
    _drop_database(postgres.dsn, dsn)


@pytest.fixture(scope="session")
def market_template(postgres: Postgres, scratch: Path) -> Iterator[Access]:
    """A database with the reference schema installed, to be copied; nobody connects to it."""
    dsn = create_database(postgres.dsn, _fresh_name())
    yield install(REFERENCE_COMMAND, dsn, scratch / "logs" / "install.log")
    _drop_database(postgres.dsn, dsn)


@pytest.fixture
def market_database(postgres: Postgres, market_template: Access) -> Iterator[MarketDatabase]:
    """A fresh copy of the installed reference schema. Roles and their passwords belong to the cluster."""
    name = _fresh_name()
    copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(_name_of(market_template.server_dsn))
    )
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(copy)
    database = MarketDatabase(
        admin_dsn=make_conninfo(postgres.dsn, dbname=name),
        app_dsn=make_conninfo(market_template.server_dsn, dbname=name),
        judge_dsn=make_conninfo(market_template.judge_dsn, dbname=name),
        admin_token=market_template.admin_token,
    )
    yield database
    _drop_database(postgres.dsn, database.admin_dsn)


def _fresh_name() -> str:
    """A name that no other session in the same cluster has."""
    return f"seatrial_test_{os.getpid()}_{next(_numbers)}"


def _name_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


def _drop_database(admin_dsn: str, dsn: str) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_name_of(dsn)))
        connection.execute(drop)
