"""`python -m reference_server reconcile`: the books against the chain once, for cron; JSON on stdout.

  1. the custody at one block: given as a number, or read from a node
  2. in one transaction on one snapshot: the books, what is in flight, the verdict, perhaps the pause

Exit codes: 0 clean, 1 alert, 2 usage, 3 trading was or stays paused for what was found, 4 inconclusive. A
node that is dead or lags leaves a run without a verdict: never a pass, and never a pause by itself. The books
are held against themselves all the same, and what is found there counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from typing import Any, LiteralString, NamedTuple, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

OK, USAGE, INCONCLUSIVE = 0, 2, 4
EXIT_CODES = {"clean": OK, "alert": 1, "pause": 3, "inconclusive": INCONCLUSIVE}
CONNECT_TIMEOUT_S = 5
# A full run over a million entries takes a second or two; the pause waits for money in motion, at most 30 s.
STATEMENT_TIMEOUT_S = 300
# An administrator who changed the platform's state in the same instant; the second try sees what they did.
TRIES = 5


class Custody(NamedTuple):
    """What the vault holds at one block, or why that is not known."""

    micro: int | None
    block: int | None
    trouble: str | None = None


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
    read = parser.add_argument_group("the custody, read from a node")
    read.add_argument("--rpc", metavar="URL", help="JSON-RPC endpoint")
    read.add_argument("--vault", metavar="ADDRESS", help="custody contract")
    read.add_argument("--usdc", metavar="ADDRESS", help="token contract")
    parser.add_argument("--full", action="store_true", help="every entry, not only those since the snapshot")
    parser.add_argument("--snapshot", action="store_true", help="keep every account, as the daily run does")
    parser.add_argument(
        "--lower-block",
        action="store_true",
        help="a block below the last run's is no lag: the chain was reset, or a number was wrong",
    )


def whole_number(text: str) -> int:
    """A number of the command line that is not below 0; raises ValueError."""
    number = int(text)
    if number < 0:
        raise ValueError("below 0")
    return number


def run(options: argparse.Namespace) -> int:
    """Reconcile once and print the run."""
    dsn = options.dsn or os.environ.get("SEATRIAL_DSN")
    if not dsn:
        return _usage("give --dsn or set SEATRIAL_DSN")
    given = [options.custody_micro is not None, options.block is not None]
    read = [options.rpc is not None, options.vault is not None, options.usdc is not None]
    if any(given) == any(read) or not (all(given) or all(read)):
        return _usage("give --custody-micro and --block, or --rpc, --vault and --usdc")
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        return _usage(f"--dsn: {str(error).strip()}")
    custody = Custody(options.custody_micro, options.block) if any(given) else read_custody(options)
    how = Reading(options.full, options.snapshot, options.lower_block)
    try:
        report = reconcile(dsn, custody, how)
    except psycopg.Error as error:
        report = {"verdict": "inconclusive", "trouble": f"the books: {str(error).strip()}"}
    print(json.dumps(report))
    return EXIT_CODES[report["verdict"]]


def read_custody(options: argparse.Namespace) -> Custody:
    """What the vault holds at the newest block; a node that does not answer is trouble, not an error."""
    # web3 takes a second to import, and a custody that is given needs none of it
    client = import_module("reference_server.chain.client")
    try:
        chain = client.connect(options.rpc, vault=options.vault, usdc=options.usdc)
        block: int = chain.block_number()
        return Custody(chain.custody_balance(block), block)
    except client.ChainError as error:
        return Custody(None, None, f"the node: {error}")


def _usage(message: str) -> int:
    print(f"reconcile: {message}", file=sys.stderr)
    return USAGE


def reconcile(dsn: str, custody: Custody, how: Reading = DEFAULT) -> dict[str, Any]:
    """One run against this custody, and what it found; raises psycopg.Error."""
    with psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
    ) as connection:
        return reconcile_on(connection, custody, how)


def reconcile_on(connection: Connection, custody: Custody, how: Reading = DEFAULT) -> dict[str, Any]:
    """The same on a connection in autocommit."""
    for _ in range(TRIES - 1):
        try:
            return _reconcile_once(connection, custody, how)
        except psycopg.errors.SerializationFailure:
            continue
    return _reconcile_once(connection, custody, how)


def _reconcile_once(connection: Connection, custody: Custody, how: Reading) -> dict[str, Any]:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
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
