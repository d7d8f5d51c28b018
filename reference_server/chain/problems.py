"""What a JSON-RPC request is answered with when it fails: codes as clients know them from anvil and geth."""

from __future__ import annotations

PARSE_ERROR = -32_700
INVALID_REQUEST = -32_600
METHOD_NOT_FOUND = -32_601
INVALID_PARAMS = -32_602
INTERNAL_ERROR = -32_603
BLOCK_UNKNOWN = -32_000
FILTER_UNKNOWN = -32_000
# A transaction that was refused, and so will never be executed.
REFUSED = -32_003
# A call that was executed and reverted; its data is what the contract returned.
REVERTED = 3


class RpcError(Exception):
    """The error member of a reply."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def body(self) -> dict[str, object]:
        body: dict[str, object] = {"code": self.code, "message": self.message}
        if self.data is not None:
            body["data"] = self.data
        return body


def invalid(message: str) -> RpcError:
    """The error for parameters that cannot be read or make no sense."""
    return RpcError(INVALID_PARAMS, message)
