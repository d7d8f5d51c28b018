"""A PostgreSQL of our own: initdb into a scratch folder, the server as a child of the supervisor.

1. start: check the disk, initdb, spawn `postgres` itself (not pg_ctl: the postmaster must be our child, so
   that it is reaped), wait for the first answered query.
2. kill: stop the postmaster so that it cannot fork, list its backends, SIGKILL all, wait until the last one
   is gone.
3. restart: wait until nobody uses the data folder any more, then spawn again on the same port.

Why the care in 2 and 3: a postmaster killed alone leaves backends that keep the shared memory, and the lock
file makes every start fail while one of them lives (up to 2.4 s), or while a stranger of the same user has
been given the dead postmaster's pid. Deleting the lock file while a backend lives would let two servers
write to the same data, so it is deleted only when nobody works in the data folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from chaos.cluster import (
    ANSWER_TIMEOUT_S,
    USER,
    PostgresError,
    await_answer,
    local_dsn,
    options,
    settings,
)
from chaos.data_folder import SCRATCH_PREFIX, make_data_folder
from chaos.ports import free_port
from chaos.postgres_binaries import find_binaries, server_account
from chaos.processes import Identity, identify, is_alive, kill_trees, send, wait_gone, wait_until
from chaos.supervisor import Child, Supervisor, SupervisorError

INITDB_TIMEOUT_S = 60.0
_STARTS_MAX = 5
# max_wal_size, the cluster itself and room for the data of a long run; megabytes.
_FREE_MB = {True: 2_000, False: 400}


class EmbeddedPostgres:
    """One cluster in data_dir, which must be empty or not exist; removing it is up to its owner."""

    kind = "embedded"
    can_kill = True

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        data_dir: Path,
        why: str,
        durable: bool = True,
        extra: dict[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.why = why
        self._supervisor = supervisor
        self._durable = durable
        self._extra = extra or {}
        self._account = server_account()
        self._binaries = find_binaries(self._account)
        self.version = self._binaries.version
        self._password = secrets.token_urlsafe(18)
        self._port = free_port()
        self._child: Child | None = None
        self._paused: list[Identity] = []
        self._pause_undo = 0
        self._segment: str | None = None
        self._segment_undo = 0

    @property
    def dsn(self) -> str:
        return local_dsn(port=self._port, password=self._password)

    def start(self) -> None:
        """Make the cluster and start it; raises PostgresError. A taken port is replaced by a free one."""
        if self._child is not None:
            self.restart_after_kill()
            return
        make_data_folder(self.data_dir, self._account, free_mb=_FREE_MB[self._durable])
        self._initdb()
        for left in reversed(range(_STARTS_MAX)):
            self._child = self._spawn()
            try:
                self._await_answer()
            except PostgresError:
                taken = "Address already in use" in self._child.log_tail()
                self._child.terminate()
                if not taken or left == 0:
                    raise
                self._port = free_port()
            else:
                return

    def stop(self) -> None:
        """Fast shutdown, within 30 s; the data stays."""
        self.resume()
        if self._child is not None:
            try:
                self._child.terminate()
            except SupervisorError as error:
                raise PostgresError(str(error)) from None
            self._remove_shared_memory()

    def kill(self) -> None:
        """SIGKILL postmaster and backends; raises PostgresError if one survives."""
        if self._child is None:
            raise PostgresError("PostgreSQL was never started")
        try:
            self._child.kill()
        except SupervisorError as error:
            raise PostgresError(str(error)) from None
        # Backends of a postmaster that had died before, by another hand, are nobody's descendants.
        survivors = kill_trees(self._at_work(), timeout_s=10.0)
        if survivors:
            raise PostgresError(f"SIGKILL did not end process {survivors[0].pid} of PostgreSQL within 10 s")
        self._forget_pause()

    def restart_after_kill(self) -> float:
        """Start on the same port and data; returns the seconds to the first answer. Raises PostgresError."""
        assert self._child is not None
        began = time.monotonic()
        self._forget_pause()
        if not self._child.alive:
            self._await_nobody_at_work()
            self._child.start()
        self._await_answer()
        return time.monotonic() - began

    def pause(self) -> None:
        """SIGSTOP the postmaster, then (nobody can fork any more) all backends."""
        if self._child is None or not self._child.alive:
            raise PostgresError("PostgreSQL does not run and cannot be paused")
        if self._paused:
            return
        postmaster = identify(self._child.pid)
        assert postmaster is not None
        undo = self._supervisor.undo
        # The backends are known only once the postmaster is stopped; each act has its undo before it.
        first = undo.resume([postmaster])
        send(postmaster, signal.SIGSTOP)
        wait_until(lambda: _is_stopped(postmaster), timeout_s=2.0)
        everyone = self._child.processes()
        self._pause_undo = undo.resume(everyone)
        undo.done(first)
        self._paused = everyone
        for process in everyone:
            send(process, signal.SIGSTOP)
        if not wait_until(lambda: all(map(_is_stopped, everyone)), timeout_s=5.0):
            self.resume()
            raise PostgresError("PostgreSQL could not be paused within 5 s")

    def resume(self) -> None:
        """SIGCONT everybody, backends first."""
        for process in reversed(self._paused):
            send(process, signal.SIGCONT)
        self._forget_pause()

    def pids(self) -> list[int]:
        if self._child is None:
            return []
        return [process.pid for process in self._child.processes()]

    def _initdb(self) -> None:
        """Make an empty cluster whose only way in is TCP with a password."""
        descriptor, name = tempfile.mkstemp(prefix=SCRATCH_PREFIX, dir="/tmp")
        try:
            os.write(descriptor, self._password.encode())
            if self._account.uid is not None and self._account.gid is not None:
                os.fchown(descriptor, self._account.uid, self._account.gid)
            command = [str(self._binaries.folder / "initdb"), "-D", str(self.data_dir), "-U", USER]
            command += [f"--pwfile={name}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
            command += ["--data-checksums"] if self._durable else ["--no-sync"]
            child = self._supervisor.spawn(
                "initdb", command, cwd=Path("/"), user=self._account.uid, critical=False
            )
            code = child.wait(INITDB_TIMEOUT_S)
            child.terminate()
        except SupervisorError as error:
            raise PostgresError(str(error)) from None
        finally:
            os.close(descriptor)
            Path(name).unlink()
        if code != 0:
            said = f"exit {code}" if code is not None else f"not done within {INITDB_TIMEOUT_S:.0f} s"
            raise PostgresError(f"initdb in {self.data_dir}: {said}:\n{child.log_tail()}")

    def _spawn(self) -> Child:
        fixed = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            # No socket: its path is bounded by 107 bytes, and /tmp is open to everybody.
            "unix_socket_directories": "",
            # In the data folder, and gone with it; posix segments of a killed cluster would stay in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
        }
        chosen = {**settings(durable=self._durable), **self._extra, **fixed}
        command = [str(self._binaries.folder / "postgres"), "-D", str(self.data_dir), *options(chosen)]
        try:
            return self._supervisor.spawn(
                "postgres",
                command,
                cwd=Path("/"),
                user=self._account.uid,
                stop_signal=signal.SIGINT,  # fast shutdown; SIGTERM would wait for clients to leave
                grace_s=30.0,
            )
        except SupervisorError as error:
            raise PostgresError(str(error)) from None

    def _await_answer(self) -> None:
        child = self._child
        assert child is not None

        def given_up() -> str | None:
            if child.alive:
                return None
            return f"PostgreSQL ended at once, exit {child.returncode}:\n{child.log_tail()}"

        self.version = await_answer(self.dsn, timeout_s=ANSWER_TIMEOUT_S, given_up=given_up)
        self._note_shared_memory()

    def _at_work(self) -> list[Identity]:
        """Living processes that work in the data folder: a server's processes, and nobody else."""
        here = str(self.data_dir.resolve())
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or not ours to look at
                if process.cwd() == here and (identity := identify(process.pid)) and is_alive(identity):
                    found.append(identity)
        return found

    def _await_nobody_at_work(self) -> None:
        """Wait for orphaned backends to notice, end those that do not, and drop a lock nobody holds."""
        left = wait_gone(self._at_work(), timeout_s=3.0)
        if kill_trees(left, timeout_s=10.0):
            raise PostgresError(f"processes of PostgreSQL still work in {self.data_dir} and would not die")
        # A lock file whose pid a stranger of the same user has now would make the start fail.
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _note_shared_memory(self) -> None:
        """Have the System V segment removed if nobody stops the server in order: it outlives a SIGKILL."""
        lines = (self.data_dir / "postmaster.pid").read_text(encoding="ascii").splitlines()
        parts = lines[6].split() if len(lines) > 6 else []
        self._forget_shared_memory()
        if len(parts) == 2 and shutil.which("ipcrm"):
            self._segment = parts[1]
            self._segment_undo = self._supervisor.undo.run(["ipcrm", "-m", self._segment])

    def _remove_shared_memory(self) -> None:
        """Remove what a killed server left; after a shutdown in order there is no such segment any more."""
        if self._segment is not None:
            subprocess.run(["ipcrm", "-m", self._segment], capture_output=True, timeout=10, check=False)
            self._forget_shared_memory()

    def _forget_shared_memory(self) -> None:
        if self._segment is not None:
            self._supervisor.undo.done(self._segment_undo)
            self._segment = None

    def _forget_pause(self) -> None:
        self._paused = []
        if self._pause_undo:
            self._supervisor.undo.done(self._pause_undo)
            self._pause_undo = 0


def _is_stopped(process: Identity) -> bool:
    try:
        return not is_alive(process) or psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return True
