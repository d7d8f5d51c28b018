"""With CI=true no test is skipped silently."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SKIPPING = """
import pytest

def test_that_runs():
    assert True

def test_that_needs_an_engine():
    pytest.skip("no engine: the kernel refuses")
"""


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_skipping.py").write_text(SKIPPING)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "CI" and not name.startswith("SEATRIAL_NO_")
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:locust",
            "-p",
            "tests.ci_plugin",
            "-p",
            "no:cacheprovider",
        ],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "exit_code"),
    [
        ({}, 0),
        ({"CI": "true"}, 1),
        ({"CI": "true", "SEATRIAL_NO_DOCKER": "no engine: the kernel refuses"}, 0),
        ({"CI": "true", "SEATRIAL_NO_ANVIL": "no engine: the kernel refuses"}, 0),
        ({"CI": "true", "SEATRIAL_NO_DOCKER": "some other reason"}, 1),
    ],
)
def test_a_skip_that_nobody_announced_fails_ci(
    tmp_path: Path, environment: dict[str, str], exit_code: int
) -> None:
    done = run_pytest(tmp_path, **environment)

    assert "1 passed, 1 skipped" in done.stdout
    assert done.returncode == exit_code, done.stdout
    assert ("test_that_needs_an_engine: " in done.stdout) == (exit_code == 1)
