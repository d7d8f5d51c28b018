"""EIP-4361 messages: what is one and what is not, whom it is for, and who signed it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from reference_server.problem import Problem
from reference_server.siwe import (
    Audience,
    Message,
    check_message,
    check_signature,
    lower_address,
    parse_message,
    prove_wallet,
)

KEY = "0x" + "11" * 32
ACCOUNT = Account.from_key(KEY)
ADDRESS = ACCOUNT.address
AUDIENCE = Audience("market.example:8443", 31337)
NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
SHORTEST = f"""market.example:8443 wants you to sign in with your Ethereum account:
{ADDRESS}


URI: https://market.example:8443/wallets
Version: 1
Chain ID: 31337
Nonce: 0123456789abcdef
Issued At: 2026-01-02T11:59:00Z"""
STATED = SHORTEST.replace(f"{ADDRESS}\n\n\n", f"{ADDRESS}\n\nLink this wallet; no money moves.\n\n")
LONGEST = (
    "https://"
    + STATED
    + """
Expiration Time: 2026-01-02T12:05:00.250Z
Not Before: 2026-01-02T13:58:00+02:00
Request ID: a-1
Resources:
- https://market.example:8443/terms
- ipfs://bafybei"""
)


def signed(text: str, key: str = KEY) -> str:
    signature = Account.from_key(key).sign_message(encode_defunct(text=text)).signature
    return "0x" + bytes(signature).hex()


def code_of(refused: pytest.ExceptionInfo[Problem]) -> str:
    return refused.value.code


def changed(**changes: Any) -> Message:
    return parse_message(SHORTEST)._replace(**changes)


def test_the_shortest_message_is_read() -> None:
    message = parse_message(SHORTEST)
    assert message == Message(
        scheme=None,
        domain="market.example:8443",
        address=ADDRESS.lower(),
        uri="https://market.example:8443/wallets",
        chain_id=31337,
        nonce="0123456789abcdef",
        issued_at=datetime(2026, 1, 2, 11, 59, tzinfo=UTC),
        expires_at=None,
        not_before=None,
    )
    check_message(message, AUDIENCE, NOW)


def test_the_longest_message_is_read() -> None:
    message = parse_message(LONGEST)
    assert message.scheme == "https"
    assert message.expires_at == datetime(2026, 1, 2, 12, 5, 0, 250_000, tzinfo=UTC)
    assert message.not_before == datetime(2026, 1, 2, 11, 58, tzinfo=UTC)
    check_message(message, AUDIENCE, NOW)


