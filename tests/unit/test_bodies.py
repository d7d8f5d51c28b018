"""The strict parser of request bodies: what it takes, what it refuses and how it names the field."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.bodies import (
    FundingRequest,
    MarketRequest,
    Parser,
    TradeRequest,
    canonical,
    parse_trade,
)
from reference_server.idempotency import request_hash
from reference_server.problem import Problem

INT64_MAX = 2**63 - 1
whole = st.integers(min_value=1, max_value=INT64_MAX)


@st.composite
def trades(draw: st.DrawFn) -> dict[str, Any]:
    """A well-formed trade."""
    side = draw(st.sampled_from(["buy", "sell"]))
    size = "shares" if side == "sell" else draw(st.sampled_from(["shares", "amount"]))
    body = {"marketId": draw(whole), "outcome": draw(st.integers(0, 7)), "side": side, size: draw(whole)}
    if draw(st.booleans()):
        body["limit"] = draw(whole)
    return body


def refused(data: bytes) -> str | None:
    """The field that the refusal of this trade names."""
    with pytest.raises(Problem) as caught:
        parse_trade(data)
    assert caught.value.code == "malformed"
    return caught.value.field


@given(trades())
def test_a_well_formed_trade_is_read_exactly(body: dict[str, Any]) -> None:
    trade = parse_trade(json.dumps(body).encode())
    assert msgspec.to_builtins(trade) == body


@given(trades(), st.randoms(use_true_random=False), st.sampled_from([None, 2]))
def test_spelling_does_not_change_what_was_asked(
    body: dict[str, Any], random: Any, indent: int | None
) -> None:
    items = list(body.items())
    random.shuffle(items)
    spelt = json.dumps(dict(items), indent=indent).replace("buy", "\\u0062uy").encode()
    assert canonical(parse_trade(spelt)) == canonical(parse_trade(json.dumps(body).encode()))


@given(trades(), trades())
def test_different_trades_have_different_hashes(one: dict[str, Any], other: dict[str, Any]) -> None:
    hashes = [
        request_hash("POST", "/api/trade", canonical(parse_trade(json.dumps(body).encode())))
        for body in (one, other)
    ]
    assert (hashes[0] == hashes[1]) == (one == other)


@given(trades(), st.data())
def test_a_member_given_twice_is_named(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(body)))
    again = data.draw(st.sampled_from([body[name], 7] if name not in ("side", "outcome") else [body[name]]))
    spelling = data.draw(st.sampled_from([name, f"\\u{ord(name[0]):04x}{name[1:]}"]))
    text = json.dumps(body)[:-1] + f', "{spelling}": {json.dumps(again)}}}'
    assert refused(text.encode()) == name


@given(trades(), st.data())
def test_a_missing_member_is_named(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(set(body) - {"limit"})))
    del body[name]
    assert refused(json.dumps(body).encode()) == ("amount" if name in ("shares", "amount") else name)


@given(trades(), st.data())
def test_a_number_that_is_not_a_whole_amount_is_named(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(set(body) - {"side"})))
    value = data.draw(
        st.one_of(
            st.integers(max_value=-1),
            st.integers(min_value=2**63),
            st.floats(),
            st.text(max_size=5),
            st.booleans(),
            st.none(),
            st.lists(st.integers(), max_size=2),
        )
    )
    assert refused(json.dumps(body | {name: value}).encode()) == name


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (parse_trade, Parser(FundingRequest), Parser(MarketRequest)):
        with pytest.raises(Problem):
            parse(data)


documents = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(documents)
def test_any_document_is_read_or_refused(document: Any) -> None:
    with pytest.raises(Problem):
        parse_trade(json.dumps(document).encode())


def test_omitted_and_default_members_ask_for_the_same() -> None:
    parse = Parser(MarketRequest)
    body = {"question": "q", "outcomes": ["Yes", "No"], "b": 10**8}
    spelt = [json.dumps(body | extra).encode() for extra in ({}, {"feeBps": 0})]
    assert canonical(parse(spelt[0])) == canonical(parse(spelt[1]))
    assert canonical(parse(spelt[0])) != canonical(parse(json.dumps(body | {"feeBps": 1}).encode()))


def test_the_hash_covers_method_and_path() -> None:
    body = canonical(TradeRequest(market_id=1, outcome=0, side="buy", shares=1))
    hashes = {request_hash(m, p, body) for m in ("POST", "PUT") for p in ("/api/trade", "/api/trade/2")}
    assert len(hashes) == 4
