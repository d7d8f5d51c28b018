"""Withdrawals: asked for under a key and answered with a status to poll.

What is answered with 202 is reserved: the money has left the user's balance. The relay pays it, the watcher
follows it on the chain, and the status tells how far it is.
"""

from __future__ import annotations

import asyncio
import re

import msgspec
from litestar import get, post
from litestar.response.base import ASGIResponse
from msgspec import UNSET

from reference_server.authentication import require_user
from reference_server.bodies import Parser, WithdrawalRequest
from reference_server.problem import Problem
from reference_server.routes import (
    ApiRequest,
    answer,
    given,
    keyed,
    moving,
    query_of,
    services_of,
    user_of,
)
from reference_server.sequencer import Reply
from reference_server.siwe import lower_address

parse_withdrawal = Parser(WithdrawalRequest)

_WITHDRAWAL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.ASCII)


@post("/api/withdrawals")
async def withdraw(request: ApiRequest) -> ASGIResponse:
    caller, key, body = await keyed(request, require_user, parse_withdrawal)
    if body.address is not UNSET:
        # one spelling, so that a retry with another is the same request
        address = await asyncio.to_thread(lower_address, body.address, field="address")
        body = msgspec.structs.replace(body, address=address)
    return await moving(
        request,
        caller,
        key,
        body,
        "SELECT status, replayed, body FROM api_withdraw(%s, %s, %s, %s::bigint, %s::text)",
        body.amount,
        given(body.address),
    )


@get("/api/withdrawals/{withdrawal_id:str}")
async def withdrawal(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    withdrawal_id = request.path_params["withdrawal_id"]
    text = None
    if _WITHDRAWAL_ID.match(withdrawal_id):
        (text,) = await services_of(request).database.read_row(
            "SELECT api_withdrawal(%s::text, %s::uuid)", (user_id, withdrawal_id)
        )
    if text is None:
        raise Problem("withdrawal_not_found", "you have no withdrawal with this id", field="withdrawalId")
    return answer(Reply(200, False, text.encode()))


WITHDRAWAL_ROUTES = [withdraw, withdrawal]
