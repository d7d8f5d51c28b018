"""A trial that could not have shown a defect is inconclusive, and says by which of its own invariants."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import golden
from tests.e2e.command_line import CommandLine, await_condition
from tests.planted.conftest import PLAN, PROJECT, Judged

STOPS = 16
STOPPED_S = 0.25  # below the plan's patience: the system must not look guilty


@pytest.mark.parametrize(
    "name", ["every_fault_landed", "every_phase_was_exercised", "every_unknown_was_resolved"]
)
def test_a_trial_with_a_planted_gap_is_inconclusive(name: str, planted_runs: Callable[[str], Judged]) -> None:
    judged = planted_runs(name)

    assert judged.exit_code == 3, judged.output
    assert judged.doubted == {name}, judged.output
    assert judged.broken == set(), judged.output
    assert judged.invariant(name)["detail"], judged.output


def test_a_blind_checker_is_given_away_by_its_canary(tmp_path: Path) -> None:
    run = golden.run(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "tests.planted.blind_checker", "money_is_conserved", str(run)],
        cwd=PROJECT,
        timeout=60,
        check=False,
    )

    judged = Judged(done.returncode, json.loads((run / "verdict.json").read_bytes()), "")
    assert judged.exit_code == 3
    assert judged.doubted == {"canaries_are_caught"}
    assert "money_is_conserved" in judged.invariant("canaries_are_caught")["detail"]


def test_a_generator_that_stumbles_is_not_believed(command_line: CommandLine) -> None:
    process = command_line.start(*command_line.trial_arguments(PLAN))
    load = the_load(command_line)

    for _ in range(STOPS):
        load.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)  # the length of the stumble, 16 of them
        load.send_signal(signal.SIGCONT)
        time.sleep(STOPPED_S / 2)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 3, f"{out}\n{err}"
    judged = Judged(3, json.loads((command_line.only_run() / "verdict.json").read_bytes()), out)
    assert judged.doubted == {"the_generator_kept_up"}, out
    assert judged.broken == set(), out


def the_load(line: CommandLine) -> psutil.Process:
    """The load process, once it trades."""
    await_condition(
        lambda: any(path.stat().st_size > 150_000 for path in line.runs.glob("*/history/*.jsonl")),
        "the load never began",
        timeout_s=60,
    )
    (load,) = [one for one in line.processes() if "locust" in " ".join(one.cmdline())]
    return load
