"""What a reply proves, row by row of the tables in docs/api.md."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from scenarios.history import ACTIONS, ONCHAIN_ACTIONS, digest
from scenarios.replies import (
    NOT_EXECUTED,
    RETRYABLE,
    STORED,
    AccountContent,
    NonceContent,
    seen_failure,
    seen_reply,
)
from scenarios.wire import Refused, Reply, WireError

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"

TRADE = {
    "tradeId": 11,
    "transactionId": 12,
    "marketId": 1,
    "marketVersion": 13,
    "outcome": 0,
    "side": "buy",
    "shares": 1_000_000,
    "cost": 500_000,
    "fee": 5_000,
    "total": 505_000,
    "balance": 9_495_000,
    "accountVersion": 3,
    "prices": [500_100, 499_900],
}
MARKET = {
    "marketId": 1,
    "question": "?",
    "status": "open",
    "version": 4,
    "outcomes": ["Yes", "No"],
    "quantities": [0, 0],
    "prices": [500_000, 500_000],
    "pool": 693_148,
    "b": 1_000_000,
    "feeBps": 100,
}
ACCOUNT = {
    "userId": "u1",
    "available": 7,
    "reserved": 0,
    "accountVersion": 9,
    "positions": [{"marketId": 1, "outcome": 0, "shares": 5}],
}

WITHDRAWAL = {
    "withdrawalId": "018f",
    "status": "reserved",
    "amount": 5,
    "address": "0xab",
    "transactionId": 31,
    "balance": 95,
    "accountVersion": 6,
}
STATUSES = {"create_user": 201, "fund": 201, "link_wallet": 201, "withdraw": 202}


def reply(
    status: int,
    content: object = None,
    *,
    body: bytes | None = None,
    problem: bool = False,
    replayed: bool = False,
    retry_after_s: float | None = None,
) -> Reply:
    whole = msgspec.json.encode(content) if body is None else body
    return Reply(status, whole, problem, replayed, retry_after_s)


def problem(status: int, code: object, **more: object) -> Reply:
    content = {"type": "about:blank", "title": "No", "status": status, "code": code, "detail": "?", **more}
    return reply(status, content, problem=True)


def documented() -> list[tuple[tuple[int, ...], str, str, str]]:
    """The rows of the table of refusals, a code each: statuses, code, executed?, stored under the key?"""
    rows = []
    for line in API.read_text(encoding="utf-8").split("## Refusals")[1].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 4 or not cells[0][:1].isdigit():
            continue
        statuses = tuple(int(status) for status in re.findall(r"\d+", cells[0]))
        codes = re.findall(r"`(\w+)`", cells[1])
        for position, code in enumerate(codes):
            # "401 / 403" with as many codes: one each.
            own = (statuses[position],) if len(statuses) == len(codes) else statuses
            rows.append((own, code, cells[2], cells[3]))
    return rows


def test_the_table_of_refusals_was_found() -> None:
    assert len(documented()) == 31


@pytest.mark.parametrize(("statuses", "code", "executed", "stored"), documented())
def test_a_documented_refusal_is_classified_as_documented(
    statuses: tuple[int, ...], code: str, executed: str, stored: str
) -> None:
    for status in statuses:
        seen = seen_reply("buy_shares", problem(status, code))
        not_executed = executed.startswith(("no", "this request: no"))
        assert seen.type == ("fail" if not_executed else "info")
        assert (seen.status, seen.code, seen.facts) == (status, code, None)
        assert seen.stored is (stored == "yes")
        assert seen.again is (code in RETRYABLE or not not_executed)


def test_nothing_undocumented_counts_as_not_executed() -> None:
    undone = {
        code for _, code, executed, _ in documented() if executed.startswith(("no", "this request: no"))
    }
    assert set(NOT_EXECUTED) == undone
    assert {code for _, code, _, stored in documented() if stored == "yes"} == STORED
    assert undone - STORED >= RETRYABLE


def test_a_key_in_progress_leaves_the_operation_open() -> None:
    seen = seen_reply("sell", problem(409, "idempotency_key_in_progress"))
    assert (seen.type, seen.again, seen.stored) == ("info", True, False)


@pytest.mark.parametrize("status", [300, 302, 404, 408, 429, 500, 502, 503, 504])
def test_a_bare_status_proves_nothing(status: int) -> None:
    seen = seen_reply("buy_shares", reply(status, body=b"<html>Bad Gateway</html>"))
    assert (seen.type, seen.again, seen.code) == ("info", True, None)


def test_a_code_outside_problem_json_proves_nothing() -> None:
    seen = seen_reply("buy_shares", reply(422, {"code": "insufficient_funds"}, problem=False))
    assert (seen.type, seen.code) == ("info", None)


@pytest.mark.parametrize(
    ("status", "code"), [(500, "insufficient_funds"), (422, "overloaded"), (400, "unheard_of")]
)
def test_a_code_under_another_status_proves_nothing(status: int, code: str) -> None:
    seen = seen_reply("buy_shares", problem(status, code))
    assert (seen.type, seen.again, seen.code) == ("info", True, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"code": 7}', b'{"code": null}', b"\xff"])
def test_a_problem_that_cannot_be_read_proves_nothing(body: bytes) -> None:
    seen = seen_reply("buy_shares", reply(422, body=body, problem=True))
    assert (seen.type, seen.again, seen.status) == ("info", True, 422)
    assert seen.error is not None
    assert seen.error.startswith("unparsable")


@pytest.mark.parametrize(
    "body", [b"", b"OK", b"{}", b"[]", b"null", msgspec.json.encode({**TRADE, "cost": 1.5})]
)
def test_a_success_that_cannot_be_read_proves_nothing(body: bytes) -> None:
    seen = seen_reply("buy_shares", reply(200, body=body))
    assert (seen.type, seen.again, seen.facts) == ("info", True, None)
    assert seen.error is not None
    assert seen.reply_hash == digest(body)


def test_a_trade_tells_its_facts() -> None:
    answer = reply(200, TRADE, replayed=True)
    seen = seen_reply("buy_amount", answer)
    assert (seen.type, seen.again, seen.replayed, seen.stored) == ("ok", False, True, True)
    assert seen.reply_hash == digest(answer.body)
    assert seen.facts is not None
    assert msgspec.to_builtins(seen.facts) == {
        "trade_id": 11,
        "market_id": 1,
        "market_version": 13,
        "cost_micro": 500_000,
        "fee_micro": 5_000,
        "shares_micro": 1_000_000,
        "prices_micro": [500_100, 499_900],
        "transaction_id": 12,
        "account_version": 3,
        "balance_micro": 9_495_000,
    }


def test_the_reply_hash_is_of_the_bytes_and_not_of_the_meaning() -> None:
    spaced = msgspec.json.format(msgspec.json.encode(TRADE))
    hashes = {
        seen_reply("sell", answer).reply_hash for answer in (reply(200, TRADE), reply(200, body=spaced))
    }
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("action", "content", "told"),
    [
        ("read_market", MARKET, {"market_id": 1, "market_version": 4, "prices_micro": [500_000, 500_000]}),
        (
            "create_market",
            {**MARKET, "transactionId": 5},
            {"market_id": 1, "market_version": 4, "prices_micro": [500_000, 500_000], "transaction_id": 5},
        ),
        ("read_account", ACCOUNT, {"account_version": 9, "balance_micro": 7, "user_id": "u1"}),
        (
            "fund",
            {"transactionId": 2, "userId": "u1", "amount": 5, "balance": 5, "accountVersion": 1},
            {"transaction_id": 2, "account_version": 1, "balance_micro": 5, "user_id": "u1"},
        ),
        (
            "fund",
            {"transactionId": 2, "userId": None, "amount": 5, "balance": 5, "accountVersion": 1},
            {"transaction_id": 2, "account_version": 1, "balance_micro": 5},
        ),
        ("create_user", {"userId": "u1", "token": "secret"}, {"user_id": "u1"}),
        ("link_wallet", {"address": "0xab", "userId": "u1", "linkedAt": "now"}, {"user_id": "u1"}),
        (
            "withdraw",
            WITHDRAWAL,
            {
                "transaction_id": 31,
                "account_version": 6,
                "balance_micro": 95,
                "withdrawal_id": "018f",
                "withdrawal_status": "reserved",
            },
        ),
        (
            "read_withdrawal",
            {**WITHDRAWAL, "status": "sent", "txHash": "0xcd", "blockNumber": None, "reason": None},
            {"withdrawal_id": "018f", "withdrawal_status": "sent"},
        ),
    ],
)
def test_each_reply_tells_its_facts(action: str, content: object, told: dict[str, object]) -> None:
    seen = seen_reply(action, reply(STATUSES.get(action, 200), content))
    assert seen.type == "ok"
    assert seen.facts is not None
    assert msgspec.to_builtins(seen.facts) == told


def test_a_ledger_tells_the_newest_entry_of_the_available_account() -> None:
    entries = [
        {
            "entryId": 9,
            "transactionId": 5,
            "account": account,
            "balanceAfter": balance,
            "accountVersion": version,
        }
        for account, balance, version in (
            ("user_reserved", 1, 8),
            ("user_available", 70, 4),
            ("user_available", 60, 3),
        )
    ]
    seen = seen_reply("read_ledger", reply(200, {"entries": entries}))
    assert seen.facts is not None
    assert msgspec.to_builtins(seen.facts) == {"transaction_id": 5, "account_version": 4, "balance_micro": 70}
    assert seen_reply("read_ledger", reply(200, {"entries": []})).facts is None


def test_every_action_has_a_reading() -> None:
    for action in ACTIONS - ONCHAIN_ACTIONS:
        assert seen_reply(action, reply(200, body=b"nothing")).type == "info"


def test_a_nonce_is_handed_on_and_not_recorded() -> None:
    told = {"nonce": "n" * 32, "expiresAt": "later", "domain": "localhost", "chainId": 31337}
    seen = seen_reply("wallet_nonce", reply(201, told))
    assert (seen.type, seen.facts, seen.content) == ("ok", None, NonceContent("n" * 32, "localhost", 31337))


def test_an_account_is_handed_to_the_trader() -> None:
    content = seen_reply("read_account", reply(200, ACCOUNT)).content
    assert isinstance(content, AccountContent)
    assert content.positions[0].shares == 5


@pytest.mark.parametrize("kind", ["timeout", "reset", "closed", "truncated", "garbage", "connect_timeout"])
def test_no_reply_proves_nothing(kind: str) -> None:
    seen = seen_failure(WireError(kind))
    assert (seen.type, seen.again, seen.error, seen.status) == ("info", True, kind, None)


def test_a_refused_connection_had_no_effect_and_is_tried_again() -> None:
    seen = seen_failure(Refused())
    assert (seen.type, seen.again, seen.error) == ("fail", True, "refused")


def test_retry_after_reaches_the_client() -> None:
    refusal = problem(503, "overloaded")._replace(retry_after_s=3.0)
    assert seen_reply("sell", refusal).retry_after_s == 3.0
