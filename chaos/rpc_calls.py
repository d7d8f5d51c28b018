"""JSON-RPC messages as they pass: what a request asks, and requests and replies of our own."""

from __future__ import annotations

from typing import Any

import msgspec

from chaos.http_calls import json_of
from chaos.http_messages import Request

Json = dict[str, Any]


class RpcCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call; `asks` is false for a notification, which nothing answers."""

    method: str
    params: list[Any]
    number: Any = None
    asks: bool = True

    def reply(self, body: Json) -> Json:
        """A reply to it, from its `result` or `error` member."""
        return {"jsonrpc": "2.0", "id": self.number, **body}


def read_calls(body: bytes) -> RpcCall | list[RpcCall] | None:
    """The call or the batch in a request's body; None when it is neither, or any part of it is not a call."""
    request = json_of(body)
    if not isinstance(request, list):
        return _call(request)
    calls = [call for each in request if (call := _call(each)) is not None]
    return calls if calls and len(calls) == len(request) else None


def read_reply(content: bytes) -> Json:
    """A reply as the node gave it; empty when it is no JSON object."""
    reply = json_of(content)
    return reply if isinstance(reply, dict) else {}


def outcome(reply: Json) -> Json:
    """The `result` or `error` member of a reply; an error that says so when it has neither."""
    for member in ("error", "result"):
        if member in reply:
            return {member: reply[member]}
    return {"error": {"code": -32_603, "message": "the node's reply is no JSON-RPC"}}


def request_of(method: str, params: list[Any], *, port: int) -> Request:
    """A request of our own to the node."""
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    head = (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    return Request(head + body, len(head))


def _call(request: Any) -> RpcCall | None:
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return None
    params = request.get("params") or []
    if not isinstance(params, list):
        return None
    return RpcCall(method=request["method"], params=params, number=request.get("id"), asks="id" in request)
