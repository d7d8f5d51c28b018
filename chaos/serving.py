"""The reference server alone, on a database of its own, for a person with curl or Locust's web page."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable

from chaos.data_folder import make_scratch
from chaos.ports import port_is_free
from chaos.postgres import choose_postgres
from chaos.supervisor import Supervisor
from chaos.target import (
    REFERENCE_COMMAND,
    TargetError,
    await_healthy,
    create_database,
    install,
    last_words,
    spawn_server,
)


def serve_alone(
    *, port: int, postgres: str, strategy: str, admin_token: str, step: Callable[[str], None]
) -> None:
    """Serve on 127.0.0.1 until SIGINT or SIGTERM, then end every child; raises TargetError, PostgresError."""
    if not port_is_free(port):
        raise TargetError(f"port {port} on 127.0.0.1 is in use; name another one with --port")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as last_to_first:
        scratch = make_scratch("serve-")
        last_to_first.callback(shutil.rmtree, scratch, ignore_errors=True)
        supervisor = Supervisor(scratch)
        last_to_first.callback(supervisor.close)
        supervisor.undo_remove(scratch)
        database = choose_postgres(postgres, supervisor=supervisor, data_dir=scratch / "pgdata")
        last_to_first.callback(database.stop)
        database.start()
        step(f"PostgreSQL {database.version}, {database.kind}: {database.why}")
        admin_dsn = create_database(database.dsn, f"seatrial_serve_{os.getpid()}")
        access = install(
            REFERENCE_COMMAND, admin_dsn, scratch / "logs" / "install.log", admin_token=admin_token
        )
        server = spawn_server(
            supervisor, REFERENCE_COMMAND, access, name="server-0", port=port, strategy=strategy
        )
        await_healthy(f"http://127.0.0.1:{port}", child=server, given_up=stop.is_set)
        for line in how_to_use(port, access.admin_token, admin_dsn):
            step(line)
        while not stop.wait(0.5):
            if not server.alive:
                raise TargetError(f"the server exited {server.returncode}: {last_words(server)}")


def how_to_use(port: int, admin_token: str, admin_dsn: str) -> list[str]:
    """The lines that a person needs to go on from here."""
    url = f"http://127.0.0.1:{port}"
    return [
        f"serving on {url}, OpenAPI at {url}/schema; Ctrl-C ends it and removes its database",
        f"export SEATRIAL_ADMIN_TOKEN={admin_token}",
        f"curl -s {url}/api/markets -H 'Authorization: Bearer '$SEATRIAL_ADMIN_TOKEN",
        f".venv/bin/locust -f scenarios/hot_market.py --host {url}",
        f"psql '{admin_dsn}'",
    ]
