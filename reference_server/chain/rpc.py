"""JSON-RPC 2.0: from the bytes of a request, or of a batch of them, to the bytes of the reply."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from reference_server.chain.clock import ClockError
from reference_server.chain.node import NodeError
from reference_server.chain.problems import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    RpcError,
    invalid,
)
from reference_server.chain.transactions import TransactionError

BATCH_MAX = 1_000

log = logging.getLogger("reference_server.chain")


class Method:
    """One method and how many parameters it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self.most = len(parameters)
        self.fewest = sum(each.default is inspect.Parameter.empty for each in parameters)

    def call(self, parameters: Any) -> Any:
        if not isinstance(parameters, list):
            raise invalid("params: a list, in the method's order")
        if not self.fewest <= len(parameters) <= self.most:
            raise invalid(f"{self.fewest} to {self.most} parameters are expected, {len(parameters)} came")
        return self.function(*parameters)


class Rpc:
    """Answers requests with the public methods of some objects."""

    def __init__(self, *groups: object) -> None:
        self._methods = {
            name: Method(function)
            for group in groups
            for name, function in inspect.getmembers(group, inspect.ismethod)
            if not name.startswith("_")
        }

    def answer(self, body: bytes) -> bytes:
        """The reply to a request or a batch; empty when nothing in it asks for one."""
        try:
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return msgspec.json.encode(_failure(None, RpcError(PARSE_ERROR, f"Parse error: {error}")))
        if not isinstance(request, list):
            reply = self._answer_one(request)
            return b"" if reply is None else msgspec.json.encode(reply)
        if not 0 < len(request) <= BATCH_MAX:
            problem = RpcError(INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests")
            return msgspec.json.encode(_failure(None, problem))
        replies = [reply for each in request if (reply := self._answer_one(each)) is not None]
        return msgspec.json.encode(replies) if replies else b""

    def _answer_one(self, request: Any) -> dict[str, Any] | None:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failure(None, RpcError(INVALID_REQUEST, "Invalid request"))
        number = request.get("id")
        try:
            reply: dict[str, Any] = {
                "jsonrpc": "2.0",
                "id": number,
                "result": self._call(request["method"], request.get("params") or []),
            }
        except RpcError as error:
            reply = _failure(number, error)
        except (NodeError, ClockError, TransactionError) as error:
            reply = _failure(number, invalid(str(error)))
        except Exception:
            # One request that nobody thought of must not take the node down.
            log.exception("%s failed", request["method"])
            reply = _failure(number, RpcError(INTERNAL_ERROR, "Internal error; the node's log says more"))
        return reply if "id" in request else None

    def _call(self, name: str, parameters: Any) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"Method not found: {name}")
        return method.call(parameters)


def _failure(number: Any, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": error.body()}
