"""The methods that make the chain misbehave or hurry: named, and answering, as anvil's do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from reference_server.chain.machine import MachineError
from reference_server.chain.node import Node
from reference_server.chain.parameters import address, data, hash32, quantity
from reference_server.chain.problems import invalid
from reference_server.chain.rendering import Json, render_transaction
from reference_server.chain.transactions import Transaction


class DevelopmentMethods:
    """Each public method is the JSON-RPC method of its name; `set_interval` is for interval mining."""

    def __init__(self, node: Node, set_interval: Callable[[float], None]) -> None:
        self._node = node
        self._set_interval = set_interval

    def evm_mine(self, options: Any = None) -> str:
        """One block, at options' timestamp (a number, or an object that has it) if there is one."""
        timestamp = options.get("timestamp") if isinstance(options, dict) else options
        self._node.mine(timestamp=None if timestamp is None else quantity(timestamp, "timestamp"))
        return "0x0"

    def anvil_mine(self, blocks: Any = 1, interval: Any = None) -> None:
        """So many blocks, the given seconds apart."""
        self._node.mine(
            blocks=quantity(1 if blocks is None else blocks, "blocks"),
            interval_s=None if interval is None else quantity(interval, "interval"),
        )

    def evm_setAutomine(self, enabled: Any) -> None:
        if not isinstance(enabled, bool):
            raise invalid("automine: true or false")
        if enabled:
            self._set_interval(0)
        self._node.automine = enabled

    def anvil_getAutomine(self) -> bool:
        return self._node.automine

    def evm_setIntervalMining(self, seconds: Any) -> None:
        """A block every so many seconds, instead of one for each transaction; 0 ends it."""
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= 86_400:
            raise invalid("interval: seconds, from 0 to a day")
        self._node.automine = False
        self._set_interval(seconds)

    def evm_increaseTime(self, seconds: Any) -> int:
        return self._node.clock.increase(quantity(seconds, "seconds"))

    def evm_setNextBlockTimestamp(self, timestamp: Any) -> None:
        self._node.clock.set_next(
            quantity(timestamp, "timestamp"), parent_timestamp=self._node.chain.head.timestamp
        )

    def evm_snapshot(self) -> str:
        return hex(self._node.take_snapshot())

    def evm_revert(self, snapshot: Any) -> bool:
        return self._node.revert(quantity(snapshot, "snapshot"))

    def anvil_reorg(self, depth: Any, replacements: Any) -> None:
        """Other blocks in place of the newest `depth`; a replacement is [raw transaction, block index]."""
        if isinstance(depth, dict):
            depth, replacements = depth.get("depth"), depth.get("tx_block_pairs", [])
        if not isinstance(replacements, list):
            raise invalid("replacements: a list of pairs [raw transaction, block index]")
        pairs = []
        for pair in replacements:
            if not isinstance(pair, list) or len(pair) != 2:
                raise invalid("replacements: a list of pairs [raw transaction, block index]")
            pairs.append((data(pair[0], "raw transaction"), quantity(pair[1], "block index")))
        self._node.reorganise(quantity(depth, "depth"), pairs)

    def anvil_rollback(self, depth: Any = None) -> None:
        self._node.rollback(1 if depth is None else quantity(depth, "depth"))

    def anvil_dropTransaction(self, transaction_hash: Any) -> str | None:
        """The hash, None when no such transaction waits."""
        return transaction_hash if self._node.pool.drop(hash32(transaction_hash)) else None

    def anvil_dropAllTransactions(self) -> None:
        self._node.pool.clear()

    def anvil_setBalance(self, account: Any, balance: Any) -> None:
        try:
            self._node.give(address(account), quantity(balance, "balance"))
        except MachineError as error:
            raise invalid(str(error)) from None

    def anvil_setNextBlockBaseFeePerGas(self, fee: Any) -> None:
        self._node.next_base_fee_wei = quantity(fee, "base fee")

    def txpool_status(self) -> Json:
        pending, queued = self._node.pool.content()
        return {"pending": hex(len(pending)), "queued": hex(len(queued))}

    def txpool_content(self) -> Json:
        pending, queued = self._node.pool.content()
        return {"pending": _by_sender(pending), "queued": _by_sender(queued)}


def _by_sender(transactions: list[Transaction]) -> Json:
    senders: dict[str, Json] = defaultdict(dict)
    for transaction in transactions:
        senders[transaction.sender][str(transaction.nonce)] = render_transaction(transaction)
    return senders
