"""The watcher: reads the vault's events to a depth, books them once, and undoes what has left the chain.

One step:
  1. the head, and the newest checkpoint that is still the chain's: below the cursor, there was a
     reorganisation that went deeper than the confirmations;
  2. the events above that checkpoint, and the head again: had it changed, they would be of two chains;
  3. undo payments and reverse deposits whose blocks are gone, book those that are deep enough, and move the
     cursor: deposits and cursor in one transaction; payments before it, and booking one twice does nothing;
  4. write down what is above the cursor, for whom it may concern: no money moves for it;
  5. see to withdrawals that were sent and are in no block.

A node that is behind proves nothing: the cursor's block is only gone when there is another in its place, or
in the place of a block below it.

Why not compare block by block: the checkpoint tells that something changed, and what is booked has the hash
of its own block. The chain is asked for as many blocks as there are things to lose.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from web3 import Web3

from reference_server.chain.client import CustodyClient, Deposit, Withdrawal
from reference_server.chain.connection import is_known, mined, talking
from reference_server.watch_books import Booked, Checkpoint, Unmined, WatchBooks
from reference_server.withdrawal_ids import word_of

# What a node answers in one reply; a watcher that was away for long catches up in steps of this size.
BLOCKS_MAX = 1_000
CHECKPOINTS_PAGE = 100
# Withdrawals looked at in one step, lowest nonce first: the others wait for that.
UNMINED_MAX = 100

log = logging.getLogger("reference_server.watcher")


class WatchError(Exception):
    """The chain is not the one these books know; says why."""


class Events(NamedTuple):
    """What the vault did in a range of blocks."""

    deposits: Sequence[Deposit]
    payments: Sequence[Withdrawal]

    def up_to(self, number: int) -> Events:
        return Events(
            [one for one in self.deposits if one.place.block_number <= number],
            [one for one in self.payments if one.place.block_number <= number],
        )

    def above(self, number: int) -> Events:
        return Events(
            [one for one in self.deposits if one.place.block_number > number],
            [one for one in self.payments if one.place.block_number > number],
        )


class Watcher:
    """One vault on one chain. `step` raises ChainError, psycopg.Error and WatchError."""

    def __init__(
        self, books: WatchBooks, chain: CustodyClient, *, confirmations: int, resend_s: float, stuck_s: float
    ) -> None:
        self._books = books
        self._chain = chain
        self._confirmations = confirmations
        self._resend_s = resend_s
        self._stuck_s = stuck_s
        self._from_block = 0

    def begin(self, from_block: int) -> bool:
        """Go on or, the first time, begin at `from_block`; False when the node lacks the block before it."""
        start = self._block(from_block - 1)
        if start is None:
            return False
        self._from_block = from_block
        self._books.begin(self._chain.chain_id, self._chain.addresses.vault, start)
        return True

    def step(self) -> bool:
        """Look once; whether there is more to read at once."""
        head = self._block("latest")
        (cursor,) = self._books.checkpoints()
        fork = None if head is None else self._fork(head, cursor)
        if head is None or fork is None:
            log.info("the node is behind the books, which are at block %d", cursor.number)
            return False
        end_number = max(fork.number, min(head.number - self._confirmations, fork.number + BLOCKS_MAX))
        behind = head.number - end_number > self._confirmations
        last = end_number if behind else head.number
        events = self._events(fork.number + 1, last)
        end = fork if end_number == fork.number else self._block(end_number)
        gone = self._gone(self._books.deposits_above(fork.number)) if fork != cursor else []
        unpaid = self._gone(self._books.payments_above(fork.number)) if fork != cursor else []
        if end is None or self._block(head.number) != head:
            log.info("the chain changed while it was read")
            return True
        if fork != cursor:
            log.warning(
                "reorganised behind block %d: %d deposits and %d payments are gone",
                *(fork.number, len(gone), len(unpaid)),
            )
        answer = self._book(cursor, fork, end, events.up_to(end.number), gone, unpaid)
        if answer == "overtaken":
            return True
        if answer == "paused":
            log.info("the platform is paused: nothing is booked")
            end = fork
        if behind:
            return answer == "recorded"
        self._books.record_view(head, *events.above(end.number))
        if answer == "recorded":
            self._see_to_unmined(end)
        return False

    def _book(
        self,
        cursor: Checkpoint,
        fork: Checkpoint,
        end: Checkpoint,
        events: Events,
        gone: Sequence[Booked],
        unpaid: Sequence[Booked],
    ) -> str:
        if cursor == fork == end:
            return "recorded"
        if unpaid and not self._books.undo_payments(unpaid):
            return "paused"
        if events.payments and not self._books.record_payments(events.payments):
            return "paused"
        return self._books.record_deposits(cursor, fork, gone, end, events.deposits)

    def _fork(self, head: Checkpoint, cursor: Checkpoint) -> Checkpoint | None:
        """The newest checkpoint that is the chain's; None when that is the cursor but the node is behind it.

        Raises WatchError when not even the first is.
        """
        at_most, reorganised = min(head.number, cursor.number), False
        while page := self._books.checkpoints(at_most=at_most, limit=CHECKPOINTS_PAGE if reorganised else 1):
            for checkpoint in page:
                if self._block(checkpoint.number) == checkpoint:
                    return checkpoint if reorganised or checkpoint == cursor else None
                reorganised = True
            at_most = page[-1].number - 1
        if not reorganised:
            return None
        raise WatchError("the first checkpoint is not in this chain: it is another one, or began anew")

    def _gone(self, booked: Sequence[Booked]) -> list[Booked]:
        """Those whose block is not the chain's any more. Above the head there is nothing: all of it is."""
        blocks = {number: self._block(number) for number in {one.number for one in booked}}
        return [one for one in booked if blocks[one.number] != (one.number, one.hash)]

    def _see_to_unmined(self, end: Checkpoint) -> None:
        blocked: set[str] = set()
        for unmined in self._books.unmined(UNMINED_MAX):
            if unmined.waited_s >= self._resend_s and unmined.operator not in blocked:
                blocked |= self._see_to(unmined, end)

    def _see_to(self, unmined: Unmined, end: Checkpoint) -> set[str]:
        """Find out what became of a withdrawal that is in no block, and have done what it needs.

        Returns its operator when a nonce is missing, without which no later one can be spent.
        """
        if unmined.operator is None or unmined.nonce is None or unmined.tx_hash is None:
            self._books.resend(unmined, "postponed")
        elif unmined.nonce < self._nonce(unmined.operator, end.number):
            self._end_attempt(unmined, end)
        elif unmined.nonce < (next_nonce := self._nonce(unmined.operator, "latest")):
            log.debug("withdrawal %s: its nonce was spent just now", unmined.withdrawal_id)
        elif not is_known(self._chain.web3, unmined.tx_hash):
            log.warning("withdrawal %s: dropped", unmined.withdrawal_id)
            self._books.resend(unmined, "dropped")
        elif unmined.nonce > self._nonce(unmined.operator, "pending"):
            log.warning("withdrawal %s: a nonce before its own is missing", unmined.withdrawal_id)
            self._books.resend(unmined, "blocked")
            return {unmined.operator}
        elif unmined.waited_s >= self._stuck_s and unmined.nonce == next_nonce:
            # the first of the operator's: the others wait for it, not for a higher fee
            log.warning("withdrawal %s: stuck", unmined.withdrawal_id)
            self._books.resend(unmined, "stuck")
        return set()

    def _end_attempt(self, unmined: Unmined, end: Checkpoint) -> None:
        """The last attempt's nonce was spent deep enough, and not by a payment that was booked."""
        withdrawal_id = unmined.withdrawal_id
        if self._chain.find_withdrawal(word_of(withdrawal_id), from_block=self._from_block) is not None:
            log.error("withdrawal %s: the vault paid it, but not as it was asked to", withdrawal_id)
            return
        found = [mined(self._chain.web3, tx_hash) for tx_hash in self._books.hashes(withdrawal_id)]
        ours = [one for one in found if one is not None]
        if any(one.succeeded or one.block_number > end.number for one in ours):
            log.debug("withdrawal %s: the chain changed while it was read", withdrawal_id)
        elif ours:
            log.warning("withdrawal %s: reverted, given back", withdrawal_id)
            self._books.give_back(unmined, "reverted")
        else:
            log.warning("withdrawal %s: its nonce was spent by another transaction", withdrawal_id)
            self._books.resend(unmined, "replaced")

    def _events(self, first: int, last: int) -> Events:
        if last < first:
            return Events([], [])
        return Events(self._chain.deposit_events(first, last), self._chain.withdrawal_events(first, last))

    def _block(self, block: int | Literal["latest"]) -> Checkpoint | None:
        found = self._chain.block(block)
        return None if found is None else Checkpoint(found.number, found.hash)

    def _nonce(self, operator: str, block: int | Literal["latest", "pending"]) -> int:
        """How many nonces the operator had spent by a block; pending: also those that wait without a gap."""
        with talking():
            return self._chain.web3.eth.get_transaction_count(Web3.to_checksum_address(operator), block)
