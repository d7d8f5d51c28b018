"""Withdrawals as they are asked for: the reservation, its idempotency, and what may be taken out."""

from __future__ import annotations

import itertools
import uuid

import httpx
import psycopg
import pytest

from tests.integration.market_client import (
    USDC,
    MarketClient,
    User,
    accepted,
    assert_books_balance,
    await_blocked,
    digest_of_books,
    lock_held,
    meanwhile,
    new_key,
    question,
    refusal,
)
from tests.integration.market_server import MarketServer
from tests.integration.signing_wallet import SigningWallet

ACCOUNT_LOCK = "SELECT FROM accounts WHERE user_id = %s AND kind = 'user_available' FOR UPDATE"

_numbers = itertools.count(0xB0B)

pytestmark = pytest.mark.usefixtures("wallet")  # the user has one


@pytest.fixture
def wallet(client: MarketClient, user: User) -> SigningWallet:
    """A wallet of the user's, who has 1,000 USDC."""
    wallet = SigningWallet(next(_numbers))
    accepted(wallet.link(client, user))
    return wallet


def withdraw(
    client: MarketClient, user: User, amount: int = USDC, *, key: str | None = None, **more: str
) -> httpx.Response:
    return client.post("/api/withdrawals", {"amount": amount, **more}, user, key=key)


def available(client: MarketClient, user: User) -> int:
    return int(accepted(client.get("/api/account", user))["available"])


def assert_replays(reply: httpx.Response, first: httpx.Response) -> None:
    assert reply.headers.get("Idempotent-Replayed") == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert (reply.status_code, reply.content) == (first.status_code, first.content)


