"""Bad bodies over HTTP: each gets problem+json with a stable code, never a 500; the books do not change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.market_client import USDC, MarketClient, User, refusal

INT64_MAX = 2**63 - 1
MALFORMED = (400, "malformed")

# What no whole amount may be, as JSON text.
BAD_NUMBERS = [
    "0", "-1", "-0", "1.5", "1.0", "1e3", "1e400", "01", "0x10", "NaN", "Infinity", "-Infinity", "null",
    "true", '"1000000"', '""', "[]", "[1]", "{}", str(INT64_MAX + 1), str(2**64), str(-(2**63) - 1), "9" * 99,
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("books_unchanged")


def test_a_trade_with_a_bad_number_names_the_field(client: MarketClient, user: User, market: int) -> None:
    good = {"marketId": str(market), "outcome": "0", "side": '"buy"', "shares": "1000000", "limit": "9000000"}
    for field in ("marketId", "outcome", "shares", "limit"):
        for text in BAD_NUMBERS:
            if field == "outcome" and text in ("0", "-0"):
                continue  # the first outcome
            members = good | {field: text}
            body = "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"
            reply = client.post("/api/trade", body.encode(), user)
            assert refusal(reply) == MALFORMED, body
            if text not in ("01", "0x10"):  # not JSON: no member can be named
                assert reply.json()["field"] == field, body


def test_a_trade_by_amount_with_a_bad_number_names_the_field(
    client: MarketClient, user: User, market: int
) -> None:
    for text in BAD_NUMBERS:
        body = f'{{"marketId":{market},"outcome":0,"side":"buy","amount":{text}}}'
        assert refusal(client.post("/api/trade", body.encode(), user)) == MALFORMED, body


def test_the_largest_whole_numbers_are_read_as_they_are(
    client: MarketClient, user: User, market: int
) -> None:
    body = {"marketId": INT64_MAX, "outcome": 0, "side": "buy", "shares": INT64_MAX, "limit": INT64_MAX}
    assert refusal(client.post("/api/trade", body, user)) == (404, "market_not_found")
    assert refusal(client.post("/api/trade", body | {"marketId": market, "outcome": 7}, user)) == MALFORMED


def test_a_trade_without_a_member_or_with_one_too_many_names_it(
    client: MarketClient, user: User, market: int
) -> None:
    good: dict[str, Any] = {"marketId": market, "outcome": 0, "side": "buy", "shares": USDC}
    for name in good:
        reply = client.post("/api/trade", {k: v for k, v in good.items() if k != name}, user)
        assert (refusal(reply), reply.json()["field"]) == (
            MALFORMED, "amount" if name == "shares" else name,
        )  # fmt: skip
    odd: dict[str, Any]
    for odd, field in (
        ({"amount": USDC}, "amount"),
        ({"price": 1}, "price"),
        ({"MarketId": market}, "MarketId"),
        ({"": 1}, ""),
        ({"__proto__": {}}, "__proto__"),
    ):
        reply = client.post("/api/trade", good | odd, user)
        assert (refusal(reply), reply.json()["field"]) == (MALFORMED, field)
    for odd in ({"side": "hold"}, {"side": "BUY"}, {"side": ""}, {"side": 1}, {"side": "sell ", "shares": 1}):
        assert refusal(client.post("/api/trade", good | odd, user)) == MALFORMED
    by_amount = {"marketId": market, "outcome": 0, "side": "sell", "amount": USDC}
    assert refusal(client.post("/api/trade", by_amount, user)) == MALFORMED


def test_a_repeated_member_is_refused_and_named(client: MarketClient, user: User, market: int) -> None:
    good = f'"marketId":{market},"outcome":0,"side":"buy","shares":1000000'
    for again in (
        '"shares":1000000',
        '"shares":2000000',
        '"limit":9000000,"limit":9000000',
        '"side":"sell"',
        '"\\u0073hares":1000000',
    ):
        reply = client.post("/api/trade", f"{{{good},{again}}}".encode(), user)
        assert refusal(reply) == MALFORMED, again
        assert reply.json()["field"] in again.replace("\\u0073", "s")
    admin: list[tuple[str, str]] = [
        ("/api/fundings", f'{{"userId":"{user.user_id}","amount":5,"amount":6}}'),
        ("/api/fundings", f'{{"userId":"admin","userId":"{user.user_id}","amount":5}}'),
        ("/api/markets", '{"question":"a","question":"b","outcomes":["Y","N"],"b":100000000}'),
        (f"/api/markets/{market}", '{"action":"close","action":"close"}'),
        ("/api/users", '{"name":"a","name":"b"}'),
    ]
    for path, body in admin:
        assert refusal(client.post(path, body.encode())) == MALFORMED, body


def test_what_is_not_one_json_object_is_refused(client: MarketClient, user: User) -> None:
    bodies = [
        b"", b" ", b"{", b"[]", b"null", b"1", b'"x"', b"{}{}", b"{} x", b"\x00", b"\xff\xfe", b"{'a':1}",
        b'{"side":"\xff"}', b"\xef\xbb\xbf{}", b"[" * 20_000, b'{"a":' * 5_000, b'{"side":"\\ud800"}',
        b"marketId=1&outcome=0",
    ]  # fmt: skip
    paths = ["/api/trade", "/api/fundings", "/api/markets", "/api/markets/1", "/api/users"]
    for path in paths:
        asking = user if path == "/api/trade" else None
        for body in bodies:
            assert refusal(client.post(path, body, asking)) == MALFORMED, (path, body[:40])


def test_a_bad_funding_is_refused(client: MarketClient, user: User) -> None:
    for text in [*BAD_NUMBERS, str(10**15 + 1)]:
        body = f'{{"userId":"{user.user_id}","amount":{text}}}'
        assert refusal(client.post("/api/fundings", body.encode())) == MALFORMED, body
    for odd in (
        {"amount": 5},
        {"amount": 5, "userId": user.user_id, "account": "house_treasury"},
        {"amount": 5, "account": "user_available"},
        {"amount": 5, "userId": ""},
        {"amount": 5, "userId": "x" * 65},
        {"amount": 5, "userId": "a'; DROP TABLE accounts; --"},
        {"amount": 5, "userId": "nul\x00"},
        {"amount": 5, "userId": 7},
        {"userId": user.user_id},
    ):
        assert refusal(client.post("/api/fundings", odd)) == MALFORMED, odd
    assert refusal(client.post("/api/fundings", {"amount": 5, "userId": "nobody"})) == (404, "user_not_found")


def test_a_bad_market_is_refused(client: MarketClient) -> None:
    odd: dict[str, Any]
    good: dict[str, Any] = {"question": "q", "outcomes": ["Yes", "No"], "b": 10**8, "feeBps": 100}
    for odd in (
        {"question": ""}, {"question": "   "}, {"question": "x" * 1_001}, {"question": "nul\x00"},
        {"question": 1},
        {"outcomes": []}, {"outcomes": ["Yes"]}, {"outcomes": ["a"] * 2}, {"outcomes": list("abcdefghi")},
        {"outcomes": ["Yes", ""]}, {"outcomes": ["Yes", "x" * 101]}, {"outcomes": ["Yes", None]},
        {"outcomes": ["Yes", "\x00"]}, {"outcomes": "Yes"}, {"outcomes": {"Yes": 1}},
        {"b": 999_999}, {"b": 0}, {"b": -1}, {"b": 10**12 + 1}, {"b": 2**64}, {"b": 1.5}, {"b": "100"},
        {"feeBps": -1}, {"feeBps": 1_001}, {"feeBps": None}, {"status": "open"},
    ):  # fmt: skip
        assert refusal(client.post("/api/markets", good | odd)) == MALFORMED, odd
    for name in ("question", "outcomes", "b"):
        reply = client.post("/api/markets", {k: v for k, v in good.items() if k != name})
        assert (refusal(reply), reply.json()["field"]) == (MALFORMED, name)


def test_a_bad_user_is_refused(client: MarketClient, user: User) -> None:
    odd: dict[str, Any]
    for odd in (
        {}, {"name": ""}, {"name": " "}, {"name": "x" * 201}, {"name": "a\nb"}, {"name": None},
        {"name": "x", "userId": ""}, {"name": "x", "userId": "ü"}, {"name": "x", "role": "admin"},
    ):  # fmt: skip
        assert refusal(client.post("/api/users", odd)) == MALFORMED, odd
    for taken in (user.user_id, "admin"):
        assert refusal(client.post("/api/users", {"name": "x", "userId": taken})) == (409, "user_exists")


def test_a_market_that_cannot_exist_is_not_found(client: MarketClient, user: User) -> None:
    for text in (
        "0", "-1", "1.5", "abc", "1e3", "01", "%31%30%30%30%30%30%30", str(INT64_MAX), str(2**63), "9" * 60,
        "%D9%A1",
    ):  # fmt: skip
        assert refusal(client.get(f"/api/markets/{text}", user)) == (404, "market_not_found"), text
        close = client.post(f"/api/markets/{text}", {"action": "close"})
        assert refusal(close) == (404, "market_not_found"), text


def test_a_bad_market_action_is_refused(client: MarketClient, market: int) -> None:
    for body in ({}, {"action": "open"}, {"action": ["close"]}, {"action": "close", "now": True}):
        assert refusal(client.post(f"/api/markets/{market}", body)) == MALFORMED


def test_a_bad_ledger_limit_is_refused(client: MarketClient, user: User) -> None:
    for text in ("0", "-1", "201", "1.5", "x", "", "1e2", "9" * 30, "%D9%A1", "5&limit=6", "5&offset=1"):
        assert refusal(client.get(f"/api/account/ledger?limit={text}", user)) == MALFORMED, text
