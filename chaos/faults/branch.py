"""The newest blocks of a chain as transactions in their places, and which of them another branch leaves out.

Who leaves a transaction out leaves out all later ones of its sender: their nonces would come too early.
Everything else keeps its place, so that what is true of a block's number stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from chaos.vault import Ask, is_deposit


class Placed(NamedTuple):
    """A mined transaction; `place` counts the blocks of the branch from 0."""

    tx_hash: str
    sender: str
    nonce: int
    place: int
    deposit: bool


class Branch(NamedTuple):
    """The newest blocks, oldest first: their hashes, and their transactions in the chain's order."""

    first: int
    hashes: list[str]
    transactions: list[Placed]

    @property
    def head(self) -> int:
        return self.first + len(self.hashes) - 1


def read_branch(ask: Ask, vault: str, *, head: int, depth: int) -> Branch:
    """The newest `depth` blocks; raises RpcError."""
    first = head - depth + 1
    blocks = [ask("eth_getBlockByNumber", hex(number), True) for number in range(first, head + 1)]
    return Branch(
        first=first,
        hashes=[block["hash"].lower() for block in blocks],
        transactions=[
            _placed(transaction, place, vault)
            for place, block in enumerate(blocks)
            for transaction in block["transactions"]
        ],
    )


def left_out(transactions: Sequence[Placed], wanted: Iterable[str], count: int) -> list[Placed]:
    """The transactions that go with at most `count` deposits, taken from `wanted` (hashes) in its order.

    A deposit whose sender has later ones counts with them; one that would make it too many is passed over.
    """
    by_hash = {one.tx_hash: one for one in transactions}
    out: dict[str, Placed] = {}
    for tx_hash in wanted:
        chosen = by_hash[tx_hash]
        with_it = {
            one.tx_hash: one
            for one in transactions
            if one.sender == chosen.sender and one.nonce >= chosen.nonce
        }
        if sum(one.deposit for one in (out | with_it).values()) <= count:
            out |= with_it
    return [one for one in transactions if one.tx_hash in out]


def _placed(transaction: dict[str, Any], place: int, vault: str) -> Placed:
    to_vault = (transaction["to"] or "").lower() == vault.lower()
    return Placed(
        tx_hash=transaction["hash"].lower(),
        sender=transaction["from"].lower(),
        nonce=int(transaction["nonce"], 16),
        place=place,
        deposit=to_vault and is_deposit(transaction["input"]),
    )
