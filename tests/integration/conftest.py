"""Fixtures of the HTTP tests: real server processes of the reference server, on real databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.postgres import Postgres, choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND, Access, create_database, install
from tests.conftest import MarketDatabase
from tests.integration.market_client import MarketClient, User, assert_books_balance, digest_of_books
from tests.integration.market_server import MarketServer

STRATEGIES = ("batch", "row_lock", "optimistic")

_numbers = itertools.count(1)


@pytest.fixture
def market_server(supervisor: Supervisor, market_database: MarketDatabase) -> Iterator[MarketServer]:
    """A running server, strategy `batch`, on a fresh database of its own."""
    with running(supervisor, market_database) as server:
        yield server


@pytest.fixture(scope="session")
def market_servers(
    supervisor: Supervisor, postgres: Postgres, market_template: Access
) -> Iterator[dict[str, MarketServer]]:
    """A running server of each strategy, all three on one database that lives as long as the session."""
    name = "seatrial_test_" + make_name()
    template = sql.Identifier(str(conninfo_to_dict(market_template.server_dsn)["dbname"]))
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), template))
    database = MarketDatabase(
        admin_dsn=make_conninfo(postgres.dsn, dbname=name),
        app_dsn=make_conninfo(market_template.server_dsn, dbname=name),
        judge_dsn=make_conninfo(market_template.judge_dsn, dbname=name),
        admin_token=market_template.admin_token,
    )
    with (
        running(supervisor, database, strategy="batch") as batch,
        running(supervisor, database, strategy="row_lock") as row_lock,
        running(supervisor, database, strategy="optimistic") as optimistic,
    ):
        yield {server.strategy: server for server in (batch, row_lock, optimistic)}
    assert_books_balance(database.admin_dsn)  # whatever the tests did
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=STRATEGIES)
def any_server(request: pytest.FixtureRequest, market_servers: dict[str, MarketServer]) -> MarketServer:
    """Each strategy's server in turn; other tests use it too, so it is not to be killed."""
    return market_servers[request.param]


@pytest.fixture
def shared_server(market_servers: dict[str, MarketServer]) -> MarketServer:
    """The `batch` server of the session; other tests use it too, so it is not to be killed."""
    return market_servers["batch"]


@pytest.fixture
def breakable(scratch: Path) -> Iterator[tuple[Postgres, MarketServer]]:
    """A server on a PostgreSQL cluster of its own, which may be killed, paused and stopped."""
    folder = scratch / make_name()
    with Supervisor(folder) as supervisor:
        # What is acknowledged must survive a kill of all its processes; fsync is for kills of the machine.
        postgres = choose_postgres(
            "embedded",
            supervisor=supervisor,
            data_dir=folder / "pgdata",
            durable=False,
            settings={"synchronous_commit": "on", "full_page_writes": "on"},
        )
        postgres.start()
        access = install(
            REFERENCE_COMMAND, create_database(postgres.dsn, "market"), folder / "logs" / "install.log"
        )
        assert access.admin_dsn is not None
        database = MarketDatabase(
            admin_dsn=access.admin_dsn,
            app_dsn=access.server_dsn,
            judge_dsn=access.judge_dsn,
            admin_token=access.admin_token,
        )
        with running(supervisor, database) as server:
            yield postgres, server
        postgres.stop()


@pytest.fixture
def client(shared_server: MarketServer) -> Iterator[MarketClient]:
    """A client of the session's `batch` server."""
    with MarketClient(shared_server) as client:
        yield client


@pytest.fixture
def user(client: MarketClient) -> User:
    """A user with 1,000 USDC."""
    return client.user()


@pytest.fixture
def market(client: MarketClient) -> int:
    """An open market of two outcomes."""
    return client.market()


@pytest.fixture
def books_unchanged(client: MarketClient, user: User, market: int) -> Iterator[tuple[User, int]]:
    """The test, which begins with this user and market, leaves every row of every table as it was."""
    before = digest_of_books(client.server.database.admin_dsn)
    yield user, market
    assert digest_of_books(client.server.database.admin_dsn) == before


@contextmanager
def running(
    supervisor: Supervisor,
    database: MarketDatabase,
    *,
    strategy: str = "batch",
    options: tuple[str, ...] = (),
) -> Iterator[MarketServer]:
    """A server process that has answered its first health check; ended by its pid."""
    server = MarketServer(
        supervisor,
        database,
        name=f"server-{make_name()}",
        strategy=strategy,
        options=options,
    )
    server.start()
    try:
        yield server
    finally:
        server.end()


def make_name() -> str:
    return f"http_{next(_numbers)}"
