"""The proxy's armed faults: which request each one hits, and its life until it is over.

A fault is armed with a number n and hits the n-th matching request from then on (a logical trigger: what
came before it does not depend on the clock). One request is hit by one fault at most; the others whose turn
it was take the next. A fault that met a request but missed (the client had gone, the server was down) takes
the next one too, until it is healed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from chaos.faults import FaultError, RequestFault
from chaos.http_exchange import Exchange
from chaos.http_messages import Evidence, Missed

# A reply that takes longer than this is given up by the fault, and the fault takes another request.
EXCHANGE_S_MAX = 60.0
# ... and this is how long it may still take once the fault is being healed.
HEAL_S_MAX = 5.0

Report = Callable[[dict[str, Any]], None]


class Armed:
    """One fault from its arming to its end."""

    def __init__(self, fault_id: str, fault: RequestFault, nth: int) -> None:
        self.fault_id = fault_id
        self.fault = fault
        self.left = nth  # matching requests until it hits, this one included
        self.matched = 0
        self.misses: list[str] = []
        self.hurry = asyncio.Event()


class Triggers:
    """All faults in the proxy; `report` gets an event for each that landed or failed."""

    def __init__(self, report: Report) -> None:
        self.waiting: list[Armed] = []
        self._report = report
        self._alive: dict[str, Armed] = {}  # by fault id, until landed or failed
        self._acting: dict[asyncio.Task[None], Armed] = {}

    def arm(self, armed: Armed) -> None:
        """Raises FaultError when the id is taken."""
        if armed.fault_id in self._alive:
            raise FaultError(f"{armed.fault_id} is armed already")
        self._alive[armed.fault_id] = armed
        self.waiting.append(armed)

    def match(self, head: bytes) -> Armed | None:
        """Count this request for all faults that it matches; the one that hits it, if any."""
        hit = None
        for armed in self.waiting:
            if armed.fault.matches(head):
                armed.matched += 1
                armed.left -= 1
                if hit is None and armed.left <= 0:
                    hit = armed
        if hit is not None:
            self.waiting.remove(hit)
        return hit

    def strike(self, armed: Armed, exchange: Exchange) -> None:
        """Give the request to the fault."""
        task = asyncio.get_running_loop().create_task(self._act(armed, exchange))
        self._acting[task] = armed
        task.add_done_callback(self._over)

    def give_up(self, armed: Armed) -> None:
        """The request was gone before it was whole: the fault waits for the next."""
        self._missed(armed, "the request never became whole")

    def heal(self) -> None:
        """Disarm what waits, and hurry what acts to its end."""
        for armed in self._alive.values():
            armed.hurry.set()
        waiting, self.waiting = self.waiting, []
        for armed in waiting:
            self._failed(armed)
        for task in self._acting:
            asyncio.get_running_loop().call_later(HEAL_S_MAX, task.cancel)

    async def _act(self, armed: Armed, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(EXCHANGE_S_MAX):
                evidence = await armed.fault.inject(exchange)
        except Missed as missed:
            self._missed(armed, str(missed))
        except TimeoutError:
            self._missed(armed, f"no reply within {EXCHANGE_S_MAX:.0f} s")
        else:
            self._landed(armed, evidence)
        finally:
            exchange.abandon()

    def _over(self, task: asyncio.Task[None]) -> None:
        armed = self._acting.pop(task)
        if task.cancelled():
            armed.misses.append(f"no reply within {HEAL_S_MAX:.0f} s of healing")
            self._failed(armed)
        elif (error := task.exception()) is not None:
            armed.misses.append(repr(error))
            self._failed(armed)
            asyncio.get_running_loop().call_exception_handler({"message": armed.fault_id, "exception": error})

    def _landed(self, armed: Armed, evidence: Evidence) -> None:
        more = {"matched": armed.matched, **({"misses": armed.misses} if armed.misses else {})}
        self._tell("landed", armed, {**evidence, **more})

    def _missed(self, armed: Armed, why: str) -> None:
        armed.misses.append(why)
        armed.left = 1
        if armed.hurry.is_set():
            self._failed(armed)
        else:
            self.waiting.append(armed)

    def _failed(self, armed: Armed) -> None:
        why = f"missed, last: {armed.misses[-1]}" if armed.misses else "its request never came"
        self._tell("failed", armed, {"why": why, "matched": armed.matched, "misses": armed.misses})

    def _tell(self, event: str, armed: Armed, evidence: Evidence) -> None:
        del self._alive[armed.fault_id]
        self._report(
            {
                "event": event,
                "fault_id": armed.fault_id,
                "time_ns": time.monotonic_ns(),
                "evidence": evidence,
            }
        )
