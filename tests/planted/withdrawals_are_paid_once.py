"""Large withdrawals are put aside for a person to look at, and no person ever does."""

from __future__ import annotations

from reference_server.payouts import Payouts
from reference_server.relay.event import Event

COMMANDS = ("relay",)
LARGE_MICRO = 10_000_000


def plant() -> None:
    """Take an event of a large withdrawal for delivered when it is put aside."""
    deliver = Payouts.deliver

    def small_ones_only(payouts: Payouts, event: Event) -> None:
        if event.payload.get("amount_micro", 0) < LARGE_MICRO:
            deliver(payouts, event)

    Payouts.deliver = small_ones_only  # type: ignore[method-assign, assignment]
