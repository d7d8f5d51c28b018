"""The birth of a run directory."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from scenarios import run_directory
from scenarios.plan import load_plan, read_run_plan
from scenarios.run_directory import RunDirectoryError, create_folder, create_run

PROJECT = Path(__file__).resolve().parents[2]


def test_a_run_directory_says_what_was_asked(tmp_path: Path) -> None:
    plan = load_plan("hot")

    run = create_run(plan, seed=7, target={"strategy": "batch"}, runs=tmp_path / "runs", project=PROJECT)

    assert re.fullmatch(r"\d{8}T\d{6}Z-hot_market-seed7", run.name)
    asked = read_run_plan(run)
    assert asked.plan == plan
    assert asked.seed == 7
    assert asked.run == run.name
    assert asked.versions["locust"]
    assert asked.machine["cores"] == os.cpu_count()
    if shutil.which("git") is not None and (PROJECT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", asked.git_commit or "")
    else:
        assert asked.git_commit is None


def test_two_runs_never_share_a_directory(tmp_path: Path) -> None:
    first = create_folder(tmp_path, "bench")
    (first.parent / first.name).rmdir()
    first.mkdir()

    with pytest.raises(RunDirectoryError, match="cannot be made: File exists"):
        run_directory.make_folder(tmp_path, first.name)


def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")

    with pytest.raises(RunDirectoryError, match=r"runs.* cannot be made: File exists"):
        create_folder(tmp_path / "runs", "bench")


def test_a_full_disk_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "FREE_BYTES_MIN", 1 << 60)

    with pytest.raises(RunDirectoryError, match=r"MB free, a run needs .* MB; free some space or .* --runs"):
        create_folder(tmp_path, "bench")

    assert list(tmp_path.iterdir()) == []


def test_a_project_without_git_has_no_commit(tmp_path: Path) -> None:
    assert run_directory.git_commit(tmp_path) is None
