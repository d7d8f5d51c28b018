"""Filters: what a client asked to be told of, and what has happened since it last asked.

A reorganisation is told as in geth: the logs of the blocks that are no more, marked as removed, then the
new ones. Filters live in memory; a client that needs to miss nothing reads logs by block range.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from reference_server.chain.blocks import Block, Receipt
from reference_server.chain.machine import Event
from reference_server.chain.transactions import Transaction

FILTERS_MAX = 1_000
CHANGES_MAX = 100_000

Topics = tuple[frozenset[bytes] | None, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """One event of a receipt, with its place on the chain."""

    event: Event
    block: Block
    receipt: Receipt
    index: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which logs: by address and topics, None for any; block numbers are None where they are open."""

    addresses: frozenset[str] | None = None
    topics: Topics = ()
    from_block: int | None = None
    to_block: int | None = None

    def matches(self, event: Event) -> bool:
        if self.addresses is not None and event.address not in self.addresses:
            return False
        if len(self.topics) > len(event.topics):
            return False
        return all(
            wanted is None or topic in wanted
            for wanted, topic in zip(self.topics, event.topics, strict=False)
        )

    def logs(self, block: Block, *, removed: bool = False) -> Iterator[Log]:
        """The logs of this block that match, in order."""
        if not block.bloom:
            return
        for receipt in block.receipts:
            for place, event in enumerate(receipt.events):
                if self.matches(event):
                    yield Log(event, block, receipt, receipt.first_log + place, removed)

    def covers(self, number: int) -> bool:
        return (self.from_block is None or number >= self.from_block) and (
            self.to_block is None or number <= self.to_block
        )


Change = Log | bytes


@dataclass(slots=True)
class Filter:
    """One filter: `query` is there when it is one for logs."""

    kind: Literal["logs", "blocks", "transactions"]
    query: LogQuery | None = None
    changes: list[Change] = field(default_factory=list)


class Filters:
    """All installed filters; the longest unasked is forgotten when there are too many."""

    def __init__(self) -> None:
        self._filters: OrderedDict[int, Filter] = OrderedDict()
        self._last = 0

    def install(self, new: Filter) -> int:
        """The number under which to ask for its changes."""
        self._last += 1
        self._filters[self._last] = new
        if len(self._filters) > FILTERS_MAX:
            self._filters.popitem(last=False)
        return self._last

    def uninstall(self, number: int) -> bool:
        return self._filters.pop(number, None) is not None

    def get(self, number: int) -> Filter | None:
        found = self._filters.get(number)
        if found is not None:
            self._filters.move_to_end(number)
        return found

    def take_changes(self, number: int) -> list[Change] | None:
        """What happened since the last time; None when there is no such filter."""
        found = self.get(number)
        if found is None:
            return None
        changes, found.changes = found.changes, []
        return changes

    def block_added(self, block: Block) -> None:
        for each in self._filters.values():
            if each.kind == "blocks":
                each.changes.append(block.hash)
            elif each.query is not None and each.query.covers(block.number):
                each.changes.extend(each.query.logs(block))
            self._bound(each)

    def block_removed(self, block: Block) -> None:
        for each in self._filters.values():
            if each.query is not None and each.query.covers(block.number):
                each.changes.extend(each.query.logs(block, removed=True))
            self._bound(each)

    def transaction_added(self, transaction: Transaction) -> None:
        for each in self._filters.values():
            if each.kind == "transactions":
                each.changes.append(transaction.hash)
                self._bound(each)

    def _bound(self, each: Filter) -> None:
        # Nobody asks any more: keep the newest.
        del each.changes[:-CHANGES_MAX]
