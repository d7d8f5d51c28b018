"""Notices: an inbox is told what has come of deposits and withdrawals, once, in order, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.supervisor import Supervisor
from reference_server.chain.connection import SignedTransaction
from reference_server.withdrawal_ids import word_of
from tests.integration.custody_desk import CONFIRMATIONS, USDC, CustodyDesk, custody, custody_chain
from tests.integration.relay_process import RelayProcess, World, wait_until

__all__ = ["custody", "custody_chain"]

AMOUNT = 100 * USDC
CREDITED, REVERSED = "notice.deposit_credited", "notice.deposit_reversed"
PAID, RETURNED = "notice.withdrawal_paid", "notice.withdrawal_returned"


def inbox(custody: CustodyDesk, user_id: str) -> list[dict[str, Any]]:
    """What a user is told, in the order in which it leaves."""
    rows = custody.admin.execute(
        """SELECT to_jsonb(e) FROM outbox_events AS e
            WHERE aggregate_type = 'inbox' AND aggregate_id = %s ORDER BY event_id""",
        [user_id],
    ).fetchall()
    return [event for (event,) in rows]


def told(custody: CustodyDesk, user_id: str) -> list[str]:
    return [event["event_type"] for event in inbox(custody, user_id)]


@pytest.fixture
def user(custody: CustodyDesk) -> str:
    return custody.user()


@pytest.fixture
def rich(custody: CustodyDesk, user: str) -> str:
    """A user whose deposit is credited."""
    custody.deposit(user, AMOUNT, buried=True)
    custody.watch()
    return user


def pay(custody: CustodyDesk) -> None:
    """What is asked for is paid, deep enough, and booked."""
    assert custody.relay() == []
    custody.bury()
    custody.watch()


def test_who_is_credited_is_told_when_the_money_is_there(custody: CustodyDesk, user: str) -> None:
    deposit = custody.deposit(user, 12_500_000)
    custody.watch()
    assert inbox(custody, user) == []
    custody.bury()
    custody.watch()
    (notice,) = inbox(custody, user)
    assert notice["event_type"] == CREDITED
    (transaction_id, sender) = custody.ask("SELECT ARRAY[transaction_id::text, sender] FROM deposits")
    assert notice["dedup_key"] == f"notice:{transaction_id}"
    assert notice["payload"] == {
        "title": f"Deposit of 12.5 USDC credited to {user}",
        "text": f"It came from {sender} in transaction {deposit.hash}.",
        "user_id": user,
        "amount_micro": 12_500_000,
        "deposit_id": 1,
        "tx_hash": deposit.hash,
    }


def test_looking_again_tells_nobody_again(custody: CustodyDesk, rich: str) -> None:
    custody.watch(custody.new_watcher())
    custody.mine(3)
    custody.watch()
    assert told(custody, rich) == [CREDITED]


def test_a_credit_that_is_undone_was_never_told(custody: CustodyDesk, user: str) -> None:
    custody.deposit(user, AMOUNT, buried=True)
    custody.admin.execute("ALTER TABLE chain_checkpoints ADD CONSTRAINT broken CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        custody.watch()
    assert inbox(custody, user) == []
    custody.admin.execute("ALTER TABLE chain_checkpoints DROP CONSTRAINT broken")
    custody.watch()
    assert told(custody, user) == [CREDITED]


def test_who_loses_a_deposit_to_a_reorganisation_is_told(custody: CustodyDesk, rich: str) -> None:
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    notice = inbox(custody, rich)[-1]
    assert (notice["event_type"], notice["dedup_key"]) == (REVERSED, "notice:reversed:1")
    assert (notice["payload"]["user_id"], notice["payload"]["amount_micro"]) == (rich, AMOUNT)


def test_a_deposit_that_comes_back_in_the_same_step_is_told_after_its_loss(
    custody: CustodyDesk, user: str
) -> None:
    deposit = custody.deposit(user, AMOUNT, buried=True)
    custody.watch()
    custody.reorganise(CONFIRMATIONS + 1, (deposit, 0))
    custody.watch()
    assert custody.deposits() == ["reversed", "credited"]
    assert told(custody, user) == [CREDITED, REVERSED, CREDITED]
    keys = [event["dedup_key"] for event in inbox(custody, user)]
    ids = custody.ask("SELECT array_agg(transaction_id ORDER BY deposit_id) FROM deposits")
    assert keys == [f"notice:{ids[0]}", "notice:reversed:1", f"notice:{ids[1]}"]


def test_who_is_not_known_is_told_when_the_deposit_is_assigned(custody: CustodyDesk, user: str) -> None:
    custody.deposit("nobody", AMOUNT, buried=True)
    custody.watch()
    assert custody.ask("SELECT count(*) FROM outbox_events WHERE aggregate_type = 'inbox'") == 0
    custody.ask("SELECT assign_deposit(1, %s)", user)
    (notice,) = inbox(custody, user)
    transaction_id = custody.ask("SELECT transaction_id FROM deposits")
    assert (notice["event_type"], notice["dedup_key"]) == (CREDITED, f"notice:{transaction_id}")
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert told(custody, user) == [CREDITED, REVERSED]


def test_a_deposit_of_nobody_that_is_gone_is_told_to_nobody(custody: CustodyDesk) -> None:
    custody.deposit("nobody", AMOUNT, buried=True)
    custody.watch()
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.deposits() == ["reversed"]
    assert custody.ask("SELECT count(*) FROM outbox_events WHERE event_type LIKE 'notice.%%'") == 0


def test_who_is_paid_is_told_when_it_is_final(custody: CustodyDesk, rich: str) -> None:
    withdrawal = custody.withdraw(rich, 10 * USDC)
    tx_hash = custody.sent(withdrawal)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "mined"
    assert told(custody, rich) == [CREDITED]
    custody.bury()
    custody.watch()
    notice = inbox(custody, rich)[-1]
    assert notice["event_type"] == PAID
    assert notice["dedup_key"] == f"notice:{custody.withdrawal(withdrawal, 'end_transaction_id')}"
    assert notice["payload"] == {
        "title": f"Withdrawal of 10 USDC by {rich} paid",
        "text": f"It went to {custody.withdrawal(withdrawal, 'address')} in transaction {tx_hash}.",
        "user_id": rich,
        "amount_micro": 10 * USDC,
        "withdrawal_id": str(withdrawal),
        "tx_hash": tx_hash,
    }


def test_a_payment_that_is_undone_and_booked_anew_is_told_anew(custody: CustodyDesk, rich: str) -> None:
    withdrawal = custody.withdraw(rich, 10 * USDC)
    pay(custody)
    raw = custody.ask("SELECT raw FROM withdrawal_attempts")
    signed = SignedTransaction(hash=custody.withdrawal(withdrawal, "tx_hash"), raw=raw, nonce=0)
    custody.reorganise(CONFIRMATIONS + 1, (signed, 0))
    custody.watch()  # undone and booked in one look
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "sent"
    custody.watch()
    pay(custody)
    assert custody.withdrawal(withdrawal) == "final"
    ends = custody.ask("SELECT array_agg(transaction_id) FROM transactions WHERE kind = 'withdraw_final'")
    assert [(event["event_type"], event["dedup_key"]) for event in inbox(custody, rich)[1:]] == [
        (PAID, f"notice:{transaction_id}") for transaction_id in sorted(ends)
    ]
    assert len(ends) == 3


def test_who_gets_the_money_back_is_told_why_and_not_that_it_was_paid_after_all(
    custody: CustodyDesk, rich: str
) -> None:
    withdrawal = custody.withdraw(rich, 10 * USDC)
    custody.ask("SELECT return_withdrawal(%s, 0, 'reverted')", withdrawal)
    notice = inbox(custody, rich)[-1]
    assert notice["event_type"] == RETURNED
    assert notice["dedup_key"] == f"notice:{custody.withdrawal(withdrawal, 'end_transaction_id')}"
    assert notice["payload"] == {
        "title": f"Withdrawal of 10 USDC by {rich} returned",
        "text": "It could not be paid (reverted). The money is available again.",
        "user_id": rich,
        "amount_micro": 10 * USDC,
        "withdrawal_id": str(withdrawal),
        "reason": "reverted",
    }
    custody.ask("SELECT return_withdrawal(%s, 0, 'reverted')", withdrawal)
    custody.pay_by_hand(word_of(withdrawal), custody.withdrawal(withdrawal, "address"), 10 * USDC)
    custody.bury()
    custody.watch()
    assert custody.withdrawal(withdrawal) == "final"
    assert told(custody, rich) == [CREDITED, RETURNED]


@pytest.fixture
def world(supervisor: Supervisor, tmp_path: Path) -> Iterator[World]:
    world = World(supervisor, tmp_path)
    yield world
    world.child.terminate()


def test_two_relays_bring_each_inbox_its_notices_once_and_in_order(
    custody: CustodyDesk, supervisor: Supervisor, world: World
) -> None:
    users = [custody.user() for _ in range(3)]
    for user in users * 2:
        custody.deposit(user, USDC)
    custody.bury()
    custody.watch()
    custody.reorganise(4 * 3 + CONFIRMATIONS)  # all but the first two deposits
    custody.watch()
    relays = [RelayProcess(supervisor, custody.database, world) for _ in range(2)]
    left = "SELECT count(*) FROM outbox_events WHERE status <> 'delivered'"
    wait_until(lambda: custody.ask(left) == 0, "everything is delivered")
    for relay in relays:
        relay.end()
    effects = [note.key for note in world.notes("effect")]
    assert len(effects) == len(set(effects)) == 6 + 4
    for user in users:
        keys = [event["dedup_key"] for event in inbox(custody, user)]
        assert [key for key in effects if key in keys] == keys
