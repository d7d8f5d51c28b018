"""The load child of a test: start it, follow it, end it, and read what it recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from reports.evidence import Evidence, open_evidence
from scenarios.history import Status
from scenarios.plan import Plan, Stage
from scenarios.run_directory import create_run
from tests.integration.market_server import MarketServer
from tests.integration.recorded import Attempt, Recorded

PROJECT = Path(__file__).resolve().parents[2]
END_TIMEOUT_S = 30.0


def hold(users: int, seconds: float) -> Stage:
    return Stage(name="hold", users=users, hold_s=seconds)


def new_run(folder: Path, plan: Plan, *, seed: int = 7) -> Path:
    return create_run(plan, seed=seed, target={"url": "test"}, runs=folder, project=folder)


def judged(run: Path) -> Evidence:
    """The run as the judge reads it; it refuses a malformed history."""
    (run / "events.jsonl").touch()
    return open_evidence(run)


@contextmanager
def load(run: Path, server: MarketServer, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A load child, with more in its environment if need be; killed if the test leaves it alive."""
    with (run / "load.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "scenarios.load", str(run), "--host", server.url],
            cwd=PROJECT,
            env={**os.environ, "SEATRIAL_ADMIN_TOKEN": server.admin_token, **environment},
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait(END_TIMEOUT_S)
            assert child.stdout is not None
            child.stdout.close()


def await_users(child: subprocess.Popen[bytes], users: int) -> Status:
    """The first Status row with so many users; fails when the child ends before."""
    assert child.stdout is not None
    for line in child.stdout:
        status = msgspec.json.decode(line, type=Status)
        if status.users >= users:
            return status
    raise AssertionError(f"the load ended, exit {child.wait(END_TIMEOUT_S)}")


def finish(child: subprocess.Popen[bytes]) -> list[Status]:
    """The rest of the Status rows; the child must end well."""
    out, _ = child.communicate(timeout=END_TIMEOUT_S)
    assert child.returncode == 0
    return [msgspec.json.decode(line, type=Status) for line in out.splitlines()]


def by_users(recorded: Recorded) -> list[Attempt]:
    """What the users did; the set-up and the closing are the admin's."""
    return [attempt for attempt in recorded.attempts if attempt.invoke.user != "admin"]