def test_a_withdrawal_reserves_the_money_and_tells_the_relay(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    dsn = client.server.database.admin_dsn
    in_flight = "SELECT balance FROM accounts WHERE kind = 'withdraw_in_flight'"
    before = question(dsn, in_flight)
    reply = withdraw(client, user, 400 * USDC)
    assert reply.status_code == 202
    made = reply.json()
    assert (made["status"], made["amount"], made["address"]) == ("reserved", 400 * USDC, wallet.address)
    assert made["balance"] == available(client, user) == 600 * USDC
    assert question(dsn, in_flight) == before + 400 * USDC
    event = question(
        dsn,
        "SELECT to_jsonb(e) FROM outbox_events AS e"
        " WHERE aggregate_type = 'withdrawal' AND aggregate_id = %s",
        made["withdrawalId"],
    )
    assert (event["event_type"], event["dedup_key"]) == (
        "withdrawal.requested",
        f"withdrawal:{made['withdrawalId']}",
    )
    assert event["payload"] == {
        "withdrawal_id": made["withdrawalId"],
        "address": wallet.address,
        "amount_micro": 400 * USDC,
    }
    assert_books_balance(dsn)


def test_its_owner_can_poll_it_and_nobody_else(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    made = accepted(withdraw(client, user))
    polled = accepted(client.get(f"/api/withdrawals/{made['withdrawalId']}", user))
    assert (polled["status"], polled["amount"], polled["address"]) == ("reserved", USDC, wallet.address)
    assert (polled["txHash"], polled["blockNumber"], polled["reason"]) == (None, None, None)
    other = client.user(funds=0)
    for asking, withdrawal_id in (
        (other, made["withdrawalId"]),
        (user, str(uuid.UUID(int=0))),
        (user, "1"),
        (user, made["withdrawalId"].upper() + "'"),
    ):
        reply = client.get(f"/api/withdrawals/{withdrawal_id}", asking)
        assert refusal(reply) == (404, "withdrawal_not_found")


def test_a_retry_gets_the_same_bytes_and_moves_nothing(client: MarketClient, user: User) -> None:
    key = new_key()
    first = withdraw(client, user, key=key)
    accepted(first)
    accepted(withdraw(client, user))  # the state has moved on; the reply has not
    before = digest_of_books(client.server.database.admin_dsn)
    assert_replays(withdraw(client, user, key=key), first)
    assert digest_of_books(client.server.database.admin_dsn) == before


def test_a_retry_may_spell_the_address_differently(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    key = new_key()
    first = withdraw(client, user, key=key, address=wallet.checksummed)
    assert accepted(first)["address"] == wallet.address
    assert_replays(withdraw(client, user, key=key, address=wallet.address), first)


def test_a_retry_after_a_crash_gets_the_same_bytes(market_server: MarketServer) -> None:
    key, poor_key = new_key(), new_key()
    with MarketClient(market_server) as client:
        user = client.user()
        accepted(SigningWallet(next(_numbers)).link(client, user))
        first = withdraw(client, user, key=key)
        refused = withdraw(client, user, 10**12, key=poor_key)
    market_server.kill()
    market_server.restart()
    with MarketClient(market_server) as client:
        assert_replays(withdraw(client, user, key=key), first)
        assert_replays(withdraw(client, user, 10**12, key=poor_key), refused)


def test_a_refusal_is_the_lasting_answer_of_its_key(client: MarketClient, user: User) -> None:
    key = new_key()
    first = withdraw(client, user, 1_001 * USDC, key=key)
    assert refusal(first) == (422, "insufficient_funds")
    accepted(client.post("/api/fundings", {"userId": user.user_id, "amount": 100 * USDC}))
    assert_replays(withdraw(client, user, 1_001 * USDC, key=key), first)
    accepted(withdraw(client, user, 1_001 * USDC))


def test_a_second_request_in_flight_is_told_to_come_back(client: MarketClient, user: User) -> None:
    dsn, key = client.server.database.admin_dsn, new_key()
    with meanwhile(1) as start:
        with lock_held(dsn, ACCOUNT_LOCK, user.user_id):
            first = start(withdraw, client, user, key=key)
            await_blocked(dsn)
            assert refusal(withdraw(client, user, key=key)) == (409, "idempotency_key_in_progress")
        accepted(first.result())
        assert_replays(withdraw(client, user, key=key), first.result())


def test_a_key_belongs_to_one_request_of_one_user(
    client: MarketClient, user: User, wallet: SigningWallet, market: int
) -> None:
    key = new_key()
    accepted(withdraw(client, user, key=key))
    assert refusal(withdraw(client, user, 2 * USDC, key=key)) == (422, "idempotency_key_reused")
    reply = withdraw(client, user, key=key, address=wallet.address)
    assert refusal(reply) == (422, "idempotency_key_reused")
    assert refusal(client.trade(user, market, key=key)) == (422, "idempotency_key_reused")
    other = client.user()
    accepted(SigningWallet(next(_numbers)).link(client, other))
    accepted(withdraw(client, other, key=key))


def test_a_key_that_traded_does_not_withdraw(client: MarketClient, user: User, market: int) -> None:
    key = new_key()
    accepted(client.trade(user, market, key=key))
    assert refusal(withdraw(client, user, key=key)) == (422, "idempotency_key_reused")


def test_without_a_key_nothing_is_withdrawn(client: MarketClient, user: User) -> None:
    reply = client.ask("POST", "/api/withdrawals", {"amount": USDC}, token=user.token)
    assert refusal(reply) == (400, "idempotency_key_missing")


def test_of_two_withdrawals_for_one_balance_one_is_paid(client: MarketClient, user: User) -> None:
    dsn = client.server.database.admin_dsn
    with meanwhile(2) as start:
        with lock_held(dsn, ACCOUNT_LOCK, user.user_id):
            asked = [start(withdraw, client, user, 600 * USDC) for _ in range(2)]
            await_blocked(dsn, 2)
        replies = [reply.result() for reply in asked]
    assert sorted(reply.status_code for reply in replies) == [202, 422]
    assert available(client, user) == 400 * USDC
    assert_books_balance(dsn)


def test_a_withdrawal_and_a_trade_for_one_balance_do_not_both_get_it(
    client: MarketClient, user: User, market: int
) -> None:
    dsn = client.server.database.admin_dsn
    with meanwhile(2) as start:
        with lock_held(dsn, ACCOUNT_LOCK, user.user_id):
            asked = [
                start(withdraw, client, user, 600 * USDC),
                start(client.trade, user, market, amount=600 * USDC),
            ]
            await_blocked(dsn, 2)
        statuses = {reply.result().status_code for reply in asked}
    assert 422 in statuses
    assert statuses & {200, 202}
    assert available(client, user) >= 400 * USDC


def test_money_leaves_only_to_the_users_own_wallets(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    other, stranger = client.user(), SigningWallet(next(_numbers))
    assert refusal(withdraw(client, user, address=stranger.address)) == (422, "wallet_not_linked")
    assert refusal(withdraw(client, other)) == (422, "wallet_not_linked")
    assert refusal(withdraw(client, other, address=wallet.address)) == (422, "wallet_not_linked")


@pytest.mark.usefixtures("wallet")
def test_who_has_two_wallets_names_one(client: MarketClient, user: User) -> None:
    second = SigningWallet(next(_numbers))
    accepted(second.link(client, user))
    assert refusal(withdraw(client, user)) == (422, "wallet_not_linked")
    made = accepted(withdraw(client, user, address=second.checksummed))
    assert made["address"] == second.address


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount": 0},
        {"amount": -1},
        {"amount": 10**15 + 1},
        {"amount": 1.5},
        {"amount": "1"},
        {"amount": True},
        {"amount": 1, "address": "0x12"},
        {"amount": 1, "address": None},
        {"amount": 1, "address": "0x" + "Ab" * 20},
        {"amount": 1, "to": "me"},
    ],
)
def test_what_is_no_request_is_malformed_and_not_kept(
    client: MarketClient, user: User, body: dict[str, object]
) -> None:
    key = new_key()
    assert refusal(client.post("/api/withdrawals", body, user, key=key)) == (400, "malformed")
    accepted(withdraw(client, user, key=key))


def test_while_the_platform_is_paused_nothing_leaves(market_server: MarketServer) -> None:
    with MarketClient(market_server) as client:
        user = client.user()
        accepted(SigningWallet(next(_numbers)).link(client, user))
        with psycopg.connect(market_server.database.admin_dsn) as connection:
            connection.execute("SELECT pause_trading('a test')")
        assert refusal(withdraw(client, user)) == (503, "trading_paused")
        dsn = market_server.database.admin_dsn
        assert question(dsn, "SELECT count(*) FROM withdrawals") == 0


def test_what_a_user_owes_cannot_be_withdrawn(client: MarketClient, user: User) -> None:
    dsn = client.server.database.admin_dsn
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT record_ledger_entry(7, 1, 300000000, 'reverse_deposit')")
        connection.execute(
            "INSERT INTO receivables (user_id, transaction_id, cause, amount, owed)"
            " VALUES (%s, 0, 'a test', 300000000, 300000000)",
            [user.user_id],
        )
    assert refusal(withdraw(client, user, 701 * USDC)) == (422, "insufficient_funds")
    accepted(withdraw(client, user, 700 * USDC))
