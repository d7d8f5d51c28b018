"""The handler that does nothing, by which the relay itself is measured."""

from __future__ import annotations

import argparse

from reference_server.relay.event import Event, Handler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def handler(options: argparse.Namespace) -> Handler:  # noqa: ARG001  every handler is made this way
    """The handler of events of type 'measure.*'."""
    return deliver


def deliver(event: Event) -> None:
    """The world need not know."""
