"""Calls that are only tried: eth_call and eth_estimateGas.

A call on an older block makes the chain go back and forth, so its answer is remembered: block and call
decide it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from reference_server.chain.blocks import GAS_LIMIT, Block
from reference_server.chain.machine import TRANSFER_GAS, Call, MachineError, Outcome
from reference_server.chain.node import Node
from reference_server.chain.parameters import address, data, mapping, quantity
from reference_server.chain.problems import REFUSED, REVERTED, RpcError, invalid
from reference_server.chain.rendering import hexadecimal

ANSWERS_MAX = 10_000
NOBODY = "0x" + "00" * 20
ERROR_STRING = bytes.fromhex("08c379a0")  # Error(string)
# What the machine may charge more for the same call later: after a reorganisation the accounts and slots that
# are warm now may be cold again. Enough for a dozen of them.
COLD_RESERVE_GAS = 100_000


@dataclass(slots=True)
class Simulation:
    """Tries calls on the states of one node's chain."""

    node: Node
    answers: OrderedDict[tuple[bytes, Call], Outcome]

    def call(self, request: Any, block: Block) -> str:
        """What the call returns on the state after this block; raises RpcError with the contract's reason."""
        outcome = self._try(_call(request), block)
        _raise_failure(outcome)
        return hexadecimal(outcome.output)

    def estimate(self, request: Any, block: Block) -> int:
        """Gas that is enough for this transaction; raises RpcError with the contract's reason."""
        call = _call(request)
        outcome = self._try(call, block)
        _raise_failure(outcome)
        if not call.data and outcome.gas_used == TRANSFER_GAS:
            return TRANSFER_GAS
        needed = outcome.gas_used + outcome.gas_refunded
        # An inner call gets 63/64 of what is left (EIP-150).
        return min(needed + needed // 32 + COLD_RESERVE_GAS, call.gas)

    def _try(self, call: Call, block: Block) -> Outcome:
        chain = self.node.chain
        if block is chain.head:
            return self._execute(call, block)
        known = (block.hash, call)
        if known not in self.answers:
            self.answers[known] = self._execute(call, block)
            if len(self.answers) > ANSWERS_MAX:
                self.answers.popitem(last=False)
        return self.answers[known]

    def _execute(self, call: Call, block: Block) -> Outcome:
        with self.node.chain.state_at(block.number):
            try:
                return self.node.chain.machine.call(call)
            except MachineError as error:
                raise RpcError(REFUSED, _refusal(str(error))) from None


def _call(request: Any) -> Call:
    fields = mapping(request, "transaction")
    body = fields.get("input", fields.get("data"))
    gas = fields.get("gas")
    to = fields.get("to")
    call = Call(
        sender=address(fields.get("from") or NOBODY, "from"),
        to=None if to is None else address(to, "to"),
        data=b"" if body is None else data(body),
        value_wei=quantity(fields.get("value") or 0, "value"),
        gas=GAS_LIMIT if gas is None else min(quantity(gas, "gas"), GAS_LIMIT),
    )
    if call.to is None and not call.data:
        raise invalid("a transaction needs a receiver or data")
    return call


def _refusal(error: str) -> str:
    if "LackOfFund" in error:
        return "insufficient funds for gas * price + value"
    if "gas limit is" in error:
        return "intrinsic gas too low"
    return error


def _raise_failure(outcome: Outcome) -> None:
    if outcome.succeeded:
        return
    if outcome.reason != "Revert":
        raise RpcError(REFUSED, f"EVM error {outcome.reason}")
    message = "execution reverted"
    if outcome.output[:4] == ERROR_STRING:
        # Its one argument: an offset, a length, the text.
        length = int.from_bytes(outcome.output[36:68], "big")
        message += ": " + outcome.output[68:][:length].decode(errors="replace")
    raise RpcError(REVERTED, message, hexadecimal(outcome.output))
