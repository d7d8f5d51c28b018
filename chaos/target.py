"""The target: the system under test as a run sees it, started here or already running elsewhere.

A target that Seatrial starts is one command with two subcommands, `install --dsn` (which prints the DSNs
and the admin token as JSON) and `serve --dsn --port`. Any system that offers the two, the HTTP contract of
docs/api.md and the views of docs/books.md can take the reference server's place.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from chaos.chain import KINDS as CHAIN_KINDS
from chaos.chain import chain_trouble
from chaos.ports import port_is_free
from chaos.supervisor import Child, Supervisor

INSTALL_DEADLINE_S = 60.0
HEALTHY_DEADLINE_S = 30.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
REFERENCE_COMMAND = [sys.executable, "-m", "reference_server"]


class TargetError(Exception):
    """The target could not be started or reached; says what was tried and where to look."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs to know of an installed target. `admin_dsn` is absent where faults may not use it."""

    server_dsn: str
    judge_dsn: str
    admin_token: str
    admin_dsn: str | None = None
    relay_dsn: str | None = None


SUPERVISED_FAULTS = frozenset({"kill_server", "pause_server", "kill_postgres", "pause_postgres"})


class TargetChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What to try out: started here with `command`, or already running at `url` with `access`."""

    command: list[str] = msgspec.field(default_factory=lambda: list(REFERENCE_COMMAND))
    postgres: str = "auto"
    strategy: str = "batch"
    chain: str = "auto"
    url: str | None = None
    access: Access | None = None

    def described(self) -> dict[str, Any]:
        """What plan.json keeps: no token, no password."""
        if self.url is not None:
            return {"url": self.url}
        shown = self.postgres if "=" not in self.postgres and "://" not in self.postgres else "dsn"
        return {"command": self.command, "postgres": shown, "strategy": self.strategy}

    def check_chain(self, *, needed: bool) -> None:
        """Raise TargetError when the plan has a chain, and this target or the choice of a chain cannot be."""
        if needed and self.url is not None:
            raise TargetError("--url: the plan has a chain, which needs a target that Seatrial starts")
        host = urlsplit(self.chain).hostname if "://" in self.chain else None
        if host is None and self.chain not in CHAIN_KINDS:
            kinds = ", ".join(CHAIN_KINDS)
            raise TargetError(
                f"--chain: {self.chain!r} is none of {kinds}, nor a URL (http://127.0.0.1:8545)"
            )
        if host is not None and host not in LOOPBACK:
            raise TargetError(f"--chain: {host} is not loopback; load and faults stay on this machine")
        if needed and (trouble := chain_trouble(self.chain)):
            raise TargetError(f"{trouble}; or try a plan without a chain, as `hot` is")

    def check_faults(self, faults: set[str]) -> None:
        """Raise TargetError when the plan breaks what this target keeps out of reach."""
        if self.url is None:
            return
        if beyond := sorted(faults & SUPERVISED_FAULTS):
            raise TargetError(
                f"--url: the plan injects {', '.join(beyond)}, which need a target that Seatrial starts"
            )
        if "terminate_backend" in faults and (self.access is None or self.access.admin_dsn is None):
            raise TargetError("--url: the plan injects terminate_backend, which needs --admin-dsn")


def target_choice(
    *, command: str, postgres: str, strategy: str, url: str, dsn: str, admin_dsn: str, chain: str = "auto"
) -> TargetChoice:
    """The choice that the command line names; raises TargetError for a combination that makes no sense."""
    if not url:
        if dsn or admin_dsn:
            raise TargetError("--dsn and --admin-dsn belong to --url, a target that already runs")
        chosen = shlex.split(command) if command else list(REFERENCE_COMMAND)
        return TargetChoice(command=chosen, postgres=postgres, strategy=strategy, chain=chain)
    host = urlsplit(url).hostname
    if host not in LOOPBACK or urlsplit(url).scheme != "http":
        raise TargetError(f"--url: {url!r} is not http on loopback; load and faults stay on this machine")
    if not dsn:
        raise TargetError("--url: needs --dsn, a role that may read the schema `books` (docs/books.md)")
    token = os.environ.get("SEATRIAL_ADMIN_TOKEN", "")
    if not token:
        raise TargetError("--url: set SEATRIAL_ADMIN_TOKEN, the target's admin token, in the environment")
    access = Access(server_dsn=dsn, judge_dsn=dsn, admin_token=token, admin_dsn=admin_dsn or None)
    return TargetChoice(url=url, access=access)


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON that `install` prints."""

    server_dsn: str
    judge_dsn: str
    admin_token: str
    relay_dsn: str | None = None


