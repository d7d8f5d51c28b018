"""Children never outlive the harness, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chaos.processes import Identity, identify, is_alive, send, wait_gone, wait_until
from chaos.supervisor import ROOT, Supervisor, SupervisorError
from chaos.undo import Undo, carry_out, read_undo

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]
# Says when it is deaf, so that nobody asks it to end before.
DEAF = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True: signal.pause()
"""
# A child with a child of its own that has left its session: no process group holds them together.
PARENT = """
import pathlib, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(child.pid) + "\\n")
signal.pause()
"""
# A harness that waits to be killed: a family, a stopped child, a scratch folder and a command to undo.
HARNESS = """
import json, pathlib, signal, sys
from chaos.processes import identify
from chaos.supervisor import Supervisor
run, scratch, family, idle = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
supervisor = Supervisor(run)
supervisor.undo_remove(scratch)
supervisor.undo_run(["touch", str(run / "command-was-run")])
parent = supervisor.spawn("parent", [sys.executable, "-c", family, str(run / "grandchild")])
stopped = supervisor.spawn("stopped", [sys.executable, "-c", idle])
supervisor.undo.resume([identify(stopped.pid)])
stopped.signal(signal.SIGSTOP)
print(json.dumps([parent.pid, stopped.pid]), flush=True)
signal.pause()
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "run") as supervisor:
        yield supervisor


def identified(pid: int) -> Identity:
    process = identify(pid)
    assert process is not None
    return process


def grandchild_of(file: Path) -> Identity:
    """The grandchild that PARENT has written down."""
    assert wait_until(lambda: file.exists() and file.read_text().endswith("\n"), timeout_s=10)
    return identified(int(file.read_text()))


def test_close_reaps_every_child_and_grandchild(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "run")
    children = [supervisor.spawn(f"idle-{number}", IDLE) for number in range(3)]
    supervisor.spawn("parent", [sys.executable, "-c", PARENT, str(tmp_path / "pid")])
    family = [identified(child.pid) for child in supervisor.children.values()]
    family.append(grandchild_of(tmp_path / "pid"))
    supervisor.close()
    assert not any(map(is_alive, family))
    assert all(child.returncode == -signal.SIGTERM for child in children)
    # Reaped, not merely dead, and the watchdog with them.
    assert all(process.status() != psutil.STATUS_ZOMBIE for process in psutil.Process().children())
    assert not (tmp_path / "run" / "undo.jsonl").exists()


def test_close_kills_a_grandchild_whose_parent_has_crashed(supervisor: Supervisor, tmp_path: Path) -> None:
    parent = supervisor.spawn("parent", [sys.executable, "-c", PARENT, str(tmp_path / "pid")])
    grandchild = grandchild_of(tmp_path / "pid")
    os.kill(parent.pid, signal.SIGKILL)  # behind the supervisor's back
    assert parent.wait(10) == -signal.SIGKILL
    assert is_alive(grandchild)
    supervisor.close()
    assert not is_alive(grandchild)


def test_a_child_that_does_not_listen_is_killed_after_its_grace(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf"
    child = supervisor.spawn("deaf", [sys.executable, "-c", DEAF, str(deaf)], grace_s=0.2)
    assert wait_until(deaf.exists, timeout_s=10)
    child.terminate()
    assert child.returncode == -signal.SIGKILL


def test_everything_is_undone_when_the_harness_is_killed(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "data").write_text("much")
    with subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(run), str(scratch), PARENT, IDLE[-1]],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as harness:
        assert harness.stdout is not None
        family = [identified(pid) for pid in json.loads(harness.stdout.readline())]
        family.append(grandchild_of(run / "grandchild"))
        family += [identified(process.pid) for process in psutil.Process(harness.pid).children()]
        harness.kill()
    # The watchdog is one of them: it ends last, with nothing left to undo.
    assert wait_gone(family, timeout_s=20) == []
    assert not scratch.exists()
    assert (run / "command-was-run").exists()
    assert not (run / "undo.jsonl").exists()
    assert "everything is undone" in (run / "logs" / "watchdog.log").read_text()


def test_only_a_critical_child_that_nobody_asked_to_end_is_dead(supervisor: Supervisor) -> None:
    asked = supervisor.spawn("asked", IDLE)
    supervisor.spawn("minor", [sys.executable, "-c", ""], critical=False).wait(10)
    crashed = supervisor.spawn("crashed", [sys.executable, "-c", "raise SystemExit(3)"])
    asked.terminate()
    assert crashed.wait(10) == 3
    assert [child.name for child in supervisor.dead()] == ["crashed"]


def test_a_killed_child_starts_again_and_keeps_its_log(supervisor: Supervisor) -> None:
    speak = "import signal; print('here', flush=True); signal.pause()"
    child = supervisor.spawn("server", [sys.executable, "-c", speak])
    assert wait_until(lambda: child.log_tail() == "here", timeout_s=10)
    before = child.pid
    child.kill()
    assert child.returncode == -signal.SIGKILL
    assert supervisor.dead() == []
    child.start()
    assert wait_until(lambda: child.log_tail() == "here\nhere", timeout_s=10)
    assert child.pid != before


def test_a_paused_child_stands_still_with_all_it_has_and_the_undo_knows(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    parent = supervisor.spawn("parent", [sys.executable, "-c", PARENT, str(tmp_path / "pid")])
    family = [identified(parent.pid), grandchild_of(tmp_path / "pid")]
    for _ in range(2):  # paused twice, it is resumed once
        assert parent.pause() == family
    assert [psutil.Process(process.pid).status() for process in family] == [psutil.STATUS_STOPPED] * 2
    resumes = [entry for entry in read_undo(supervisor.undo.path) if entry.kind == "resume"]
    assert {one["pid"] for entry in resumes for one in entry.what["processes"]} == {one.pid for one in family}
    parent.resume()
    assert psutil.STATUS_STOPPED not in [psutil.Process(process.pid).status() for process in family]
    assert "resume" not in [entry.kind for entry in read_undo(supervisor.undo.path)]
    parent.kill()
    with pytest.raises(SupervisorError, match="cannot be paused"):
        parent.pause()


def test_a_name_is_taken_only_while_its_child_lives(supervisor: Supervisor) -> None:
    first = supervisor.spawn("server", IDLE)
    with pytest.raises(SupervisorError, match=f"runs already, as process {first.pid}"):
        supervisor.spawn("server", IDLE)
    first.terminate()
    assert supervisor.spawn("server", IDLE).alive


def test_a_program_that_is_not_there_is_named(supervisor: Supervisor) -> None:
    with pytest.raises(SupervisorError, match="server: cannot run /nowhere/server"):
        supervisor.spawn("server", ["/nowhere/server"])


def test_a_closed_supervisor_starts_nothing(supervisor: Supervisor) -> None:
    supervisor.close()
    supervisor.close()
    with pytest.raises(SupervisorError, match="closed"):
        supervisor.spawn("late", IDLE)


def test_two_supervisors_do_not_share_a_run(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(SupervisorError, match="another process works on"):
        Supervisor(tmp_path / "run")
    assert supervisor.spawn("still", IDLE).alive


def test_a_recycled_pid_is_not_signalled(supervisor: Supervisor) -> None:
    child = supervisor.spawn("innocent", IDLE)
    former = Identity(pid=child.pid, started="0")
    assert not is_alive(former)
    assert not send(former, signal.SIGKILL)
    assert child.alive


def test_a_torn_last_line_is_an_undo_whose_act_never_began(tmp_path: Path) -> None:
    path, scratch = tmp_path / "undo.jsonl", tmp_path / "scratch"
    scratch.mkdir()
    undo = Undo(path)
    undo.remove(scratch)
    undo.done(undo.run(["false"]))
    undo.close(keep=True)
    with path.open("a") as file:
        file.write('{"number": 9, "kind": "run", "what": {"comm')
    assert [entry.kind for entry in read_undo(path)] == ["remove"]
    assert carry_out(path) == []
    assert not scratch.exists()


def test_what_cannot_be_undone_is_said(tmp_path: Path) -> None:
    undo = Undo(tmp_path / "undo.jsonl")
    undo.run([sys.executable, "-c", "raise SystemExit('no such container')"])
    undo.close(keep=True)
    (trouble,) = carry_out(undo.path)
    assert "exit 1: no such container" in trouble


def test_a_home_folder_is_no_scratch_folder(tmp_path: Path) -> None:
    undo = Undo(tmp_path / "undo.jsonl")
    for folder in (Path("/"), Path.home()):
        with pytest.raises(ValueError, match="is no scratch folder"):
            undo.remove(folder)
    undo.close()
    assert not undo.path.exists()
