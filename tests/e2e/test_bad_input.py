"""Bad input: a message that names the field and the rule, exit 2, nothing left running."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

import pytest

from tests import golden
from tests.e2e.command_line import CommandLine

PLAN = """
name = "tiny"
about = "a plan to break"
scenario = "hot_market"
[[stages]]
name = "steady"
users = 3
hold_s = 3.0
[mix]
buy_amount = 1.0
"""
DEAF_SERVER = """
import subprocess, sys
if sys.argv[1] == "install":
    sys.exit(subprocess.run([sys.executable, "-m", "reference_server", *sys.argv[1:]]).returncode)
sys.exit("the engine room is flooded")
"""


def plan_file(tmp_path: Path, before: str = "", after: str = "") -> Path:
    path = tmp_path / "tiny.toml"
    text = PLAN if not before else PLAN.replace(before, after)
    path.write_text(text + (after if not before else ""))
    return path


def refused(line: CommandLine, *arguments: str) -> str:
    done = line.run(*arguments)
    assert done.returncode == 2, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--plan", "gale"], "no plan 'gale': the plans are ci, hot, launch, money, quick, or name a"),
        (["run", "--plan", "gale.toml"], "no plan 'gale.toml'"),
        (["run", "--trade-strategy", "hope"], "'hope' is none of batch, row_lock, optimistic"),
        (["serve", "--trade-strategy", "hope"], "'hope' is none of batch, row_lock, optimistic"),
        (["bench", "--users", "many"], "--users: 'many' is not a list of whole numbers"),
        (["run", "--url", "http://example.org"], "load and faults stay on this machine"),
        (["run", "--seed", "x"], "--seed"),
        (["check", "no-such-run"], "no-such-run"),
    ],
)
def test_an_unknown_name_is_refused(command_line: CommandLine, arguments: list[str], message: str) -> None:
    assert message in refused(command_line, *arguments)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("hot_market", "cold_market", "scenario: no scenario 'cold_market'; the scenarios are hot_market"),
        ("users = 3", "users = 3\nsailors = 4", "stages[0]: Object contains unknown field `sailors`"),
        ("users = 3", 'users = "three"', "stages[0].users: Expected `int`, got `str`"),
        ("users = 3", "users = -3", "stages[0].users: between 0 and 100000"),
        ("buy_amount", "buy_hope", "mix.buy_hope: not an action of hot_market"),
        ("[mix]", "[mix", "not TOML"),
        ("", '[[faults]]\nfault = "kraken"\nat_s = 1.0\n', "kraken"),
        ("", '[[faults]]\nfault = "drop_reply"\nat_s = 9.0\n', "faults[0]: ends before the load does"),
        ("", '[[faults]]\nfault = "drop_reply"\nat_s = 1.0\noptions = {colour = 1}\n', "colour"),
    ],
)
def test_a_wrong_plan_is_refused_by_file_key_and_rule(
    command_line: CommandLine, tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = plan_file(tmp_path, before, after)

    said = refused(command_line, *command_line.trial_arguments(path))

    assert message in said
    assert "tiny.toml" in said or "fault" in message or message in ("kraken", "colour")
    assert not command_line.runs.exists()


def test_a_dsn_that_does_not_answer_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    dsn = "postgresql://owner:secret@127.0.0.1:1/seatrial"

    said = refused(
        command_line,
        *("run", "--plan", str(plan_file(tmp_path)), "--postgres", dsn, "--runs", str(command_line.runs)),
    )

    assert "127.0.0.1" in said
    assert "secret" not in said


def test_a_port_in_use_is_refused(command_line: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        said = refused(command_line, "serve", "--port", str(port), "--postgres", "embedded")

    assert f"port {port} on 127.0.0.1 is in use" in said


def test_a_disk_without_room_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    # procfs is a folder that exists on every Linux and has no bytes free.
    said = refused(command_line, "run", "--plan", str(plan_file(tmp_path)), "--runs", "/proc")

    assert "0 MB free, a run needs 1024 MB" in said


def test_a_server_that_does_not_become_healthy_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    script = tmp_path / "deaf_server.py"
    script.write_text(DEAF_SERVER)
    command = shlex.join([sys.executable, str(script)])

    said = refused(
        command_line, *command_line.trial_arguments(plan_file(tmp_path), "--server-command", command)
    )

    assert "server-0 exited 1 before it was healthy: the engine room is flooded" in said


def test_a_folder_that_is_not_a_run_is_refused(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "plan.json" in refused(command_line, "check", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: lines[:-1], "end"),
        (lambda lines: [*lines[:20], lines[20][:30]], "line 21"),
        (lambda lines: [*lines[:20], b"not json", *lines[21:]], "line 21"),
    ],
    ids=["without its end row", "cut within a row", "with a row that is not JSON"],
)
def test_a_spoilt_history_is_refused_by_file_and_line(
    command_line: CommandLine, tmp_path: Path, spoil: object, message: str
) -> None:
    run = golden.run(tmp_path)
    (history, *_) = sorted((run / "history").glob("*.jsonl"))
    lines = history.read_bytes().splitlines()
    assert callable(spoil)
    history.write_bytes(b"\n".join(spoil(lines)) + b"\n")

    said = refused(command_line, "check", str(run))

    assert history.name in said
    assert message in said
