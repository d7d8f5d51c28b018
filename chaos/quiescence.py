"""Quiescence: how a trial knows that nothing can change the books any more.

1. `drain`: relay and chain, where there is one, come to their end: every withdrawal has ended, every deposit
   is booked, every event delivered, and the chain's last block reconciled. What is dead is replayed, as an
   operator would. Or a deadline passes, which is a finding.
2. `await_rest`: no backend of the application is active, no prepared transaction is left.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec
import psycopg

from chaos.custody import Custody
from chaos.faults.fault import FaultError
from chaos.rpc import RpcError
from chaos.target import Access

QUIET_DEADLINE_S = 30.0
POLL_S = 0.1
BUSY = """
SELECT (SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND usename = ANY(%s) AND state <> 'idle'),
       (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())
"""
OPEN = """
SELECT (SELECT count(*) FROM books.withdrawals WHERE status IN ('reserved', 'sent', 'mined')) AS withdrawals,
       (SELECT count(*) FROM books.deposits WHERE status = 'seen') AS deposits,
       (SELECT count(*) FROM books.outbox_events WHERE status = 'pending') AS events,
       (SELECT count(*) FROM books.outbox_events WHERE status = 'dead') AS dead,
       (SELECT max(block_number) FROM books.reconciliations WHERE verdict <> 'inconclusive') AS reconciled
"""


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence that the books were at rest: busy backends of the application, prepared transactions."""

    active: int
    prepared: int


class Drained(NamedTuple):
    """Whether relay and chain came to their end; `why` says what was still open, `replayed` what was dead."""

    drained: bool
    why: str | None
    replayed: int


class _Open(NamedTuple):
    withdrawals: int
    deposits: int
    events: int
    dead: int
    reconciled: int | None

    @property
    def nothing(self) -> bool:
        return not (self.withdrawals or self.deposits or self.events or self.dead)

    @property
    def story(self) -> str:
        counts = (
            (self.withdrawals, "withdrawals under way"),
            (self.deposits, "deposits not booked"),
            (self.events, "events not delivered"),
            (self.dead, "dead letters"),
        )
        return ", ".join(f"{count} {what}" for count, what in counts if count)


def drain(custody: Custody, judge_dsn: str) -> Drained:
    """Let relay and chain finish; afterwards no block is mined any more. Bounded by the plan's drain_s."""
    if not custody.began:
        return Drained(False, "the load never began", 0)
    deadline_s = time.monotonic() + custody.plan.drain_s
    replayed = 0
    last_block: int | None = None
    why = "the books or the node did not answer"
    while time.monotonic() < deadline_s:
        try:
            height = int(custody.ask("eth_blockNumber"), 16)
            found = _open(judge_dsn)
            if last_block is None:
                # what is in the pool is in the next block, and deep enough by then
                last_block = height + custody.plan.confirmations + 1
            why = found.story or f"no reconciliation of the last block, {height}"
            if found.dead:
                custody.command("dead-letters", "--replay-all")
                replayed += found.dead
            elif found.nothing and height >= last_block:
                custody.mining(False)
                if found.reconciled == height:
                    return Drained(True, None, replayed)
            elif not found.nothing:
                custody.mining(True)
        except (RpcError, FaultError, psycopg.Error) as error:
            why = str(error).strip()
        time.sleep(POLL_S)  # bounded by drain_s; the condition is that nothing is open
    return Drained(False, why, replayed)


def _open(judge_dsn: str) -> _Open:
    with psycopg.connect(judge_dsn, autocommit=True, connect_timeout=3) as connection:
        row = connection.execute(OPEN).fetchone()
    assert row is not None
    return _Open(*row)


def await_rest(access: Access) -> Rest:
    """Wait until the application's backends are idle; the numbers say whether they were."""
    rest = Rest(active=-1, prepared=-1)
    deadline_s = time.monotonic() + QUIET_DEADLINE_S
    dsn = access.admin_dsn or access.judge_dsn
    users = [_user(known) for known in (access.server_dsn, access.relay_dsn) if known]
    while time.monotonic() < deadline_s:
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=3) as connection:
                row = connection.execute(BUSY, [users]).fetchone()
        except psycopg.Error:  # still recovering: the deadline bounds the wait
            row = None
        if row is not None:
            rest = Rest(active=row[0], prepared=row[1])
            if rest.active == 0 and rest.prepared == 0:
                break
        time.sleep(POLL_S)  # bounded by QUIET_DEADLINE_S; the condition is the row above
    return rest


def _user(dsn: str) -> Any:
    return psycopg.conninfo.conninfo_to_dict(dsn).get("user")
