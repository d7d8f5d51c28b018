"""Reconciliation in tests: a desk whose chain is a number, and one run as a caller sees it."""

from __future__ import annotations

from typing import Any

from reference_server.custody import Custody
from reference_server.reconcile import Reading, reconcile_on
from tests.integration.desk import Desk

USDC = 1_000_000


class Chain:
    """The custody as the test wants it: what came in over the contra account, and a drift on top."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.drift_micro = 0
        self.block = 0

    def custody_micro(self) -> int:
        """What the vault holds."""
        (came_in,) = self.desk.row("SELECT sum(debit - credit) FROM ledger_entries WHERE account_id = 1")
        return int(came_in) + self.drift_micro

    def reconcile(
        self, *, trouble: str | None = None, full: bool = False, snapshot: bool = False
    ) -> dict[str, Any]:
        """One run at the next block."""
        self.block += 1
        custody = Custody(None if trouble else self.custody_micro(), self.block, trouble)
        return reconcile_on(self.desk.admin, custody, Reading(full=full, snapshot=snapshot))

    def plant(self, user: str, amount_micro: int) -> None:
        """Change a balance behind the ledger's back."""
        changed = self.desk.admin.execute(
            "UPDATE accounts SET balance = balance + %s WHERE user_id = %s AND kind = 'user_available'",
            [amount_micro, user],
        )
        assert changed.rowcount == 1

    def settings(self, *, alert: int, pause: int, critical: int, after: int) -> None:
        """Thresholds in micro-USDC."""
        self.desk.admin.execute(
            """UPDATE reconciliation_settings
                  SET alert_micro = %s, pause_micro = %s, critical_micro = %s, pause_after = %s""",
            [alert, pause, critical, after],
        )

    def is_paused(self) -> bool:
        """Whether money stands still."""
        return bool(self.desk.row("SELECT paused FROM platform_state")[0])
