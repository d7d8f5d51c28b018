"""Every 40th trade meets an exception after it was executed, and is answered with 500."""

from __future__ import annotations

import itertools

from reference_server.headers import RequestHeaders
from reference_server.replies import Receive
from reference_server.sequencer import Reply
from reference_server.trading import TradeEndpoint

COMMANDS = ("serve",)


def plant() -> None:
    """Lose the reply between the database and the client."""
    trade = TradeEndpoint._trade
    numbers = itertools.count(1)

    async def sometimes_lost(endpoint: TradeEndpoint, headers: RequestHeaders, receive: Receive) -> Reply:
        reply = await trade(endpoint, headers, receive)
        if next(numbers) % 40 == 0:
            raise LookupError("the reply was evicted")
        return reply

    TradeEndpoint._trade = sometimes_lost  # type: ignore[method-assign, assignment]
