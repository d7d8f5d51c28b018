"""The reply that is lost after the server answered: the client cannot know that its request took effect."""

from __future__ import annotations

from chaos.faults.fault import RequestFault
from chaos.http_exchange import Exchange
from chaos.http_messages import Evidence


class DropReply(RequestFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forward the request, read the whole reply, and reset the client's connection instead of relaying it."""

    async def inject(self, exchange: Exchange) -> Evidence:
        reply = await exchange.forward()
        exchange.reset()
        return {**exchange.evidence(), **reply.evidence(), "reply_ns": reply.time_ns}
