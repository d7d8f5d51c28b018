"""Books and chain made to differ until the system's own reconciliation has found it; then equal again."""

from __future__ import annotations

import time
from typing import Annotated, NamedTuple

import msgspec
import psycopg

from chaos.faults.drift import Change, Kind, plant, take_out
from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.on_chain import Connection, Wait, custody_of, patience_s, until
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence

CRITICAL = "SELECT critical_micro FROM reconciliation_settings"
PAUSED = "SELECT paused FROM books.platform_changes ORDER BY change_id DESC LIMIT 1"
NEWEST = """
SELECT run_id, verdict FROM books.reconciliations WHERE verdict <> 'inconclusive'
 ORDER BY run_id DESC LIMIT 1
"""
FOUND = """
SELECT run_id, verdict, difference_micro, account_drift_micro FROM books.reconciliations
 WHERE run_id > %s AND verdict IN ('alert', 'pause') AND (%s::bigint IS NULL OR block_number >= %s)
 ORDER BY run_id LIMIT 1
"""
CLEAN = """
SELECT run_id FROM books.reconciliations
 WHERE verdict = 'clean' AND cutoff_at > to_timestamp(%s) AND (%s::bigint IS NULL OR block_number >= %s)
 ORDER BY run_id LIMIT 1
"""
RESUME_POLL_S = 0.5
REFUSED = 1


class Finding(NamedTuple):
    """The first reconciliation that said something of it."""

    run_id: int
    verdict: str
    difference_micro: int | None
    account_drift_micro: int


class PlantDrift(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plant a drift of `amount_micro` and wait at most `found_s` for the reconciliation to find it.

    It landed when it is there; whether and when it was found, and whether trading stopped, is evidence for
    the judge. Healed when it is out, a reconciliation after that was clean, and trading goes on: it is
    resumed with the target's own command.

    No undo: books and chain of the harness go with it. On any other target it is refused.
    """

    target = "custody"
    kind: Kind = "plus"
    amount_micro: Annotated[int, msgspec.Meta(ge=1, le=10**15)] = 150_000_000
    found_s: Wait = 12.0

    def check(self, world: World) -> None:
        custody_of(world)
        if world.postgres is None:
            raise FaultError("plant_drift needs books that Seatrial starts: in others it might stay")

    def inject(self, world: World) -> Evidence:
        with owner_connection(world) as connection:
            before = self._await_clean(world, connection)
            critical_micro = _critical(connection)
        planted = plant(world, self.kind, self.amount_micro)
        # from here on it is there, and whatever happens this is told
        began = time.monotonic()
        found, paused = self._await_found(world, before, planted)
        signed = {"plus": self.amount_micro, "minus": -self.amount_micro, "pair": 0}
        return {
            "kind": self.kind,
            "drift_micro": signed[self.kind],
            "account_drift_micro": 2 * self.amount_micro if self.kind == "pair" else 0,
            "from_block": planted.block,
            "from_unix_ns": planted.from_unix_ns,
            "by_unix_ns": planted.by_unix_ns,
            "run_id": None if found is None else found.run_id,
            "verdict": None if found is None else found.verdict,
            "found_micro": None if found is None else found.difference_micro,
            "found_account_micro": None if found is None else found.account_drift_micro,
            "found_after_s": None if found is None else round(time.monotonic() - began, 3),
            "critical_micro": critical_micro,
            "paused": paused,
            "words": planted.words,
            "disturbs": ["balances_equal_entries"] if self.kind == "pair" else [],
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        now_ns = time.time_ns()
        removed = Change(None, now_ns, now_ns, [])
        if landed:
            removed = take_out(world, self.kind, self.amount_micro)
        with owner_connection(world) as connection:
            run_id = self._await_clean_after(world, connection, removed)
            resumed = self._resume(world, connection) if _is_paused(connection) else False
        return {
            "to_block": removed.block,
            "removed_from_unix_ns": removed.from_unix_ns,
            "removed_by_unix_ns": removed.by_unix_ns,
            "clean_run_id": run_id,
            "resumed": resumed,
            "words": removed.words,
        }

    def _await_clean(self, world: World, connection: Connection) -> int:
        """The newest reconciliation, once it is clean: what is found later is then ours."""

        def clean() -> int | None:
            row = connection.execute(NEWEST).fetchone()
            return row[0] if row is not None and row[1] == "clean" else None

        if _is_paused(connection):
            raise FaultError("trading is paused already")
        timeout_s = self._patience_s(world)
        found = until(clean, timeout_s=timeout_s)
        if found is None:
            raise FaultError(f"no clean reconciliation within {timeout_s:.0f} s before the drift")
        return found

    def _await_found(self, world: World, before: int, planted: Change) -> tuple[Finding | None, bool | None]:
        """What the system found, and whether it stopped trading: null when the books do not answer."""
        try:
            with owner_connection(world) as connection:

                def finding() -> Finding | None:
                    row = connection.execute(FOUND, [before, planted.block, planted.block]).fetchone()
                    return None if row is None else Finding(*row)

                return until(finding, timeout_s=self.found_s), _is_paused(connection)
        except FaultError:
            return None, None

    def _await_clean_after(self, world: World, connection: Connection, removed: Change) -> int:
        def clean() -> int | None:
            at_s = removed.by_unix_ns / 1e9
            row = connection.execute(CLEAN, [at_s, removed.block, removed.block]).fetchone()
            return None if row is None else int(row[0])

        timeout_s = self._patience_s(world)
        found = until(clean, timeout_s=timeout_s)
        if found is None:
            raise FaultError(f"no clean reconciliation within {timeout_s:.0f} s after the drift was out")
        return found

    def _resume(self, world: World, connection: Connection) -> bool:
        """Let money move again as an operator would; raises FaultError when it does not."""
        said = ""

        def open_again() -> bool | None:
            nonlocal said
            done = custody_of(world).command("resume", "--reason", "the planted drift is out again")
            said = done.stderr.strip()[-500:]
            if done.returncode not in (0, REFUSED):
                raise FaultError(f"resume exited {done.returncode}: {said}")
            return None if _is_paused(connection) else True

        timeout_s = self._patience_s(world)
        if until(open_again, timeout_s=timeout_s, poll_s=RESUME_POLL_S) is None:
            raise FaultError(f"trading was not resumed within {timeout_s:.0f} s: {said}")
        return True

    def _patience_s(self, world: World) -> float:
        custody = custody_of(world)
        return patience_s(custody, blocks=2) + 2 * custody.plan.reconcile_every_s


def _is_paused(connection: Connection) -> bool:
    row = connection.execute(PAUSED).fetchone()
    return row is not None and bool(row[0])


def _critical(connection: Connection) -> int | None:
    """From where on one finding stops trading; None for a target that does not say."""
    try:
        row = connection.execute(CRITICAL).fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return None if row is None else int(row[0])
