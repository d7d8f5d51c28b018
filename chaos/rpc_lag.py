"""What a node that stands still would answer, made from the answers of one that goes on.

A call is looked at twice. Before: `plan` puts the frozen block in place of a tag that moves, and answers at
once what asks for a block that is not there yet. After: `revise` takes out of an answer what is newer. What
is about no block (the pool, fees, the development methods) passes.

Not hidden: a reorganisation below the frozen head shows through, since its blocks are nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from chaos.rpc_calls import Json, RpcCall

# Where the block stands among the parameters, of methods that read the state after a block ...
STATE_AT = {
    "eth_call": 1,
    "eth_createAccessList": 1,
    "eth_estimateGas": 1,
    "eth_feeHistory": 1,
    "eth_getBalance": 1,
    "eth_getCode": 1,
    "eth_getProof": 2,
    "eth_getStorageAt": 2,
    "eth_getTransactionCount": 1,
}
# ... and of those that read the block itself, whose answer is null when there is none.
BLOCK_AT = {
    "eth_getBlockByNumber": 0,
    "eth_getBlockReceipts": 0,
    "eth_getBlockTransactionCountByHash": 0,
    "eth_getBlockTransactionCountByNumber": 0,
    "eth_getTransactionByBlockNumberAndIndex": 0,
}
REVISED = frozenset(
    {
        "eth_blockNumber",
        "eth_getBlockByHash",
        "eth_getFilterLogs",
        "eth_getTransactionByBlockHashAndIndex",
        "eth_getTransactionByHash",
        "eth_getTransactionReceipt",
    }
)
TOUCHED = frozenset({*STATE_AT, *BLOCK_AT, *REVISED, "eth_getLogs", "eth_getFilterChanges"})

NOTHING: Json = {"result": None}
NO_LOGS: Json = {"result": []}
UNKNOWN_BLOCK: Json = {"error": {"code": -32_000, "message": "unknown block"}}

Ask = Callable[[str, list[Any]], Awaitable[Json]]


class Frozen(NamedTuple):
    """The head at which the node stands, and the blocks of the tags that move, as they were then."""

    number: int
    tags: dict[str, int]


class Plan(NamedTuple):
    """What to ask the node, or the answer without it.

    `block_hash` names a block that must be there and not newer than the head, or the answer is `absent`.
    """

    params: list[Any]
    answer: Json | None = None
    block_hash: str | None = None
    absent: Json = NOTHING


class Lag:
    """The line's view of the node's head: `frozen` while it stands still.

    `clamped` counts the answers that were given as of the frozen head while the node was past it.
    """

    def __init__(self) -> None:
        self.frozen: Frozen | None = None
        self.clamped = 0

    async def freeze(self, ask: Ask) -> int:
        """Stand still at the node's present head; its number. Raises LookupError when it says none."""
        tags = {}
        # The head last: the others must not be past it.
        for tag in ("safe", "finalized", "latest"):
            block = (await ask("eth_getBlockByNumber", [tag, False])).get("result")
            if isinstance(block, dict) and (number := as_number(block.get("number"))) is not None:
                tags[tag] = number
        if "latest" not in tags:
            raise LookupError("the node does not say which block is its latest")
        self.frozen = Frozen(tags["latest"], {**tags, "pending": tags["latest"]})
        return self.frozen.number

    def thaw(self) -> None:
        """Show the node as it is."""
        self.frozen = None

    async def answer(self, call: RpcCall, frozen: Frozen, ask: Ask) -> Json:
        """The `result` or `error` of a call as of the frozen head."""
        head = as_number((await ask("eth_blockNumber", [])).get("result"))
        ahead = head is not None and head > frozen.number
        planned = plan(call.method, call.params, frozen)
        changed = planned.params != call.params
        found = planned.answer
        if found is None and planned.block_hash is not None:
            looked = await ask("eth_getBlockByHash", [planned.block_hash, False])
            if "result" in looked and is_absent(looked["result"], frozen):
                found = planned.absent
        if found is not None:
            changed = True
        else:
            found = await ask(call.method, planned.params)
            if "result" in found:
                revised = revise(call.method, found["result"], frozen)
                changed = changed or revised != found["result"]
                found = {"result": revised}
        self.clamped += ahead and changed
        return found


