"""Which transactions another branch leaves out: deposits as asked for, and whoever comes after them."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.faults.branch import Placed, left_out, read_branch
from chaos.vault import deposit_data, mint_data

VAULT = "0x" + "cd" * 20
OTHER = "0x" + "ee" * 20
ANN, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20


def placed(tx_hash: str, sender: str, nonce: int, place: int, *, deposit: bool = True) -> Placed:
    return Placed(tx_hash, sender, nonce, place, deposit)


BLOCKS = [
    placed("ann-1", ANN, 1, 0),
    placed("bob-1", BOB, 1, 0),
    placed("ann-2", ANN, 2, 1, deposit=False),
    placed("ann-3", ANN, 3, 2),
    placed("bob-2", BOB, 2, 2, deposit=False),
]


@pytest.mark.parametrize(
    ("wanted", "count", "gone"),
    [
        (["ann-1", "bob-1", "ann-3"], 0, []),
        # ann's first would take her second with it
        (["ann-1", "bob-1", "ann-3"], 1, ["bob-1", "bob-2"]),
        (["ann-3"], 1, ["ann-3"]),
        (["ann-1", "bob-1", "ann-3"], 2, ["ann-1", "ann-2", "ann-3"]),
        (["ann-1", "bob-1", "ann-3"], 3, ["ann-1", "bob-1", "ann-2", "ann-3", "bob-2"]),
        (["ann-3", "ann-1"], 2, ["ann-1", "ann-2", "ann-3"]),
        ([], 3, []),
    ],
)
def test_a_sender_whose_deposit_is_left_out_has_nothing_after_it(
    wanted: list[str], count: int, gone: list[str]
) -> None:
    assert [one.tx_hash for one in left_out(BLOCKS, wanted, count)] == gone


def test_blocks_are_read_in_their_order_with_their_places() -> None:
    def transaction(tx_hash: str, to: str | None, data: str) -> dict[str, Any]:
        return {"hash": tx_hash, "from": ANN.upper(), "to": to, "nonce": "0x7", "input": data}

    blocks = {
        "0x9": {"hash": "0xAA", "transactions": [transaction("0x1", VAULT.upper(), deposit_data("ann", 1))]},
        "0xa": {
            "hash": "0xBB",
            "transactions": [
                transaction("0x2", OTHER, deposit_data("ann", 1)),
                transaction("0x3", VAULT, mint_data(ANN, 1)),
                transaction("0x4", None, "0x"),
            ],
        },
    }
    branch = read_branch(lambda _, number, full: blocks[number] if full else {}, VAULT, head=10, depth=2)
    assert (branch.first, branch.head, branch.hashes) == (9, 10, ["0xaa", "0xbb"])
    assert [(one.tx_hash, one.place, one.deposit) for one in branch.transactions] == [
        ("0x1", 0, True),
        ("0x2", 1, False),
        ("0x3", 1, False),
        ("0x4", 1, False),
    ]
    assert {(one.sender, one.nonce) for one in branch.transactions} == {(ANN.lower(), 7)}
