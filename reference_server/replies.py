"""Replies as ASGI messages, and what each way of failing tells the client about its money."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from reference_server import database
from reference_server.bodies import BODY_LIMIT_BYTES
from reference_server.headers import RequestHeaders
from reference_server.problem import MEDIA_TYPE, RETRY_AFTER_S, Problem
from reference_server.sequencer import QueueFull, Reply

BODY_TIMEOUT_S = 30

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")
PROBLEM = (b"content-type", MEDIA_TYPE)
REPLAYED = (b"idempotent-replayed", b"true")
RETRY = (b"retry-after", str(RETRY_AFTER_S).encode())


def failure(error: Exception) -> Problem:
    """The refusal that says exactly as much about the outcome as is known."""
    match error:
        case Problem():
            return error
        case QueueFull():
            return Problem("overloaded", "the market's queue is full; nothing was executed")
        case database.NotExecuted():
            return Problem("overloaded", "no database connection in time; nothing was executed")
        case database.Conflict():
            return Problem("contention", "rolled back each time it was tried; nothing was executed")
        case database.Stopped():
            return Problem("contention", "rolled back after waiting too long; nothing was executed")
        case database.Refused(sqlstate=database.NUMERIC_VALUE_OUT_OF_RANGE):
            return Problem("malformed", "a number would leave the range of 64 bits; nothing was executed")
        case database.Refused(sqlstate=database.PAUSED):
            return Problem("trading_paused", "nothing is shown now")
        case database.OutcomeUnknown():
            return Problem("internal", "the database was lost meanwhile; ask again with the same key")
        case _:
            return Problem("internal", "the server failed; ask again with the same key")


def reply_headers(reply: Reply) -> list[tuple[bytes, bytes]]:
    """The headers of a reply rendered by the database, without its length."""
    headers = [JSON if reply.status < 400 else PROBLEM]
    if reply.replayed:
        headers.append(REPLAYED)
    if reply.status in (429, 503):
        headers.append(RETRY)
    return headers


async def send_reply(send: Send, reply: Reply) -> None:
    await send_bytes(send, reply.status, reply_headers(reply), reply.body)


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """The headers of a refusal, without its length."""
    headers = [PROBLEM]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in problem.headers]
    return headers


async def send_problem(send: Send, problem: Problem) -> None:
    await send_bytes(send, problem.status, problem_headers(problem), problem.body())


def head_of_problem(problem: Problem) -> bytes:
    """Status line and headers of a refusal that ends the connection, for what never became a request."""
    headers = [*problem_headers(problem), (b"content-length", b"%d" % len(problem.body()))]
    lines = [b"HTTP/1.1 %d %s" % (problem.status, HTTPStatus(problem.status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"connection: close", b"", b""])


async def send_bytes(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Disconnected(Exception):
    """The client left before its request was complete; nobody is there to answer."""


async def read_body(headers: RequestHeaders, receive: Receive) -> bytes:
    """The whole body; raises Problem `too_large` as soon as that is known, and Disconnected."""
    declared = headers.content_length
    if declared is not None and len(declared) < 20 and int(declared) > BODY_LIMIT_BYTES:
        raise too_large()
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        if len(message["body"]) > BODY_LIMIT_BYTES:
            raise too_large()
        body: bytes = message["body"]
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await read_parts(message, receive)
    except TimeoutError:
        raise Problem("malformed", f"the body did not arrive within {BODY_TIMEOUT_S} s") from None


async def read_parts(message: Message, receive: Receive) -> bytes:
    """A body that arrives in parts, of which the first is here."""
    body = bytearray()
    while message["type"] == "http.request":
        body += message["body"]
        if len(body) > BODY_LIMIT_BYTES:
            raise too_large()
        if not message["more_body"]:
            return bytes(body)
        message = await receive()
    raise Disconnected


def too_large() -> Problem:
    return Problem("too_large", f"a body has at most {BODY_LIMIT_BYTES} bytes")
