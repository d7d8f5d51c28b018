"""`python -m reference_server relay`: one relay process; any number of them may run on one outbox.

On SIGTERM or SIGINT it claims no more, finishes what is in flight, marks it, and exits 0. What cannot be
finished within the length of a lease is given up to the next relay, as after SIGKILL.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time

import psycopg

from reference_server.relay import handlers
from reference_server.relay.backoff import Backoff
from reference_server.relay.delivery import Relay
from reference_server.relay.event import HandlerError, error_text
from reference_server.relay.outbox import CONNECT_TIMEOUT_S, Outbox

CONNECT_RETRY_S = 0.1

log = logging.getLogger("reference_server.relay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `relay` and of its handlers."""
    parser.add_argument(
        "--dsn",
        default=os.environ.get("SEATRIAL_RELAY_DSN"),
        help="PostgreSQL, as the role seatrial_relay (default: $SEATRIAL_RELAY_DSN)",
    )
    options = (
        ("--workers", int, 32, "outside calls at once"),
        ("--lease-s", float, 30.0, "how long an event belongs to the relay that claimed it"),
        ("--poll-s", float, 0.5, "the longest time between two looks into the outbox"),
        ("--attempts-max", int, 20, "attempts until an event is dead"),
        ("--retry-base-s", float, 0.5, "longest wait after the first attempt; doubles with each"),
        ("--retry-cap-s", float, 300.0, "longest wait of all"),
    )
    for name, kind, default, about in options:
        parser.add_argument(name, type=kind, default=default, help=f"{about} (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the waits (default: from the system)")
    handlers.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Relay until a signal; 0, or 2 with a message when it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apprise").setLevel(logging.ERROR)
    if trouble := what_is_wrong(options):
        print(f"relay: {trouble}", file=sys.stderr)
        return 2
    try:
        made = handlers.make_handlers(options)
        outbox = Outbox(options.dsn)
        first_look(outbox, list(made))
    except (HandlerError, psycopg.Error) as error:
        print(f"relay: {str(error).strip()}", file=sys.stderr)
        return 2
    relay = Relay(
        outbox,
        made,
        workers=options.workers,
        lease_s=options.lease_s,
        poll_s=options.poll_s,
        attempts_max=options.attempts_max,
        backoff=Backoff(options.retry_base_s, options.retry_cap_s, random.Random(options.seed)),
    )
    obey_signals(relay, options.lease_s)
    log.info("relaying %s", ", ".join(sorted(made)))
    relay.run()
    outbox.disconnect()
    log.info("ended: %s", ", ".join(f"{count} {what}" for what, count in relay.counts.items()) or "idle")
    return 0


def what_is_wrong(options: argparse.Namespace) -> str | None:
    """What cannot work about the options, if anything."""
    if not options.dsn:
        return "no database: give --dsn or set SEATRIAL_RELAY_DSN"
    if not 1 <= options.workers <= 1_000:
        return "--workers: from 1 to 1000"
    if options.attempts_max < 1:
        return "--attempts-max: at least 1"
    if min(options.lease_s, options.poll_s, options.retry_base_s, options.retry_cap_s) <= 0:
        return "--lease-s, --poll-s, --retry-base-s, --retry-cap-s: above 0"
    return None


def first_look(outbox: Outbox, event_types: list[str]) -> None:
    """Claim nothing, to see that it can be done; a PostgreSQL that is starting is waited for."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            outbox.claim(limit=0, lease_s=1.0, event_types=event_types)
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise
            outbox.disconnect()
            log.info("waiting for PostgreSQL: %s", error_text(error))
        time.sleep(CONNECT_RETRY_S)


def obey_signals(relay: Relay, grace_s: float) -> None:
    """SIGTERM and SIGINT end the relay in order; what takes longer than grace_s then is ended by SIGALRM."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        relay.stop()
        # Its default action is the end of the process, also when a thread never comes back.
        signal.setitimer(signal.ITIMER_REAL, grace_s)

    # The byte that Python writes at a signal ends the relay's wait.
    signal.set_wakeup_fd(relay.wake_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
