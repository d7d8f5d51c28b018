"""The OpenAPI document: the HTTP contract, made from the shapes the server parses and replies with.

OPERATIONS says for each operation who may call it and every refusal it can answer with; what a code means
for the caller's money stands once, under `x-refusals`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import msgspec

from reference_server import VERSION, bodies, reply_shapes
from reference_server.problem import CODES, MEDIA_TYPE, ProblemBody

REFERENCE = "#/components/schemas/{name}"

# Every operation that asks the database may meet these.
DATABASE = ("overloaded", "contention", "internal")
# A pause may hide the books as well.
READ = ("trading_paused", *DATABASE)
QUERY = ("malformed",)
BODY = ("malformed", "too_large", "unsupported_media_type")
KEY = (
    "idempotency_key_missing",
    "idempotency_key_malformed",
    "idempotency_key_in_progress",
    "idempotency_key_reused",
)


class Operation(NamedTuple):
    """One call; `who` may make it, and `refusals` are the codes it may answer with beside those of `who`."""

    method: Literal["get", "post"]
    path: str
    summary: str
    who: Literal["anyone", "any", "user", "admin"]
    reply: type[msgspec.Struct]
    refusals: tuple[str, ...]
    status: int = 200
    body: type[msgspec.Struct] | None = None
    key: bool = False
    parameters: tuple[dict[str, Any], ...] = ()


MARKET_ID = {
    "name": "marketId",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "format": "int64", "minimum": 1},
}
LEDGER_LIMIT = {
    "name": "limit",
    "in": "query",
    "description": "how many entries at most",
    "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
}
WITHDRAWAL_ID = {
    "name": "withdrawalId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "names one intent of the caller; asking again with the same key moves nothing twice",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
REPLAYED = {"Idempotent-Replayed": {"schema": {"const": "true"}, "description": "the stored reply"}}
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}

OPERATIONS = (
    Operation(
        "get", "/api/health", "Does the service answer?", "anyone", reply_shapes.HealthReply,
        ("unhealthy", "internal"),
    ),
    Operation(
        "post", "/api/users", "Create a user", "admin", reply_shapes.UserReply,
        ("user_exists", *BODY, *DATABASE), status=201, body=bodies.UserRequest,
    ),
    Operation(
        "post", "/api/fundings", "Bring in money", "admin", reply_shapes.FundingReply,
        ("user_not_found", "trading_paused", *BODY, *DATABASE),
        status=201, body=bodies.FundingRequest, key=True,
    ),
    Operation(
        "post", "/api/markets", "Create a market", "admin", reply_shapes.CreatedMarketReply,
        ("insufficient_funds", "trading_paused", *BODY, *DATABASE),
        status=201, body=bodies.MarketRequest, key=True,
    ),
    Operation(
        "get", "/api/markets", "All markets", "any", reply_shapes.MarketsReply,
        (*QUERY, *READ),
    ),
    Operation(
        "get", "/api/markets/{marketId}", "One market", "any", reply_shapes.MarketReply,
        ("market_not_found", *QUERY, *READ), parameters=(MARKET_ID,),
    ),
    Operation(
        "post", "/api/markets/{marketId}", "Close a market", "admin", reply_shapes.MarketReply,
        ("market_not_found", "market_closed", *BODY, *DATABASE),
        body=bodies.MarketAction, key=True, parameters=(MARKET_ID,),
    ),
    Operation(
        "post", "/api/trade", "Buy or sell shares of one outcome", "user", reply_shapes.TradeReply,
        (
            "market_not_found", "insufficient_funds", "insufficient_shares", "limit_exceeded",
            "market_closed", "trade_too_small", "trade_too_large", "trading_paused", *BODY, *DATABASE,
        ),
        body=bodies.TradeRequest, key=True,
    ),
    Operation(
        "get", "/api/account", "Own money and shares", "user", reply_shapes.AccountReply,
        (*QUERY, *READ),
    ),
    Operation(
        "get", "/api/account/ledger", "Own newest ledger entries", "user", reply_shapes.LedgerReply,
        (*QUERY, *READ), parameters=(LEDGER_LIMIT,),
    ),
    Operation(
        "get", "/api/account/reconciliation", "Own balance against the entries", "user",
        reply_shapes.ReconciliationReply, (*QUERY, *READ),
    ),
    Operation(
        "post", "/api/wallets/nonces", "Begin to link a wallet", "user", reply_shapes.NonceReply,
        (*QUERY, *DATABASE), status=201,
    ),
    Operation(
        "post", "/api/wallets", "Link a wallet that signed a message", "user", reply_shapes.WalletReply,
        ("wallet_linked", "message_refused", "signature_invalid", "nonce_invalid", *BODY, *DATABASE),
        status=201, body=bodies.WalletRequest,
    ),
    Operation(
        "get", "/api/wallets", "Own wallets", "user", reply_shapes.WalletsReply, (*QUERY, *DATABASE),
    ),
    Operation(
        "post", "/api/withdrawals", "Pay money out to an own wallet", "user", reply_shapes.ReservedReply,
        ("insufficient_funds", "wallet_not_linked", "trading_paused", *BODY, *DATABASE),
        status=202, body=bodies.WithdrawalRequest, key=True,
    ),
    Operation(
        "get", "/api/withdrawals/{withdrawalId}", "How far a withdrawal is", "user",
        reply_shapes.WithdrawalReply, ("withdrawal_not_found", *QUERY, *READ), parameters=(WITHDRAWAL_ID,),
    ),
)  # fmt: skip


def refusals_of(operation: Operation) -> list[str]:
    """Every code this operation may answer with."""
    codes = set(operation.refusals)
    if operation.who != "anyone":
        codes.add("unauthorised")
    if operation.who in ("user", "admin"):
        codes.add("forbidden")
    if operation.key:
        codes.update(KEY)
    return [code for code in CODES if code in codes]


@cache
def document() -> bytes:
    """The document as JSON."""
    shapes = [operation.reply for operation in OPERATIONS] + [ProblemBody]
    shapes += [operation.body for operation in OPERATIONS if operation.body is not None]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = describe(operation)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Prediction market",
                "version": VERSION,
                "description": "Amounts are integer micro-USDC, shares are integer micro-shares.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
            "x-refusals": {
                name: {
                    "status": code.status,
                    "title": code.title,
                    "executed": "unknown" if code.executed is None else code.executed,
                }
                for name, code in CODES.items()
            },
        }
    )


def describe(operation: Operation) -> dict[str, Any]:
    """The operation object."""
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses(operation)}
    parameters = [*operation.parameters, *([IDEMPOTENCY_KEY] if operation.key else [])]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": json_of(operation.body)}
    if operation.who != "anyone":
        described["security"] = [{"bearer": []}]
        described["description"] = {
            "any": "For users and admins.",
            "user": "For users.",
            "admin": "For admins.",
        }[operation.who]
    return described


def responses(operation: Operation) -> dict[str, Any]:
    """The reply, and one response a status for the refusals, which names their codes."""
    success: dict[str, Any] = {"description": "done", "content": json_of(operation.reply)}
    if operation.key:
        success["headers"] = REPLAYED
    found: dict[str, Any] = {str(operation.status): success}
    codes = refusals_of(operation)
    for status in sorted({CODES[code].status for code in codes}):
        here = [code for code in codes if CODES[code].status == status]
        refusal: dict[str, Any] = {
            "description": "; ".join(f"`{code}`: {CODES[code].title}" for code in here),
            "content": {
                MEDIA_TYPE.decode(): {
                    "schema": {
                        "allOf": [{"$ref": REFERENCE.format(name=ProblemBody.__name__)}],
                        "properties": {"code": {"enum": here}},
                    }
                }
            },
        }
        if any(CODES[code].retry for code in here):
            refusal["headers"] = RETRY_AFTER
        found[str(status)] = refusal
    return found


def json_of(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(name=shape.__name__)}}}
