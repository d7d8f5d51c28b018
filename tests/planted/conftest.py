"""Runs `seatrial` against every planted bug of this session, a few at a time, and hands out the verdicts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reports.invariants.registry import load_registry
from tests.e2e.conftest import command_line  # noqa: F401  the same fixture

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PLAN = HERE / "plan.toml"
MONEY_PLAN = HERE / "money_plan.toml"
MONEY = {known.name for known in load_registry() if known.group in ("outbox", "chain")}
AT_ONCE = 3  # a run mostly waits; more of them would make each other late
RUN_DEADLINE_S = 180


@dataclass(frozen=True)
class Judged:
    """What a run against a planted bug came to."""

    exit_code: int
    verdict: dict[str, Any]
    output: str

    @property
    def broken(self) -> set[str]:
        """The invariants that the run found broken."""
        return {one["name"] for one in self.verdict["invariants"] if one["result"] == "broken"}

    @property
    def doubted(self) -> set[str]:
        """The invariants that the run could not decide."""
        return {one["name"] for one in self.verdict["invariants"] if one["result"] == "inconclusive"}

    def invariant(self, name: str) -> dict[str, Any]:
        """One invariant's result."""
        found: dict[str, Any] = next(one for one in self.verdict["invariants"] if one["name"] == name)
        return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


def run_planted(name: str, runs: Path, data: Path) -> Judged:
    """A whole run against the reference server with this bug, by a plan of its own where it has one."""
    own_plan = HERE / f"{name}.toml"
    plan = own_plan if own_plan.is_file() else MONEY_PLAN if name in MONEY else PLAN
    server = shlex.join([sys.executable, "-m", "tests.planted.launch", name])
    command = [sys.executable, str(PROJECT / "seatrial.py"), "run", "--plan", str(plan), "--seed", "1"]
    command += ["--postgres", "embedded", "--server-command", server, "--runs", str(runs / name)]
    environment = {**os.environ, "SEATRIAL_DATA_DIR": str(data), "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_DEADLINE_S,
        check=False,
    )
    folders = list((runs / name).glob("*/verdict.json"))
    assert len(folders) == 1, done.stdout
    return Judged(done.returncode, json.loads(folders[0].read_bytes()), done.stdout)


@pytest.fixture(scope="session")
def planted_runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Judged]]:
    """The verdict on a planted bug, by the invariant's name; all that are asked for start at once."""
    runs = tmp_path_factory.mktemp("planted")
    names = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "name" in item.callspec.params
        if "planted_runs" in item.fixturenames
    ]
    memory = Path("/dev/shm")
    place = str(memory) if os.access(memory, os.W_OK) else os.environ.get("SEATRIAL_DATA_DIR", "/var/tmp")
    with (
        tempfile.TemporaryDirectory(prefix="seatrial-planted-", dir=place) as scratch,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        data = Path(scratch)
        data.chmod(0o755)
        started: dict[str, Future[Judged]] = {
            name: pool.submit(run_planted, name, runs, data) for name in dict.fromkeys(names)
        }
        yield lambda name: started[name].result(RUN_DEADLINE_S * len(started))
        pool.shutdown(cancel_futures=True)
