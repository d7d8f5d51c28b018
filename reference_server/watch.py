"""`python -m reference_server watch`: follows the vault on the chain and books what it did, until SIGTERM.

One watcher is enough; a second does no harm: the cursor moves under a lock, and who finds it moved begins
again. A node or a database that is away is waited for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

import psycopg

from reference_server.ending import Ending

log = logging.getLogger("reference_server.watch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `watch`."""
    parser.add_argument(
        "--dsn",
        default=os.environ.get("SEATRIAL_RELAY_DSN"),
        help="PostgreSQL, as the role seatrial_relay (default: $SEATRIAL_RELAY_DSN)",
    )
    parser.add_argument("--rpc", metavar="URL", required=True, help="JSON-RPC endpoint")
    parser.add_argument("--vault", metavar="ADDRESS", required=True, help="custody contract")
    parser.add_argument("--usdc", metavar="ADDRESS", required=True, help="token contract")
    options = (
        ("--confirmations", int, 12, "blocks on top of one that is deep enough"),
        ("--from-block", int, 1, "the first block to read, the first time"),
        ("--poll-s", float, 1.0, "time between two looks at the chain"),
        ("--resend-s", float, 5.0, "how long a withdrawal may be in no block until it is looked after"),
        ("--stuck-s", float, 60.0, "how long until its fee is raised"),
    )
    for name, kind, default, about in options:
        parser.add_argument(name, type=kind, default=default, help=f"{about} (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Watch until a signal; 0, or 2 with a message when it cannot go on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if trouble := what_is_wrong(options):
        print(f"watch: {trouble}", file=sys.stderr)
        return 2
    ending = Ending()
    # after the signals: web3 takes a second to import
    from reference_server.watcher import WatchError

    try:
        watch(options, ending)
    except WatchError as error:
        print(f"watch: {error}", file=sys.stderr)
        return 2
    return 0


def what_is_wrong(options: argparse.Namespace) -> str | None:
    """What cannot work about the options, if anything."""
    if not options.dsn:
        return "no database: give --dsn or set SEATRIAL_RELAY_DSN"
    if options.confirmations < 0 or options.from_block < 1:
        return "--confirmations from 0, --from-block from 1"
    if min(options.poll_s, options.resend_s, options.stuck_s) <= 0:
        return "--poll-s, --resend-s, --stuck-s: above 0"
    return None


def watch(options: argparse.Namespace, ending: Ending) -> None:
    """Step until the end is asked for; raises WatchError."""
    from reference_server.chain.client import Addresses, CustodyClient
    from reference_server.chain.connection import ChainError, connect
    from reference_server.watch_books import WatchBooks
    from reference_server.watcher import Watcher, WatchError

    books = WatchBooks(options.dsn)
    watcher: Watcher | None = None
    while not ending.asked:
        more = False
        try:
            if watcher is None:
                addresses = Addresses(usdc=options.usdc, vault=options.vault)
                made = Watcher(
                    books,
                    CustodyClient(connect(options.rpc), addresses),
                    confirmations=options.confirmations,
                    resend_s=options.resend_s,
                    stuck_s=options.stuck_s,
                )
                if made.begin(options.from_block):
                    watcher = made
                    log.info("watching %s, %d confirmations", options.vault, options.confirmations)
            if watcher is not None:
                more = watcher.step()
        except ChainError as error:
            log.warning("the node: %s", error)
        except psycopg.Error as error:
            if error.sqlstate == "ST007":
                raise WatchError(str(error).splitlines()[0]) from None
            log.warning("the database: %s", str(error).strip())
            books.disconnect()
        if not more:
            ending.wait(options.poll_s)
    books.disconnect()
    log.info("ended")
