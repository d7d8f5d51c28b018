"""The supervisor: starts, signals, ends and reaps the child processes of a run.

Ctrl-C in the terminal reaches the orchestrator alone, which ends its children in order; a watchdog process
ends them all when the orchestrator is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from chaos.child import KILL_TIMEOUT_S, Child, Launch, SupervisorError
from chaos.processes import carrying, identify, kill_trees
from chaos.undo import TAG, Undo

__all__ = ["Child", "Supervisor", "SupervisorError"]

ROOT = Path(__file__).resolve().parents[1]


class Supervisor:
    """Owns the children of one run; `close` ends them all, last started first."""

    def __init__(self, run: Path, undo: Path | None = None) -> None:
        self.logs = run.absolute() / "logs"
        try:
            self.undo = Undo((undo or run / "undo.jsonl").absolute())
        except FileExistsError as error:
            raise SupervisorError(
                f"{error.filename} exists: another process works on {run}, or one was killed there"
            ) from None
        self.children: dict[str, Child] = {}
        self._watchdog: Child | None = None
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spawn(
        self,
        name: str,
        command: list[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
        stdout: Literal["log", "pipe"] = "log",
        critical: bool = True,
        stop_signal: int = signal.SIGTERM,
        grace_s: float = 5.0,
    ) -> Child:
        """Start a child; `env` adds to this process's environment, `user` is a uid to become (as root only).

        `stop_signal` and `grace_s` are how terminate and close ask it to end, and for how long.
        Raises SupervisorError when it cannot be started or the name is taken by a living child.
        """
        with self._lock:
            if self._closed:
                raise SupervisorError(f"{name}: the supervisor is closed")
            if name in self.children and self.children[name].alive:
                raise SupervisorError(f"{name} runs already, as process {self.children[name].pid}")
            self._guard()
            launch = Launch(
                command=command,
                env=self._environment(env or {}),
                cwd=cwd,
                user=user,
                stdout=stdout,
                stop_signal=stop_signal,
                grace_s=grace_s,
            )
            child = Child(name, launch, undo=self.undo, log=self.logs / f"{name}.log", critical=critical)
            child.start()
            self.children.pop(name, None)  # a name used again takes its place at the end of the order
            self.children[name] = child
            return child

    def undo_remove(self, folder: Path) -> int:
        """Have a scratch folder removed should this process die; its owner still removes it at the end."""
        with self._lock:
            self._guard()
            return self.undo.remove(folder)

    def undo_run(self, command: list[str]) -> int:
        """Have a command run should this process die, after its children are ended."""
        with self._lock:
            self._guard()
            return self.undo.run(command)

    def dead(self) -> list[Child]:
        """Critical children that ended and were not asked to; the watchdog is one of them."""
        children = list(self.children.values())
        if self._watchdog is not None:
            children.append(self._watchdog)
        return [
            child
            for child in children
            if child.critical and not child.expected_to_end and child.returncode is not None
        ]

    def close(self) -> None:
        """End all children, last started first, then the watchdog; bounded and idempotent.

        Raises SupervisorError, after it has tried everything, when a process would not die; the undo file
        is kept then.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            troubles: list[str] = []
            for child in reversed(self.children.values()):
                troubles += _ended(child)
            # What outlived its parent: grandchildren of a child that crashed.
            watchdog = identify(self._watchdog.pid) if self._watchdog is not None else None
            strays = [process for process in carrying(TAG, str(self.undo.path)) if process != watchdog]
            survivors = kill_trees(strays, timeout_s=KILL_TIMEOUT_S)
            troubles += [f"process {process.pid} would not die" for process in survivors]
            if self._watchdog is not None:
                troubles += _ended(self._watchdog)
            self.undo.close(keep=bool(troubles))
            if troubles:
                raise SupervisorError("; ".join(troubles))

    def _guard(self) -> None:
        """Start the watchdog before the first child."""
        if self._watchdog is None:
            launch = Launch(
                command=[sys.executable, "-m", "chaos.watchdog", str(self.undo.path), str(os.getpid())],
                env=self._environment({}),
            )
            log = self.logs / "watchdog.log"
            self._watchdog = Child("watchdog", launch, undo=self.undo, log=log, critical=True)
            self._watchdog.start()

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        # `python -m chaos...` must work from any folder, also when the project is not installed.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, **env, TAG: str(self.undo.path)}


def _ended(child: Child) -> list[str]:
    try:
        child.terminate()
    except (SupervisorError, OSError) as error:
        return [str(error)]
    return []
