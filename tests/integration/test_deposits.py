"""Deposits from the chain into the books: to a depth, once, undone when their block has left the chain."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from eth_account import Account

from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND
from reference_server import watcher as watcher_module
from reference_server.watch_books import Checkpoint, WatchBooks
from reference_server.watcher import WatchError
from tests.conftest import MarketDatabase
from tests.integration.custody_desk import (
    CONFIRMATIONS,
    USDC,
    CustodyDesk,
    custody,
    custody_chain,
)
from tests.integration.desk import Desk, Order
from tests.integration.relay_process import wait_until

__all__ = ["custody", "custody_chain"]

AMOUNT = 100 * USDC

_names = itertools.count(1)


@pytest.fixture
def desk(market_database: MarketDatabase) -> Iterator[Desk]:
    """A trading desk on the same books; the treasury's money is not on the chain."""
    with Desk(market_database) as desk:
        yield desk


def spend(custody: CustodyDesk, user_id: str, amount: int) -> None:
    """The money goes to the house; it might as well have been lost in trades."""
    custody.ask("SELECT record_ledger_entry(user_account(%s), 2, %s, 'spend')", user_id, amount)


def test_a_deposit_is_credited_when_it_is_deep_enough_and_not_before(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user)
    for _ in range(CONFIRMATIONS):
        custody.watch()
        assert (custody.deposits(), custody.available(user)) == (["seen"], 0)
        custody.assert_books_agree()
        custody.mine()
    custody.watch()
    assert (custody.deposits(), custody.available(user)) == (["credited"], AMOUNT)
    assert custody.balance("external_onchain") == -AMOUNT
    custody.assert_books_agree()


