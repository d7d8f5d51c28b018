"""JSON-RPC to a chain's node, as the harness speaks it: one call, one answer, nothing repeated."""

from __future__ import annotations

import itertools
from typing import Any

import httpx

REQUEST_TIMEOUT_S = 5.0


class RpcError(Exception):
    """A node that did not answer, or said no; names the method and what was said."""


class Rpc:
    """One node; safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._numbers = itertools.count(1)
        verify = url.startswith("https:")
        self._client = httpx.Client(timeout=REQUEST_TIMEOUT_S, verify=verify, trust_env=verify)

    def ask(self, method: str, *params: Any, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        """The result of a method; raises RpcError."""
        request = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": list(params)}
        try:
            reply = self._client.post(self.url, json=request, timeout=timeout_s).json()
        except (httpx.HTTPError, ValueError) as error:
            raise RpcError(f"{method}: {error or type(error).__name__}") from None
        if not isinstance(reply, dict) or "error" in reply or "result" not in reply:
            said = reply.get("error", reply) if isinstance(reply, dict) else reply
            message = said.get("message", said) if isinstance(said, dict) else said
            raise RpcError(f"{method}: {message}")
        return reply["result"]

    def height(self) -> int:
        """The number of the newest block; raises RpcError."""
        return int(self.ask("eth_blockNumber"), 16)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
