"""The node seems to stand still to the system, while the chain goes on: no new block, receipt or log."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

from chaos.faults.fault import Custody, FaultError, ProcessFault, World
from chaos.faults.on_chain import asking, custody_of, height_of, on_the_line, patience_s, until
from chaos.http_messages import Evidence


class LagChain(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Freeze the line to the node at its present head for `lag_s`; healed when the line shows the real head.

    It landed when the chain went on meanwhile, and the system asked and was shown the old head. No undo of
    its own: the line thaws when its control connection ends.
    """

    target = "chain"
    lag_s: Annotated[float, msgspec.Meta(ge=0.2, le=15)] = 4.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        with asking(), on_the_line():
            before = custody.rpc.status()["clamped"]
            began = time.monotonic()
            frozen_at = custody.rpc.freeze()
            time.sleep(self.lag_s)  # bounded by its type; how long the node is behind
            # a chain, or a system, with long pauses may not have moved, or asked, yet
            seen = until(
                lambda: now if all(now := _seen(custody, frozen_at, before)) else None,
                timeout_s=patience_s(custody, blocks=2),
            )
            lagged_s = time.monotonic() - began
            ahead, clamped = seen or _seen(custody, frozen_at, before)
        if not ahead:
            raise FaultError(f"the chain itself stood still at block {frozen_at} for {lagged_s:.1f} s")
        if not clamped:
            raise FaultError(f"nobody asked the node while it was behind, for {lagged_s:.1f} s")
        head = frozen_at + ahead
        return {"frozen_at": frozen_at, "head": head, "lagged_s": round(lagged_s, 3), "clamped": clamped}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        del landed
        custody = custody_of(world)
        with asking(), on_the_line():
            custody.rpc.thaw()
            status = custody.rpc.status()
            head = height_of(custody)
        if status["frozen_at"] is not None:
            raise FaultError(f"the line still shows block {status['frozen_at']}")
        return {"head": head, "frozen_at": None}


def _seen(custody: Custody, frozen_at: int, clamped_before: int) -> tuple[int, int]:
    """How many blocks the chain is ahead, and how many answers hid that; raises RpcError, ControlError."""
    return height_of(custody) - frozen_at, custody.rpc.status()["clamped"] - clamped_before
