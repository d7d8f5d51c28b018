"""The routes of the API beside trading: users, fundings, markets, accounts, health and the OpenAPI document.

Every handler says who may call, reads what it needs strictly, calls one database function and passes on what
that function rendered.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, LiteralString, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.response.base import ASGIResponse
from msgspec import UNSET

from reference_server import VERSION
from reference_server.authentication import Authentication, Caller, require_admin, require_user
from reference_server.bodies import (
    INT64_MAX,
    FundingRequest,
    MarketAction,
    MarketRequest,
    Parser,
    UserRequest,
    canonical,
)
from reference_server.database import Database
from reference_server.headers import RequestHeaders
from reference_server.health import Health
from reference_server.idempotency import KeysInFlight, request_hash
from reference_server.problem import Problem
from reference_server.replies import Receive, read_body, reply_headers
from reference_server.sequencer import Reply
from reference_server.siwe import Audience
from reference_server.strategies import Strategy

LEDGER_LIMIT_DEFAULT = 50
LEDGER_LIMIT_MAX = 200

Body = TypeVar("Body", bound=msgspec.Struct)

parse_user = Parser(UserRequest)
parse_funding = Parser(FundingRequest)
parse_market = Parser(MarketRequest)
parse_market_action = Parser(MarketAction)

_MARKET_ID = re.compile(r"[1-9][0-9]{0,18}\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the handlers work with; one a process."""

    database: Database
    authentication: Authentication
    keys: KeysInFlight
    strategy: Strategy
    health: Health
    audience: Audience


ApiRequest = Request[Any, Any, State]


def services_of(request: ApiRequest) -> Services:
    services: Services = request.app.state.services
    return services


async def caller_of(request: ApiRequest, headers: RequestHeaders) -> Caller:
    """The authenticated caller; raises Problem."""
    return await services_of(request).authentication.caller(headers.token())


def query_of(request: ApiRequest, *known: str) -> dict[str, str]:
    """The query parameters; raises Problem on one that is not known or is given twice."""
    query: dict[str, str] = {}
    raw = request.scope["query_string"]
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            raise Problem("malformed", "there is no such query parameter here", field=name[:100])
        if name in query:
            raise Problem("malformed", f"the parameter {name} is given more than once", field=name)
        query[name] = value
    return query


def market_id_of(request: ApiRequest) -> int:
    """The market id in the path; raises Problem `market_not_found` when nothing can have it."""
    text = request.path_params["market_id"]
    if _MARKET_ID.match(text) is None or (market_id := int(text)) > INT64_MAX:
        raise Problem("market_not_found", "a market id is a whole number above 0", field="marketId")
    return market_id


async def body_of(request: ApiRequest, headers: RequestHeaders, parse: Parser[Body]) -> Body:
    """The parsed body; raises Problem."""
    headers.require_json()
    return parse(await read_body(headers, cast("Receive", request.receive)))