def test_a_statement_is_a_line_of_its_own() -> None:
    assert parse_message(STATED).address == ADDRESS.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        SHORTEST + "\n",
        "\n" + SHORTEST,
        SHORTEST.replace("\n", "\r\n"),
        SHORTEST.replace("\n\n\n", "\n\n"),
        SHORTEST.replace("\n\n\n", "\n\n\n\n"),
        SHORTEST.replace("wants you to", "Wants you to"),
        SHORTEST.replace(ADDRESS, ADDRESS[2:]),
        SHORTEST.replace(ADDRESS, ADDRESS + "0"),
        SHORTEST.replace(ADDRESS, ADDRESS.replace("0x", "0X")),
        SHORTEST.replace(ADDRESS, "0x" + ADDRESS[2:].swapcase()),
        SHORTEST.replace("market.example:8443 wants", "market.example@evil.example wants"),
        SHORTEST.replace("market.example:8443 wants", " wants"),
        SHORTEST.replace("Version: 1", "Version: 2"),
        SHORTEST.replace("Version: 1", "Version: 1 "),
        SHORTEST.replace("Chain ID: 31337", "Chain ID: 031337"),
        SHORTEST.replace("Chain ID: 31337", "Chain ID: 0x7a69"),
        SHORTEST.replace("Chain ID: 31337", "Chain ID: ٣"),
        SHORTEST.replace("Nonce: 0123456789abcdef", "Nonce: 0123456"),
        SHORTEST.replace("Nonce: 0123456789abcdef", "Nonce: 01234567-9abcdef"),
        SHORTEST.replace("URI: https:", "URI: "),
        SHORTEST.replace("/wallets", "/wal lets"),
        SHORTEST.replace("2026-01-02T11:59:00Z", "2026-01-02 11:59:00Z"),
        SHORTEST.replace("2026-01-02T11:59:00Z", "2026-01-02T11:59:00"),
        SHORTEST.replace("2026-01-02T11:59:00Z", "2026-13-02T11:59:00Z"),
        SHORTEST.replace("Version: 1\nChain ID: 31337", "Chain ID: 31337\nVersion: 1"),
        SHORTEST.replace("Version: 1\n", "Version: 1\nVersion: 1\n"),
        SHORTEST + "\nNonce: fedcba9876543210",
        SHORTEST + "\nNot Before: 2026-01-02T11:58:00Z\nExpiration Time: 2026-01-02T12:05:00Z",
        SHORTEST + "\nResources:\n-https://market.example",
        STATED.replace("no money", "no mönéy"),
        STATED.replace("no money", "no\nmoney"),
        STATED.replace("no money", "no\x00money"),
    ],
)
def test_what_the_grammar_does_not_have_is_malformed(text: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_message(text)
    assert (code_of(refused), refused.value.field) == ("malformed", "message")


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": "market.example"},
        {"domain": "evil.example:8443"},
        {"domain": "MARKET.example:8443"},
        {"uri": "https://evil.example/wallets"},
        {"uri": "https://market.example:8443@evil.example/"},
        {"uri": "urn:market.example:8443"},
        {"scheme": "ftp"},
        {"chain_id": 1},
        {"issued_at": NOW + timedelta(seconds=61)},
        {"expires_at": NOW},
        {"not_before": NOW + timedelta(seconds=1)},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_a_message_for_somebody_else_or_another_time_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Problem) as refused:
        check_message(changed(**changes), AUDIENCE, NOW)
    assert code_of(refused) == "message_refused"


def test_clocks_may_differ_a_little() -> None:
    check_message(changed(issued_at=NOW + timedelta(seconds=59)), AUDIENCE, NOW)


def test_only_the_named_account_can_sign() -> None:
    check_signature(SHORTEST, ADDRESS.lower(), signed(SHORTEST))
    for signature in (signed(SHORTEST, "0x" + "22" * 32), signed(SHORTEST + " ")):
        with pytest.raises(Problem) as refused:
            check_signature(SHORTEST, ADDRESS.lower(), signature)
        assert code_of(refused) == "signature_invalid"


@pytest.mark.parametrize("r", ["00" * 32, "11" * 32, "ff" * 32])
@pytest.mark.parametrize("v", ["00", "01", "1b", "1c", "1d", "ff"])
def test_what_is_no_signature_is_refused_and_not_a_crash(r: str, v: str) -> None:
    with pytest.raises(Problem) as refused:
        check_signature(SHORTEST, ADDRESS.lower(), "0x" + r + r + v)
    assert code_of(refused) == "signature_invalid"


def test_checksum_and_lower_case_are_one_wallet_and_other_capitals_none() -> None:
    assert lower_address(ADDRESS, field="address") == ADDRESS.lower()
    assert lower_address(ADDRESS.lower(), field="address") == ADDRESS.lower()
    with pytest.raises(Problem) as refused:
        lower_address("0x" + ADDRESS[2:].swapcase(), field="address")
    assert (code_of(refused), refused.value.field) == ("malformed", "address")


def test_a_whole_proof() -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = SHORTEST.replace("2026-01-02T11:59:00Z", now)
    assert prove_wallet(text, signed(text), AUDIENCE).address == ADDRESS.lower()
    with pytest.raises(Problem) as refused:
        prove_wallet(text, signed(text), Audience("market.example:8443", 1))
    assert code_of(refused) == "message_refused"
