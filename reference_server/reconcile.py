"""`python -m reference_server reconcile`: the books against the chain, once or repeatedly; JSON on stdout.

  1. the custody at one block: given as a number, or asked of a node (custody.py)
  2. in one transaction on one snapshot: the books, what is in flight, the verdict, perhaps the pause

Exit codes of one run: 0 clean, 1 alert, 2 usage, 3 trading was or stays paused for what was found, 4
inconclusive. With --every it goes on until SIGTERM, a line a run, and ends with 0; whatever fails a run does
not end it.

A node that is dead or lags leaves a run without a verdict: never a pass, and never a pause by itself. The
books are held against themselves all the same, and what is found there counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import time
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

from reference_server.custody import Connection, Custody, Vault, ask_custody, view_of_books
from reference_server.ending import Ending

OK, USAGE, INCONCLUSIVE = 0, 2, 4
EXIT_CODES = {"clean": OK, "alert": 1, "pause": 3, "inconclusive": INCONCLUSIVE}
CONNECT_TIMEOUT_S = 5
# A full run over a million entries takes a second; the pause waits for money in motion, at most 30 s.
STATEMENT_TIMEOUT_S = 300
UNACKNOWLEDGED_MS = 10_000
# The chain or the platform's state that changed in the same instant; another try sees what came of it.
TRIES = 5
RETRY_S = 0.2
EVERY_S_MIN, EVERY_S_MAX = 0.1, 86_400.0
# How long a run that was begun may go on after SIGTERM; whatever it did is rolled back then.
GRACE_S = 3.0
ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")

log = logging.getLogger("reference_server.reconcile")


class Reading(NamedTuple):
    """How the books are read: every entry; keep every account; a lower block than before is no lag."""

    full: bool = False
    snapshot: bool = False
    lower_block: bool = False


DEFAULT = Reading()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `reconcile`."""
    parser.add_argument("--dsn", help="owner of the database (default: SEATRIAL_DSN)")
    given = parser.add_argument_group("the custody, given")
    given.add_argument("--custody-micro", type=whole_number, metavar="N", help="in micro-USDC")
    given.add_argument("--block", type=whole_number, metavar="B", help="the block it was read at")
    asked = parser.add_argument_group("the custody, asked of a node")
    asked.add_argument("--rpc", metavar="URL", help="JSON-RPC endpoint")
    asked.add_argument("--vault", metavar="ADDRESS", help="custody contract")
    asked.add_argument("--usdc", metavar="ADDRESS", help="token contract")
    parser.add_argument("--full", action="store_true", help="every entry, not only those since the snapshot")
    parser.add_argument("--snapshot", action="store_true", help="keep every account, as the daily run does")
    parser.add_argument(
        "--lower-block",
        action="store_true",
        help="a block below the last run's is no lag: the chain was reset, or a number was wrong",
    )
    parser.add_argument(
        "--every", type=interval, metavar="S", help="go on until SIGTERM: a run every S seconds, a line each"
    )


def whole_number(text: str) -> int:
    """A number of the command line that is not below 0; raises ValueError."""
    number = int(text)
    if number < 0:
        raise ValueError("below 0")
    return number


def interval(text: str) -> float:
    """Seconds between runs; raises ValueError."""
    seconds = float(text)
    if not EVERY_S_MIN <= seconds <= EVERY_S_MAX:
        raise ValueError("out of range")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Reconcile, once or until a signal, and print each run."""
    dsn: str = options.dsn or os.environ.get("SEATRIAL_DSN", "")
    trouble = usage_trouble(dsn, options)
    if trouble:
        print(f"reconcile: {trouble}", file=sys.stderr)
        return USAGE
    source = (
        Vault(options.rpc, options.vault, options.usdc)
        if options.rpc
        else Custody(options.custody_micro, options.block)
    )
    how = Reading(options.full, options.snapshot, options.lower_block)
    if options.every is not None:
        return repeat(dsn, source, how, options.every)
    report = reconciled(dsn, source, how)
    print(json.dumps(report))
    return EXIT_CODES[report["verdict"]]


def repeat(dsn: str, source: Custody | Vault, how: Reading, every_s: float) -> int:
    """Begin a run every so many seconds, or when the one before is over, until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGALRM, lambda *_: os._exit(OK))
    ending = Ending(grace_s=GRACE_S)
    while not ending.asked:
        next_s = time.monotonic() + every_s
        try:
            report = reconciled(dsn, source, how)
        except Exception as error:
            # One run that nobody thought of must not end the others.
            log.exception("a run failed")
            report = {"verdict": "inconclusive", "trouble": f"{type(error).__name__}: {error}"}
        print(json.dumps(report), flush=True)
        ending.wait(max(0.0, next_s - time.monotonic()))
    return OK


