"""POST /api/trade: the hot path, a plain ASGI endpoint in front of Litestar's routing.

In this order: who is calling, is the body JSON, which key, what trade; then the strategy executes it. What
the database answers is passed on byte for byte.

Why not a Litestar handler: its routing and request objects cost twice what all of this does.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from msgspec import UNSET

from reference_server.authentication import Authentication, require_user
from reference_server.bodies import canonical, parse_trade
from reference_server.database import DatabaseError
from reference_server.headers import RequestHeaders
from reference_server.idempotency import KeysInFlight, request_hash
from reference_server.problem import Problem
from reference_server.replies import (
    Disconnected,
    Receive,
    Scope,
    Send,
    failure,
    read_body,
    send_problem,
    send_reply,
)
from reference_server.sequencer import QueueFull, Reply, Trade
from reference_server.strategies import Strategy

PATH = "/api/trade"

log = logging.getLogger("reference_server.trading")


class TradeEndpoint:
    """The ASGI application of POST /api/trade."""

    def __init__(self, authentication: Authentication, keys: KeysInFlight, strategy: Strategy) -> None:
        self._authentication = authentication
        self._keys = keys
        self._strategy = strategy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise Problem("method_not_allowed", "POST a trade here", headers=(("allow", "POST"),))
            if scope["query_string"]:
                raise Problem("malformed", "there are no query parameters here")
            reply = await self._trade(RequestHeaders(scope["headers"]), receive)
        except Disconnected:
            return
        except (Problem, DatabaseError, QueueFull) as error:
            await send_problem(send, failure(error))
        except Exception as error:
            log.exception("%s in a trade request", HTTPStatus.INTERNAL_SERVER_ERROR.phrase)
            await send_problem(send, failure(error))
        else:
            await send_reply(send, reply)

    async def _trade(self, headers: RequestHeaders, receive: Receive) -> Reply:
        token = headers.token()
        caller = self._authentication.remembered(token) or await self._authentication.caller(token)
        require_user(caller)
        headers.require_json()
        key = headers.idempotency_key()
        body = parse_trade(await read_body(headers, receive))
        trade = Trade(
            user_id=caller.user_id,
            market_id=body.market_id,
            key=key,
            request_hash=request_hash("POST", PATH, canonical(body)),
            outcome=body.outcome,
            side=body.side,
            shares=None if body.shares is UNSET else body.shares,
            amount=None if body.amount is UNSET else body.amount,
            limit=None if body.limit is UNSET else body.limit,
        )
        with self._keys.hold(caller.user_id, key):
            return await self._strategy.trade(trade)
