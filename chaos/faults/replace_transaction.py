"""A withdrawal's nonce spent by another transaction of the operator's before its own was in a block."""

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
from chaos.vault import address_of, receipt_of, sign_call, suggested_fees

PLAIN_GAS = 21_000


class ReplaceTransaction(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put another transaction in the place of the operator's next withdrawal, and in a block.

    It pays more for gas and moves no money: from the operator to itself. Healed when the withdrawal has been
    paid, under its id and with another nonce. Waits at most `wait_s` for a withdrawal. Nothing to undo.
    """

    target = "chain"
    wait_s: Wait = 10.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        waiting = await_waiting_payment(custody, timeout_s=self.wait_s)
        with asking():
            replacing = sign_call(
                custody.operator_key,
                to=address_of(custody.operator_key),
                nonce=waiting.nonce,
                fees=suggested_fees(custody.ask).over(waiting.fees),
                chain_id=custody.chain_id,
                gas=PLAIN_GAS,
            )
            custody.ask("eth_sendRawTransaction", replacing.raw)
            custody.ask("evm_mine")
            receipt = receipt_of(custody.ask, replacing.hash)
            known = custody.ask("eth_getTransactionByHash", waiting.tx_hash)
        if receipt is None or known is not None:
            raise FaultError(f"{replacing.hash} did not take the place of {waiting.tx_hash}")
        return {
            "withdrawal_id": waiting.withdrawal_id,
            "nonce": waiting.nonce,
            "tx_hash": waiting.tx_hash,
            "known": False,
            "replaced_by": replacing.hash,
            "block_number": int(receipt["blockNumber"], 16),
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        custody = custody_of(world)
        evidence = let_go(custody)
        if landed:
            # its nonce must be spent deep enough before it is signed anew
            paid = await_paid(world, landed["withdrawal_id"], blocks=custody.plan.confirmations + 3)
            evidence |= {
                "status": paid.status,
                "tx_hash": paid.tx_hash,
                "attempts": paid.attempts,
                "block_number": paid.block_number,
                "nonce": self._nonce(world, paid.tx_hash),
            }
        return evidence

    def _nonce(self, world: World, tx_hash: str | None) -> int | None:
        with asking():
            found = custody_of(world).ask("eth_getTransactionByHash", tx_hash)
        return None if found is None else int(found["nonce"], 16)