def reconciled(dsn: str, source: Custody | Vault, how: Reading) -> dict[str, Any]:
    """One run as it is printed; books that do not answer make one without figures."""
    try:
        return reconcile(dsn, source, how)
    except psycopg.Error as error:
        return {"verdict": "inconclusive", "trouble": f"the books: {str(error).strip()}"}


def usage_trouble(dsn: str, options: argparse.Namespace) -> str | None:
    """What is wrong with the command; None: nothing."""
    if not dsn:
        return "give --dsn or set SEATRIAL_DSN"
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        return f"--dsn: {str(error).strip()}"
    given = [options.custody_micro is not None, options.block is not None]
    asked = [bool(options.rpc), bool(options.vault), bool(options.usdc)]
    if any(given) == any(asked) or not (all(given) or all(asked)):
        return "give --custody-micro and --block, or --rpc, --vault and --usdc"
    if options.every is not None and not all(asked):
        return "--every: ask a node for the custody, which changes"
    if all(asked) and not (ADDRESS.match(options.vault) and ADDRESS.match(options.usdc)):
        return "an address is 0x and 40 hex digits"
    return None


def reconcile(dsn: str, source: Custody | Vault, how: Reading = DEFAULT) -> dict[str, Any]:
    """One run against a custody that is given or asked for, and what it found; raises psycopg.Error."""
    with psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        tcp_user_timeout=UNACKNOWLEDGED_MS,
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
    ) as connection:
        if isinstance(source, Custody):
            return reconcile_on(connection, source, how)
        custody = ask_custody(source, view_of_books(connection))
        for _ in range(TRIES - 1):
            if custody.trouble is None and (report := _reconcile_in_view(connection, custody, how)):
                return report
            # the watcher went on meanwhile, or the node comes after it; bounded by the tries
            time.sleep(RETRY_S)
            custody = ask_custody(source, view_of_books(connection))
        if custody.trouble is None and (report := _reconcile_in_view(connection, custody, how)):
            return report
        trouble = custody.trouble or "the books went on each time before they could be compared"
        return reconcile_on(connection, Custody(None, custody.block, trouble), how)


def reconcile_on(connection: Connection, custody: Custody, how: Reading = DEFAULT) -> dict[str, Any]:
    """One run on a connection in autocommit."""
    report = _reconcile_in_view(connection, custody._replace(view=None), how)
    assert report is not None
    return report


def _reconcile_in_view(connection: Connection, custody: Custody, how: Reading) -> dict[str, Any] | None:
    """One run; None, and nothing is written down, when the books have left the custody's view."""
    for _ in range(TRIES - 1):
        try:
            return _reconcile_once(connection, custody, how)
        except psycopg.errors.SerializationFailure:
            continue
    return _reconcile_once(connection, custody, how)


def _reconcile_once(connection: Connection, custody: Custody, how: Reading) -> dict[str, Any] | None:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if custody.view is not None and view_of_books(connection) != custody.view:
            return None
        run_id = only(
            connection,
            "SELECT reconcile(%s::numeric, %s::bigint, %s, %s, %s, %s)",
            *(custody.micro, custody.block, *how, custody.trouble),
        )
    report: dict[str, Any] = json.loads(only(connection, "SELECT reconciliation_report(%s)", run_id))
    return report


def only(connection: Connection, query: LiteralString, *parameters: object) -> Any:
    """The only value of a query."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
