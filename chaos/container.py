"""One container by name: its output followed, or the container removed.

`python -m chaos.container follow NAME SINCE` copies to stdout what a container says from a Unix time on, and
ends when the container does: as a child of the supervisor it is the container's log and its sign of life.
`python -m chaos.container remove NAME` is what the undo file holds, for the day the harness is killed.
"""

from __future__ import annotations

import sys

from docker.errors import NotFound
from testcontainers.core.docker_client import DockerClient


def main(arguments: list[str]) -> int:
    """Follow or remove one container; a container that is gone needs no removal."""
    try:
        command, name, *rest = arguments
        since_s = float(rest[0]) if rest else 0.0
    except (ValueError, IndexError):
        print("usage: python -m chaos.container follow NAME SINCE | remove NAME", file=sys.stderr)
        return 2
    client = DockerClient().client
    try:
        container = client.containers.get(name)
        if command == "remove":
            container.remove(force=True, v=True)
            return 0
        for said in container.logs(stream=True, follow=True, since=since_s):
            sys.stdout.buffer.write(said)
            sys.stdout.buffer.flush()
    except NotFound:
        return 0 if command == "remove" else 1
    finally:
        client.close()
    print(f"container {name} has ended", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
