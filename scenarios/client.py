"""The recording client: every attempt leaves an invoke row, goes out once, and leaves one completion row.

One operation is one intent under one idempotency key:

1. the invoke row is in the file before a byte is sent;
2. the request goes out once (scenarios.wire); a reply or its absence decides the outcome of this attempt;
3. the completion row is written;
4. without an answer the same bytes go out again as a further attempt, after a seeded pause with jitter or
   the server's Retry-After, whichever is longer, as long as the budget lasts.

An answer is an ok, or a refusal that asking again would repeat. A refusal for now (`overloaded`,
`rate_limited`, `trading_paused`, `contention`) and a refused connection had no effect and are recorded as
`fail`, yet the operation goes on. `idempotency_key_in_progress` is `info` with that code.

A deposit goes to the chain's node instead of the target (scenarios.node), over a connection of its own: its
bytes are a signed transaction, which like a key has its effect once, however often it is sent.

An operation that ends without an answer after an unknown attempt spends its process: whatever it does
later may be concurrent with the rest, so the client goes on under a new process name.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import gevent

from scenarios.history import Completion, Facts, HistoryWriter, Invoke, digest
from scenarios.intents import Intent
from scenarios.live import Live
from scenarios.node import Node, NodeRefused
from scenarios.replies import Seen, seen_failure, seen_reply
from scenarios.wire import Address, Wire, WireError

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0

Notify = Callable[[str, str, float, Seen], None]


class Patience(NamedTuple):
    """How long a client waits: for one reply, and for an answer to one operation."""

    reply_s: float
    answer_s: float


class Recorder(NamedTuple):
    """What all clients of one load process share; `node` is the chain's, where there is one.

    `notify` is told each attempt's action and latency.
    """

    history: HistoryWriter
    live: Live
    address: Address
    patience: Patience
    key_prefix: str
    notify: Notify | None = None
    node: Address | None = None


class Operation:
    """One logical intent, named by its key, with the bytes that every attempt sends."""

    __slots__ = (
        "attempts",
        "facts",
        "intent",
        "key",
        "name",
        "process",
        "request_bytes",
        "request_hash",
        "stored",
    )

    def __init__(self, intent: Intent, *, name: str, process: str, key: str | None) -> None:
        self.intent = intent
        self.name = name
        self.process = process
        self.key = key
        self.attempts = 0
        self.stored = False
        self.request_bytes = b""
        self.request_hash: str | None = None
        # Known before any answer: what an unknown deposit will be looked for by.
        self.facts = None if intent.tx_hash is None else Facts(tx_hash=intent.tx_hash)


class Client:
    """One logical thread of one user; its operations follow one another."""

    def __init__(self, recorder: Recorder, *, process: str, user: str, token: str, seed: str) -> None:
        self.user = user
        self.process = process
        self._recorder = recorder
        self._first_process = process
        self._lives = 1
        self._operations = 0
        self._random = random.Random(seed)
        self._wire = Wire(recorder.address)
        self._node = None if recorder.node is None else Node(recorder.node)
        self._head = (
            f"Host: {recorder.address.host_header}\r\nAuthorization: Bearer {token}\r\n"
            "Accept: application/json, application/problem+json\r\n"
        ).encode("ascii")

    def operation(self, intent: Intent, *, key: str | None = None) -> Operation:
        """A new operation for this intent; its key is its own unless one is given to be reused."""
        self._operations += 1
        name = f"{self._recorder.key_prefix}-{self._first_process}-{self._operations}"
        if intent.keyed and key is None:
            key = name
        operation = Operation(intent, name=name, process=self.process, key=key)
        line = f"{intent.method} {intent.path}"
        if intent.method == "POST":
            operation.request_hash = digest(line.encode("ascii") + b"\n" + intent.body)
        if intent.tx_hash is not None:
            operation.request_bytes = self._the_node.request(intent.body)
            return operation
        head = f"{line} HTTP/1.1\r\n".encode("ascii") + self._head
        if key is not None:
            head += f"Idempotency-Key: {key}\r\n".encode("ascii")
        if intent.method == "POST":
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(intent.body)
        operation.request_bytes = head + b"\r\n" + intent.body
        return operation

    def perform(self, intent: Intent, *, intended_ns: int) -> Seen:
        """Do a new operation for this intent until it has an answer or its budget is spent."""
        return self.pursue(self.operation(intent), intended_ns=intended_ns)

    def pursue(self, operation: Operation, *, intended_ns: int) -> Seen:
        """Attempt an operation, again or for the first time, until it is answered; the last attempt's sight.

        Raises OSError when the history cannot be written: what is not recorded must not be sent.
        """
        live = self._recorder.live
        give_up_ns = time.monotonic_ns() + int(self._recorder.patience.answer_s * 1e9)
        pause_s = BACKOFF_FIRST_S
        unknown = False
        while True:
            seen = self._attempt(operation, intended_ns)
            unknown = unknown or seen.type == "info"
            if not seen.again or not operation.intent.repeatable or live.abandoned:
                break
            wait_s = max(pause_s * self._random.uniform(0.5, 1.0), seen.retry_after_s or 0.0)
            if time.monotonic_ns() + int(wait_s * 1e9) >= give_up_ns:
                break
            gevent.sleep(wait_s)  # bounded by the budget
            if live.abandoned:
                break
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        operation.stored = seen.stored
        if seen.again and unknown:
            self._spend()
        return seen

    def next_nonce(self, address: str) -> int | None:
        """The nonce of this wallet's next transaction, as the node has it; None when it does not say.

        Not recorded: it has no effect, and says nothing that is judged.
        """
        patience_s = self._recorder.patience.reply_s
        try:
            nonce = self._the_node.ask("eth_getTransactionCount", address, "pending", patience_s=patience_s)
            return int(nonce, 16)
        except (WireError, NodeRefused, TypeError, ValueError):
            return None

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()
        if self._node is not None:
            self._node.close()

    @property
    def _the_node(self) -> Node:
        assert self._node is not None, "a deposit in a load that has no chain"
        return self._node

    def _attempt(self, operation: Operation, intended_ns: int) -> Seen:
        recorder, intent = self._recorder, operation.intent
        live = recorder.live
        operation.attempts += 1
        invoke_ns = time.monotonic_ns()
        recorder.history.invoke(
            Invoke(
                time_ns=invoke_ns,
                intended_ns=intended_ns,
                process=operation.process,
                operation=operation.name,
                attempt=operation.attempts,
                action=intent.action,
                user=self.user,
                key=operation.key,
                market=intent.market,
                request_hash=operation.request_hash,
                request=intent.request,
            )
        )
        live.in_flight += 1
        try:
            if intent.tx_hash is not None:
                seen = self._send(operation.request_bytes, intent.tx_hash)
                seen_ns = time.monotonic_ns()
            else:
                reply = self._wire.exchange(operation.request_bytes, patience_s=recorder.patience.reply_s)
                seen_ns = time.monotonic_ns()
                seen = seen_reply(intent.reading, reply)
        except WireError as error:
            seen_ns = time.monotonic_ns()
            seen = seen_failure(error)
        except BaseException:
            # Killed at stop, or a defect of ours: either way the request may be on its way.
            self._complete(operation, invoke_ns, time.monotonic_ns(), Seen("info", True, error="stopped"))
            raise
        finally:
            live.in_flight -= 1
        self._complete(operation, invoke_ns, seen_ns, seen)
        latency_ns = seen_ns - intended_ns
        live.count(intent.action, seen.type, latency_ns)
        if recorder.notify is not None:
            recorder.notify(intent.method, intent.action, latency_ns / 1e6, seen)
        return seen

    def _send(self, request: bytes, tx_hash: str) -> Seen:
        return self._the_node.send(request, tx_hash, patience_s=self._recorder.patience.reply_s)

    def _complete(self, operation: Operation, invoke_ns: int, seen_ns: int, seen: Seen) -> None:
        self._recorder.history.complete(
            Completion(
                type=seen.type,
                time_ns=seen_ns,
                process=operation.process,
                operation=operation.name,
                attempt=operation.attempts,
                latency_ns=seen_ns - invoke_ns,
                status=seen.status,
                code=seen.code,
                error=seen.error,
                reply_hash=seen.reply_hash,
                replayed=seen.replayed,
                facts=operation.facts if seen.facts is None else seen.facts,
            )
        )

    def _spend(self) -> None:
        self._lives += 1
        self.process = f"{self._first_process}.{self._lives}"
