"""The parameters of JSON-RPC requests: hexadecimal quantities, data, addresses, block tags, log filters.

Every reader raises RpcError (invalid params) on what it cannot read.
"""

from __future__ import annotations

import re
from typing import Any

from reference_server.chain.blocks import Block
from reference_server.chain.filters import LogQuery, Topics
from reference_server.chain.node import Node
from reference_server.chain.problems import BLOCK_UNKNOWN, RpcError, invalid

ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")


def quantity(value: Any, name: str = "quantity") -> int:
    """A number of at most 256 bits: hexadecimal as in the specification, or a JSON number as anvil allows."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**256:
        return value
    if isinstance(value, str) and QUANTITY.fullmatch(value):
        return int(value, 16)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 77:
        return int(value)
    raise invalid(f"{name}: {value!r} is not a quantity")


def data(value: Any, name: str = "data") -> bytes:
    if isinstance(value, str) and DATA.fullmatch(value):
        return bytes.fromhex(value[2:])
    raise invalid(f"{name}: {value!r} is not hexadecimal data")


def address(value: Any, name: str = "address") -> str:
    """An address, in lower case whatever its spelling was."""
    if isinstance(value, str) and ADDRESS.fullmatch(value):
        return value.lower()
    raise invalid(f"{name}: {value!r} is not an address")


def hash32(value: Any, name: str = "hash") -> bytes:
    digest = data(value, name)
    if len(digest) != 32:
        raise invalid(f"{name}: {value!r} does not have 32 bytes")
    return digest


def mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{name}: {value!r} is not an object")
    return value


def find_block(node: Node, value: Any) -> Block | None:
    """The block of a number, a tag or an EIP-1898 object; None when the chain has none such."""
    if isinstance(value, dict):
        if "blockHash" in value:
            return node.chain.block_by_hash(hash32(value["blockHash"], "blockHash"))
        value = value.get("blockNumber")
    if value is None:
        return node.chain.head
    if isinstance(value, str) and (block := node.tagged(value)):
        return block
    return node.chain.block(quantity(value, "block"))


def block_of(node: Node, value: Any) -> Block:
    """The block of a number, a tag or an EIP-1898 object; raises RpcError when the chain has none such."""
    block = find_block(node, value)
    if block is None:
        head = node.chain.head.number
        raise invalid(f"BlockOutOfRangeError: block height is {head} but requested was {value}")
    return block


def log_query(node: Node, value: Any) -> LogQuery:
    """A log filter's addresses and topics, and its block numbers where it gives some."""
    request = mapping(value, "filter")
    if "blockHash" in request:
        if "fromBlock" in request or "toBlock" in request:
            raise invalid("a filter has a blockHash or a range of blocks, not both")
        block = node.chain.block_by_hash(hash32(request["blockHash"], "blockHash"))
        if block is None:
            raise RpcError(BLOCK_UNKNOWN, "unknown block")
        first = last = block.number
        return LogQuery(_addresses(request), _topics(request), first, last)
    return LogQuery(
        _addresses(request),
        _topics(request),
        _bound(node, request.get("fromBlock")),
        _bound(node, request.get("toBlock")),
    )


def _bound(node: Node, value: Any) -> int | None:
    """A block number; None for a bound that moves with the head, or is not given."""
    if value in (None, "latest", "pending"):
        return None
    if isinstance(value, str) and (block := node.tagged(value)):
        return block.number
    return quantity(value, "block")


def _addresses(request: dict[str, Any]) -> frozenset[str] | None:
    wanted = request.get("address")
    if wanted is None or wanted == []:
        return None
    return frozenset(address(each) for each in (wanted if isinstance(wanted, list) else [wanted]))


def _topics(request: dict[str, Any]) -> Topics:
    wanted = request.get("topics") or []
    if not isinstance(wanted, list) or len(wanted) > 4:
        raise invalid(f"topics: {wanted!r} is not a list of at most 4")
    return tuple(
        None
        if place is None or place == []
        else frozenset(hash32(each, "topic") for each in (place if isinstance(place, list) else [place]))
        for place in wanted
    )
