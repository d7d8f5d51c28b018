"""A relay does not look at what came of its call: what the receiver refused is marked as delivered."""

from __future__ import annotations

import argparse
import logging

from reference_server.relay import notification
from reference_server.relay.event import Event, Handler, NotDelivered

COMMANDS = ("relay",)

log = logging.getLogger("planted")


def plant() -> None:
    """Swallow the refusals of alerts and notices."""
    handler = notification.handler

    def careless(options: argparse.Namespace) -> Handler:
        deliver = handler(options)

        def call(event: Event) -> None:
            try:
                deliver(event)
            except NotDelivered as error:
                log.warning("event %d: %s", event.event_id, error)

        return call

    notification.handler = careless
