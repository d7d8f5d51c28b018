"""The same request again, seconds after it was answered: a copy that the network kept and delivered late."""

from __future__ import annotations

import time

from chaos.faults.fault import RequestFault, Seconds
from chaos.http_exchange import Exchange
from chaos.http_messages import Evidence


class DuplicateLate(RequestFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let the request and its reply pass, and send the request again `delay_s` later; nobody gets that reply.

    Healing sends a copy that still waits at once.
    """

    delay_s: Seconds = 2.0

    async def inject(self, exchange: Exchange) -> Evidence:
        reply = await exchange.forward()
        exchange.relay(reply)
        exchange.release()
        await exchange.wait(self.delay_s)
        aside = await exchange.aside()
        try:
            sent_ns = time.monotonic_ns()
            answer = await exchange.send_copy(aside)
        finally:
            aside.close()
        copy = {**answer.evidence(), "sent_ns": sent_ns, "reply_ns": answer.time_ns}
        return {**exchange.evidence(), **reply.evidence(), "reply_ns": reply.time_ns, "copy": copy}
