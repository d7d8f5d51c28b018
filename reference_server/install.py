"""The installer: the numbered SQL files into a database, the login roles, and the first administrator.

Each file is one transaction and is remembered with its digest, so an install that was cut short goes on
where it stopped and a second install changes no table. Roles belong to the whole cluster: installs into
several databases at once meet there, and the step is retried until they have passed each other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import secrets
import sys
import time
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

SQL = Path(__file__).parent / "sql"
SERVER_ROLE = "seatrial_server"
JUDGE_ROLE = "seatrial_judge"
RELAY_ROLE = "seatrial_relay"
ADMIN = "admin"
OLDEST = 150000

# Two installs altering one role: the later one sees one of these and has only to try again.
_MET_ANOTHER = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
    psycopg.errors.InternalError_,
)
_ROLE_TRIES = 100
# Another install is over within seconds; what holds a lock for longer is a session somebody forgot.
_LOCK_TIMEOUT_S = 30


class InstallError(Exception):
    """A database that cannot take the schema; says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `install`."""
    parser.add_argument("--dsn", help="owner of the database (default: SEATRIAL_DSN)")
    parser.add_argument("--server-password", help=f"password of {SERVER_ROLE} (default: a new one)")
    parser.add_argument("--judge-password", help=f"password of {JUDGE_ROLE} (default: a new one)")
    parser.add_argument("--relay-password", help=f"password of {RELAY_ROLE} (default: a new one)")
    parser.add_argument("--admin-token", help="bearer token of the administrator (default: a new one)")


def run(options: argparse.Namespace) -> int:
    """Install and print the credentials; 2 with a message when the database refuses."""
    dsn = options.dsn or os.environ.get("SEATRIAL_DSN")
    if not dsn:
        print("install: give --dsn or set SEATRIAL_DSN", file=sys.stderr)
        return 2
    try:
        credentials = install(
            dsn,
            server_password=options.server_password,
            judge_password=options.judge_password,
            relay_password=options.relay_password,
            admin_token=options.admin_token or os.environ.get("SEATRIAL_ADMIN_TOKEN"),
        )
    except (InstallError, psycopg.Error) as error:
        print(f"install: {str(error).strip()}", file=sys.stderr)
        return 2
    print(json.dumps(credentials))
    return 0


def install(
    dsn: str,
    *,
    server_password: str | None = None,
    judge_password: str | None = None,
    relay_password: str | None = None,
    admin_token: str | None = None,
) -> dict[str, str]:
    """Bring the database to the schema of this version; returns the DSN of each role and admin_token.

    Without a password the role gets a new one, in every database of the cluster. Raises InstallError or
    psycopg.Error.
    """
    server_password = server_password or secrets.token_urlsafe(24)
    judge_password = judge_password or secrets.token_urlsafe(24)
    relay_password = relay_password or secrets.token_urlsafe(24)
    admin_token = admin_token or secrets.token_urlsafe(24)
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
        connection.execute("SET search_path = public, pg_temp")
        _check_server(connection)
        _create_role(connection, SERVER_ROLE, server_password)
        _create_role(connection, JUDGE_ROLE, judge_password)
        _create_role(connection, RELAY_ROLE, relay_password)
        applied = _apply_files(connection)
        _create_admin(connection, admin_token)
        # a Unix socket or a service file may have chosen these: say what was really used
        place: dict[str, Any] = {
            "host": connection.info.host,
            "port": connection.info.port,
            "dbname": connection.info.dbname,
        }
    if applied:
        print(f"install: {len(applied)} files applied", file=sys.stderr)
    else:
        print("install: the schema was already installed", file=sys.stderr)
    return {
        "server_dsn": make_conninfo(dsn, user=SERVER_ROLE, password=server_password, **place),
        "judge_dsn": make_conninfo(dsn, user=JUDGE_ROLE, password=judge_password, **place),
        "relay_dsn": make_conninfo(dsn, user=RELAY_ROLE, password=relay_password, **place),
        "admin_token": admin_token,
    }


def _check_server(connection: Connection) -> None:
    if connection.info.server_version < OLDEST:
        raise InstallError(
            f"PostgreSQL {connection.info.server_version // 10000} is too old; 15 or newer is needed"
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise InstallError(f"the database is encoded in {encoding}; create it with ENCODING 'UTF8'")


def _create_role(connection: Connection, role: str, password: str) -> None:
    for attempt in range(1, _ROLE_TRIES + 1):
        try:
            known = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount
            verb = sql.SQL("ALTER" if known else "CREATE")
            statement = sql.SQL("{} ROLE {} LOGIN PASSWORD {}")
            connection.execute(statement.format(verb, sql.Identifier(role), sql.Literal(password)))
        except _MET_ANOTHER:
            if attempt == _ROLE_TRIES:
                raise
            # not a wait for a condition: two installs that collided must not collide in step again
            time.sleep(random.uniform(0.001, 0.02))
        else:
            return


def _apply_files(connection: Connection) -> list[str]:
    applied = []
    # one install at a time in this database; the lock ends with the connection
    connection.execute("SELECT pg_advisory_lock(5300)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS installed_files ("
        "name text PRIMARY KEY, digest text NOT NULL,"
        " installed_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    known: dict[str, str] = dict(connection.execute("SELECT name, digest FROM installed_files"))
    for path in sorted(SQL.glob("[0-9]*.sql")):
        text = path.read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        if path.name in known:
            if known[path.name] != digest:
                raise InstallError(
                    f"{path.name} differs from the one this database was installed with; "
                    "install into an empty database"
                )
            continue
        with connection.transaction():
            connection.execute(text)
            connection.execute(
                "INSERT INTO installed_files (name, digest) VALUES (%s, %s)", [path.name, digest]
            )
        applied.append(path.name)
    return applied


def _create_admin(connection: Connection, token: str) -> None:
    token_hash = hashlib.sha256(token.encode()).digest()
    with connection.transaction():
        connection.execute("SELECT * FROM api_create_user(%s, 'Administrator', %s)", [ADMIN, token_hash])
        connection.execute("UPDATE users SET role = 'admin' WHERE user_id = %s AND role <> 'admin'", [ADMIN])
        connection.execute(
            "INSERT INTO tokens (token_hash, user_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [token_hash, ADMIN],
        )
