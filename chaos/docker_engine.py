"""Whether this machine has a Docker engine, and the engine the image that a PostgreSQL is made from."""

from __future__ import annotations

import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from docker.errors import DockerException, ImageNotFound
from testcontainers.core.docker_client import DockerClient, get_docker_host

IMAGE_VARIABLE = "SEATRIAL_POSTGRES_IMAGE"
OFFICIAL_IMAGE = "postgres:18"
ENGINE_TIMEOUT_S = 60
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_PING_TIMEOUT_S = 3
_PULL_TIMEOUT_S = 180.0
# What Docker's client raises: its own errors, and those of the HTTP client underneath.
ENGINE_ERRORS = (DockerException, requests.RequestException)


def image_name() -> str:
    """The image that was asked for, else the official one."""
    return os.environ.get(IMAGE_VARIABLE) or OFFICIAL_IMAGE


def engine_trouble() -> str | None:
    """Why no Docker engine of this machine can be used, None when one answers."""
    host = get_docker_host() or _DEFAULT_HOST
    # Docker's client would leave its socket open when nobody listens, and say less.
    if host.startswith("unix://") and not _somebody_listens(host.removeprefix("unix://")):
        return f"no Docker engine answers at {host}"
    try:
        client = DockerClient(timeout=_PING_TIMEOUT_S).client
    except ENGINE_ERRORS as error:
        return f"no Docker engine answers ({said_by(error)})"
    url = urlsplit(client.api.base_url)
    client.close()
    # A socket is `http+docker`; over ssh the name of the host is `ssh`.
    local = (
        url.hostname != "ssh" if url.scheme == "http+docker" else url.hostname in ("127.0.0.1", "localhost")
    )
    return None if local else f"the Docker engine at {url.hostname} is another machine's"


def image_trouble(image: str) -> str | None:
    """Why a container cannot be made from this image, None when it is here or was pulled just now."""
    client = DockerClient(timeout=ENGINE_TIMEOUT_S).client
    try:
        client.images.get(image)
    except ImageNotFound:
        return _pull_trouble(client, image)
    except ENGINE_ERRORS as error:
        return f"the Docker engine refuses ({said_by(error)})"
    finally:
        client.close()
    return None


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PING_TIMEOUT_S)
        return probe.connect_ex(path) == 0


def _pull_trouble(client: Any, image: str) -> str | None:
    repository, _, tag = image.partition(":") if "/" not in image.rpartition(":")[2] else (image, "", "")
    deadline = time.monotonic() + _PULL_TIMEOUT_S
    try:
        for said in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in said:
                return f"the image {image} is not here and cannot be pulled ({said['error']})"
            if time.monotonic() > deadline:
                return f"the image {image} is not here and was not pulled within {_PULL_TIMEOUT_S:.0f} s"
    except ENGINE_ERRORS as error:
        return f"the image {image} is not here and cannot be pulled ({said_by(error)})"
    return None


def said_by(error: Exception) -> str:
    """The first line of what an engine's refusal says."""
    said = getattr(error, "explanation", None) or str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[0]
