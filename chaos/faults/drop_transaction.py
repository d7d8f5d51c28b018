"""A withdrawal's transaction dropped from the node's pool before any block had it."""

from __future__ import annotations

from chaos.faults.fault import FaultError, ProcessFault, World
from chaos.faults.on_chain import (
    Wait,
    asking,
    await_paid,
    await_waiting_payment,
    custody_of,
    let_go,
)
from chaos.http_messages import Evidence


class DropTransaction(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold the blocks back, drop the operator's next withdrawal; healed when it has been paid all the same.

    Waits at most `wait_s` for a withdrawal. No undo of its own: node and pool die with the harness.
    """

    target = "chain"
    wait_s: Wait = 10.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        waiting = await_waiting_payment(custody, timeout_s=self.wait_s)
        with asking():
            custody.ask("anvil_dropTransaction", waiting.tx_hash)
            known = custody.ask("eth_getTransactionByHash", waiting.tx_hash)
        if known is not None:
            raise FaultError(f"the node still knows {waiting.tx_hash}, which it was told to drop")
        return {
            "withdrawal_id": waiting.withdrawal_id,
            "tx_hash": waiting.tx_hash,
            "nonce": waiting.nonce,
            "known_before": True,
            "known": False,
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        evidence = let_go(custody_of(world))
        if landed:
            paid = await_paid(world, landed["withdrawal_id"], blocks=3)
            evidence |= {
                "status": paid.status,
                "tx_hash": paid.tx_hash,
                "same_bytes": paid.tx_hash == landed["tx_hash"],
                "attempts": paid.attempts,
                "sends": paid.sends,
                "block_number": paid.block_number,
            }
        return evidence
