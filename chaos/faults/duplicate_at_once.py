"""The same request twice at the same time, as a retry that overtakes a slow network would be."""

from __future__ import annotations

from chaos.faults.fault import RequestFault
from chaos.http_exchange import Exchange
from chaos.http_messages import Evidence


class DuplicateAtOnce(RequestFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send the request on two connections at once; the client gets the first one's reply."""

    async def inject(self, exchange: Exchange) -> Evidence:
        aside = await exchange.aside()
        try:
            first, copy = exchange.forward(), exchange.send_copy(aside)
            reply = await first
            exchange.relay(reply)
            exchange.release()
            evidence = {**exchange.evidence(), **reply.evidence(), "reply_ns": reply.time_ns}
            answer = await copy
        finally:
            aside.close()
        return {**evidence, "copy": {**answer.evidence(), "reply_ns": answer.time_ns}}