def plan(method: str, params: list[Any], frozen: Frozen) -> Plan:
    """What to ask in place of a call with these parameters."""
    if method == "eth_getFilterChanges":
        return Plan(params, NO_LOGS)  # the node keeps them: they are taken after the thaw
    if method == "eth_getLogs":
        return _plan_logs(params, frozen)
    at = STATE_AT.get(method, BLOCK_AT.get(method))
    if at is None:
        return Plan(params)
    reads_block = method in BLOCK_AT
    if len(params) == at and not reads_block:
        return Plan([*params, hex(frozen.number)])
    if len(params) <= at:
        return Plan(params)  # the node refuses it
    return _plan_block(params, at, frozen, reads_block=reads_block)


def _plan_block(params: list[Any], at: int, frozen: Frozen, *, reads_block: bool) -> Plan:
    asked = params[at]
    if isinstance(asked, dict) and isinstance(asked.get("blockHash"), str):
        absent = NOTHING if reads_block else _out_of_range(asked, frozen)
        return Plan(params, block_hash=asked["blockHash"], absent=absent)
    if reads_block and _is_hash(asked):
        return Plan(params, block_hash=asked)
    name = asked.get("blockNumber", "latest") if isinstance(asked, dict) else asked
    number = frozen.tags.get("latest" if name is None else name) if _may_be_tag(name) else None
    if number is not None:
        return Plan([*params[:at], hex(number), *params[at + 1 :]])
    number = as_number(name)
    if number is None or number <= frozen.number:
        return Plan(params)
    return Plan(params, NOTHING if reads_block else _out_of_range(asked, frozen))


def _out_of_range(asked: Any, frozen: Frozen) -> Json:
    """The error of a node that has no such block, in the words of anvil and the embedded chain."""
    message = f"BlockOutOfRangeError: block height is {frozen.number} but requested was {asked}"
    return {"error": {"code": -32_602, "message": message}}


def _plan_logs(params: list[Any], frozen: Frozen) -> Plan:
    if len(params) != 1 or not isinstance(params[0], dict):
        return Plan(params)  # the node refuses it
    wanted = params[0]
    if isinstance(wanted.get("blockHash"), str):
        return Plan(params, block_hash=wanted["blockHash"], absent=UNKNOWN_BLOCK)
    bounds = {}
    for name in ("fromBlock", "toBlock"):
        given = wanted.get(name)
        tagged = frozen.tags.get("latest" if given is None else given) if _may_be_tag(given) else None
        bounds[name] = as_number(given) if tagged is None else tagged
    first, last = bounds["fromBlock"], bounds["toBlock"]
    if first is not None and first > frozen.number:
        return Plan(params, NO_LOGS)
    asked = {**wanted}
    if first is not None:
        asked["fromBlock"] = hex(first)
    if last is not None:
        asked["toBlock"] = hex(min(last, frozen.number))
    # The same bounds in another spelling are no other question.
    same = all(as_number(wanted.get(name)) == as_number(asked.get(name)) for name in bounds)
    return Plan(params if same else [asked])


def revise(method: str, result: Any, frozen: Frozen) -> Any:
    """An answer without what is newer than the frozen head."""
    if method == "eth_blockNumber":
        return hex(frozen.number)
    if method == "eth_getBlockByHash":
        return None if is_absent(result, frozen) else result
    if method == "eth_getFilterLogs" and isinstance(result, list):
        return [each for each in result if not is_newer(each, "blockNumber", frozen)]
    if not is_newer(result, "blockNumber", frozen):
        return result
    if method == "eth_getTransactionByHash":
        waiting = {**result, "blockHash": None, "blockNumber": None, "transactionIndex": None}
        if "maxFeePerGas" in waiting:
            waiting["gasPrice"] = waiting["maxFeePerGas"]  # what it paid in the end is not known yet
        return waiting
    return None if method in REVISED else result


def is_absent(block: Any, frozen: Frozen) -> bool:
    """Whether a block is none that the node has, standing where it stands."""
    return block is None or is_newer(block, "number", frozen)


def is_newer(found: Any, member: str, frozen: Frozen) -> bool:
    """Whether a block, receipt, transaction or log is of a block after the frozen head."""
    number = as_number(found.get(member)) if isinstance(found, dict) else None
    return number is not None and number > frozen.number


def as_number(value: Any) -> int | None:
    """A quantity as a number: hexadecimal, or decimal as some nodes allow; None when it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    try:
        return int(value, 16 if value[:2].lower() == "0x" else 10)
    except ValueError:
        return None


def _may_be_tag(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 66
