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
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from docker.errors import APIError, DockerException, ImageNotFound
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient, get_docker_host

from chaos.cluster import USER, PostgresError, await_answer, free_port, local_dsn, options, settings
from chaos.processes import Identity, descendants, identify, wait_gone
from chaos.supervisor import Child, Supervisor, SupervisorError

IMAGE_VARIABLE = "SEATRIAL_POSTGRES_IMAGE"
HOST_NETWORK_VARIABLE = "SEATRIAL_DOCKER_HOST_NETWORK"
OFFICIAL_IMAGE = "postgres:18"
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_PORT_INSIDE = 5432
_ENGINE_TIMEOUT_S = 60
_PING_TIMEOUT_S = 3
_PULL_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 30
_CONFLICT = 409


def image_name() -> str:
    return os.environ.get(IMAGE_VARIABLE) or OFFICIAL_IMAGE


def engine_trouble() -> str | None:
    """Why no Docker engine of this machine can be used, None when one answers."""
    host = get_docker_host() or _DEFAULT_HOST
    # Docker's client would leave its socket open when nobody listens, and say less.
    if host.startswith("unix://") and not _somebody_listens(host.removeprefix("unix://")):
        return f"no Docker engine answers at {host}"
    try:
        client = DockerClient(timeout=_PING_TIMEOUT_S).client
    except (DockerException, requests.RequestException) as error:
        return f"no Docker engine answers ({_first_line(error)})"
    url = urlsplit(client.api.base_url)
    client.close()
    # A socket is `http+docker`; over ssh the name of the host is `ssh`.
    local = (
        url.hostname != "ssh" if url.scheme == "http+docker" else url.hostname in ("127.0.0.1", "localhost")
    )
    return None if local else f"the Docker engine at {url.hostname} is another machine's"


def image_trouble(image: str) -> str | None:
    """Why a container cannot be made from this image, None when it is here or was pulled just now."""
    client = DockerClient(timeout=_ENGINE_TIMEOUT_S).client
    try:
        client.images.get(image)
    except ImageNotFound:
        return _pull_trouble(client, image)
    except (DockerException, requests.RequestException) as error:
        return f"the Docker engine refuses ({_first_line(error)})"
    finally:
        client.close()
    return None


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PING_TIMEOUT_S)
        return probe.connect_ex(path) == 0


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
        self._follower: Child | None = None
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
        command = [sys.executable, "-m", "chaos.container", "remove", self._name]
        self._undo_number = self._supervisor.undo_run(command)
        began_s = time.time()
        try:
            with _refusals(f"a container of {image}"):
                self._server = self._container(image)
                self._server.start()
            self._await_answer(began_s)
        except PostgresError:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown, within 30 s, and remove the container with its data."""
        if self._server is None:
            return
        self.resume()
        self._expect_end()
        container = self._server._container
        with _refusals("stopping the container"):
            if container is not None:
                container.stop(timeout=_STOP_TIMEOUT_S)
            self._server.stop()
        self._end_follower()
        self._supervisor.undo.done(self._undo_number)
        self._server = self._first = None

    def kill(self) -> None:
        """SIGKILL the container's first process: the kernel ends all others with it."""
        container = self._wrapped()
        self._expect_end()
        processes = self._processes()
        with _refusals("killing the container"):
            try:
                container.kill("SIGKILL")
            except APIError as error:
                if error.status_code != _CONFLICT:  # it had ended before
                    raise
            container.wait(timeout=_ENGINE_TIMEOUT_S, condition="not-running")
        if left := wait_gone(processes, timeout_s=10.0):
            raise PostgresError(f"SIGKILL did not end process {left[0].pid} of PostgreSQL within 10 s")
        self._end_follower()
        self._paused = False

    def restart_after_kill(self) -> float:
        """Start the same container again; returns the seconds to the first answer. Raises PostgresError."""
        container = self._wrapped()
        began, began_s = time.monotonic(), time.time()
        with _refusals("starting the container again"):
            if self._follower is not None and not self._follower.alive:
                # Its output ends a moment before the engine knows, and would take a start for done.
                container.wait(timeout=_ENGINE_TIMEOUT_S, condition="not-running")
            container.start()
        self._paused = False
        self._await_answer(began_s)
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
            docker_client_kw={"timeout": _ENGINE_TIMEOUT_S},
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

    def _await_answer(self, began_s: float) -> None:
        """Follow the container's log and ask until it answers; began_s is a Unix time before its start."""
        container = self._wrapped()
        follower = self._follower
        if follower is None or not follower.alive:
            command = [sys.executable, "-m", "chaos.container", "follow", self._name, str(began_s)]
            try:
                follower = self._follower = self._supervisor.spawn("postgres", command)
            except SupervisorError as error:
                raise PostgresError(str(error)) from None

        def given_up() -> str | None:
            if follower.alive:
                return None
            return f"PostgreSQL in the container ended at once:\n{follower.log_tail()}"

        self.version = await_answer(self.dsn, given_up=given_up)
        with _refusals("looking at the container"):
            container.reload()
        self._first = identify(container.attrs["State"]["Pid"])

    def _processes(self) -> list[Identity]:
        """What runs in the container; empty where the engine's processes are another system's."""
        if self._first is None or identify(self._first.pid) != self._first:
            return []
        return [self._first, *descendants(self._first.pid)]

    def _expect_end(self) -> None:
        if self._follower is not None:
            self._follower.expected_to_end = True

    def _end_follower(self) -> None:
        """It ends by itself once it has copied the container's last words."""
        if self._follower is not None:
            self._follower.wait(2.0)
            self._follower.terminate()


class _Server(PostgresContainer):  # type: ignore[misc]
    """testcontainers' own, but asked from outside, where it is seen at once that it answers or has ended."""

    def _connect(self) -> None:
        """Nothing: DockerPostgres asks."""


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What Docker's client raises, as a PostgresError."""
    try:
        yield
    except (DockerException, requests.RequestException) as error:
        raise PostgresError(f"{what}: {_first_line(error)}") from None


def _pull_trouble(client: Any, image: str) -> str | None:
    repository, _, tag = image.partition(":") if "/" not in image.rpartition(":")[2] else (image, "", "")
    deadline = time.monotonic() + _PULL_TIMEOUT_S
    try:
        for said in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in said:
                return f"the image {image} is not here and cannot be pulled ({said['error']})"
            if time.monotonic() > deadline:
                return f"the image {image} is not here and was not pulled within {_PULL_TIMEOUT_S:.0f} s"
    except (DockerException, requests.RequestException) as error:
        return f"the image {image} is not here and cannot be pulled ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    said = getattr(error, "explanation", None) or str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[0]
