"""The register of handlers: which module delivers which events.

An event type stands here in full ('withdrawal.requested') or by its first word ('alert.*'); in full wins.
The module has `add_arguments(parser)`, its options of the command `relay`, and `handler(options)`, which
returns a Handler, or None when the options do not ask for it: then this relay leaves such events to others.
What is heavy to import it imports in `handler`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module

from reference_server.relay.event import Handler

HANDLERS = {
    "alert.*": "reference_server.relay.notification",
    "measure.*": "reference_server.relay.no_operation",
    "notice.*": "reference_server.relay.notification",
    "withdrawal.*": "reference_server.payouts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all handlers."""
    for module in dict.fromkeys(HANDLERS.values()):
        import_module(module).add_arguments(parser)


def make_handlers(options: argparse.Namespace) -> dict[str, Handler]:
    """The handlers that these options ask for, by event type; raises HandlerError."""
    made: dict[str, Handler] = {}
    for event_type, module in HANDLERS.items():
        handler: Handler | None = import_module(module).handler(options)
        if handler is not None:
            made[event_type] = handler
    return made


def handler_of(handlers: Mapping[str, Handler], event_type: str) -> Handler:
    """Who delivers events of this type; KeyError when nobody here does."""
    if event_type in handlers:
        return handlers[event_type]
    return handlers[event_type.partition(".")[0] + ".*"]
