"""A withdrawal's transaction sent to the node again: while it waits, and when a block has it."""

from __future__ import annotations

from chaos.faults.fault import Custody, FaultError, ProcessFault, World
from chaos.faults.on_chain import Wait, asking, await_waiting_payment, custody_of, height_of, let_go
from chaos.http_messages import Evidence
from chaos.rpc import RpcError
from chaos.vault import payment_logs, receipt_of, word_of


class DuplicateTransaction(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send the same bytes again, twice; what the node answers each time is the evidence.

    Waits at most `wait_s` for a withdrawal. Nothing to undo: the vault pays a withdrawal once.
    """

    target = "chain"
    wait_s: Wait = 10.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        waiting = await_waiting_payment(custody, timeout_s=self.wait_s)
        with asking():
            first = height_of(custody)
            raw = custody.ask("eth_getRawTransactionByHash", waiting.tx_hash)
            if not raw:
                raise FaultError(f"the node does not have the bytes of {waiting.tx_hash}")
            while_waiting = _sent_again(custody, raw)
            custody.ask("evm_mine")
            receipt = receipt_of(custody.ask, waiting.tx_hash)
            if receipt is None:
                raise FaultError(f"{waiting.tx_hash} was not mined")
            when_mined = _sent_again(custody, raw)
            custody.ask("evm_mine")
            logs = payment_logs(custody.ask, custody.vault, first + 1, height_of(custody))
        return {
            "withdrawal_id": waiting.withdrawal_id,
            "tx_hash": waiting.tx_hash,
            "nonce": waiting.nonce,
            "while_waiting": while_waiting,
            "when_mined": when_mined,
            "block_number": int(receipt["blockNumber"], 16),
            "payments": sum(log.word == word_of(waiting.withdrawal_id) for log in logs),
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        del landed
        return let_go(custody_of(world))


def _sent_again(custody: Custody, raw: str) -> str:
    """What the node says to bytes that it has seen."""
    try:
        return f"taken: {custody.ask('eth_sendRawTransaction', raw)}"
    except RpcError as error:
        return f"refused: {error}"
