"""An engineer without a run: `locust -f scenarios/hot_market.py`, with Locust's own page and without it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.ports import free_port
from scenarios.history import MONEY_ACTIONS
from scenarios.plan import read_run_plan
from tests.integration.market_server import MarketServer
from tests.integration.recorded import read_run

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0


def locust(*options: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(PROJECT / "scenarios" / "hot_market.py"), *options]


def surroundings(token: str) -> dict[str, str]:
    """An engineer's shell, where the only word of ours is the token."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SEATRIAL_", "LOCUST_"))
    }
    return {**kept, "SEATRIAL_ADMIN_TOKEN": token} if token else kept


def run_locust(folder: Path, token: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        locust(*options),
        cwd=folder,
        env=surroundings(token),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.parametrize("processes", [1, 2])
def test_a_headless_load_by_hand_is_recorded(
    tmp_path: Path, shared_server: MarketServer, processes: int
) -> None:
    options = ["--headless", "--users", "4", "--spawn-rate", "4", "--run-time", "2s", "--only-summary"]
    if processes > 1:
        port = str(free_port())
        options += ["--processes", str(processes), "--master-bind-port", port, "--master-port", port]
    done = run_locust(tmp_path, shared_server.admin_token, "--host", shared_server.url, *options)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert f"the history of this load is in runs/{run.name}" in done.stderr
    assert (read_run_plan(run).plan.name, read_run_plan(run).plan.faults) == ("hot", [])
    files = read_run(run)
    assert len(files) == (1 if processes == 1 else 1 + processes)
    assert [one.end.cut for one in files] == [None] * len(files)
    users = {attempt.invoke.user for one in files for attempt in one.attempts} - {"admin"}
    assert len(users) == 4
    assert any(attempt.invoke.action in MONEY_ACTIONS for attempt in files[-1].attempts)
    assert "buy_shares" in done.stdout + done.stderr


@contextmanager
def page(folder: Path, server: MarketServer) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Locust with its page, and somebody who looks at it."""
    port = free_port()
    options = ("--host", server.url, "--web-host", "127.0.0.1", "--web-port", str(port))
    with (folder / "locust.log").open("wb") as log:
        child = subprocess.Popen(
            locust(*options),
            cwd=folder,
            env=surroundings(server.admin_token),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as client:
            yield client, child
    finally:
        child.kill()
        child.wait(TIMEOUT_S)


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, within a bound; nobody is at the door while Locust starts."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < deadline_s
        time.sleep(0.1)  # bounded by the deadline


def test_the_page_starts_changes_and_stops_a_load(tmp_path: Path, shared_server: MarketServer) -> None:
    with page(tmp_path, shared_server) as (client, child):

        def stats() -> dict[str, Any]:
            told: dict[str, Any] = client.get("/stats/requests").json()
            return told

        def swarm(users: int) -> None:
            form = {"user_count": users, "spawn_rate": users, "host": shared_server.url}
            assert client.post("/swarm", data=form).json()["success"]
            until(lambda: stats()["user_count"] == users and stats()["state"] == "running")

        until(lambda: client.get("/").status_code == 200)
        assert "Locust" in client.get("/").text
        swarm(3)
        swarm(5)
        until(lambda: {"buy_amount", "sell"} <= {row["name"] for row in stats()["stats"]})
        client.post("/stop").raise_for_status()
        until(lambda: stats()["user_count"] == 0)
        swarm(2)
        assert stats()["errors"] == []
        child.send_signal(signal.SIGTERM)
        assert child.wait(TIMEOUT_S) == 0
    (recorded,) = read_run(only_run(tmp_path))
    assert recorded.end.cut is None
    users = {attempt.invoke.user for attempt in recorded.attempts} - {"admin"}
    assert len(users) == 5
    assert "none" not in recorded.types()


def test_without_a_token_the_engineer_is_told(tmp_path: Path) -> None:
    done = run_locust(tmp_path, "", "--host", "http://127.0.0.1:9", "--headless", "--run-time", "1s")
    assert done.returncode == 2
    assert "SEATRIAL_ADMIN_TOKEN is not set; `seatrial serve` prints the one to use" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_without_a_host_the_engineer_is_told(tmp_path: Path) -> None:
    done = run_locust(tmp_path, "token", "--headless", "--run-time", "1s")
    assert done.returncode == 2
    assert "no --host; name the server's address" in done.stderr
    assert "Traceback" not in done.stderr
