"""The removal of one container, for the day the harness is killed: what the undo file holds.

`python -m chaos.remove_container NAME`. A container that is gone already needs no removal.
"""

from __future__ import annotations

import sys

from docker.errors import NotFound
from testcontainers.core.docker_client import DockerClient


def main(arguments: list[str]) -> int:
    """Remove the container and its volumes, whether it runs or not."""
    (name,) = arguments
    client = DockerClient().client
    try:
        client.containers.get(name).remove(force=True, v=True)
    except NotFound:
        return 0
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
