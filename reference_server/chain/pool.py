"""The pool: transactions that wait for their block, at most one for each sender and nonce.

It lives in memory, as with every node: what waits in it is lost when the node is killed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from reference_server.chain.transactions import Transaction

TRANSACTIONS_MAX = 100_000
# What a replacement must pay more, on both fees (geth's txpool.pricebump).
BUMP_PERCENT = 10


class PoolError(Exception):
    """The pool refuses a transaction; says why in the words that clients know from geth."""


class Pool:
    """The waiting transactions; `nonce_of` gives a sender's next nonce in the chain's state."""

    def __init__(self, nonce_of: Callable[[str], int]) -> None:
        self._nonce_of = nonce_of
        self._senders: dict[str, dict[int, Transaction]] = {}
        self._by_hash: dict[bytes, tuple[int, Transaction]] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, transaction_hash: bytes) -> Transaction | None:
        found = self._by_hash.get(transaction_hash)
        return found[1] if found else None

    def add(self, transaction: Transaction) -> None:
        """Take a transaction, in place of its nonce's last when it pays enough more; raises PoolError."""
        if transaction.hash in self._by_hash:
            raise PoolError("already known")
        if transaction.nonce < self._nonce_of(transaction.sender):
            raise PoolError("nonce too low")
        waiting = self._senders.setdefault(transaction.sender, {})
        if replaced := waiting.get(transaction.nonce):
            if not _pays_more(transaction, replaced):
                raise PoolError("replacement transaction underpriced")
            del self._by_hash[replaced.hash]
        elif len(self) >= TRANSACTIONS_MAX:
            raise PoolError("txpool is full")
        waiting[transaction.nonce] = transaction
        self._arrivals += 1
        self._by_hash[transaction.hash] = (self._arrivals, transaction)

    def drop(self, transaction_hash: bytes) -> bool:
        """Forget a transaction; whether it was there."""
        found = self._by_hash.pop(transaction_hash, None)
        if found is None:
            return False
        _, transaction = found
        waiting = self._senders[transaction.sender]
        del waiting[transaction.nonce]
        if not waiting:
            del self._senders[transaction.sender]
        return True

    def clear(self) -> None:
        self._senders.clear()
        self._by_hash.clear()

    def forget_mined(self, senders: set[str]) -> None:
        """Forget what these senders have already used the nonce of."""
        for sender in senders & self._senders.keys():
            nonce = self._nonce_of(sender)
            for spent in [
                transaction for transaction in self._senders[sender].values() if transaction.nonce < nonce
            ]:
                self.drop(spent.hash)

    def next_nonce(self, sender: str) -> int:
        """The first nonce that is neither used nor waiting without a gap."""
        nonce = self._nonce_of(sender)
        waiting = self._senders.get(sender, {})
        while nonce in waiting:
            nonce += 1
        return nonce

    def ready(self, base_fee_wei: int) -> Iterator[Transaction]:
        """What can be mined at this base fee: best tip first, then by arrival; each sender in nonce order.

        A sender's next one follows only when the one before it was mined, that is, raised the nonce.
        """
        heap: list[tuple[int, int, bytes]] = []

        def push_next(sender: str) -> None:
            transaction = self._senders.get(sender, {}).get(self._nonce_of(sender))
            if transaction is not None and (tip := transaction.tip_wei(base_fee_wei)) >= 0:
                heapq.heappush(heap, (-tip, self._by_hash[transaction.hash][0], transaction.hash))

        for sender in list(self._senders):
            push_next(sender)
        while heap:
            transaction = self._by_hash[heapq.heappop(heap)[2]][1]
            yield transaction
            if self._nonce_of(transaction.sender) > transaction.nonce:
                push_next(transaction.sender)

    def content(self) -> tuple[list[Transaction], list[Transaction]]:
        """Those whose turn has come (pending), and those behind a gap (queued)."""
        pending: list[Transaction] = []
        queued: list[Transaction] = []
        for sender, waiting in self._senders.items():
            end = self.next_nonce(sender)
            for nonce, transaction in sorted(waiting.items()):
                (pending if nonce < end else queued).append(transaction)
        return pending, queued


def _pays_more(transaction: Transaction, replaced: Transaction) -> bool:
    return all(
        new * 100 >= old * (100 + BUMP_PERCENT)
        for new, old in (
            (transaction.max_fee_wei, replaced.max_fee_wei),
            (transaction.max_priority_fee_wei, replaced.max_priority_fee_wei),
        )
    )
