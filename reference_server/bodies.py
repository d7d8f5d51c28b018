"""Request bodies: their shapes, and the strict parser that turns bytes into them or names what is wrong.

Strict means: one JSON object, no unknown member, no member twice, whole numbers within their bounds, no
booleans or strings in place of numbers, no control characters in text.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from reference_server.problem import Problem

BODY_LIMIT_BYTES = 65_536
INT64_MAX = 2**63 - 1
AMOUNT_MICRO_MAX = 10**15
LIQUIDITY_MICRO_MAX = 10**12

Id = Annotated[int, Meta(ge=1, le=INT64_MAX)]
Positive = Annotated[int, Meta(ge=1, le=INT64_MAX, description="micro-USDC or micro-shares")]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
OutcomeName = Annotated[str, Meta(min_length=1, max_length=100)]
Address = Annotated[str, Meta(min_length=42, max_length=42, pattern=r"^0x[0-9a-fA-F]{40}$")]
UserId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:@-]+$")]


class TradeRequest(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """A trade; exactly one of `amount` (buys only: the most to spend) and `shares`."""

    market_id: Id
    outcome: Annotated[int, Meta(ge=0, le=7)]
    side: Literal["buy", "sell"]
    amount: Positive | UnsetType = UNSET
    shares: Positive | UnsetType = UNSET
    limit: Positive | UnsetType = UNSET


class FundingRequest(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Money from outside, for a user or for the house treasury."""

    amount: Annotated[int, Meta(ge=1, le=AMOUNT_MICRO_MAX, description="micro-USDC")]
    user_id: UserId | UnsetType = UNSET
    account: Literal["house_treasury"] | UnsetType = UNSET


class MarketRequest(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """A new market; `b` is the LMSR liquidity in micro-USDC, `feeBps` the fee in 1/10000 of the cost."""

    question: Text
    outcomes: Annotated[list[OutcomeName], Meta(min_length=2, max_length=8)]
    b: Annotated[int, Meta(ge=1_000_000, le=LIQUIDITY_MICRO_MAX)]
    fee_bps: Annotated[int, Meta(ge=0, le=1_000)] = 0


class MarketAction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What to do with a market."""

    action: Literal["close"]


class UserRequest(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """A new user; the server chooses the id when none is given."""

    name: Name
    user_id: UserId | UnsetType = UNSET


class WalletRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A message as EIP-4361 has it, and its EIP-191 signature by the wallet it names."""

    message: Annotated[str, Meta(min_length=1, max_length=4096)]
    signature: Annotated[str, Meta(min_length=132, max_length=132, pattern=r"^0x[0-9a-fA-F]{130}$")]


class WithdrawalRequest(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Money to a wallet of the caller's; `address` may be left out by who has linked only one."""

    amount: Annotated[int, Meta(ge=1, le=AMOUNT_MICRO_MAX, description="micro-USDC")]
    address: Address | UnsetType = UNSET


Body = TypeVar("Body", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()
_FIELD = re.compile(r" - at `\$\.(\w+)[^`]*`$")
_MISSING = re.compile(r"^Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`", re.DOTALL)


def canonical(body: msgspec.Struct) -> bytes:
    """The bytes that stand for this body in a request hash: spacing and order do not count."""
    return _encoder.encode(body)


TEXTS = frozenset({"name", "question", "outcomes", "user_id"})


class Parser(Generic[Body]):
    """Parses the body of one kind of request; raises Problem `malformed` naming the field."""

    def __init__(self, kind: type[Body]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode
        self._texts = [f for f in msgspec.structs.fields(kind) if f.name in TEXTS]

    def __call__(self, data: bytes) -> Body:
        try:
            body = self._decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            refuse_undecodable(data, error)
        refuse_repeated(data)
        for field in self._texts:
            value = getattr(body, field.name)
            if value is not UNSET:
                refuse_unprintable(field.encode_name, value if isinstance(value, list) else [value])
        return body


_decode_trade = msgspec.json.Decoder(TradeRequest).decode


def parse_trade(data: bytes) -> TradeRequest:
    """The body of POST /api/trade; raises Problem `malformed` naming the field.

    A body that decoded holds only the known names, numbers and "buy" or "sell", so no colon stands inside
    a string: colons count the members, and more members than set fields means that one was repeated
    (the decoder keeps the last of them silently).
    """
    try:
        trade = _decode_trade(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        refuse_undecodable(data, error)
    by_amount = trade.amount is not UNSET
    by_shares = trade.shares is not UNSET
    if data.count(b":") != 3 + by_amount + by_shares + (trade.limit is not UNSET):
        refuse_repeated(data)
    if by_amount == by_shares:
        raise Problem("malformed", "give exactly one of amount and shares", field="amount")
    if by_amount and trade.side == "sell":
        raise Problem("malformed", "a sell is by shares; amount is for buys", field="amount")
    return trade


def refuse_undecodable(data: bytes, error: Exception) -> NoReturn:
    """Turn the decoder's error into a Problem that names the field."""
    text = str(error)
    field = None
    for pattern in (_FIELD, _MISSING, _UNKNOWN):
        if found := pattern.search(text):
            field = found[1][:100]
            break
    if not isinstance(error, msgspec.ValidationError):
        field = not_a_number(data)
        text = "not JSON: " + text if field is None else "not a JSON number (NaN and Infinity are not)"
    raise Problem("malformed", text[:300], field=field) from None


def not_a_number(data: bytes) -> str | None:
    """Name of the top-level member whose value is NaN or Infinity, which JSON does not have."""
    odd = object()
    try:
        document = json.loads(data, parse_constant=lambda _: odd)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    return next((name[:100] for name, value in document.items() if value is odd), None)


def refuse_repeated(data: bytes) -> None:
    """Raise Problem when an object of this (already decoded) body names a member twice."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise Problem("malformed", f"the member {name!r} is given more than once", field=name)
            seen.add(name)

    json.loads(data, object_pairs_hook=once)


def refuse_unprintable(field: str, values: list[str]) -> None:
    """Raise Problem on text that a person could not have meant, or that PostgreSQL cannot store (NUL)."""
    for value in values:
        if not value.isprintable():
            raise Problem("malformed", f"{field} holds a character that cannot be printed", field=field)
        if not value.strip():
            raise Problem("malformed", f"{field} is blank", field=field)
