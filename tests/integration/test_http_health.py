"""Health, start and end of a server process: it says how it is, and goes in order."""

from __future__ import annotations

import socket
import subprocess
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from chaos.ports import free_port
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND
from tests.conftest import MarketDatabase
from tests.integration.conftest import running
from tests.integration.market_client import (
    MarketClient,
    accepted,
    await_blocked,
    await_condition,
    lock_held,
    meanwhile,
    new_key,
    question,
)
from tests.integration.market_server import MarketServer

MARKET_LOCK = "SELECT FROM markets WHERE market_id = %s FOR UPDATE"
START_TIMEOUT_S = 30.0


def test_health_says_what_runs(any_server: MarketServer) -> None:
    with MarketClient(any_server) as client:
        health = accepted(client.ask("GET", "/api/health"))
        assert (health["status"], health["strategy"]) == ("ok", any_server.strategy)
        assert health["sequencer"] == {"queued": 0, "in_flight": 0}


def test_health_answers_while_every_connection_of_the_pool_is_busy(
    supervisor: Supervisor, market_database: MarketDatabase
) -> None:
    dsn = market_database.admin_dsn
    options = ("--pool-min", "1", "--pool-max", "2")
    with (
        running(supervisor, market_database, options=options) as server,
        MarketClient(server) as client,
        meanwhile(6) as start,
    ):
        market, users = client.market(), [client.user() for _ in range(6)]
        with lock_held(dsn, MARKET_LOCK, market):
            replies = [start(client.trade, users[0], market)]
            await_blocked(dsn, 1)
            replies.append(start(client.trade, users[1], market))
            await_blocked(dsn, 2)
            replies += [
                start(client.http.get, "/api/account", headers={"Authorization": f"Bearer {user.token}"})
                for user in users[2:]
            ]
            await_condition(
                lambda: accepted(client.ask("GET", "/api/health"))["pool"]["waiting"] == 4, "four wait"
            )
            health = accepted(client.ask("GET", "/api/health"))
            assert health["pool"] == {"size": 2, "waiting": 4}
            assert health["sequencer"]["in_flight"] == 2
        for reply in replies:
            assert reply.result().status_code in (200, 503)


def test_health_has_a_connection_of_its_own_which_comes_back(
    market_server: MarketServer, market_database: MarketDatabase
) -> None:
    everyone = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'reference_server'"
    )
    with MarketClient(market_server) as client:
        user, market = client.user(), client.market()
        pool = accepted(client.ask("GET", "/api/health"))["pool"]["size"]
        assert question(market_database.admin_dsn, everyone) == pool + 1
        # Dead connections are found before they are used: no reply in between is a failure.
        accepted(client.ask("GET", "/api/health"))
        accepted(client.trade(user, market))
        accepted(client.get("/api/account", user))


@pytest.mark.parametrize("strategy", ["batch", "row_lock", "optimistic"])
def test_asked_to_end_it_finishes_what_is_in_flight(
    supervisor: Supervisor, market_database: MarketDatabase, strategy: str
) -> None:
    dsn = market_database.admin_dsn
    account_lock = "SELECT FROM accounts WHERE user_id = %s AND kind = 'user_available' FOR UPDATE"
    with (
        running(supervisor, market_database, strategy=strategy) as server,
        MarketClient(server) as client,
        meanwhile(1) as start,
    ):
        user, market, key = client.user(), client.market(), new_key()
        with lock_held(dsn, account_lock, user.user_id):
            in_flight = start(client.trade, user, market, key=key)
            await_blocked(dsn)
            server.ask_to_end()
            await_condition(lambda: refuses_connections(server.url), "it accepts nobody any more")
            assert not in_flight.done()
        assert accepted(in_flight.result())["marketVersion"] == 1
        assert server.exit_code() == 0
        server.restart()
        with MarketClient(server) as again:
            replay = again.trade(user, market, key=key)
            assert replay.headers["Idempotent-Replayed"] == "true"
            assert replay.content == in_flight.result().content


def refuses_connections(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=5):
            return False
    except ConnectionRefusedError:
        return True


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    """`serve` with options it cannot work with."""
    return subprocess.run(
        [*REFERENCE_COMMAND, "serve", *options],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )


def test_a_port_in_use_is_said_and_exits_2(shared_server: MarketServer) -> None:
    port = str(urlsplit(shared_server.url).port)
    ended = serve("--dsn", shared_server.database.app_dsn, "--port", port)
    assert ended.returncode == 2
    assert (
        ended.stderr.strip() == f"reference_server: cannot listen on 127.0.0.1:{port}: Address already in use"
    )


def test_a_database_that_does_not_answer_is_said_and_exits_2(market_database: MarketDatabase) -> None:
    nobody = make_conninfo(market_database.app_dsn, port=free_port())
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never speaks
        mute = make_conninfo(market_database.app_dsn, port=silent.getsockname()[1])
        dsns = nobody, mute, "host=127.0.0.1 port=none", "not a dsn"
        with meanwhile(len(dsns)) as start:
            servers = [start(serve, "--dsn", dsn, "--port", "0") for dsn in dsns]
        for server in servers:
            ended = server.result()
            assert ended.returncode == 2, ended.stderr
            assert ended.stderr.startswith("reference_server: PostgreSQL does not answer at the given DSN: ")
            assert len(ended.stderr.splitlines()) == 1


def test_a_database_that_refuses_is_said_at_once_and_exits_2(market_database: MarketDatabase) -> None:
    for changes in ({"password": "wrong"}, {"dbname": "no_such_database"}, {"user": "nobody_here"}):
        dsn = make_conninfo(market_database.app_dsn, **changes)
        ended = serve("--dsn", dsn, "--port", "0")
        assert ended.returncode == 2
        assert ended.stderr.startswith("reference_server: PostgreSQL does not answer at the given DSN: ")


def test_options_that_cannot_work_are_said_and_exit_2(market_database: MarketDatabase) -> None:
    dsn = market_database.app_dsn
    for options in (
        (),
        ("--dsn", dsn, "--port", "70000"),
        ("--dsn", dsn, "--trade-strategy", "guess"),
        ("--dsn", dsn, "--pool-max", "0"),
        ("--dsn", dsn, "--host", "256.0.0.1"),
    ):
        ended = serve(*options)
        assert ended.returncode == 2, options
        assert "Traceback" not in ended.stderr


def test_the_server_may_execute_functions_and_no_more(market_database: MarketDatabase) -> None:
    with psycopg.connect(market_database.app_dsn, autocommit=True) as connection:
        for table in ("users", "tokens", "accounts", "ledger_entries", "markets", "idempotency_keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(table)))
