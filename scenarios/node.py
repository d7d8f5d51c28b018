"""The chain's node as the clients of a load talk to it: JSON-RPC, every request on the wire once.

What the answer to a sent transaction proves:

- `ok`: the node has it. Whether a block takes it, and keeps it, is for the chain to say;
- `fail`: the node refused it, and when asked does not know it;
- `info`: no whole answer, or the node's own trouble. The same bytes may go out again: a nonce is spent once.

Why a refusal is looked after: bytes that arrived although their reply was lost are refused the second time
("already known", "nonce too low", and each node in its own words), and yet the node has them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from scenarios.history import digest
from scenarios.replies import Seen
from scenarios.wire import Address, Wire, WireError

CHAIN_VARIABLE = "SEATRIAL_CHAIN"
BATCH_MAX = 100
INTERNAL_ERROR = -32_603
WORDS_MAX = 200

_encode = msgspec.json.Encoder().encode


class ChainAccess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the chain is, and the key that makes its dollars: what SEATRIAL_CHAIN says, in JSON."""

    rpc: str
    chain_id: int
    usdc: str
    vault: str
    minter_key: str
    confirmations: int
    wallet_domain: str


class NodeRefused(Exception):
    """The node answered that it will not, and in its words why."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.code = code
        self.message = message


class _Problem(msgspec.Struct):
    code: int
    message: str


class _Answer(msgspec.Struct):
    id: int
    result: Any = None
    error: _Problem | None = None


_decode_one = msgspec.json.Decoder(_Answer).decode
_decode_many = msgspec.json.Decoder(list[_Answer]).decode


def chain_access(text: str) -> ChainAccess:
    """What SEATRIAL_CHAIN says; raises ValueError, which never shows the key."""
    if not text:
        raise ValueError(f"{CHAIN_VARIABLE} is not set; a plan with [chain] needs to know where the chain is")
    try:
        return msgspec.json.decode(text, type=ChainAccess)
    except msgspec.DecodeError as error:
        raise ValueError(f"{CHAIN_VARIABLE}: {error}") from None


def call(method: str, *params: Any, number: int = 1) -> dict[str, Any]:
    """A request as JSON-RPC 2.0 has it."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


class Node:
    """One connection to the node; used by one greenlet at a time."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._head = (
            f"POST / HTTP/1.1\r\nHost: {address.host_header}\r\nContent-Type: application/json\r\n"
        ).encode("ascii")

    def request(self, body: bytes) -> bytes:
        """The bytes of a request with this body."""
        return self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def ask(self, method: str, *params: Any, patience_s: float) -> Any:
        """The result of a method; raises NodeRefused, WireError."""
        body, _ = self._exchange(self.request(_encode(call(method, *params))), patience_s)
        return _result(method, _decoded(_decode_one, body))

    def ask_all(self, calls: list[tuple[Any, ...]], *, patience_s: float) -> list[Any]:
        """The results of many (method, params...) in their order; raises NodeRefused, WireError."""
        results: list[Any] = []
        for first in range(0, len(calls), BATCH_MAX):
            batch = calls[first : first + BATCH_MAX]
            asked = [call(*each, number=number) for number, each in enumerate(batch)]
            body, _ = self._exchange(self.request(_encode(asked)), patience_s)
            answers = {answer.id: answer for answer in _decoded(_decode_many, body)}
            if answers.keys() != set(range(len(batch))):
                raise WireError("unparsable: not an answer to each request of the batch")
            results += [_result(each[0], answers[number]) for number, each in enumerate(batch)]
        return results

    def send(self, request: bytes, tx_hash: str, *, patience_s: float) -> Seen:
        """Send a transaction once, `request` from `request(body)`; raises WireError as a Wire does."""
        body, status = self._exchange(request, patience_s)
        reply_hash = digest(body)
        try:
            answer = _decoded(_decode_one, body)
        except WireError as error:
            return Seen("info", True, status, error=error.kind, reply_hash=reply_hash)
        refusal = answer.error
        if refusal is None:
            if answer.result == tx_hash:
                return Seen("ok", False, status, reply_hash=reply_hash)
            return Seen("info", True, status, error="unparsable: not this hash", reply_hash=reply_hash)
        words = refusal.message[:WORDS_MAX]
        if refusal.code == INTERNAL_ERROR:
            return Seen("info", True, status, "node_failed", words, reply_hash)
        if self._knows(tx_hash, patience_s):
            return Seen("ok", False, status, reply_hash=reply_hash)
        return Seen("fail", False, status, "node_refused", words, reply_hash)

    def _knows(self, tx_hash: str, patience_s: float) -> bool:
        """Whether the node has a transaction; raises WireError that is never Refused: something was sent."""
        try:
            return self.ask("eth_getTransactionByHash", tx_hash, patience_s=patience_s) is not None
        except WireError as error:
            raise WireError(f"lookup_{error.kind}") from None
        except NodeRefused:
            raise WireError("lookup_refused") from None

    def close(self) -> None:
        """Drop the connection; the next request opens a fresh one."""
        self._wire.close()

    def _exchange(self, request: bytes, patience_s: float) -> tuple[bytes, int]:
        reply = self._wire.exchange(request, patience_s=patience_s)
        if reply.status != 200:
            raise WireError(f"status {reply.status}")
        return reply.body, reply.status


def send_body(raw: bytes) -> bytes:
    """The body that sends a signed transaction."""
    return _encode(call("eth_sendRawTransaction", "0x" + raw.hex()))


def _decoded(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        raise WireError(f"unparsable: {error}") from None


def _result(method: str, answer: _Answer) -> Any:
    if answer.error is not None:
        raise NodeRefused(method, answer.error.code, answer.error.message)
    return answer.result
