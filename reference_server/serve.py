"""`python -m reference_server serve`: one server process, from a DSN and a port to a graceful end.

In this order, because a server that was killed must be back within a second: take the port (clients that
connect from now on wait in its backlog instead of being refused), connect to PostgreSQL once, load the
application, serve. On SIGTERM or SIGINT: accept no more, finish what is in flight, close the pool, exit 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reference_server.app import assemble, create_app
from reference_server.database import CONNECT_TIMEOUT_S, Connection, connect
from reference_server.problem import Problem
from reference_server.replies import head_of_problem
from reference_server.siwe import Audience

BACKLOG = 2_048
GRACEFUL_S = 10
# Longer than clients keep an idle connection: closing first would cut off a request that is on its way.
KEEP_ALIVE_S = 75
CONNECT_RETRY_S = 0.05

log = logging.getLogger("reference_server.serve")


class ServeError(Exception):
    """The server cannot start; says why and what to do."""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with problem+json for what is not HTTP at all."""

    def send_400_response(self, msg: str) -> None:
        problem = Problem("malformed", msg)
        self.transport.write(head_of_problem(problem) + problem.body())
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 when it is asked to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    parser.add_argument(
        "--dsn",
        default=os.environ.get("SEATRIAL_SERVER_DSN"),
        help="PostgreSQL, as the role seatrial_server (default: $SEATRIAL_SERVER_DSN)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--trade-strategy",
        choices=("batch", "row_lock", "optimistic"),
        default="batch",
        help="how trades of one market are executed (default: %(default)s)",
    )
    parser.add_argument(
        "--wallet-domain",
        default=os.environ.get("SEATRIAL_WALLET_DOMAIN", "localhost"),
        help="domain that wallets sign in to (default: $SEATRIAL_WALLET_DOMAIN or localhost)",
    )
    parser.add_argument(
        "--chain-id",
        type=int,
        default=int(os.environ.get("SEATRIAL_CHAIN_ID", "31337")),
        help="chain that wallets sign in for (default: $SEATRIAL_CHAIN_ID or 31337)",
    )
    parser.add_argument("--pool-max", type=int, default=50, help="most connections (default: %(default)s)")
    parser.add_argument("--pool-min", type=int, default=5, help="fewest connections (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal; the exit code is 0, or 2 with a message when the server cannot start."""
    started = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # While PostgreSQL is away the pool would say so at every attempt; the health check says it too.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    try:
        check_arguments(arguments)
        with listen(arguments.host, arguments.port) as listener:
            uvloop.run(serve(arguments, listener, started))
    except ServeError as error:
        print(f"reference_server: {error}", file=sys.stderr)
        return 2
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ServeError on options that cannot work."""
    if not arguments.dsn:
        raise ServeError("no database: give --dsn or set SEATRIAL_SERVER_DSN")
    if not 0 <= arguments.port <= 65_535:
        raise ServeError(f"--port {arguments.port}: a port is from 0 to 65535")
    if not 1 <= arguments.pool_min <= arguments.pool_max <= 1_000:
        raise ServeError("--pool-min and --pool-max: 1 <= min <= max <= 1000")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ServeError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Not to share the port with a living server, but to take it over at once from a dead one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


async def first_connection(dsn: str) -> Connection:
    """A connection, waited for while PostgreSQL starts or recovers; raises ServeError."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            return await connect(dsn)
        except psycopg.Error as error:
            # No SQLSTATE: nobody answered. 57P03: it is starting. All else will not change by waiting.
            waitable = isinstance(error, psycopg.OperationalError) and error.sqlstate in (None, "57P03")
            if not waitable or is_final(error) or time.monotonic() > deadline:
                reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
                raise ServeError(f"PostgreSQL does not answer at the given DSN: {reason}") from None
        await asyncio.sleep(CONNECT_RETRY_S)


def is_final(error: psycopg.Error) -> bool:
    """Whether PostgreSQL answered and refused (libpq gives no SQLSTATE for errors before the session)."""
    text = str(error)
    return "FATAL" in text and "starting up" not in text and "recovery" not in text


async def serve(arguments: argparse.Namespace, listener: socket.socket, started: float) -> None:
    connection = await first_connection(arguments.dsn)
    services = assemble(
        arguments.dsn,
        connection,
        strategy=arguments.trade_strategy,
        pool_min=arguments.pool_min,
        pool_max=arguments.pool_max,
        audience=Audience(arguments.wallet_domain, arguments.chain_id),
    )
    await services.database.open()
    try:
        server = Server(
            uvicorn.Config(
                create_app(services),
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,  # nobody here reads the client's address
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACEFUL_S,
            )
        )
        # What is here now stays: the collector need not walk it in the middle of the trades.
        gc.collect()
        gc.freeze()
        host, port = listener.getsockname()[:2]
        log.info(
            "serving on http://%s:%d, strategy %s, ready after %.2f s",
            host,
            port,
            services.strategy.name,
            time.monotonic() - started,
        )
        await server.serve(sockets=[listener])
    finally:
        await services.database.close()
        await services.health.close()
    log.info("served %d requests", server.server_state.total_requests)
