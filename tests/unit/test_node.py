"""What SEATRIAL_CHAIN must say, and how a request to the node looks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scenarios.node import Node, call, chain_access, send_body
from scenarios.wire import resolve

KEY = "0x" + "7e" * 32
TOLD: dict[str, Any] = {
    "rpc": "http://127.0.0.1:8545",
    "chain_id": 31_337,
    "usdc": "0x01",
    "vault": "0x02",
    "minter_key": KEY,
    "confirmations": 3,
    "wallet_domain": "localhost",
}


def test_what_is_told_of_the_chain_is_read() -> None:
    assert msgspec.structs.asdict(chain_access(msgspec.json.encode(TOLD).decode())) == TOLD


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "SEATRIAL_CHAIN is not set; a plan with [chain] needs to know where the chain is"),
        ("{", "SEATRIAL_CHAIN: Input data was truncated"),
        ("[]", "SEATRIAL_CHAIN: Expected `object`, got `array`"),
        (
            msgspec.json.encode({**TOLD, "chain_id": KEY}).decode(),
            "SEATRIAL_CHAIN: Expected `int`, got `str` - at `$.chain_id`",
        ),
        (
            msgspec.json.encode({"rpc": "x", "minter_key": KEY}).decode(),
            "SEATRIAL_CHAIN: Object missing required field `chain_id`",
        ),
    ],
)
def test_what_is_not_told_is_named_and_the_key_is_not_shown(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="SEATRIAL_CHAIN") as caught:
        chain_access(text)
    assert str(caught.value) == said
    assert KEY not in str(caught.value)


def test_a_request_to_the_node_is_whole_and_tells_no_token() -> None:
    node = Node(resolve("http://127.0.0.1:8545"))
    body = send_body(b"\x02\xff")
    head, _, sent = node.request(body).partition(b"\r\n\r\n")
    assert msgspec.json.decode(sent) == call("eth_sendRawTransaction", "0x02ff")
    assert head.split(b"\r\n") == [
        b"POST / HTTP/1.1",
        b"Host: 127.0.0.1:8545",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
