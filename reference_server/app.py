"""The application: the trade endpoint in front, Litestar with all other routes behind it."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import Response
from litestar.routes import HTTPRoute

from reference_server.authentication import Authentication, Caller
from reference_server.database import Connection, Database, DatabaseError
from reference_server.health import Health
from reference_server.idempotency import KeysInFlight
from reference_server.problem import MEDIA_TYPE, Problem
from reference_server.replies import Disconnected, Receive, Scope, Send, failure
from reference_server.routes import ROUTES, Services
from reference_server.siwe import Audience
from reference_server.strategies import STRATEGIES
from reference_server.trading import PATH, TradeEndpoint
from reference_server.wallets import WALLET_ROUTES
from reference_server.withdrawals import WITHDRAWAL_ROUTES

# What Litestar's own refusals are called here.
CODE_OF_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("reference_server.app")


def create_services(
    database: Database, health: Health, *, trade_strategy: str, audience: Audience
) -> Services:
    """The parts of one server process."""

    async def lookup(token_hash: bytes) -> Caller | None:
        rows = await database.read_rows(
            "SELECT user_id, role FROM api_authenticate(%s::bytea)", (token_hash,)
        )
        return Caller(*rows[0]) if rows else None

    return Services(
        database=database,
        authentication=Authentication(lookup),
        keys=KeysInFlight(),
        strategy=STRATEGIES[trade_strategy](database),
        health=health,
        audience=audience,
    )


def create_app(services: Services) -> Application:
    """The ASGI application."""
    trade = TradeEndpoint(services.authentication, services.keys, services.strategy)
    others = Litestar(
        [*ROUTES, *WALLET_ROUTES, *WITHDRAWAL_ROUTES],
        state=State({"services": services}),
        openapi_config=None,  # the document is made from the same shapes in reference_server.openapi
        exception_handlers={Exception: refuse},
        logging_config=None,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            await trade(scope, receive, send)
        else:
            await others(cast("Any", scope), cast("Any", receive), cast("Any", send))

    return app


def refuse(request: Request[Any, Any, State], error: Exception) -> Response[bytes]:
    """The refusal for anything that a handler or Litestar itself raised."""
    if isinstance(error, HTTPException):
        code = CODE_OF_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "malformed")
        headers: tuple[tuple[str, str], ...] = ()
        if code == "method_not_allowed":
            headers = (("allow", allowed_methods(request)),)
        problem = Problem(code, str(error.detail)[:300], headers=headers)
    else:
        problem = failure(error)
        if not isinstance(error, Problem | DatabaseError | Disconnected):
            log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return Response(
        problem.body(),
        status_code=problem.status,
        media_type=MEDIA_TYPE.decode(),
        headers=dict(problem.headers),
    )


def allowed_methods(request: Request[Any, Any, State]) -> str:
    """What RFC 9110 wants a 405 to name, and Litestar does not: the methods of this path."""
    path = request.scope["path"].rstrip("/")
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, HTTPRoute) and re.fullmatch(re.sub("{.*?}", "[^/]+", route.path), path):
            methods.update(route.methods)
    return ", ".join(sorted(methods))


def assemble(
    dsn: str, connection: Connection, *, strategy: str, pool_min: int, pool_max: int, audience: Audience
) -> Services:
    """The parts of one server process, around a connection that is already open."""
    database = Database(dsn, pool_min=pool_min, pool_max=pool_max)
    return create_services(database, Health(dsn, connection), trade_strategy=strategy, audience=audience)
