"""Withdrawals on the chain: paid once, whatever is lost, dropped, replaced, reverted, killed, reorganised."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest

from chaos.supervisor import Child, Supervisor
from chaos.target import REFERENCE_COMMAND
from reference_server.chain.connection import SignedTransaction
from reference_server.relay.event import Event
from reference_server.withdrawal_ids import id_of, word_of
from tests.integration.custody_desk import (
    CONFIRMATIONS,
    USDC,
    CustodyDesk,
    custody,
    custody_chain,
)
from tests.integration.lossy_node import LossyNode
from tests.integration.market_client import lock_held, meanwhile, question
from tests.integration.relay_process import wait_until

__all__ = ["custody", "custody_chain"]

FUNDS = 100 * USDC
AMOUNT = 10 * USDC
SEND = "eth_sendRawTransaction"


@pytest.fixture
def user(custody: CustodyDesk) -> str:
    """A user whose money is in the vault."""
    user_id = custody.user()
    custody.deposit(user_id, FUNDS, buried=True)
    custody.watch()
    assert custody.available(user_id) == FUNDS
    return user_id


def settle(custody: CustodyDesk, *, rounds: int = 20) -> None:
    """Relay, mine and watch until no withdrawal is under way."""
    open_ones = "SELECT count(*) FROM withdrawals WHERE status IN ('reserved', 'sent', 'mined')"
    for _ in range(rounds):
        custody.relay()
        custody.mine()
        custody.watch()
        if custody.ask(open_ones) == 0:
            return
    raise AssertionError("a withdrawal is under way for ever")


def assert_paid_once(custody: CustodyDesk, user_id: str, *withdrawals: UUID, amount: int = AMOUNT) -> None:
    """Paid on the chain and in the books, once each, and both agree."""
    assert [custody.withdrawal(one) for one in withdrawals] == ["final"] * len(withdrawals)
    assert custody.payments() == len(withdrawals)
    assert custody.custody() == FUNDS - amount * len(withdrawals)
    assert custody.available(user_id) == FUNDS - amount * len(withdrawals)
    assert custody.balance("withdraw_in_flight") == 0
    custody.assert_books_agree()


def signed_of(custody: CustodyDesk, withdrawal_id: UUID) -> SignedTransaction:
    """The last transaction that was signed for a withdrawal."""
    raw = custody.ask(
        "SELECT raw FROM withdrawal_attempts WHERE withdrawal_id = %s ORDER BY attempt DESC LIMIT 1",
        withdrawal_id,
    )
    nonce, tx_hash = custody.attempts(withdrawal_id)[-1]
    return SignedTransaction(hash=tx_hash, raw=raw, nonce=nonce)


@contextmanager
def held_blocks(custody: CustodyDesk) -> Iterator[None]:
    """Transactions wait until a block is asked for."""
    custody.rpc("evm_setAutomine", False)
    yield
    custody.rpc("evm_setAutomine", True)


def test_a_withdrawal_goes_from_reserved_to_final(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "reserved"
    custody.assert_books_agree()
    with held_blocks(custody):
        tx_hash = custody.sent(withdrawal)
        custody.watch()
        custody.assert_books_agree()
        custody.mine()
    custody.watch()
    assert custody.withdrawal(withdrawal) == "mined"
    assert custody.withdrawal(withdrawal, "tx_hash") == tx_hash
    assert custody.balance("withdraw_in_flight") == AMOUNT
    custody.assert_books_agree()
    custody.bury()
    custody.watch()
    assert_paid_once(custody, user, withdrawal)
    assert custody.relay() == []


def test_ids_of_the_books_and_of_the_chain_are_each_others(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    assert id_of(word_of(withdrawal)) == withdrawal
    assert id_of(b"\1" * 32) is None
    settle(custody)
    assert custody.client.find_withdrawal(word_of(withdrawal)) is not None


def test_many_withdrawals_by_many_threads_are_paid_once_each_without_a_gap(
    custody: CustodyDesk, user: str
) -> None:
    first_nonce = custody.client.next_nonce()
    withdrawals = [custody.withdraw(user, USDC) for _ in range(12)]
    with held_blocks(custody), ThreadPoolExecutor(6) as threads:
        list(threads.map(custody.payouts.deliver, custody.claim()))
    settle(custody)
    nonces = sorted(nonce for one in withdrawals for nonce, _ in custody.attempts(one))
    assert nonces == list(range(first_nonce, first_nonce + 12))
    assert_paid_once(custody, user, *withdrawals, amount=USDC)


def test_two_relays_with_one_event_sign_and_pay_once(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    (event,) = custody.claim()
    payouts = [custody.new_payouts() for _ in range(3)]
    dsn = custody.database.admin_dsn
    row = "SELECT withdrawal_id FROM withdrawals WHERE withdrawal_id = %s FOR UPDATE"
    waiting = (
        "SELECT count(*) = 3 FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'reference_server payouts' AND wait_event_type = 'Lock'"
    )
    with meanwhile(3) as start:
        with lock_held(dsn, row, withdrawal):
            asked = [start(one.deliver, event) for one in payouts]
            # nobody has signed, and all of them have seen that
            wait_until(lambda: bool(question(dsn, waiting)), "all want to sign")
        errors = [str(one.exception()) for one in asked if one.exception() is not None]
    assert errors == ["somebody else signed meanwhile, or the platform is paused"] * 2
    ((nonce, _),) = custody.attempts(withdrawal)
    assert custody.ask("SELECT next_nonce FROM operators") == nonce + 1
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_lost_rpc_reply_is_resolved_by_looking(custody: CustodyDesk, user: str, lost: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    with LossyNode(custody.chain.url) as node:
        node.lose[SEND] = lost
        payouts = custody.new_payouts(rpc=node.url)
        (error,) = custody.relay(payouts)
        assert "ChainUnavailable" in error
        assert custody.withdrawal(withdrawal) == "reserved"
        node.lose.clear()
        assert custody.relay(payouts) == []
        # what the node had was found, what it had not was sent again: the same transaction
        assert node.asked.count(SEND) == (1 if lost == "reply" else 2)
    assert len(custody.attempts(withdrawal)) == 1
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


class RelayCommand:
    """A relay process that pays; its key is in its environment."""

    def __init__(self, custody: CustodyDesk, supervisor: Supervisor, rpc: str) -> None:
        command = [*REFERENCE_COMMAND, "relay", "--dsn", custody.dsn, "--rpc", rpc, "--poll-s", "0.05"]
        command += ["--vault", custody.addresses.vault, "--usdc", custody.addresses.usdc]
        command += ["--operator-key-env", "KEY_OF_A_TEST", "--lease-s", "1.0", "--retry-base-s", "0.05"]
        name = f"payer-{time.monotonic_ns()}"
        environment = {"KEY_OF_A_TEST": custody.operator_key}
        self.child: Child = supervisor.spawn(name, command, critical=False, env=environment)


@pytest.mark.parametrize("lost", ["request", "reply"], ids=["before sending", "between sending and marking"])
def test_a_relay_that_is_killed_pays_once(
    custody: CustodyDesk, supervisor: Supervisor, user: str, lost: str
) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    with LossyNode(custody.chain.url) as node:
        node.lose[SEND] = lost
        first = RelayCommand(custody, supervisor, node.url)
        node.await_loss()
        first.child.kill()
        assert custody.withdrawal(withdrawal) == "reserved"
        second = RelayCommand(custody, supervisor, custody.chain.url)
        wait_until(lambda: custody.withdrawal(withdrawal) != "reserved", "the second relay sees to it")
        second.child.terminate()
    assert len(custody.attempts(withdrawal)) == 1
    assert custody.operator_key not in second.child.log_tail(1_000)
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


def test_a_relay_without_the_key_says_so(custody: CustodyDesk, supervisor: Supervisor) -> None:
    command = [*REFERENCE_COMMAND, "relay", "--dsn", custody.dsn, "--rpc", custody.chain.url]
    command += ["--vault", custody.addresses.vault, "--usdc", custody.addresses.usdc]
    for value, what in ((None, "is to hold the operator's key"), ("secret", "is not a private key")):
        environment = {} if value is None else {"SEATRIAL_OPERATOR_KEY": value}
        child = supervisor.spawn(f"payer-{what[:6]}", command, critical=False, env=environment)
        assert child.wait(20.0) == 2
        assert what in child.log_tail()
        assert "secret" not in child.log_tail()


def test_the_key_is_nowhere_in_the_books(custody: CustodyDesk, user: str) -> None:
    custody.withdraw(user, AMOUNT)
    settle(custody)
    found = custody.ask(
        "SELECT count(*) FROM withdrawal_attempts AS a WHERE strpos(a::text, %s) > 0",
        custody.operator_key[2:],
    )
    assert found == 0


def test_what_the_node_dropped_is_sent_again_as_it_was(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    with held_blocks(custody):
        for _ in range(3):
            assert custody.relay() == []
            tx_hash = custody.withdrawal(withdrawal, "tx_hash")
            custody.rpc("anvil_dropTransaction", tx_hash)
            custody.watch()
        custody.watch()  # asked for once, however often it is looked at
        (event,) = custody.claim()
        assert (event.event_type, event.payload["reason"]) == ("withdrawal.resend", "dropped")
        custody.payouts.deliver(event)
    assert custody.attempts(withdrawal) == [(signed_of(custody, withdrawal).nonce, tx_hash)]
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


def test_what_is_stuck_is_replaced_under_its_nonce_for_a_higher_fee(custody: CustodyDesk, user: str) -> None:
    impatient = custody.new_watcher(stuck_s=0.0)
    first, second = custody.withdraw(user, AMOUNT), custody.withdraw(user, AMOUNT)
    with held_blocks(custody):
        assert custody.relay() == []
        custody.watch(impatient)
        assert custody.relay() == []
        one, other = sorted((first, second), key=lambda each: custody.attempts(each)[0])
        (nonce, _), (raised_nonce, raised_hash) = custody.attempts(one)
        assert nonce == raised_nonce
        assert len(custody.attempts(other)) == 1  # it waits for its turn
        custody.watch()
        assert custody.withdrawal(one, "tx_hash") == raised_hash
    settle(custody)
    assert custody.is_mined(raised_hash)
    assert_paid_once(custody, user, first, second)


def test_a_fee_is_raised_up_to_a_bound(custody: CustodyDesk, user: str) -> None:
    impatient, thrifty = custody.new_watcher(stuck_s=0.0), custody.new_payouts(max_fee_gwei=1)
    withdrawal = custody.withdraw(user, AMOUNT)
    with held_blocks(custody):
        custody.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**6))
        custody.mine()
        assert custody.relay(thrifty) == []
        errors: list[str] = []
        for _ in range(60):
            custody.watch(impatient)
            if errors := custody.relay(thrifty):
                break
        assert "above --max-fee-gwei 1" in errors[0]
    fees = custody.ask("SELECT max(max_fee) FROM withdrawal_attempts WHERE withdrawal_id = %s", withdrawal)
    assert fees <= 10**9
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


def test_what_was_replaced_by_another_transaction_is_sent_again_under_the_same_id(
    custody: CustodyDesk, user: str
) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    with held_blocks(custody):
        custody.sent(withdrawal)
        ((nonce, _),) = custody.attempts(withdrawal)
        custody.spend_nonce(nonce)
        custody.watch()
        assert custody.relay() == []
        assert len(custody.attempts(withdrawal)) == 1  # that block may still leave the chain
        custody.bury()
        custody.watch()
        (event,) = custody.claim()
        assert (event.event_type, event.payload["reason"]) == ("withdrawal.resend", "replaced")
        for _ in range(2):  # the second time, as by a relay that was killed before the mark
            custody.payouts.deliver(event)
    settle(custody)
    assert [found for found, _ in custody.attempts(withdrawal)] == [nonce, nonce + 1]
    assert_paid_once(custody, user, withdrawal)


def test_what_reverted_comes_back(custody: CustodyDesk, user: str) -> None:
    rich = custody.user(funds=10 * FUNDS)  # in the books alone: the vault cannot pay it
    withdrawal = custody.withdraw(rich, 10 * FUNDS)
    assert custody.relay() == []
    custody.watch()
    assert custody.withdrawal(withdrawal) == "sent"  # that block may still leave the chain
    settle(custody)
    assert (custody.withdrawal(withdrawal), custody.withdrawal(withdrawal, "reason")) == (
        "returned",
        "reverted",
    )
    assert custody.available(rich) == 10 * FUNDS
    assert custody.balance("withdraw_in_flight") == 0
    assert custody.payments() == 0
    custody.assert_books_agree(unbacked=10 * FUNDS)
    paid = custody.withdraw(user, AMOUNT)
    settle(custody)
    assert_paid_once_beside(custody, paid)


def assert_paid_once_beside(custody: CustodyDesk, withdrawal_id: UUID) -> None:
    assert custody.withdrawal(withdrawal_id) == "final"
    assert custody.payments() == 1


def test_a_watcher_that_fails_between_payment_and_cursor_books_the_payment_once(
    custody: CustodyDesk, user: str
) -> None:
    paid = custody.withdraw(user, AMOUNT)
    custody.sent(paid)
    waiting = custody.withdraw(user, AMOUNT)
    custody.bury()
    custody.admin.execute("ALTER TABLE chain_checkpoints ADD CONSTRAINT broken CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        custody.watch()
    assert custody.withdrawal(paid) == "final"
    custody.admin.execute("ALTER TABLE chain_checkpoints DROP CONSTRAINT broken")
    custody.watch()
    assert custody.transactions("withdraw_final") == 1
    assert custody.balance("withdraw_in_flight") == AMOUNT
    settle(custody)
    assert_paid_once(custody, user, paid, waiting)


def test_a_payment_whose_block_is_gone_before_it_is_deep_is_sent_again(
    custody: CustodyDesk, user: str
) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    tx_hash = custody.sent(withdrawal)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "mined"
    custody.reorganise(1)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "sent"
    custody.assert_books_agree()
    settle(custody)
    assert custody.attempts(withdrawal)[-1][1] == tx_hash
    assert_paid_once(custody, user, withdrawal)


def test_a_final_payment_whose_block_is_gone_is_undone_and_sent_again(
    custody: CustodyDesk, user: str
) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    settle(custody)
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.withdrawal(withdrawal) == "sent"
    assert custody.balance("withdraw_in_flight") == AMOUNT
    custody.assert_books_agree()
    settle(custody)
    assert custody.transactions("withdraw_final") == 2
    assert custody.transactions("undo_withdraw") == 1
    assert_paid_once(custody, user, withdrawal)


def test_a_nonce_that_a_reorganisation_left_to_nobody_blocks_nothing(custody: CustodyDesk, user: str) -> None:
    custody.spend_nonce(custody.client.next_nonce())
    custody.spend_nonce(custody.client.next_nonce())
    withdrawals = [custody.withdraw(user, AMOUNT) for _ in range(2)]
    assert custody.relay() == []
    nonces = [custody.attempts(one)[0][0] for one in withdrawals]
    custody.reorganise(2 * 2 + 2)
    assert custody.client.next_nonce() == min(nonces) - 2
    settle(custody)
    assert [len(custody.attempts(one)) for one in withdrawals] == [1, 1]
    assert_paid_once(custody, user, *withdrawals)


def test_a_final_payment_that_moved_to_another_block_stays_final(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    settle(custody)
    custody.reorganise(CONFIRMATIONS + 1, (signed_of(custody, withdrawal), 0))
    custody.watch()
    assert_paid_once(custody, user, withdrawal)


def test_a_reorganised_deposit_of_money_that_was_withdrawn_is_owed(custody: CustodyDesk, user: str) -> None:
    other = custody.user()
    custody.deposit(other, FUNDS, buried=True)
    custody.watch()
    withdrawal = custody.withdraw(other, FUNDS)
    tx_hash = custody.sent(withdrawal)
    custody.bury()
    custody.watch()
    payment = signed_of(custody, withdrawal)
    custody.reorganise(2 * CONFIRMATIONS + 2, (payment, 0))  # the payment is still there, the deposit is not
    custody.watch()
    assert custody.is_mined(tx_hash)
    assert custody.ask("SELECT user_debt(%s)", other) == FUNDS
    assert custody.alerts() == ["alert.receivable"]
    assert custody.available(user) == FUNDS
    custody.assert_books_agree()


def test_what_was_paid_after_all_is_taken_back_from_who_got_it_returned(
    custody: CustodyDesk, user: str
) -> None:
    withdrawal = custody.withdraw(user, FUNDS)
    custody.ask("SELECT return_withdrawal(%s, 0, 'a test')", withdrawal)
    assert custody.available(user) == FUNDS
    custody.ask("SELECT record_ledger_entry(user_account(%s), 2, %s, 'spend')", user, 30 * USDC)
    address = custody.withdrawal(withdrawal, "address")
    custody.pay_by_hand(word_of(withdrawal), address, FUNDS)
    custody.bury()
    custody.watch()
    assert custody.withdrawal(withdrawal) == "final"
    assert (custody.available(user), custody.ask("SELECT user_debt(%s)", user)) == (0, 30 * USDC)
    assert custody.alerts() == ["alert.receivable"]
    custody.assert_books_agree()


def test_a_returned_withdrawal_is_not_paid_by_a_late_relay(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    custody.ask("SELECT return_withdrawal(%s, 0, 'a test')", withdrawal)
    assert custody.relay() == []
    assert (custody.attempts(withdrawal), custody.payments()) == ([], 0)


def test_a_payment_that_nobody_asked_for_is_told_and_left_to_the_reconciliation(
    custody: CustodyDesk, user: str
) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    address = custody.withdrawal(withdrawal, "address")
    custody.pay_by_hand(b"\7" * 32, address, USDC)
    custody.pay_by_hand(word_of(withdrawal), address, AMOUNT + 1)
    custody.bury()
    custody.watch()
    custody.watch(custody.new_watcher())
    assert custody.alerts() == ["alert.unknown_payment"] * 2
    assert custody.withdrawal(withdrawal) == "reserved"
    assert custody.balance("external_onchain") == -FUNDS


def test_while_the_platform_is_paused_nothing_is_sent(custody: CustodyDesk, user: str) -> None:
    waiting = custody.withdraw(user, AMOUNT)
    with held_blocks(custody):
        dropped = custody.withdraw(user, AMOUNT)
        custody.relay()
        custody.rpc("anvil_dropAllTransactions")
        custody.watch()
    later = custody.withdraw(user, AMOUNT)
    custody.pause()
    assert custody.relay() == []
    custody.mine(3)
    custody.watch()
    assert (custody.payments(), custody.attempts(later)) == (0, [])
    custody.resume()
    custody.watch()
    settle(custody)
    assert_paid_once(custody, user, waiting, dropped, later)


def test_a_node_that_is_away_is_waited_for(custody: CustodyDesk, supervisor: Supervisor, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    custody.chain.kill()
    relay = RelayCommand(custody, supervisor, custody.chain.url)
    failed: Callable[[], bool] = lambda: custody.ask("SELECT max(attempts) > 1 FROM outbox_events")  # noqa: E731
    wait_until(failed, "the relay tries")
    custody.chain.restart_after_kill()
    wait_until(lambda: custody.withdrawal(withdrawal) == "sent", "the relay sends")
    relay.child.terminate()
    settle(custody)
    assert_paid_once(custody, user, withdrawal)


def test_an_event_delivered_twice_much_later_sends_nothing(custody: CustodyDesk, user: str) -> None:
    withdrawal = custody.withdraw(user, AMOUNT)
    (event,) = custody.claim()
    custody.payouts.deliver(event)
    settle(custody)
    for late in (event, Event(**{**event.__dict__, "payload": {**event.payload, "reason": "replaced"}})):
        custody.payouts.deliver(late)
    assert len(custody.attempts(withdrawal)) == 1
    assert_paid_once(custody, user, withdrawal)