def test_looking_again_credits_nothing_again(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    for _ in range(3):
        custody.watch()
    custody.watch(custody.new_watcher())
    custody.mine(5)
    custody.watch()
    assert custody.available(user) == AMOUNT
    assert custody.transactions("deposit") == 1


def test_watchers_at_once_credit_once(custody: CustodyDesk) -> None:
    user = custody.user()
    for _ in range(5):
        custody.deposit(user, USDC)
    custody.bury()
    books = [WatchBooks(custody.dsn) for _ in range(4)]
    watchers = [custody.new_watcher(one) for one in books]
    with ThreadPoolExecutor(len(watchers)) as threads:
        list(threads.map(custody.watch, watchers))
    for one in books:
        one.disconnect()
    assert custody.available(user) == 5 * USDC
    assert custody.transactions("deposit") == 5
    custody.assert_books_agree()


def test_a_watcher_that_was_overtaken_does_nothing(custody: CustodyDesk) -> None:
    user = custody.user()
    (before,) = custody.books.checkpoints()
    custody.deposit(user, buried=True)
    custody.watch()
    (cursor,) = custody.books.checkpoints()
    late = custody.client.deposit_events(before.number, "latest")
    end = Checkpoint(cursor.number + 1, "0x" + "0" * 64)
    for stale in (before, Checkpoint(cursor.number, before.hash)):
        assert custody.books.record_deposits(stale, stale, [], end, late) == "overtaken"
    assert custody.books.checkpoints() == [cursor]
    assert custody.available(user) == AMOUNT


def test_the_cursor_is_saved_with_the_credit_or_neither_is(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    custody.admin.execute("ALTER TABLE chain_checkpoints ADD CONSTRAINT broken CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        custody.watch()
    assert (custody.available(user), custody.transactions("deposit")) == (0, 0)
    custody.admin.execute("ALTER TABLE chain_checkpoints DROP CONSTRAINT broken")
    custody.watch()
    assert (custody.available(user), custody.transactions("deposit")) == (AMOUNT, 1)


def test_a_deposit_without_a_cursor_move_is_found_again_and_not_credited_again(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    custody.watch()
    custody.admin.execute(
        "DELETE FROM chain_checkpoints WHERE block_number > (SELECT min(block_number) FROM chain_checkpoints)"
    )
    custody.watch()
    assert custody.available(user) == AMOUNT
    assert custody.deposits() == ["credited"]


def test_a_reorganisation_above_the_depth_moves_no_money(custody: CustodyDesk) -> None:
    user = custody.user()
    deposit = custody.deposit(user)
    custody.mine(CONFIRMATIONS - 1)
    custody.watch()
    assert custody.deposits() == ["seen"]
    custody.reorganise(CONFIRMATIONS)
    custody.watch()
    assert (custody.deposits(), custody.transactions("deposit")) == ([], 0)
    custody.reorganise(CONFIRMATIONS, (deposit, 1))
    custody.bury()
    custody.watch()
    assert custody.available(user) == AMOUNT
    assert custody.alerts() == []


def test_a_credit_whose_block_is_gone_is_reversed(custody: CustodyDesk) -> None:
    user, other = custody.user(), custody.user()
    custody.deposit(other)
    custody.deposit(user, buried=True)
    custody.watch()
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.deposits() == ["credited", "reversed"]
    assert (custody.available(user), custody.available(other)) == (0, AMOUNT)
    assert custody.alerts() == []
    custody.assert_books_agree()


def test_a_deposit_that_comes_back_in_another_block_is_credited_again(custody: CustodyDesk) -> None:
    user = custody.user()
    deposit = custody.deposit(user, buried=True)
    custody.watch()
    custody.reorganise(CONFIRMATIONS + 1, (deposit, 2))
    custody.watch()
    assert (custody.deposits(), custody.available(user)) == (["reversed", "seen"], 0)
    custody.bury()
    custody.watch()
    assert (custody.deposits(), custody.available(user)) == (["reversed", "credited"], AMOUNT)
    custody.assert_books_agree()


def test_who_has_spent_it_before_it_came_back_notices_nothing(custody: CustodyDesk) -> None:
    user = custody.user()
    deposit = custody.deposit(user, buried=True)
    custody.watch()
    spend(custody, user, AMOUNT)
    custody.reorganise(CONFIRMATIONS + 1, (deposit, 0))
    custody.watch()
    assert (custody.deposits(), custody.available(user)) == (["reversed", "credited"], 0)
    assert custody.balance("suspense_receivable") == 0
    assert custody.alerts() == []
    custody.assert_books_agree()


def test_what_was_spent_is_owed_and_an_alert_is_raised(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    custody.watch()
    spend(custody, user, 70 * USDC)
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.available(user) == 0
    assert custody.balance("suspense_receivable") == -70 * USDC
    assert custody.ask("SELECT user_debt(%s)", user) == 70 * USDC
    assert custody.alerts() == ["alert.receivable"]
    custody.assert_books_agree()


def test_who_owes_can_still_trade(custody: CustodyDesk, desk: Desk) -> None:
    user, market = custody.user(), desk.market()
    custody.deposit(user, buried=True)
    custody.watch()
    bought = desk.trade(market, Order(user, "buy", amount=AMOUNT))
    assert bought.status == 200
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.ask("SELECT user_debt(%s)", user) > 0
    half = bought.facts["shares"] // 2
    assert desk.trade(market, Order(user, "sell", side="sell", shares=half)).status == 200
    assert desk.trade(market, Order(user, "again", amount=USDC)).status == 200
    desk.assert_books_agree()


def test_the_next_deposits_pay_off_what_is_owed(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user)
    custody.deposit(user, buried=True)
    custody.watch()
    spend(custody, user, 2 * AMOUNT)
    custody.reorganise(2 * 3 + CONFIRMATIONS - 2)
    custody.watch()
    assert custody.ask("SELECT array_agg(owed) FROM receivables") == [AMOUNT, AMOUNT]
    custody.deposit(user, AMOUNT + 40 * USDC, buried=True)
    custody.watch()
    assert custody.ask("SELECT array_agg(owed ORDER BY receivable_id) FROM receivables") == [0, 60 * USDC]
    assert custody.available(user) == 0
    custody.deposit(user, AMOUNT, buried=True)
    custody.watch()
    assert (custody.ask("SELECT user_debt(%s)", user), custody.available(user)) == (0, 40 * USDC)
    custody.assert_books_agree()


def test_a_deposit_of_nobody_known_is_in_suspense_until_it_is_assigned(custody: CustodyDesk) -> None:
    custody.deposit("nobody", buried=True)
    custody.watch()
    assert (custody.deposits(), custody.balance("suspense")) == (["suspended"], AMOUNT)
    assert custody.alerts() == ["alert.deposit_suspended"]
    custody.assert_books_agree()
    user = custody.user()
    custody.ask("SELECT assign_deposit(1, %s)", user)
    assert (custody.balance("suspense"), custody.available(user)) == (0, AMOUNT)
    with pytest.raises(psycopg.errors.NoDataFound):
        custody.ask("SELECT assign_deposit(1, %s)", user)
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert custody.available(user) == 0
    custody.assert_books_agree()


def test_a_deposit_in_suspense_that_is_gone_leaves_it(custody: CustodyDesk) -> None:
    custody.deposit("nobody", buried=True)
    custody.watch()
    custody.reorganise(CONFIRMATIONS + 1)
    custody.watch()
    assert (custody.deposits(), custody.balance("suspense")) == (["reversed"], 0)
    custody.assert_books_agree()


@pytest.mark.parametrize("named", [b"", b"\xff\xfe", b"a\0b", b"x" * 64, "ö".encode(), b"admin", b"'; --"])
def test_whatever_a_deposit_names_the_watcher_goes_on(custody: CustodyDesk, named: bytes) -> None:
    user = custody.user()
    custody.deposit(named)
    custody.deposit(user, buried=True)
    custody.watch()
    assert custody.deposits() == ["suspended", "credited"]
    custody.assert_books_agree()


def test_without_a_known_name_the_sending_wallet_says_whose_it_is(custody: CustodyDesk) -> None:
    user, other = custody.user(), custody.user()
    custody.link(user, Account.from_key(custody.sender_key).address)
    custody.deposit("a typing eror")
    custody.deposit(other, buried=True)
    custody.watch()
    assert (custody.available(user), custody.available(other)) == (AMOUNT, AMOUNT)


def test_more_than_the_books_can_hold_is_kept_out_of_them(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, 2**200)
    custody.deposit(user, buried=True)
    custody.watch()
    assert custody.deposits() == ["refused", "credited"]
    assert custody.available(user) == AMOUNT
    assert custody.alerts() == ["alert.deposit_refused"]


def test_a_node_that_is_behind_proves_nothing(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    custody.watch()
    custody.rpc("anvil_rollback", CONFIRMATIONS + 1)
    custody.watch()
    assert custody.deposits() == ["credited"]
    custody.mine()
    custody.watch()
    assert custody.deposits() == ["reversed"]
    custody.assert_books_agree()


def test_the_deepest_reorganisation_is_found_and_only_what_is_gone_is_reversed(custody: CustodyDesk) -> None:
    users = [custody.user() for _ in range(4)]
    for user in users:
        custody.deposit(user)
        custody.mine(3)
        custody.watch()
    custody.bury()
    custody.watch()
    # all but the first deposit: three blocks each, the deposit last, with three blocks behind it
    custody.reorganise(3 * 6 + CONFIRMATIONS)
    custody.watch()
    assert [custody.available(user) for user in users] == [AMOUNT, 0, 0, 0]
    custody.assert_books_agree()


def test_a_watcher_that_was_away_catches_up_in_steps(
    custody: CustodyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "BLOCKS_MAX", 4)
    user = custody.user()
    for _ in range(5):
        custody.deposit(user)
    custody.bury()
    custody.watch()
    assert custody.available(user) == 5 * AMOUNT
    assert custody.ask("SELECT count(*) FROM chain_checkpoints") > 3
    custody.assert_books_agree()


def test_while_the_platform_is_paused_nothing_is_credited_or_reversed(custody: CustodyDesk) -> None:
    user, later = custody.user(), custody.user()
    custody.deposit(user, buried=True)
    custody.watch()
    custody.pause()
    custody.reorganise(CONFIRMATIONS + 1)
    custody.deposit(later, buried=True)
    custody.watch()
    assert (custody.available(user), custody.available(later)) == (AMOUNT, 0)
    assert custody.deposits() == ["credited", "seen"]
    custody.resume()
    custody.watch()
    assert (custody.available(user), custody.available(later)) == (0, AMOUNT)
    custody.assert_books_agree()


def test_books_of_one_vault_refuse_another(custody: CustodyDesk) -> None:
    with pytest.raises(psycopg.Error) as refused:
        custody.ask("SELECT watch_vault(%s, %s, 0, %s)", 1, custody.addresses.vault.lower(), "0x" + "0" * 64)
    assert refused.value.sqlstate == "ST007"


def test_a_chain_that_began_anew_is_not_believed(custody: CustodyDesk) -> None:
    user = custody.user()
    custody.deposit(user, buried=True)
    custody.watch()
    custody.admin.execute("UPDATE chain_checkpoints SET block_hash = '0x' || repeat('0', 64)")
    with pytest.raises(WatchError):
        custody.watch()
    assert custody.available(user) == AMOUNT


def watch_command(custody: CustodyDesk, *more: str) -> list[str]:
    command = [*REFERENCE_COMMAND, "watch", "--dsn", custody.dsn, "--rpc", custody.chain.url]
    command += ["--usdc", custody.addresses.usdc, "--vault", custody.addresses.vault]
    return [*command, "--from-block", str(custody.first_block), "--poll-s", "0.01", *more]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--vault", "0x" + "12" * 20), "these books watch vault"),
        (("--dsn", ""), "no database"),
        (("--confirmations", "-1"), "--confirmations from 0"),
        (("--stuck-s", "0"), "above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_watcher_that_cannot_watch_says_why(
    custody: CustodyDesk, supervisor: Supervisor, options: tuple[str, ...], said: str
) -> None:
    child = supervisor.spawn(f"watch-{uuid4()}", watch_command(custody, *options), critical=False)
    assert child.wait(20.0) == 2
    assert said in child.log_tail()


def test_a_watcher_that_is_killed_again_and_again_credits_everything_once(
    custody: CustodyDesk, supervisor: Supervisor
) -> None:
    user = custody.user()
    command = watch_command(custody, "--confirmations", "1")
    child = supervisor.spawn(f"watch-{uuid4()}", command, critical=False)
    for number in range(1, 4):
        wait_until(lambda: "watching" in child.log_tail(1_000) or not child.alive, "the watcher watches")
        custody.deposit(user, USDC)
        custody.mine()
        if number % 2:
            wait_until(lambda: "credited" in custody.deposits(), "something is credited")
        child.kill()
        child.start()
    wait_until(lambda: custody.deposits() == ["credited"] * 3, "all is credited")
    child.signal(signal.SIGTERM)
    assert child.wait(10.0) == 0, child.log_tail()
    assert custody.available(user) == 3 * USDC
    assert custody.transactions("deposit") == 3
