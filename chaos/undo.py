"""The undo file: what must be undone should the harness die, written before it is done.

One JSON object a line, appended with one write each: it outlives a SIGKILL of the writer (the page cache
does), and a torn last line is an undo whose act never began. A `done` line takes an entry back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.processes import Identity, carrying, identify, kill_trees, send

# Every child carries this variable with the path of the undo file: who is not listed is found by it.
TAG = "SEATRIAL_UNDO"
_COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Entry:
    """One thing to undo; its kind is end (a process tree), resume, run (a command) or remove (a folder)."""

    number: int
    kind: str
    what: dict[str, Any]


class Undo:
    """Appends to one new undo file, safe to use from several threads; raises FileExistsError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._number = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive: another one's undo file is never written to, nor lost.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def end(self, process: Identity) -> int:
        """Kill this process and all its descendants."""
        return self._append("end", {"pid": process.pid, "started": process.started})

    def resume(self, processes: Iterable[Identity]) -> int:
        """Send SIGCONT to these processes: write it before they are stopped."""
        stopped = [{"pid": process.pid, "started": process.started} for process in processes]
        return self._append("resume", {"processes": stopped})

    def run(self, command: list[str]) -> int:
        """Run a command, at most 30 s."""
        return self._append("run", {"command": command})

    def remove(self, folder: Path) -> int:
        """Remove a scratch folder with all it holds, after every process is gone."""
        folder = folder.absolute()
        if folder == Path(folder.anchor) or folder == Path.home():
            raise ValueError(f"{folder} is no scratch folder")
        return self._append("remove", {"folder": str(folder)})

    def done(self, number: int) -> None:
        """Take an entry back: it is undone, or there is nothing to undo."""
        self._append("done", {"number": number})

    def close(self, *, keep: bool = False) -> None:
        """Close the file, and remove it unless there is something left to undo; idempotent."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
        if not keep:
            self.path.unlink(missing_ok=True)

    def _append(self, kind: str, what: dict[str, Any]) -> int:
        with self._lock:
            if self._file < 0:
                raise ValueError(f"{self.path} is closed")
            self._number += 1
            line = json.dumps({"number": self._number, "kind": kind, "what": what}) + "\n"
            os.write(self._file, line.encode())
            return self._number


def read_undo(path: Path) -> list[Entry]:
    """What is still to be undone, oldest first; nothing when the file is gone."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    entries: dict[int, Entry] = {}
    for line in lines[:-1]:  # what follows the last newline is torn, or empty
        row = json.loads(line)
        if row["kind"] == "done":
            entries.pop(row["what"]["number"], None)
        else:
            entries[row["number"]] = Entry(number=row["number"], kind=row["kind"], what=row["what"])
    return list(entries.values())


def carry_out(path: Path, *, timeout_s: float = 15.0, spare: Iterable[int] = ()) -> list[str]:
    """Undo everything the file still holds; returns one line for each thing that could not be undone.

    Continues the stopped first, then ends the processes (the listed, their descendants, and whoever carries
    the tag), then runs the commands, and removes folders last, when nobody can write to them any more.
    """
    entries = read_undo(path)
    troubles: list[str] = []
    for entry in entries:
        if entry.kind == "resume":
            for process in entry.what["processes"]:
                send(Identity(pid=process["pid"], started=process["started"]), signal.SIGCONT)
    listed = [
        Identity(pid=entry.what["pid"], started=entry.what["started"])
        for entry in entries
        if entry.kind == "end"
    ]
    spared = {*spare, os.getpid()}
    kept = {identity for identity in map(identify, spared) if identity is not None}
    roots = [process for process in listed + carrying(TAG, str(path)) if process not in kept]
    survivors = kill_trees(roots, timeout_s=timeout_s)
    troubles += [f"process {process.pid} would not die" for process in survivors]
    for entry in entries:
        if entry.kind == "run":
            troubles += _run(entry.what["command"])
    for entry in entries:
        if entry.kind == "remove":
            troubles += _remove(Path(entry.what["folder"]))
    return troubles


def _run(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{command}: {error}"]
    return [] if done.returncode == 0 else [f"{command}: exit {done.returncode}: {done.stderr.strip()}"]


def _remove(folder: Path) -> list[str]:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{folder}: {error}"]
    return []
