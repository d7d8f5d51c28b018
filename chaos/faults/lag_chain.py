"""The node seems to stand still to the system, while the chain goes on: no new block, receipt or log."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.on_chain import asking, custody_of, height_of, on_the_line, patience_s, until
from chaos.http_messages import Evidence


class LagChain(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Freeze the line to the node at its present head for `lag_s`; healed when the line shows the real head.

    It landed when the chain went on meanwhile, and the system asked and was shown the old head. No undo of
    its own: the line thaws when its control connection ends.
    """

    target = "chain"
    lag_s: Annotated[float, msgspec.Meta(ge=0.2, le=30)] = 4.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        with asking(), on_the_line():
            before = custody.rpc.status()["clamped"]
            began = time.monotonic()
            frozen_at = custody.rpc.freeze()
            time.sleep(self.lag_s)  # bounded by its type; how long the node is behind
            lagged_s = time.monotonic() - began
            # a chain with long pauses between its blocks may not have made one yet
            timeout_s = patience_s(custody, blocks=2)
            head = until(
                lambda: now if (now := height_of(custody)) > frozen_at else None, timeout_s=timeout_s
            )
            clamped = custody.rpc.status()["clamped"] - before
        if head is None:
            raise FaultError(f"the chain itself stood still at block {frozen_at}")
        if not clamped:
            raise FaultError(f"nobody asked the node while it was behind, for {lagged_s:.1f} s")
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
