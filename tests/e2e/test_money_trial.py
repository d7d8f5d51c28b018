"""A whole run with a chain: money in and out under faults; and the ways it can end early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chaos.chain import choose_chain, find_anvil
from chaos.supervisor import Supervisor
from tests.e2e.command_line import CommandLine, await_condition

PLAN = """
name = "short_money"
about = "money in and out in twenty seconds"
scenario = "money_in_out"
[[stages]]
name = "steady"
users = 12
ramp_s = 1.0
hold_s = 19.0
[mix]
buy_amount = 14.0
buy_shares = 14.0
sell = 14.0
read_market = 4.0
read_account = 4.0
read_ledger = 4.0
replay = 4.0
reuse_key = 4.0
buy_closed = 4.0
deposit = 14.0
withdraw = 14.0
read_withdrawal = 4.0
[load]
rate_per_user_s = 4.0
patience_s = 1.0
[market]
outcomes = 3
[chain]
confirmations = 2
block_time_s = 0.25
lease_s = 1.0
reconcile_every_s = 0.5
[service]
recovery_s = 2.0
"""
FAULTS = """
[[faults]]
fault = "kill_relay"
at_s = 2.0
[[faults]]
fault = "reorganise"
at_s = 5.0
options = { depth = 5, drop = 1, send_again = true }
[[faults]]
fault = "kill_server"
at_s = 8.0
[[faults]]
fault = "plant_drift"
at_s = 12.0
"""
MONEY = {"outbox", "chain"}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "short_money.toml"
    path.write_text(PLAN + FAULTS)
    return path


def verdict_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "verdict.json").read_bytes())
    return found


def until_money_moves(line: CommandLine, process: subprocess.Popen[str]) -> Path:
    """Wait until the world hears of deposits and withdrawals, and return the run directory."""

    def moving() -> bool:
        assert process.poll() is None, process.communicate()
        return any(path.stat().st_size > 500 for path in line.runs.glob("*/deliveries.jsonl"))

    await_condition(moving, "nobody ever heard of money in or out", timeout_s=60)
    return line.only_run()


def test_money_comes_in_and_goes_out_and_the_verdict_is_the_same_again(
    command_line: CommandLine, plan: Path
) -> None:
    done = command_line.sea_trial(plan, "--seed", "7", "--chain", "embedded")

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    run = command_line.only_run()
    verdict = verdict_of(run)
    assert {one["result"] for one in verdict["invariants"]} == {"held"}
    assert sum(one["group"] in MONEY for one in verdict["invariants"]) == 11
    assert min(one["examined"] for one in verdict["invariants"]) > 0
    assert {fault["landed"] for fault in verdict["faults"]} == {1}
    head = json.loads((run / "chain" / "head.json").read_bytes())
    assert head["drained"] is True
    assert (run / "report.html").read_text().count("data:image/png;base64,") == 4

    before = (run / "verdict.json").read_bytes()
    assert command_line.run("check", str(run)).returncode == 0
    assert (run / "verdict.json").read_bytes() == before


@pytest.mark.skipif(
    find_anvil() is None, reason=os.environ.get("SEATRIAL_NO_ANVIL") or "anvil is not here: see .ci/anvil"
)
def test_another_node_does_as_well(command_line: CommandLine, tmp_path: Path) -> None:
    plan = tmp_path / "calm_money.toml"
    plan.write_text(PLAN.replace("hold_s = 19.0", "hold_s = 5.0"))

    done = command_line.sea_trial(plan, "--seed", "7", "--chain", "anvil")

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "chain 31337, anvil" in done.stdout


def test_a_node_that_somebody_else_runs_does_as_well(command_line: CommandLine, tmp_path: Path) -> None:
    plan = tmp_path / "calm_money.toml"
    plan.write_text(PLAN.replace("hold_s = 19.0", "hold_s = 5.0"))
    with Supervisor(tmp_path / "node") as supervisor:
        node = choose_chain("embedded", supervisor=supervisor, data_dir=tmp_path / "node" / "blocks")
        node.start()

        keyless = command_line.sea_trial(plan, "--chain", node.url)
        assert keyless.returncode == 2
        assert "SEATRIAL_OPERATOR_KEY" in keyless.stderr
        shutil.rmtree(command_line.only_run())

        place = command_line.trial_arguments(plan, "--seed", "7", "--chain", node.url)
        done = command_line.run(*place, SEATRIAL_OPERATOR_KEY=node.accounts[0].private_key)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert node.child is not None
        assert node.child.alive


def test_a_signal_brings_relay_and_chain_to_their_end_too(command_line: CommandLine, plan: Path) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    run = until_money_moves(command_line, process)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)

    assert process.returncode == 3, f"{out}\n{err}"
    assert "relay and chain drained" in out
    verdict = verdict_of(run)
    assert [one["name"] for one in verdict["invariants"] if one["result"] == "broken"] == []
    assert {one["group"] for one in verdict["invariants"] if one["result"] == "held"} >= MONEY


def test_a_killed_harness_leaves_no_chain_and_no_relay(command_line: CommandLine, plan: Path) -> None:
    process = command_line.start(*command_line.trial_arguments(plan))
    until_money_moves(command_line, process)
    assert len(command_line.processes()) > 10

    process.kill()
    process.communicate(timeout=10)

    command_line.assert_nothing_is_left()


def test_a_dead_node_ends_a_run_that_says_so(command_line: CommandLine, plan: Path) -> None:
    """Not by a fault: nobody brings it back, and the run has no chain to be judged by."""
    process = command_line.start(*command_line.trial_arguments(plan))
    run = until_money_moves(command_line, process)

    (node,) = [one for one in command_line.processes() if "reference_server.chain" in one.cmdline()]
    node.kill()
    out, err = process.communicate(timeout=120)

    assert process.returncode == 3, f"{out}\n{err}"
    assert "chain exited -9" in out
    reasons = " ".join(verdict_of(run)["reasons"])
    assert "chain" in reasons
    assert (run / "report.html").is_file()
