"""Replies that are kept back, and calls that are sent twice: what a controller has asked for, call by call.

A hold is armed for the next single call of a method, in the order of arming where several wait for one. Then:

  armed -> forwarded (the node has the call) -> held (its reply is here) -> over

It is over when it is delivered, dropped or cancelled; a reply that has been held too long is delivered. A
call that never got a reply leaves its hold armed for the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

from chaos.control_port import Refused
from chaos.http_calls import Call
from chaos.rpc_calls import Json, RpcCall

ARMED_MAX = 1_000

Kind = Literal["hold", "repeat"]


class Keep:
    """One hold, or one repetition, from its arming to its end."""

    def __init__(self, number: int, kind: Kind, method: str) -> None:
        self.number = number
        self.kind = kind
        self.method = method
        self.cancelled = False
        self.call: Call | None = None  # while its reply is held
        self.reply = b""
        self.timer: asyncio.TimerHandle | None = None


class Holds:
    """All of them; `tell` gets an event for each call that was held or repeated."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], *, held_s_max: float) -> None:
        self.expired = 0
        self._held_s_max = held_s_max
        self._tell = tell
        self._last = 0
        self._open: dict[int, Keep] = {}
        self._armed: list[Keep] = []

    def arm(self, kind: Kind, method: str) -> int:
        """The number of a new one; raises Refused when there are too many."""
        if not method:
            raise Refused(f"{kind} needs a method")
        if len(self._open) >= ARMED_MAX:
            raise Refused(f"{ARMED_MAX} holds are outstanding")
        self._last += 1
        keep = Keep(self._last, kind, method)
        self._open[keep.number] = keep
        self._armed.append(keep)
        return keep.number

    def take(self, method: str) -> Keep | None:
        """The one that this call is for, if any: it is being forwarded from now on."""
        for keep in self._armed:
            if keep.method == method:
                self._armed.remove(keep)
                return keep
        return None

    def put_back(self, keep: Keep) -> None:
        """Its call had no reply: it waits for the next, before all that were armed later."""
        if keep.cancelled:
            self._over(keep)
        else:
            self._armed.append(keep)
            self._armed.sort(key=lambda each: each.number)

    def hold(self, keep: Keep, call: Call, rpc: RpcCall, reply: bytes, body: Json) -> None:
        """Keep this reply back until somebody decides."""
        if keep.cancelled:
            self._over(keep)
            call.answer(reply)
            return
        keep.call, keep.reply = call, reply
        keep.timer = asyncio.get_running_loop().call_later(self._held_s_max, self._expire, keep)
        self._report("held", keep, call, rpc, [body])

    def repeated(self, keep: Keep, call: Call, rpc: RpcCall, bodies: list[Json]) -> None:
        """A call has been sent twice; the second reply is missing where it was lost."""
        self._over(keep)
        self._report("repeated", keep, call, rpc, bodies)

    def decide(self, number: int, what: Literal["deliver", "drop"]) -> bool:
        """Give the held reply or reset its caller; False when the hold is over or the caller has gone.

        Raises Refused when there is no reply yet.
        """
        keep = self._open.get(number)
        if keep is None:
            return False
        if keep.call is None:
            raise Refused(f"hold {number} for {keep.method} has no reply yet")
        return self._end(keep, what)

    def cancel(self, number: int) -> bool:
        """Disarm it, deliver what it holds; False when it was over."""
        keep = self._open.get(number)
        if keep is None:
            return False
        if keep.call is not None:
            self._end(keep, "deliver")
        elif keep in self._armed:
            self._armed.remove(keep)
            self._over(keep)
        else:
            keep.cancelled = True
        return True

    def heal(self) -> None:
        """Cancel all."""
        for number in list(self._open):
            self.cancel(number)

    def outstanding(self) -> int:
        """How many are not over."""
        return len(self._open)

    def _expire(self, keep: Keep) -> None:
        self.expired += 1
        self._end(keep, "deliver")

    def _end(self, keep: Keep, what: Literal["deliver", "drop"]) -> bool:
        call, reply = keep.call, keep.reply
        assert call is not None
        self._over(keep)
        return call.answer(reply) if what == "deliver" else call.reset()

    def _over(self, keep: Keep) -> None:
        if keep.timer is not None:
            keep.timer.cancel()
        keep.call, keep.reply = None, b""
        del self._open[keep.number]

    def _report(self, event: str, keep: Keep, call: Call, rpc: RpcCall, bodies: list[Json]) -> None:
        self._tell(
            {
                "event": event,
                "hold": keep.number,
                "method": rpc.method,
                "params": rpc.params,
                "replies": bodies,
                "peer_port": call.peer_port,
                "time_ns": time.monotonic_ns(),
            }
        )
