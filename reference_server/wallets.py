"""Linking wallets: a nonce to sign, the signed message, and the list of what is linked.

A message is checked here (form, domain, chain, time, signature); the database uses up its nonce and gives the
wallet to the user in one transaction.
"""

from __future__ import annotations

import asyncio
import secrets

import msgspec
from litestar import get, post
from litestar.response.base import ASGIResponse

from reference_server.bodies import Parser, WalletRequest
from reference_server.headers import RequestHeaders
from reference_server.routes import ApiRequest, answer, body_of, query_of, reading, services_of, user_of
from reference_server.sequencer import Reply
from reference_server.siwe import prove_wallet

# Long enough to find the phone that signs.
NONCE_LIFETIME_S = 600.0

parse_wallet = Parser(WalletRequest)


@post("/api/wallets/nonces")
async def create_nonce(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    services = services_of(request)
    status, text = await services.database.row(
        "SELECT status, body FROM api_wallet_nonce(%s::text, %s::text, %s::float8)",
        (user_id, secrets.token_hex(16), NONCE_LIFETIME_S),
    )
    audience = {"domain": services.audience.domain, "chainId": services.audience.chain_id}
    return answer(Reply(status, False, msgspec.json.encode({**msgspec.json.decode(text), **audience})))


@post("/api/wallets")
async def link_wallet(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    body = await body_of(request, RequestHeaders(request.scope["headers"]), parse_wallet)
    services = services_of(request)
    # in a thread: the first proof imports what it needs, and trades must not wait for that
    message = await asyncio.to_thread(prove_wallet, body.message, body.signature, services.audience)
    status, text = await services.database.row(
        "SELECT status, body FROM api_link_wallet(%s::text, %s::text, %s::text)",
        (user_id, message.address, message.nonce),
    )
    return answer(Reply(status, False, text.encode()))


@get("/api/wallets")
async def wallets(request: ApiRequest) -> ASGIResponse:
    user_id = await user_of(request)
    query_of(request)
    return await reading(request, "SELECT api_wallets(%s::text)", user_id)


WALLET_ROUTES = [create_nonce, link_wallet, wallets]
