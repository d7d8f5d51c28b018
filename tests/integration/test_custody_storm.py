"""Deposits, withdrawals and everything a chain can do to them, mixed at random: the books come out right."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from reference_server.chain.connection import SignedTransaction
from tests.integration.custody_desk import USDC, CustodyDesk, custody, custody_chain
from tests.integration.lossy_node import LossyNode

__all__ = ["custody", "custody_chain"]

STEPS = 60
ROUNDS_MAX = 60
DEPTH_MAX = 8
SEND = "eth_sendRawTransaction"
LOSSES: tuple[dict[str, str], ...] = ({}, {}, {SEND: "request"}, {SEND: "reply"})
# Whatever a lease or a wait would keep back.
DUE = "UPDATE outbox_events SET next_attempt_at = now() WHERE status = 'pending'"
OPEN = "SELECT count(*) FROM withdrawals WHERE status IN ('reserved', 'sent', 'mined')"
FREE = """SELECT balance - user_debt(user_id) FROM accounts
           WHERE user_id = %s AND kind = 'user_available'"""


class Storm:
    """One run of random steps; the same seed is the same run."""

    def __init__(self, custody: CustodyDesk, node: LossyNode, seed: int) -> None:
        self.custody = custody
        self.node = node
        self.payouts = custody.new_payouts(rpc=node.url)
        self.random = random.Random(seed)
        self.users = [custody.user() for _ in range(3)]
        self.withdrawals: list[UUID] = []
        self.signed: list[SignedTransaction] = []
        for user in self.users:
            self.signed.append(custody.deposit(user, 100 * USDC))
        custody.bury()
        custody.watch()
        custody.mine(DEPTH_MAX)  # what everybody begins with is never reorganised away

    def step(self) -> None:
        """Something happens."""
        happenings = [
            (6, self.withdraw), (3, self.deposit), (6, self.relay), (6, self.custody.watch), (4, self.mine),
            (3, self.reorganise), (2, self.drop), (1, self.automine), (1, self.interfere),
        ]  # fmt: skip
        weights, calls = zip(*happenings, strict=True)
        (call,) = self.random.choices(calls, weights)
        call()

    def withdraw(self) -> None:
        user = self.random.choice(self.users)
        amount = self.random.randint(1, 10) * USDC
        if self.custody.ask(FREE, user) >= amount:
            self.withdrawals.append(self.custody.withdraw(user, amount))

    def deposit(self) -> None:
        self.custody.rpc("evm_setAutomine", True)
        self.custody.mine()
        named = self.random.choice([*self.users, "nobody"])
        self.signed.append(self.custody.deposit(named, self.random.randint(1, 10) * USDC))

    def relay(self) -> None:
        """The due events, over a bad line, some of them twice or not marked: a relay that is killed."""
        for event in self.custody.claim():
            for _ in range(self.random.choice((1, 1, 2))):
                self.node.lose = self.random.choice(LOSSES)
                outcome = self.custody.delivered(event, self.payouts)
            if self.random.random() < 0.8:
                self.custody.outbox.mark([outcome])
        self.custody.admin.execute(DUE)

    def mine(self) -> None:
        self.custody.mine(self.random.randint(1, 4))

    def reorganise(self) -> None:
        """Some of what was ever signed is in the new blocks; the node leaves out what cannot be."""
        depth = self.random.randint(1, DEPTH_MAX)
        rows = self.custody.admin.execute("SELECT tx_hash, raw, nonce FROM withdrawal_attempts").fetchall()
        known = self.signed + [SignedTransaction(*row) for row in rows]
        chosen = sorted((one for one in known if self.random.random() < 0.5), key=lambda one: one.nonce)
        places = sorted(self.random.randrange(depth) for _ in chosen)
        self.custody.reorganise(depth, *zip(chosen, places, strict=True))

    def drop(self) -> None:
        self.custody.rpc("anvil_dropAllTransactions")

    def automine(self) -> None:
        self.custody.rpc("evm_setAutomine", self.random.random() < 0.5)

    def interfere(self) -> None:
        """The operator's account does something else."""
        self.custody.spend_nonce(self.custody.client.next_nonce(waiting=False))

    def calm(self) -> None:
        """Everything comes to its end."""
        self.custody.rpc("evm_setAutomine", True)
        for _ in range(ROUNDS_MAX):
            self.custody.admin.execute(DUE)
            self.custody.relay()
            self.custody.bury()
            self.custody.watch()
            if self.custody.ask(OPEN) == 0:
                return
        raise AssertionError("a withdrawal is under way for ever")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_books_are_the_chain_in_the_end(custody: CustodyDesk, seed: int) -> None:
    with LossyNode(custody.chain.url) as node:
        storm = Storm(custody, node, seed)
        for _ in range(STEPS):
            storm.step()
    storm.calm()
    paid = {one.withdrawal_id: one for one in custody.client.withdrawal_events(custody.first_block, "latest")}
    assert len(paid) == custody.payments()
    assert {custody.withdrawal(one) for one in storm.withdrawals} <= {"final", "returned"}
    assert len(paid) == sum(custody.withdrawal(one) == "final" for one in storm.withdrawals)
    assert custody.balance("withdraw_in_flight") == 0
    custody.assert_books_agree()