def create_database(dsn: str, name: str) -> str:
    """Create an empty database in the cluster of `dsn` and return its DSN."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return make_conninfo(dsn, dbname=name)


def install(command: list[str], admin_dsn: str, log: Path, *, admin_token: str = "") -> Access:
    """Install the target's schema; raises TargetError with the end of what it said."""
    try:
        done = subprocess.run(
            [*command, "install", "--dsn", admin_dsn],
            env={**os.environ, **({"SEATRIAL_ADMIN_TOKEN": admin_token} if admin_token else {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{command[0]} install did not end: {error}") from None
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise TargetError(f"install exited {done.returncode}: {done.stderr.strip()[-2000:]}")
    try:
        said = msgspec.convert(json.loads(done.stdout.strip().splitlines()[-1]), Installed)
    except (ValueError, IndexError, msgspec.ValidationError) as error:
        raise TargetError(
            f"install printed no JSON with server_dsn, judge_dsn, admin_token: {error}"
        ) from None
    return Access(
        server_dsn=said.server_dsn,
        judge_dsn=said.judge_dsn,
        admin_token=said.admin_token,
        admin_dsn=admin_dsn,
        relay_dsn=said.relay_dsn,
    )


def spawn_server(
    supervisor: Supervisor,
    command: list[str],
    access: Access,
    *,
    name: str,
    port: int,
    strategy: str,
    chain_id: int | None = None,
) -> Child:
    """Start one server process of the target; it is healthy only once `await_healthy` says so.

    `chain_id` is that of the chain whose wallets it links, if the trial has one.
    """
    on_chain = [] if chain_id is None else ["--chain-id", str(chain_id)]
    if not port_is_free(port):
        raise TargetError(f"port {port} on 127.0.0.1 is in use; name another one with --port")
    return supervisor.spawn(
        name,
        [
            *command,
            "serve",
            "--dsn",
            access.server_dsn,
            "--port",
            str(port),
            "--trade-strategy",
            strategy,
            *on_chain,
        ],
        critical=False,
    )


def await_healthy(
    url: str,
    *,
    timeout_s: float = HEALTHY_DEADLINE_S,
    child: Child | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> float:
    """Poll GET /api/health until it answers 200; seconds it took. Raises TargetError when it will not."""
    started = time.monotonic()
    last = "no answer"
    with httpx.Client(timeout=2, trust_env=False) as client:
        while time.monotonic() - started < timeout_s:
            if child is not None and not child.alive:
                raise TargetError(
                    f"{child.name} exited {child.returncode} before it was healthy: {last_words(child)}"
                )
            if given_up():
                raise TargetError("stopped while waiting for the target")
            try:
                reply = client.get(f"{url}/api/health")
                if reply.status_code == httpx.codes.OK:
                    return time.monotonic() - started
                last = f"status {reply.status_code}"
            except httpx.HTTPError as error:
                last = str(error) or type(error).__name__
            time.sleep(0.02)  # bounded by timeout_s; the condition is the health answer
    raise TargetError(f"{url}/api/health was not healthy within {timeout_s:.0f} s: {last}")


def last_words(child: Child) -> str:
    """The end of a child's log on one line, for an error message."""
    return " | ".join(child.log_tail(5).splitlines()) or "(an empty log)"