def answer(reply: Reply) -> ASGIResponse:
    """The reply as the database rendered it."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in reply_headers(reply)]
    return ASGIResponse(body=reply.body, status_code=reply.status, headers=headers)


async def reading(request: ApiRequest, query: LiteralString, *parameters: Any) -> ASGIResponse:
    """The reply that one reading function renders; raises Problem `market_not_found`."""
    (text,) = await services_of(request).database.read_row(query, parameters)
    if text is None:  # only a market can be missing: an account has its caller
        raise Problem("market_not_found", "there is no market with this id", field="marketId")
    return answer(Reply(200, False, text.encode()))


async def keyed(
    request: ApiRequest, require: Callable[[Caller], None], parse: Parser[Body]
) -> tuple[Caller, str, Body]:
    """Who asks for money to move, under which key, and for what, checked in this order; raises Problem."""
    headers = RequestHeaders(request.scope["headers"])
    caller = await caller_of(request, headers)
    require(caller)
    query_of(request)
    headers.require_json()
    key = headers.idempotency_key()
    return caller, key, await body_of(request, headers, parse)


async def moving(
    request: ApiRequest, caller: Caller, key: str, body: msgspec.Struct, query: LiteralString, *more: Any
) -> ASGIResponse:
    """Call a function that moves money under a key: (user, key, request hash, ...)."""
    services = services_of(request)
    asked = request_hash("POST", request.scope["path"], canonical(body))
    with services.keys.hold(caller.user_id, key):
        status, replayed, text = await services.database.row(query, (caller.user_id, key, asked, *more))
    return answer(Reply(status, replayed, text.encode()))


def given(value: Any) -> Any:
    return None if value is UNSET else value


@get("/api/health")
async def health(request: ApiRequest) -> ASGIResponse:
    services = services_of(request)
    if not await services.health.answers():
        raise Problem("unhealthy", "PostgreSQL did not answer within a second")
    content = {
        "status": "ok",
        "version": VERSION,
        "strategy": services.strategy.name,
        "pool": {"size": services.database.size, "waiting": services.database.waiting},
        "sequencer": {"queued": services.strategy.queued, "in_flight": services.strategy.in_flight},
    }
    return answer(Reply(200, False, msgspec.json.encode(content)))


@post("/api/users")
async def create_user(request: ApiRequest) -> ASGIResponse:
    headers = RequestHeaders(request.scope["headers"])
    require_admin(await caller_of(request, headers))
    query_of(request)
    body = await body_of(request, headers, parse_user)
    token = secrets.token_urlsafe(32)
    status, text = await services_of(request).database.row(
        "SELECT status, body FROM api_create_user(%s::text, %s::text, %s::bytea)",
        (given(body.user_id), body.name, sha256(token.encode()).digest()),
    )
    content = text.encode()
    if status == 201:
        content = msgspec.json.encode({**msgspec.json.decode(content), "token": token})
    return answer(Reply(status, False, content))


@post("/api/fundings")
async def fund(request: ApiRequest) -> ASGIResponse:
    caller, key, body = await keyed(request, require_admin, parse_funding)
    if (body.user_id is UNSET) == (body.account is UNSET):
        raise Problem("malformed", "give exactly one of userId and account", field="userId")
    return await moving(
        request,
        caller,
        key,
        body,
        "SELECT status, replayed, body FROM api_fund(%s, %s, %s, %s::text, %s::text, %s::bigint)",
        given(body.user_id),
        given(body.account),
        body.amount,
    )


@post("/api/markets")
async def create_market(request: ApiRequest) -> ASGIResponse:
    caller, key, body = await keyed(request, require_admin, parse_market)
    if len(set(body.outcomes)) != len(body.outcomes):
        raise Problem("malformed", "two outcomes have the same name", field="outcomes")
    return await moving(
        request,
        caller,
        key,
        body,
        "SELECT status, replayed, body"
        " FROM api_create_market(%s, %s, %s, %s::text, %s::text[], %s::bigint, %s::int)",
        body.question,
        body.outcomes,
        body.b,
        body.fee_bps,
    )


@post("/api/markets/{market_id:str}")
async def act_on_market(request: ApiRequest) -> ASGIResponse:
    caller, key, body = await keyed(request, require_admin, parse_market_action)
    return await moving(
        request,
        caller,
        key,
        body,
        "SELECT status, replayed, body FROM api_close_market(%s, %s, %s, %s::bigint)",
        market_id_of(request),
    )


@get("/api/markets")
async def markets(request: ApiRequest) -> ASGIResponse:
    await caller_of(request, RequestHeaders(request.scope["headers"]))
    query_of(request)
    return await reading(request, "SELECT api_markets()")


@get("/api/markets/{market_id:str}")
async def market(request: ApiRequest) -> ASGIResponse:
    await caller_of(request, RequestHeaders(request.scope["headers"]))
    query_of(request)
    return await reading(request, "SELECT api_market(%s::bigint)", market_id_of(request))


async def user_of(request: ApiRequest) -> str:
    """The calling user's id; accounts are read by their owner only. Raises Problem."""
    caller = await caller_of(request, RequestHeaders(request.scope["headers"]))
    require_user(caller)
    return caller.user_id


@get("/api/account")
async def account(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    return await reading(request, "SELECT api_account(%s::text)", user_id)


@get("/api/account/ledger")
async def account_ledger(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    text = query_of(request, "limit").get("limit", str(LEDGER_LIMIT_DEFAULT))
    limit = int(text) if re.fullmatch("[0-9]{1,3}", text, re.ASCII) else 0
    if not 1 <= limit <= LEDGER_LIMIT_MAX:
        raise Problem("malformed", f"limit is a whole number from 1 to {LEDGER_LIMIT_MAX}", field="limit")
    return await reading(request, "SELECT api_account_ledger(%s::text, %s::int)", user_id, limit)


@get("/api/account/reconciliation")
async def account_reconciliation(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    return await reading(request, "SELECT api_account_reconciliation(%s::text)", user_id)


@get("/schema/openapi.json")
async def openapi_document() -> ASGIResponse:
    # Imported when first asked for: a server that comes back has no time for it.
    from reference_server.openapi import document

    return answer(Reply(200, False, document()))


ROUTES = [
    health,
    create_user,
    fund,
    create_market,
    act_on_market,
    markets,
    market,
    account,
    account_ledger,
    account_reconciliation,
    openapi_document,
]
