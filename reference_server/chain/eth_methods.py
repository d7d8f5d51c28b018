"""The eth_* methods, as much of them as web3.py and a wallet's backend use."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from reference_server.chain.blocks import GAS_LIMIT, Block
from reference_server.chain.filters import Change, Filter, Log
from reference_server.chain.node import Node
from reference_server.chain.parameters import (
    address,
    block_of,
    data,
    find_block,
    hash32,
    log_query,
    quantity,
)
from reference_server.chain.pool import PoolError
from reference_server.chain.problems import FILTER_UNKNOWN, REFUSED, RpcError, invalid
from reference_server.chain.rendering import (
    Json,
    hexadecimal,
    render_block,
    render_log,
    render_receipt,
    render_transaction,
)
from reference_server.chain.simulation import Simulation
from reference_server.chain.transactions import TransactionError

CLIENT_VERSION = "seatrial-chain/1 pyrevm"
TIP_WEI = 1_000_000_000
FEE_HISTORY_MAX = 1_024


class EthMethods:
    """Each public method is the JSON-RPC method of its name, with the parameters in their order."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._chain = node.chain
        self._simulation = Simulation(node, OrderedDict())

    def web3_clientVersion(self) -> str:
        return CLIENT_VERSION

    def net_version(self) -> str:
        return str(self._chain.genesis.chain_id)

    def net_listening(self) -> bool:
        return True

    def eth_chainId(self) -> str:
        return hex(self._chain.genesis.chain_id)

    def eth_syncing(self) -> bool:
        return False

    def eth_accounts(self) -> list[str]:
        return [account.address for account in self._chain.accounts]

    def eth_blockNumber(self) -> str:
        return hex(self._chain.head.number)

    def eth_gasPrice(self) -> str:
        return hex(self._node.pending_base_fee_wei + TIP_WEI)

    def eth_maxPriorityFeePerGas(self) -> str:
        return hex(TIP_WEI)

    def eth_feeHistory(self, count: Any, newest: Any, percentiles: Any = None) -> Json:
        last = block_of(self._node, newest)
        wanted = min(quantity(count, "block count"), FEE_HISTORY_MAX, last.number + 1)
        blocks = [self._node.block(last.number - back) for back in reversed(range(wanted))]
        history: Json = {
            "oldestBlock": hex(blocks[0].number if blocks else last.number),
            "baseFeePerGas": [hex(block.base_fee_wei) for block in blocks] + [hex(last.next_base_fee_wei)],
            "gasUsedRatio": [block.gas_used / GAS_LIMIT for block in blocks],
        }
        if percentiles:
            if not isinstance(percentiles, list) or not all(
                isinstance(each, int | float) and 0 <= each <= 100 for each in percentiles
            ):
                raise invalid("reward percentiles: a list of numbers from 0 to 100")
            history["reward"] = [[hex(tip) for tip in _tips_wei(block, percentiles)] for block in blocks]
        return history

    def eth_getBalance(self, account: Any, block: Any = "latest") -> str:
        with self._chain.state_at(block_of(self._node, block).number):
            return hex(self._chain.machine.balance_wei(address(account)))

    def eth_getCode(self, account: Any, block: Any = "latest") -> str:
        with self._chain.state_at(block_of(self._node, block).number):
            return hexadecimal(self._chain.machine.code(address(account)))

    def eth_getStorageAt(self, account: Any, slot: Any, block: Any = "latest") -> str:
        with self._chain.state_at(block_of(self._node, block).number):
            return f"0x{self._chain.machine.storage(address(account), quantity(slot, 'slot')):064x}"

    def eth_getTransactionCount(self, account: Any, block: Any = "latest") -> str:
        if block == "pending":
            return hex(self._node.pool.next_nonce(address(account)))
        return hex(self._chain.nonce_at(address(account), block_of(self._node, block).number))

    def eth_getBlockByNumber(self, block: Any, full: Any = False) -> Json | None:
        found = find_block(self._node, block)
        return render_block(found, full=full is True) if found else None

    def eth_getBlockByHash(self, block_hash: Any, full: Any = False) -> Json | None:
        found = self._chain.block_by_hash(hash32(block_hash))
        return render_block(found, full=full is True) if found else None

    def eth_getBlockReceipts(self, block: Any) -> list[Json] | None:
        found = find_block(self._node, block)
        return [render_receipt(found, receipt) for receipt in found.receipts] if found else None

    def eth_getTransactionByHash(self, transaction_hash: Any) -> Json | None:
        if mined := self._chain.mined(hash32(transaction_hash)):
            block, receipt = mined
            return render_transaction(receipt.transaction, block=block, receipt=receipt)
        waiting = self._node.pool.get(hash32(transaction_hash))
        return render_transaction(waiting) if waiting else None

    def eth_getRawTransactionByHash(self, transaction_hash: Any) -> str | None:
        if mined := self._chain.mined(hash32(transaction_hash)):
            return hexadecimal(mined[1].transaction.raw)
        waiting = self._node.pool.get(hash32(transaction_hash))
        return hexadecimal(waiting.raw) if waiting else None

    def eth_getTransactionReceipt(self, transaction_hash: Any) -> Json | None:
        mined = self._chain.mined(hash32(transaction_hash))
        return render_receipt(*mined) if mined else None

    def eth_call(self, transaction: Any, block: Any = "latest") -> str:
        return self._simulation.call(transaction, block_of(self._node, block))

    def eth_estimateGas(self, transaction: Any, block: Any = "latest") -> str:
        return hex(self._simulation.estimate(transaction, block_of(self._node, block)))

    def eth_sendRawTransaction(self, raw: Any) -> str:
        try:
            return hexadecimal(self._node.send(data(raw)).hash)
        except (TransactionError, PoolError) as error:
            raise RpcError(REFUSED, str(error)) from None

    def eth_getLogs(self, wanted: Any) -> list[Json]:
        query = log_query(self._node, wanted)
        head = self._chain.head.number
        first = head if query.from_block is None else query.from_block
        last = head if query.to_block is None else min(query.to_block, head)
        return [
            render_log(log)
            for number in range(first, last + 1)
            for log in query.logs(self._node.block(number))
        ]

    def eth_newFilter(self, wanted: Any) -> str:
        return hex(self._node.filters.install(Filter("logs", log_query(self._node, wanted))))

    def eth_newBlockFilter(self) -> str:
        return hex(self._node.filters.install(Filter("blocks")))

    def eth_newPendingTransactionFilter(self) -> str:
        return hex(self._node.filters.install(Filter("transactions")))

    def eth_uninstallFilter(self, number: Any) -> bool:
        return self._node.filters.uninstall(quantity(number, "filter"))

    def eth_getFilterChanges(self, number: Any) -> list[Json | str]:
        changes = self._node.filters.take_changes(quantity(number, "filter"))
        if changes is None:
            raise RpcError(FILTER_UNKNOWN, "filter not found")
        return [_render_change(change) for change in changes]

    def eth_getFilterLogs(self, number: Any) -> list[Json]:
        found = self._node.filters.get(quantity(number, "filter"))
        if found is None or found.query is None:
            raise RpcError(FILTER_UNKNOWN, "filter not found")
        head = self._chain.head.number
        query = found.query
        first = head if query.from_block is None else query.from_block
        last = head if query.to_block is None else min(query.to_block, head)
        return [
            render_log(log)
            for number in range(first, last + 1)
            for log in query.logs(self._node.block(number))
        ]


def _render_change(change: Change) -> Json | str:
    return render_log(change) if isinstance(change, Log) else hexadecimal(change)


def _tips_wei(block: Block, percentiles: list[float]) -> list[int]:
    """What the transactions of a block paid above the base fee, by the share of gas that paid no more."""
    paid = sorted((receipt.price_wei - block.base_fee_wei, receipt.gas_used) for receipt in block.receipts)
    tips = []
    for percentile in percentiles:
        gas, tip = 0, 0
        for tip, gas_used in paid:  # noqa: B007
            gas += gas_used
            if gas * 100 >= block.gas_used * percentile:
                break
        tips.append(tip)
    return tips
