"""Processes named by pid and start time, so that a recycled pid is never signalled.

A pid alone is a name that the kernel gives to somebody else once its owner is gone. Everything that ends,
stops or continues a process in this folder goes through an `Identity`, and through a pidfd where the
kernel has one: what was checked is then what is signalled.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.005
_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
# A tree whose members keep forking is listed again; one that outruns this many rounds is a fork bomb.
_ROUNDS_MAX = 20


@dataclass(frozen=True)
class Identity:
    """One process of this boot; `started` tells it from every other owner of its pid."""

    pid: int
    started: str


def identify(pid: int) -> Identity | None:
    """The process that owns this pid now (a zombie too), None when there is none."""
    started = _started(pid)
    return None if started is None else Identity(pid=pid, started=started)


def is_alive(process: Identity) -> bool:
    """Whether it still runs; a zombie holds no memory and no lock, and counts as gone."""
    if _started(process.pid) != process.started:
        return False
    return _status(process.pid) not in _GONE


def send(process: Identity, number: int) -> bool:
    """Signal exactly this process; False when it is gone. Raises PermissionError for a stranger's process."""
    if not hasattr(os, "pidfd_open"):
        if _started(process.pid) != process.started:
            return False
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return False
        return True
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if _started(process.pid) != process.started:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def descendants(pid: int) -> list[Identity]:
    """Children and their children of a pid, living ones only."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    identities = [identify(process.pid) for process in found]
    return [identity for identity in identities if identity is not None and is_alive(identity)]


def carrying(name: str, value: str) -> list[Identity]:
    """Living processes whose environment has name=value, this one excepted.

    Finds what no list has: a child whose parent died between fork and writing it down, a grandchild that
    took a session of its own.
    """
    found = []
    for process in psutil.process_iter():
        try:
            carries = process.pid != os.getpid() and process.environ().get(name) == value
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's: not ours to end
        identity = identify(process.pid) if carries else None
        if identity is not None and is_alive(identity):
            found.append(identity)
    return found


def kill_trees(roots: Iterable[Identity], *, timeout_s: float) -> list[Identity]:
    """SIGKILL processes with all their descendants; returns those still alive after timeout_s.

    1. Stop each root, and wait until it is stopped: from here it cannot fork.
    2. List and stop its descendants, until a listing finds nobody new.
    3. Kill them all (a stopped process dies of SIGKILL too), and wait until the last one is gone.

    Why not killpg: PostgreSQL's backends, and whoever else calls setsid, have left the group.
    """
    deadline = time.monotonic() + timeout_s
    tree = [root for root in dict.fromkeys(roots) if is_alive(root)]
    listed: set[Identity] = set()
    for _ in range(_ROUNDS_MAX):
        new = [process for process in tree if process not in listed]
        if not new:
            break
        stop(new, timeout_s=1.0)
        listed.update(new)
        tree = list(dict.fromkeys(tree + [child for process in new for child in descendants(process.pid)]))
    for process in tree:
        send(process, signal.SIGKILL)
    return wait_gone(tree, timeout_s=max(0.0, deadline - time.monotonic()))


def stop(processes: Iterable[Identity], *, timeout_s: float) -> bool:
    """SIGSTOP processes and wait until none can run a further instruction; whether that is so in time."""
    stopped = list(processes)
    for process in stopped:
        send(process, signal.SIGSTOP)
    return wait_until(lambda: all(map(_is_still, stopped)), timeout_s=timeout_s)


def wait_gone(processes: Iterable[Identity], *, timeout_s: float) -> list[Identity]:
    """Wait until all are gone; returns those that are not when timeout_s is over."""
    left = list(processes)

    def all_gone() -> bool:
        left[:] = [process for process in left if is_alive(process)]
        return not left

    wait_until(all_gone, timeout_s=timeout_s)
    return left


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll a condition until it holds or timeout_s is over; returns whether it held."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_still(process: Identity) -> bool:
    """Whether it cannot run a further instruction: stopped, or gone."""
    if not is_alive(process):
        return True
    return _status(process.pid) in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)


def _started(pid: int) -> str | None:
    """Start time: ticks since boot on Linux (exact, whatever happens to the clock), else epoch seconds."""
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may itself hold spaces and parentheses; the 22nd field counts from pid.
        return text.rpartition(")")[2].split()[19]
    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
