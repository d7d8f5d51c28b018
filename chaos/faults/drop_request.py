"""The request that never arrives: the server sees nothing of it, the client no answer."""

from __future__ import annotations

from typing import Literal

from chaos.faults.fault import RequestFault, Seconds
from chaos.http_exchange import Exchange
from chaos.http_messages import Evidence


class DropRequest(RequestFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forward nothing; reset the client's connection (`how` = "reset"), or stay silent until the client's
    patience or `silence_s` is over (`how` = "silence")."""

    how: Literal["reset", "silence"] = "reset"
    silence_s: Seconds = 10.0

    async def inject(self, exchange: Exchange) -> Evidence:
        client_left = self.how == "silence" and await exchange.client_leaves(self.silence_s)
        if client_left:
            exchange.abandon()
        else:
            exchange.reset()
        return {**exchange.evidence(), "how": self.how, "client_left": client_left}
