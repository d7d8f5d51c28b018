"""A whole run on real parts: PostgreSQL, server, Locust, faults, judge, report; and every way it can end."""

from __future__ import annotations

import json
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command_line import CommandLine, await_condition

PLAN = """
name = "short"
about = "every fault in twenty seconds"
scenario = "hot_market"
[[stages]]
name = "steady"
users = 20
ramp_s = 1.0
hold_s = 21.0
[mix]
buy_amount = 24.0
buy_shares = 22.0
sell = 30.0
read_market = 8.0
read_account = 5.0
read_ledger = 4.0
replay = 3.0
reuse_key = 2.0
buy_closed = 2.0
[load]
patience_s = 1.0
[market]
outcomes = 3
[service]
recovery_s = 2.0
"""
FAULTS = (
    ("drop_reply", 2.0, 3.0, 5),
    ("drop_request", 2.0, 3.0, 5),
    ("duplicate_at_once", 2.0, 3.0, 5),
    ("duplicate_late", 2.0, 3.0, 5),
    ("kill_server", 8.0, 0.0, 1),
    ("terminate_backend", 12.0, 0.5, 2),
    ("kill_postgres", 15.0, 0.0, 1),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    faults = [
        f'[[faults]]\nfault = "{fault}"\nat_s = {at_s}\nduring_s = {during_s}\ncount = {count}\n'
        for fault, at_s, during_s, count in FAULTS
    ]
    path.write_text(PLAN + "".join(faults))
    return path


def verdict_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "verdict.json").read_bytes())
    return found


def until_load(line: CommandLine, process: subprocess.Popen[str]) -> Path:
    """Wait until the load trades, and return the run directory."""

    def trading() -> bool:
        assert process.poll() is None, process.communicate()
        return any(path.stat().st_size > 200_000 for path in line.runs.glob("*/history/*.jsonl"))

    await_condition(trading, "the load never began", timeout_s=60)
    return line.only_run()


def test_a_sound_system_passes_and_passes_again_offline(command_line: CommandLine, plan: Path) -> None:
    done = command_line.sea_trial(plan, "--seed", "7")

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "PASS" in done.stdout
    run = command_line.only_run()
    verdict = verdict_of(run)
    assert verdict["verdict"] == "pass"
    assert {one["result"] for one in verdict["invariants"]} == {"held"}
    assert min(one["examined"] for one in verdict["invariants"]) > 0
    assert verdict["totals"]["faults_landed"] == sum(count for *_, count in FAULTS)
    assert set(verdict["latency"]) >= {"steady", "fault", "recovery"}

    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert {case.get("name") for case in cases} >= {one["name"] for one in verdict["invariants"]}
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(run.glob("*.png"))) == 4
    assert "http://" not in page.replace("http://127.0.0.1", "").replace("http://www.w3.org", "")
    assert "pass" in (run / "summary.md").read_text().lower()

    before = {path.name: path.read_bytes() for path in (run / "verdict.json", run / "junit.xml")}
    again = command_line.run("check", str(run))
    assert again.returncode == 0, again.stderr
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cleans_up_and_still_reports(
    command_line: CommandLine, plan: Path, number: signal.Signals
) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    run = until_load(command_line, process)

    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3, f"{out}\n{err}"
    assert f"{number.name}: stopping, then reporting what there is" in out
    verdict = verdict_of(run)
    assert verdict["verdict"] == "inconclusive"
    assert [one["name"] for one in verdict["invariants"] if one["result"] == "broken"] == []
    assert max(one["examined"] for one in verdict["invariants"]) > 100
    assert (run / "report.html").stat().st_size > 10_000


def test_a_signal_before_the_load_leaves_nothing_either(command_line: CommandLine, plan: Path) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    await_condition(
        lambda: bool(list(command_line.runs.glob("*/logs/postgres.log"))), "PostgreSQL never started"
    )

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3, f"{out}\n{err}"
    assert "interrupted before the load began" in out
    assert (command_line.only_run() / "report.html").is_file()


def test_a_dead_load_process_makes_a_run_inconclusive(command_line: CommandLine, plan: Path) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    run = until_load(command_line, process)

    (load,) = [one for one in command_line.processes() if "locust" in " ".join(one.cmdline())]
    load.kill()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 3, f"{out}\n{err}"
    assert "load exited -9" in out
    assert verdict_of(run)["verdict"] == "inconclusive"
    assert (run / "report.html").is_file()


def test_a_killed_harness_leaves_no_process_and_no_scratch_data(
    command_line: CommandLine, plan: Path
) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    until_load(command_line, process)
    assert len(command_line.processes()) > 5

    process.kill()
    process.communicate(timeout=10)

    command_line.assert_nothing_is_left()
