"""The birth of a run directory: its name, its place on a disk with room, and plan.json."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil

from scenarios.history import FORMAT
from scenarios.plan import Plan, RunPlan

FREE_BYTES_MIN = 1 << 30  # a launch run writes about 600 MB: history, write-ahead log and state together
VERSIONS_OF = (
    "seatrial",
    "locust",
    "geventhttpclient",
    "psycopg",
    "duckdb",
    "litestar",
    "uvicorn",
    "msgspec",
)


class RunDirectoryError(Exception):
    """The run directory cannot be made; names the folder and the rule."""


def create_run(
    plan: Plan, *, seed: int, target: dict[str, Any], runs: Path, project: Path, ending: str | None = None
) -> Path:
    """Make runs/<time>-<scenario>-seed<seed>/ and write its plan.json; raises RunDirectoryError.

    `ending` takes the place of the seed in the name.
    """
    started = datetime.now(UTC)
    name = f"{started:%Y%m%dT%H%M%SZ}-{plan.scenario}-{ending or f'seed{seed}'}"
    run = make_folder(runs, name)
    try:
        row = RunPlan(
            format=FORMAT,
            run=name,
            seed=seed,
            plan=plan,
            target=target,
            versions=versions(),
            machine=machine(),
            git_commit=git_commit(project),
            started_at=started.isoformat(timespec="seconds"),
            monotonic_ns=time.monotonic_ns(),
            unix_ns=time.time_ns(),
        )
        (run / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(row), indent=2) + b"\n")
    except OSError as error:
        raise RunDirectoryError(f"{run}: cannot be written: {error.strerror or error}") from None
    return run


def create_folder(runs: Path, purpose: str) -> Path:
    """Make runs/<time>-<purpose>/ for something that is not a run; raises RunDirectoryError."""
    return make_folder(runs, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{purpose}")


def make_folder(runs: Path, name: str) -> Path:
    """Make a new folder where there is room for it."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(runs).free
        if free_bytes < FREE_BYTES_MIN:
            raise RunDirectoryError(
                f"{runs}: {free_bytes >> 20} MB free, a run needs {FREE_BYTES_MIN >> 20} MB; "
                "free some space or name another folder with --runs"
            )
        (runs / name).mkdir()
    except OSError as error:
        raise RunDirectoryError(f"{runs / name}: cannot be made: {error.strerror or error}") from None
    return runs / name


def versions() -> dict[str, str]:
    """Versions of what a run depends on; a package that is absent is left out."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine, as far as it explains a figure."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def git_commit(project: Path) -> str | None:
    """The commit that ran, with -dirty when the tree differs from it; None without git or a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
