"""The command line in a child process, as a user has it: arguments, signals, exit code, output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]
MARK = "SEATRIAL_DATA_DIR"
GONE_DEADLINE_S = 20.0


class CommandLine:
    """Runs `seatrial`; every process that stems from it carries the scratch folder in its environment."""

    def __init__(self, *, runs: Path, data: Path) -> None:
        self.runs = runs
        self.data = data

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start it and return at once."""
        kept = {name: value for name, value in os.environ.items() if name != "SEATRIAL_POSTGRES_DSN"}
        return subprocess.Popen(
            [sys.executable, str(PROJECT / "seatrial.py"), *arguments],
            cwd=PROJECT,
            env={**kept, MARK: str(self.data), "COLUMNS": "200", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, timeout_s: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            raise AssertionError(f"not done after {timeout_s} s:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def sea_trial(self, plan: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`seatrial run` on the embedded PostgreSQL."""
        return self.run(*self.trial_arguments(plan, *arguments))

    def trial_arguments(self, plan: Path | str, *arguments: str) -> list[str]:
        """The arguments of `seatrial run` for a plan."""
        place = ["--postgres", "embedded", "--runs", str(self.runs)]
        return ["run", "--plan", str(plan), *place, *arguments]

    def only_run(self) -> Path:
        """The one run directory there is."""
        (run,) = self.runs.iterdir()
        return run

    def processes(self) -> list[psutil.Process]:
        """Living processes that stem from this command line, the test's own excepted."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == str(self.data):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        """No process, no scratch data, no undo file."""
        await_condition(lambda: not self.processes(), f"processes left: {self.processes()}")
        await_condition(
            lambda: not list(self.data.iterdir()), f"left in {self.data}: {[*self.data.iterdir()]}"
        )
        assert list(self.runs.glob("*/undo.jsonl")) == []

    def end_what_is_left(self) -> None:
        """After a failure: end the processes of this command line, so that they do not outlive the test."""
        for process in self.processes():
            process.kill()


def await_condition(
    condition: Callable[[], bool], otherwise: str, *, timeout_s: float = GONE_DEADLINE_S
) -> None:
    """Wait until a condition holds; fails with `otherwise` after timeout_s."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, otherwise
        time.sleep(0.05)
