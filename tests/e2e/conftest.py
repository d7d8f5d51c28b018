"""Fixtures of the end-to-end tests: the command line in a scratch place of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command_line import CommandLine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    """`seatrial` as a user runs it; afterwards no process of it may live and no scratch data may be left."""
    # Not below tmp_path, which is closed to everybody else: PostgreSQL does not run as root.
    data = Path(
        tempfile.mkdtemp(prefix="seatrial-test-", dir=os.environ.get("SEATRIAL_DATA_DIR", "/var/tmp"))
    )
    data.chmod(0o755)
    line = CommandLine(runs=tmp_path / "runs", data=data)
    try:
        yield line
        line.assert_nothing_is_left()
    finally:
        line.end_what_is_left()
        shutil.rmtree(data, ignore_errors=True)
