"""One child process of the supervisor, through all its restarts.

It has a session of its own, reads nothing, and writes to its log. It is in the undo file from its first
moments on and out of it once it is reaped with all its descendants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from chaos.processes import Identity, descendants, identify, is_alive, kill_trees, send, stop
from chaos.undo import Undo

KILL_TIMEOUT_S = 10.0
PAUSE_TIMEOUT_S = 5.0


class SupervisorError(Exception):
    """A child that could not be started or would not die; names it and says what to look at."""


@dataclass(frozen=True)
class Launch:
    """How a child is started and asked to end: `user` is a uid to become, `env` its whole environment."""

    command: list[str]
    env: dict[str, str]
    cwd: Path | None = None
    user: int | None = None
    stdout: Literal["log", "pipe"] = "log"
    stop_signal: int = signal.SIGTERM
    grace_s: float = 5.0


class Child:
    """One child process and its restarts; made by Supervisor.spawn, safe to use from several threads."""

    def __init__(self, name: str, launch: Launch, *, undo: Undo, log: Path, critical: bool) -> None:
        self.name = name
        self.command = launch.command
        self.log = log
        self.critical = critical
        self.started_ns = 0
        self.expected_to_end = True
        self._launch = launch
        self._undo = undo
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None
        self._undo_number: int | None = None
        self._pause_undo: list[int] = []

    @property
    def pid(self) -> int:
        """Its latest pid, also after its end; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N when signal N ended it. Asking reaps it."""
        return self._process.poll() if self._process is not None else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe from its standard output, for stdout="pipe"; read it, or the child will block."""
        if self._process is None or self._process.stdout is None:
            raise SupervisorError(f"{self.name} has no pipe: spawn it with stdout='pipe'")
        return self._process.stdout

    def start(self) -> None:
        """Start it (again); raises SupervisorError when it runs already or its program cannot be run."""
        with self._lock:
            if self.alive:
                raise SupervisorError(f"{self.name} runs already, as process {self.pid}")
            self._forget()
            self.log.parent.mkdir(parents=True, exist_ok=True)
            identity_of_user = {} if self._launch.user is None else _as_user(self._launch.user)
            with self.log.open("ab") as log:
                try:
                    self._process = subprocess.Popen(
                        self.command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE if self._launch.stdout == "pipe" else log,
                        stderr=log,
                        cwd=self._launch.cwd,
                        env=self._launch.env,
                        start_new_session=True,
                        **identity_of_user,  # type: ignore[call-overload]
                    )
                except OSError as error:
                    raise SupervisorError(f"{self.name}: cannot run {self.command[0]}: {error}") from None
            self.expected_to_end = False
            self.started_ns = time.monotonic_ns()
            # Not reaped yet, so the pid is still this child's even if it has ended.
            self._identity = identify(self._process.pid)
            if self._identity is not None:
                self._undo_number = self._undo.end(self._identity)

    def signal(self, number: int) -> None:
        """Signal the child itself, not its descendants; nothing happens when it has ended."""
        with self._lock:
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL):
                self.expected_to_end = True
            if self._process is not None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it with all its descendants, and reap it; raises SupervisorError if one survives 10 s."""
        with self._lock:
            self.expected_to_end = True
            if self._process is None or self._identity is None:
                return
            survivors = kill_trees([self._identity], timeout_s=KILL_TIMEOUT_S)
            self._reap(survivors)

    def pause(self) -> list[Identity]:
        """SIGSTOP it with its descendants; returns who is stopped. Raises SupervisorError."""
        with self._lock:
            stopped: list[Identity] = []
            # Itself first: from then on it cannot fork. Each act has its undo before it.
            while new := [one for one in self.processes() if one not in stopped][: None if stopped else 1]:
                self._pause_undo.append(self._undo.resume(new))
                if not stop(new, timeout_s=PAUSE_TIMEOUT_S):
                    self.resume()
                    raise SupervisorError(f"{self.name} was not stopped within {PAUSE_TIMEOUT_S:.0f} s")
                stopped += new
            if not self.alive:
                raise SupervisorError(f"{self.name} does not run and cannot be paused")
            return stopped

    def resume(self) -> None:
        """SIGCONT it with its descendants; nothing happens to those that run."""
        with self._lock:
            for process in reversed(self.processes()):
                send(process, signal.SIGCONT)
            while self._pause_undo:
                self._undo.done(self._pause_undo.pop())

    def terminate(self, grace_s: float | None = None) -> None:
        """Ask it to end, kill it after grace_s, kill the descendants it leaves, and reap it."""
        with self._lock:
            self.expected_to_end = True
            if self._process is None or self._identity is None:
                return
            left = descendants(self.pid)
            if self.alive:
                self._process.send_signal(signal.SIGCONT)
                self._process.send_signal(self._launch.stop_signal)
                if self.wait(self._launch.grace_s if grace_s is None else grace_s) is None:
                    left = [self._identity, *left]
            survivors = kill_trees(left, timeout_s=KILL_TIMEOUT_S)
            self._reap(survivors)

    def wait(self, timeout_s: float) -> int | None:
        """Its return code, None when it still runs after timeout_s."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def processes(self) -> list[Identity]:
        """Itself and its descendants, those alive."""
        if self._identity is None or not is_alive(self._identity):
            return []
        return [self._identity, *descendants(self.pid)]

    def log_tail(self, lines: int = 10) -> str:
        """The last lines of its log, for error messages."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                text = log.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _reap(self, survivors: list[Identity]) -> None:
        reaped = self.wait(KILL_TIMEOUT_S) is not None
        if survivors or not reaped:
            pids = ", ".join(str(process.pid) for process in survivors) or str(self.pid)
            raise SupervisorError(
                f"{self.name}: SIGKILL did not end process {pids} within {KILL_TIMEOUT_S} s"
            )
        self._forget()

    def _forget(self) -> None:
        """Take it out of the undo file, and close its pipe: it has ended and is reaped."""
        if self._undo_number is not None:
            self._undo.done(self._undo_number)
            self._undo_number = None
        while self._pause_undo:
            self._undo.done(self._pause_undo.pop())
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


def _as_user(uid: int) -> dict[str, object]:
    """Popen's arguments to become this user; its group is the one of its passwd entry."""
    import pwd  # not on every platform, and needed by root only

    return {"user": uid, "group": pwd.getpwuid(uid).pw_gid, "extra_groups": []}
