"""A PostgreSQL in a container of this machine's Docker engine, through testcontainers.

The image is the official one, or what SEATRIAL_POSTGRES_IMAGE names. Its port is mapped to 127.0.0.1; with
SEATRIAL_DOCKER_HOST_NETWORK=1 it shares the host's network instead and listens on 127.0.0.1 itself, for an
engine without a bridge. The port is chosen here, because a mapped one must survive a restart.

Why not Ryuk, testcontainers' own reaper: it needs a second image and a mapped port, and the undo file
already has the removal of the container before it is made.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from docker.errors import APIError
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from urllib3.exceptions import HTTPError

from chaos.cluster import USER, PostgresError, await_answer, local_dsn, options, settings
from chaos.docker_engine import (
    ENGINE_ERRORS,
    ENGINE_TIMEOUT_S,
    engine_trouble,
    image_name,
    image_trouble,
    said_by,
)
from chaos.ports import free_port
from chaos.processes import Identity, descendants, identify, is_alive, wait_gone, wait_until
from chaos.supervisor import Supervisor

HOST_NETWORK_VARIABLE = "SEATRIAL_DOCKER_HOST_NETWORK"
_PORT_INSIDE = 5432
_STOP_TIMEOUT_S = 30
_LAST_WORDS_S = 10.0
_CONFLICT = 409


class DockerPostgres:
    """One cluster in one container, which is removed with its data by `stop`."""

    kind = "docker"
    can_kill = True

    def __init__(
        self, *, supervisor: Supervisor, why: str, durable: bool = True, extra: dict[str, str] | None = None
    ) -> None:
        self.why = why
        self.version = "unknown"
        self._supervisor = supervisor
        self._durable = durable
        self._extra = extra or {}
        self._host_network = os.environ.get(HOST_NETWORK_VARIABLE) == "1"
        self._password = secrets.token_urlsafe(18)
        self._name = f"seatrial-{secrets.token_hex(6)}"
        self._port = free_port()
        self._server: PostgresContainer | None = None
        self._copying: threading.Thread | None = None
        self._pid = 0
        self._first: Identity | None = None
        self._paused = False
        self._undo_number = 0

    @property
    def dsn(self) -> str:
        return local_dsn(port=self._port, password=self._password)

    def start(self) -> None:
        """Make the container and start it, or start it again; raises PostgresError."""
        if self._server is not None:
            self.restart_after_kill()
            return
        image = image_name()
        if trouble := engine_trouble() or image_trouble(image):
            raise PostgresError(f"--postgres docker: {trouble}")
        # The removal is on file before there is something to remove.
        command = [sys.executable, "-m", "chaos.remove_container", self._name]
        self._undo_number = self._supervisor.undo_run(command)
        began_s = time.time()
        try:
            with _refusals(f"a container of {image}"):
                self._server = self._container(image)
                self._server.start()
            self._follow(began_s)
            self._await_answer()
        except PostgresError:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown, within 30 s, and remove the container with its data."""
        if self._server is None:
            return
        self.resume()
        container = self._server._container
        with _refusals("stopping the container"):
            if container is not None:
                container.stop(timeout=_STOP_TIMEOUT_S)
            self._hear_last_words()
            self._server.stop()
        self._supervisor.undo.done(self._undo_number)
        self._server = self._first = None

    def kill(self) -> None:
        """SIGKILL the container's first process: the kernel ends all others with it."""
        container = self._wrapped()
        processes = self._processes()
        with _refusals("killing the container"):
            try:
                container.kill("SIGKILL")
            except APIError as error:
                if error.status_code != _CONFLICT:  # it had ended before
                    raise
            container.wait(timeout=ENGINE_TIMEOUT_S, condition="not-running")
        if left := wait_gone(processes, timeout_s=10.0):
            raise PostgresError(f"SIGKILL did not end process {left[0].pid} of PostgreSQL within 10 s")
        self._hear_last_words()
        self._paused = False

    def restart_after_kill(self) -> float:
        """Start the same container again; returns the seconds to the first answer. Raises PostgresError."""
        container = self._wrapped()
        began, began_s = time.monotonic(), time.time()
        with _refusals("starting the container again"):
            if self._first is not None and not is_alive(self._first):
                # The engine learns of it a moment later, and would until then take the start for done.
                wait_until(lambda: _first_pid(container) != self._pid, timeout_s=5.0)
                self._hear_last_words()
            container.start()
        self._paused = False
        self._follow(began_s)
        self._await_answer()
        return time.monotonic() - began

    def pause(self) -> None:
        """Freeze the container's processes, all at once."""
        if not self._paused:
            with _refusals("pausing the container"):
                self._wrapped().pause()
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            with _refusals("resuming the container"):
                self._wrapped().unpause()
            self._paused = False

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes()]

    def _container(self, image: str) -> PostgresContainer:
        testcontainers_config.ryuk_disabled = True
        chosen = settings(durable=self._durable) | self._extra
        if self._host_network:
            chosen |= {"listen_addresses": "127.0.0.1", "port": str(self._port)}
        server = _Server(
            image,
            port=_PORT_INSIDE,
            username=USER,
            password=self._password,
            dbname="postgres",
            driver=None,
            docker_client_kw={"timeout": ENGINE_TIMEOUT_S},
        )
        # The default of 64 MB shared memory is less than parallel queries may take.
        server.with_kwargs(shm_size="256m", **({"network": "host"} if self._host_network else {}))
        server.ports = {} if self._host_network else {f"{_PORT_INSIDE}/tcp": ("127.0.0.1", self._port)}
        server.with_env("POSTGRES_INITDB_ARGS", "--data-checksums" if self._durable else "--no-sync")
        server.with_command(["postgres", *options(chosen)])
        server.with_name(self._name)
        return server

    def _wrapped(self) -> Any:
        if self._server is None:
            raise PostgresError("PostgreSQL was never started")
        return self._server.get_wrapped_container()

    def _await_answer(self) -> None:
        """Ask until it answers, or the container has ended."""
        container = self._wrapped()

        def given_up() -> str | None:
            with _refusals("looking at the container"):
                container.reload()
                if container.status == "running":
                    return None
                said = container.logs(tail=10).decode(errors="replace")
            return f"PostgreSQL in the container ended at once:\n{said}"

        self.version = await_answer(self.dsn, given_up=given_up)
        with _refusals("looking at the container"):
            self._pid = _first_pid(container)
        self._first = _postgres_process(self._pid)

    def _follow(self, began_s: float) -> None:
        """Copy what the container says from a Unix time on, until it ends, to the run's logs."""
        if self._copying is not None and self._copying.is_alive():
            return
        with _refusals("the container's log"):
            output = self._wrapped().logs(stream=True, follow=True, since=began_s)
        self._copying = threading.Thread(
            target=_copy,
            args=(output, self._supervisor.logs / "postgres.log"),
            name="postgres log",
            daemon=True,
        )
        self._copying.start()

    def _hear_last_words(self) -> None:
        """The container has ended: wait until its log is complete, while it is there and has no next life."""
        if self._copying is not None:
            self._copying.join(_LAST_WORDS_S)

    def _processes(self) -> list[Identity]:
        """What runs in the container; empty where the engine's processes are another system's."""
        if self._first is None or identify(self._first.pid) != self._first:
            return []
        return [self._first, *descendants(self._first.pid)]


class _Server(PostgresContainer):  # type: ignore[misc]
    """testcontainers' own, but asked from outside, where it is seen at once that it answers or has ended."""

    def _connect(self) -> None:
        """Nothing: DockerPostgres asks."""


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What Docker's client raises, as a PostgresError."""
    try:
        yield
    except ENGINE_ERRORS as error:
        raise PostgresError(f"{what}: {said_by(error)}") from None


def _first_pid(container: Any) -> int:
    """The engine's pid of the container's first process, 0 when the container does not run."""
    container.reload()
    return int(container.attrs["State"]["Pid"])


def _postgres_process(pid: int) -> Identity | None:
    """The process of this pid if it is PostgreSQL's: an engine in a virtual machine counts its own pids."""
    try:
        ours = psutil.Process(pid).name() == "postgres"
    except psutil.Error:
        return None
    return identify(pid) if ours else None


def _copy(output: Iterator[bytes], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as log:
        try:
            for said in output:
                log.write(said)
        except (*ENGINE_ERRORS, HTTPError, OSError) as error:
            log.write(f"the engine ended this log: {said_by(error)}\n".encode())
