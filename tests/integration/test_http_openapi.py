"""The OpenAPI document: it says what docs/api.md says and what the server does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.market_client import MarketClient, accepted, refusal

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"

DATABASE = {"internal", "overloaded", "contention"}
READ = DATABASE | {"trading_paused"}
BODY = {"malformed", "too_large", "unsupported_media_type"}
ADMIN = {"unauthorised", "forbidden"}
KEY = {
    "idempotency_key_missing",
    "idempotency_key_malformed",
    "idempotency_key_in_progress",
    "idempotency_key_reused",
}
TRADE = {
    "market_not_found", "insufficient_funds", "insufficient_shares", "limit_exceeded", "market_closed",
    "trade_too_small", "trade_too_large", "trading_paused",
}  # fmt: skip
KEYLESS = {"POST /api/users", "POST /api/wallets/nonces", "POST /api/wallets"}
REFUSALS = {
    "GET /api/health": {"unhealthy", "internal"},
    "POST /api/users": ADMIN | BODY | DATABASE | {"user_exists"},
    "POST /api/fundings": ADMIN | BODY | KEY | DATABASE | {"user_not_found", "trading_paused"},
    "POST /api/markets": ADMIN | BODY | KEY | DATABASE | {"insufficient_funds", "trading_paused"},
    "GET /api/markets": {"unauthorised", "malformed"} | READ,
    "GET /api/markets/{marketId}": {"unauthorised", "malformed", "market_not_found"} | READ,
    "POST /api/markets/{marketId}": ADMIN | BODY | KEY | DATABASE | {"market_not_found", "market_closed"},
    "POST /api/trade": ADMIN | BODY | KEY | DATABASE | TRADE,
    "GET /api/account": ADMIN | {"malformed"} | READ,
    "GET /api/account/ledger": ADMIN | {"malformed"} | READ,
    "POST /api/wallets/nonces": ADMIN | {"malformed"} | DATABASE,
    "POST /api/wallets": ADMIN
    | BODY
    | DATABASE
    | {"wallet_linked", "message_refused", "signature_invalid", "nonce_invalid"},
    "GET /api/wallets": ADMIN | {"malformed"} | DATABASE,
    "POST /api/withdrawals": ADMIN
    | BODY
    | KEY
    | DATABASE
    | {"insufficient_funds", "wallet_not_linked", "trading_paused"},
    "GET /api/withdrawals/{withdrawalId}": ADMIN
    | {"malformed", "trading_paused", "withdrawal_not_found"}
    | DATABASE,
    "GET /api/account/reconciliation": ADMIN | {"malformed"} | READ,
}


@pytest.fixture
def document(client: MarketClient) -> dict[str, Any]:
    found: dict[str, Any] = accepted(client.http.get("/schema/openapi.json"))
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def refusals(operation: dict[str, Any]) -> dict[str, int]:
    """The codes of an operation and their statuses."""
    found = {}
    for status, response in operation["responses"].items():
        content = response["content"]
        if schema := content.get("application/problem+json"):
            for code in schema["schema"]["properties"]["code"]["enum"]:
                found[code] = int(status)
    return found


def test_every_operation_documents_its_refusals(document: dict[str, Any]) -> None:
    documented = {name: set(refusals(operation)) for name, operation in operations(document)}
    assert documented == REFUSALS


def test_a_refusal_has_the_status_that_its_code_has_everywhere(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for code, status in refusals(operation).items():
            assert document["x-refusals"][code]["status"] == status, (name, code)


def test_the_calls_are_those_of_the_written_contract(document: dict[str, Any]) -> None:
    written = re.findall(r"^\| `(GET|POST) (/api/[^?`]*)", API.read_text(), re.MULTILINE)
    assert {f"{method} {path.replace('{id}', '{marketId}')}" for method, path in written} == {
        name for name, _ in operations(document)
    }


def test_the_codes_are_those_of_the_written_contract(document: dict[str, Any]) -> None:
    table = API.read_text().split("## Refusals")[1]
    written: dict[str, tuple[set[int], bool]] = {}
    for statuses, codes, executed in re.findall(r"^\| ([0-9 /]+) \| (.*?) \| (.*?) \|", table, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", codes):
            known = not executed.startswith(("unknown", "**unknown**"))
            written[code] = {int(status) for status in statuses.split(" / ")}, known
    said = {code: facts for code, facts in document["x-refusals"].items() if code != "method_not_allowed"}
    assert set(said) == set(written)
    for code, facts in said.items():
        statuses, known_not_executed = written[code]
        assert facts["status"] in statuses, code
        assert (facts["executed"] is False) == known_not_executed, code


def test_what_moves_money_needs_a_key_and_says_that_it_replays(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        keyed = any(found["name"] == "Idempotency-Key" for found in operation.get("parameters", []))
        moves_money = name.startswith("POST") and name not in KEYLESS
        assert keyed == moves_money, name
        success = next(response for status, response in operation["responses"].items() if status < "300")
        assert ("Idempotent-Replayed" in success.get("headers", {})) == moves_money, name
        assert ("security" in operation) == (name != "GET /api/health"), name


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(found := node.get("$ref"), str):
                yield found
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(document))
    assert found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_documented_call_exists(client: MarketClient, document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        method, path = name.split(" ")
        reply = client.http.request(method, re.sub("{.*?}", "1", path))
        if "security" in operation:
            assert refusal(reply) == (401, "unauthorised"), name
        else:
            accepted(reply)
