"""Bad requests over HTTP: callers, keys, paths, sizes and types; never a 500, and the books do not change."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.market_client import (
    USDC,
    MarketClient,
    User,
    accepted,
    check_reply,
    new_key,
    refusal,
)

MALFORMED = (400, "malformed")

pytestmark = pytest.mark.usefixtures("books_unchanged")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: MarketClient, user: User) -> None:
    for path, asking in (("/api/trade", user), ("/api/fundings", None), ("/api/users", None)):
        for size in (65_537, 2_000_000):
            with MarketClient(client.server) as another:  # the server closes: the rest is not wanted
                assert refusal(another.post(path, b" " * size, asking)) == (413, "too_large")


def test_a_body_in_chunks_is_too_large_as_well(client: MarketClient, user: User) -> None:
    reply = client.http.post(
        "/api/trade",
        content=iter([b" " * 40_000] * 3),
        headers={
            "Authorization": f"Bearer {user.token}",
            "Content-Type": "application/json",
            "Idempotency-Key": new_key(),
        },
    )
    check_reply("POST", "/api/trade", reply)
    assert refusal(reply) == (413, "too_large")


def test_a_body_of_another_type_is_refused(client: MarketClient, user: User, market: int) -> None:
    body = b'{"marketId":%d,"outcome":0,"side":"buy","shares":1000000}' % market
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "multipart/form-data",
        "",
    ):
        reply = client.ask(
            "POST", "/api/trade", body, token=user.token, key=new_key(), headers={"Content-Type": kind}
        )
        assert refusal(reply) == (415, "unsupported_media_type")


def test_a_missing_or_malformed_key_is_refused(client: MarketClient, user: User, market: int) -> None:
    trade = {"marketId": market, "outcome": 0, "side": "buy", "shares": USDC}
    calls: list[tuple[str, Any, str]] = [
        ("/api/trade", trade, user.token),
        ("/api/fundings", {"userId": user.user_id, "amount": 5}, client.server.admin_token),
        ("/api/markets", {"question": "q", "outcomes": ["Y", "N"], "b": 10**8}, client.server.admin_token),
        (f"/api/markets/{market}", {"action": "close"}, client.server.admin_token),
    ]
    for path, body, token in calls:
        assert refusal(client.ask("POST", path, body, token=token)) == (400, "idempotency_key_missing")
        for key in ("", "two words", "x" * 256, "tab\there"):
            reply = client.ask("POST", path, body, token=token, key=key)
            assert refusal(reply) == (400, "idempotency_key_malformed"), key


def test_two_keys_are_no_key(client: MarketClient, user: User, market: int) -> None:
    body = b'{"marketId":%d,"outcome":0,"side":"buy","shares":1000000}' % market
    reply = client.http.post(
        "/api/trade",
        content=body,
        headers=[
            ("Authorization", f"Bearer {user.token}"),
            ("Content-Type", "application/json"),
            ("Idempotency-Key", new_key()),
            ("Idempotency-Key", new_key()),
        ],
    )
    assert refusal(reply) == (400, "idempotency_key_malformed")


def test_without_a_good_token_nothing_is_told(client: MarketClient, user: User, market: int) -> None:
    trade = {"marketId": market, "outcome": 0, "side": "buy", "shares": USDC}
    for value in (
        None, "", "Bearer", "Bearer ,", f"Basic {user.token}", user.token, "Bearer nobody",
        f"Bearer {user.token}x", "Bearer " + "x" * 5_000, f"Bearer {user.user_id}",
    ):  # fmt: skip
        headers = {} if value is None else {"Authorization": value}
        for method, path, body in (
            ("POST", "/api/trade", trade),
            ("GET", "/api/account", None),
            ("GET", "/api/account/ledger", None),
            ("GET", "/api/account/reconciliation", None),
            ("GET", "/api/markets", None),
            ("GET", f"/api/markets/{market}", None),
            ("POST", "/api/fundings", {"userId": user.user_id, "amount": 5}),
        ):
            reply = client.ask(method, path, body, key=new_key(), headers=headers)
            assert refusal(reply) == (401, "unauthorised"), (value, path)
            assert reply.headers["WWW-Authenticate"] == "Bearer"


def test_two_tokens_are_no_token(client: MarketClient, user: User) -> None:
    pairs = [("Authorization", f"Bearer {token}") for token in (user.token, client.server.admin_token)]
    for headers in (pairs, pairs[::-1]):
        assert refusal(client.http.get("/api/account", headers=headers)) == (401, "unauthorised")


def test_a_user_is_no_admin_and_an_admin_no_user(client: MarketClient, user: User, market: int) -> None:
    for path, body in (
        ("/api/users", {"name": "x"}),
        ("/api/fundings", {"userId": user.user_id, "amount": 5}),
        ("/api/markets", {"question": "q", "outcomes": ["Y", "N"], "b": 10**8}),
        (f"/api/markets/{market}", {"action": "close"}),
    ):
        assert refusal(client.post(path, body, user)) == (403, "forbidden")
    trade = {"marketId": market, "outcome": 0, "side": "buy", "shares": USDC}
    assert refusal(client.post("/api/trade", trade)) == (403, "forbidden")
    for path in ("/api/account", "/api/account/ledger", "/api/account/reconciliation"):
        assert refusal(client.get(path)) == (403, "forbidden")


def test_another_users_data_cannot_be_asked_for(client: MarketClient, user: User) -> None:
    for path in ("/api/account", "/api/account/ledger", "/api/account/reconciliation"):
        for name in ("userId", "user_id", "user"):
            assert refusal(client.get(f"{path}?{name}=admin", user)) == MALFORMED
    assert accepted(client.get("/api/account", user))["userId"] == user.user_id
    for path in (f"/api/account/{user.user_id}", f"/api/users/{user.user_id}", "/api/users/admin"):
        assert refusal(client.get(path, user)) == (404, "not_found")


def test_a_query_that_means_nothing_is_refused(client: MarketClient, user: User, market: int) -> None:
    trade = {"marketId": market, "outcome": 0, "side": "buy", "shares": USDC}
    assert refusal(client.post("/api/trade?dryRun=1", trade, user)) == MALFORMED
    assert refusal(client.get("/api/markets?status=open", user)) == MALFORMED


def test_unknown_paths_and_methods_are_refused(client: MarketClient, user: User) -> None:
    for path in (
        "/",
        "/api",
        "/api/trades",
        "/api/trade/",
        "/api/%2e%2e/etc/passwd",
        "/schema",
        "/docs",
        "//api",
    ):
        assert refusal(client.get(path, user)) == (404, "not_found"), path
    for method, path in (
        ("GET", "/api/trade"),
        ("PUT", "/api/trade"),
        ("DELETE", "/api/account"),
        ("PATCH", "/api/markets/1"),
        ("POST", "/api/health"),
    ):
        reply = client.http.request(method, path, headers={"Authorization": f"Bearer {user.token}"})
        assert refusal(reply) == (405, "method_not_allowed")
        assert method not in reply.headers["Allow"].split(", ")
        assert {"GET", "POST"} & set(reply.headers["Allow"].split(", "))


def test_what_is_not_http_is_refused(client: MarketClient) -> None:
    url = urlsplit(client.server.url)
    for sent in (
        b"hello\r\n\r\n",
        b"GET /api/health HTTP/9.9\r\n\r\n",
        b"POST /api/trade HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/trade HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST /api/trade HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
            connection.sendall(sent)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), sent
        assert b"application/problem+json" in head.lower()
        assert b'"code":"malformed"' in body
