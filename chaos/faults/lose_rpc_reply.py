"""The node's answer to a withdrawal's transaction lost: the node has it, and the relay cannot know."""

from __future__ import annotations

from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.leases import WaitSeconds, await_delivered, await_event, unheard_call
from chaos.faults.on_chain import custody_of
from chaos.http_messages import Evidence

# For a handler to see that its connection is gone, and a relay to write it down.
FAILED_S_MAX = 5.0


class LoseRpcReply(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reset the connection on which a relay waits for its answer; healed when the event is delivered.

    Landed when the node knows the transaction and the relay's attempt has failed. Nothing to undo.
    """

    target = "line"
    wait_s: WaitSeconds = 10.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        with unheard_call(world, "withdrawal", self.wait_s) as call:
            before = call.event
            if not call.evidence["known"]:
                raise FaultError(f"the node does not know {call.evidence['tx_hash']}, which it was sent")
            if not call.drop():
                raise FaultError(f"{call.relay.name} had left before its answer could be lost")
        after = await_event(
            world,
            before.event_id,
            lambda event: (
                event.status != "pending"
                or event.lease_token > before.lease_token
                or event.last_error != before.last_error
            ),
            timeout_s=FAILED_S_MAX,
        )
        if after is None:
            raise FaultError(
                f"event {before.event_id} neither failed nor was tried again in {FAILED_S_MAX:.0f} s"
            )
        if after.status == "delivered" and after.lease_token == before.lease_token:
            raise FaultError(f"event {before.event_id} was delivered as if its answer had been heard")
        return {**call.evidence, "last_error": after.last_error}

    def heal(self, world: World, landed: Evidence) -> Evidence:
        return await_delivered(world, landed) if landed else {}
