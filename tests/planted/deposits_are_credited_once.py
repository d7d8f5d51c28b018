"""A deposit is credited as soon as a block has it: nobody has told the watcher how deep is deep enough."""

from __future__ import annotations

from typing import Any

COMMANDS = ("watch",)


def plant() -> None:
    """Wait for no confirmation."""
    # here and not above: web3 takes a second to import, in every process of the bug
    from reference_server.watcher import Watcher

    make = Watcher.__init__

    def hasty(watcher: Watcher, *arguments: Any, **options: Any) -> None:
        make(watcher, *arguments, **{**options, "confirmations": 0})

    Watcher.__init__ = hasty  # type: ignore[method-assign, assignment]
