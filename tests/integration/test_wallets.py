"""Linking wallets over HTTP: who may link what, with which message, how often."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from tests.integration.market_client import (
    MarketClient,
    User,
    accepted,
    meanwhile,
    question,
    refusal,
)
from tests.integration.signing_wallet import CHAIN_ID, DOMAIN, SigningWallet, ask, new_nonce

_numbers = itertools.count(0xA11E7)


@pytest.fixture
def wallet() -> SigningWallet:
    return SigningWallet(next(_numbers))


def linked(client: MarketClient, user: User) -> list[str]:
    return [wallet["address"] for wallet in accepted(client.get("/api/wallets", user))["wallets"]]


def test_a_wallet_that_signed_is_linked(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    reply = accepted(wallet.link(client, user))
    assert (reply["address"], reply["userId"]) == (wallet.address, user.user_id)
    assert linked(client, user) == [wallet.address]


def test_a_nonce_says_whom_the_message_is_for(client: MarketClient, user: User) -> None:
    reply = client.ask("POST", "/api/wallets/nonces", token=user.token)
    assert reply.status_code == 201
    assert (reply.json()["domain"], reply.json()["chainId"]) == (DOMAIN, CHAIN_ID)


def test_a_user_may_have_several_wallets(client: MarketClient, user: User) -> None:
    wallets = [SigningWallet(next(_numbers)) for _ in range(3)]
    for wallet in wallets:
        accepted(wallet.link(client, user))
    assert linked(client, user) == [wallet.address for wallet in wallets]


def test_both_spellings_of_an_address_are_one_wallet(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    accepted(wallet.link(client, user, address=wallet.address))
    assert refusal(wallet.link(client, user, address=wallet.checksummed)) == (409, "wallet_linked")
    assert linked(client, user) == [wallet.address]


def test_linking_again_is_refused(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    accepted(wallet.link(client, user))
    assert refusal(wallet.link(client, user)) == (409, "wallet_linked")


def test_somebody_elses_wallet_is_refused(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    accepted(wallet.link(client, user))
    other = client.user(funds=0)
    assert refusal(wallet.link(client, other)) == (409, "wallet_linked")
    assert linked(client, other) == []
    assert linked(client, user) == [wallet.address]


def test_a_message_works_once(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    body = wallet.signed(wallet.message(new_nonce(client, user)))
    accepted(ask(client, user, body))
    assert refusal(ask(client, user, body)) == (422, "nonce_invalid")


def test_a_nonce_is_used_up_by_a_refusal_too(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    accepted(wallet.link(client, user))
    body = wallet.signed(wallet.message(new_nonce(client, user)))
    assert refusal(ask(client, user, body)) == (409, "wallet_linked")
    assert refusal(ask(client, user, body)) == (422, "nonce_invalid")


def test_one_nonce_at_once_from_two_sides_links_one_wallet(client: MarketClient, user: User) -> None:
    nonce = new_nonce(client, user)
    wallets = [SigningWallet(next(_numbers)) for _ in range(2)]
    with meanwhile(2) as start:
        asked = [start(ask, client, user, wallet.signed(wallet.message(nonce))) for wallet in wallets]
    statuses = sorted(reply.result().status_code for reply in asked)
    assert statuses == [201, 422]
    assert len(linked(client, user)) == 1


def test_a_nonce_of_somebody_else_is_refused(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    nonce = new_nonce(client, client.user(funds=0))
    reply = ask(client, user, wallet.signed(wallet.message(nonce)))
    assert refusal(reply) == (422, "nonce_invalid")


def test_a_nonce_nobody_gave_is_refused(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    assert refusal(ask(client, user, wallet.signed(wallet.message("f" * 32)))) == (422, "nonce_invalid")


def test_a_nonce_expires(client: MarketClient, user: User, wallet: SigningWallet) -> None:
    nonce = new_nonce(client, user)
    with psycopg.connect(client.server.database.admin_dsn) as connection:
        connection.execute(
            "UPDATE wallet_nonces SET expires_at = clock_timestamp() WHERE nonce = %s", [nonce]
        )
    reply = ask(client, user, wallet.signed(wallet.message(nonce)))
    assert refusal(reply) == (422, "nonce_invalid")


def test_a_user_has_at_most_ten_nonces(client: MarketClient, user: User) -> None:
    nonces = [new_nonce(client, user) for _ in range(12)]
    kept = question(
        client.server.database.admin_dsn,
        "SELECT array_agg(nonce ORDER BY expires_at) FROM wallet_nonces WHERE user_id = %s",
        user.user_id,
    )
    assert kept == nonces[2:]


@pytest.mark.parametrize(
    "changes",
    [{"domain": "evil.example"}, {"uri": "https://evil.example/"}, {"chain_id": "1"}],
    ids="".join,
)
def test_a_message_for_somebody_else_is_refused_and_leaves_the_nonce(
    client: MarketClient, user: User, wallet: SigningWallet, changes: dict[str, str]
) -> None:
    nonce = new_nonce(client, user)
    reply = ask(client, user, wallet.signed(wallet.message(nonce, **changes)))
    assert refusal(reply) == (422, "message_refused")
    accepted(ask(client, user, wallet.signed(wallet.message(nonce))))


def test_the_signature_is_of_the_wallet_that_the_message_names(
    client: MarketClient, user: User, wallet: SigningWallet
) -> None:
    victim = SigningWallet(next(_numbers))
    assert refusal(wallet.link(client, user, address=victim.checksummed)) == (422, "signature_invalid")
    assert linked(client, user) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": "hello", "signature": "0x" + "00" * 65},
        {"message": "hello", "signature": "0x" + "00" * 64},
        {"message": "", "signature": "0x" + "00" * 65},
        {"message": 1, "signature": "0x" + "00" * 65},
        {"message": "hello", "signature": "0x" + "00" * 65, "address": "0x"},
    ],
)
def test_what_is_no_request_is_malformed(client: MarketClient, user: User, body: dict[str, object]) -> None:
    assert refusal(ask(client, user, body)) == (400, "malformed")


def test_an_administrator_has_no_wallets(client: MarketClient) -> None:
    token = client.server.admin_token
    assert refusal(client.ask("POST", "/api/wallets/nonces", token=token)) == (403, "forbidden")
    assert refusal(client.get("/api/wallets")) == (403, "forbidden")
