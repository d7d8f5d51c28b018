"""The rows of a run directory, and the only way to write and read them.

A history file is JSON lines: one header, then for every attempt an invoke row (in the file before the
request is sent) and one completion row, then one end row. A file without its end row was cut short.
Rows are appended with one unbuffered write each, so a row survives the death of the process that wrote it
(not a power loss). All times are CLOCK_MONOTONIC nanoseconds, comparable between processes of one machine;
plan.json holds the anchor to wall-clock time.

Why not a buffered writer: an attempt that was sent but never recorded is an effect without a cause, and
the judge could not tell it from a bug of the system.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec

FORMAT = 1

Outcome = Literal["ok", "fail", "info"]

MONEY_ACTIONS = frozenset(
    {
        "buy_amount",
        "buy_shares",
        "sell",
        "fund",
        "create_market",
        "close_market",
        "reuse_key",
        "buy_closed",
        "withdraw",
    }
)
# Sent to the chain's node instead of the target: without a key, named by the transaction's hash.
ONCHAIN_ACTIONS = frozenset({"deposit"})
READ_ACTIONS = frozenset({"read_market", "read_account", "read_ledger", "read_withdrawal"})
SETUP_ACTIONS = frozenset({"create_user", "wallet_nonce", "link_wallet"})
ACTIONS = MONEY_ACTIONS | ONCHAIN_ACTIONS | READ_ACTIONS | SETUP_ACTIONS


class HistoryError(Exception):
    """A file of the run directory that cannot be believed; names the file, the line and the rule."""

    def __init__(self, path: Path, line: int, rule: str) -> None:
        super().__init__(f"{path}, line {line}: {rule}")
        self.path = path
        self.line = line
        self.rule = rule


class Header(
    msgspec.Struct, tag="header", tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """First row of a history file."""

    format: int
    writer: str
    time_ns: int


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the client asked for; money in micro-USDC, shares in micro-shares."""

    outcome: int | None = None
    side: Literal["buy", "sell"] | None = None
    shares_micro: int | None = None
    amount_micro: int | None = None
    limit_micro: int | None = None
    to_user: str | None = None


class Invoke(
    msgspec.Struct,
    tag="invoke",
    tag_field="type",
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """An attempt about to be sent. `key`, `market` and `request` are absent where the action has none."""

    time_ns: int
    intended_ns: int
    process: str
    operation: str
    attempt: int
    action: str
    user: str
    key: str | None = None
    market: int | None = None
    request_hash: str | None = None
    request: Request | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a reply said, as far as the checkers use it. Absent where the reply did not say.

    A deposit's `tx_hash` is its client's own: known before the node answers, and there whatever came back.
    """

    trade_id: int | None = None
    market_id: int | None = None
    market_version: int | None = None
    cost_micro: int | None = None
    fee_micro: int | None = None
    shares_micro: int | None = None
    prices_micro: list[int] | None = None
    transaction_id: int | None = None
    account_version: int | None = None
    balance_micro: int | None = None
    user_id: str | None = None
    tx_hash: str | None = None
    withdrawal_id: str | None = None
    withdrawal_status: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the client saw of one attempt. `error` names a transport failure, `code` a problem+json code."""

    type: Outcome
    time_ns: int
    process: str
    operation: str
    attempt: int
    latency_ns: int
    status: int | None = None
    code: str | None = None
    error: str | None = None
    reply_hash: str | None = None
    replayed: bool = False
    facts: Facts | None = None


class End(
    msgspec.Struct,
    tag="end",
    tag_field="type",
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """Last row of a history file. `cut` says why the writer did not close it itself."""

    time_ns: int
    rows: int
    cut: str | None = None


FaultState = Literal["planned", "armed", "landed", "healed", "failed"]


class FaultRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One step in the life of one fault; `evidence` says how it is known."""

    time_ns: int
    fault_id: str
    fault: str
    state: FaultState
    target: str | None = None
    evidence: dict[str, Any] = {}


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CPU in percent of one core since the last sample, resident memory in bytes."""

    cpu_percent: float
    rss_bytes: int


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One second of the run, seen from outside; a field is absent where it could not be read."""

    time_ns: int
    phase: str
    users: int = 0
    in_flight: int = 0
    processes: dict[str, ProcessSample] = {}
    commits: int | None = None
    lock_waits: int | None = None
    backends_active: int | None = None
    pool_size: int | None = None
    pool_waiting: int | None = None
    health_ms: float | None = None


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One invariant read in one snapshot; `witness` holds at most ten breaching rows."""

    examined: int
    violations: int
    witness: list[dict[str, Any]] = []


class Probe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One reading of the books during the load. `entries` are [entry id, digest] of rows seen in it."""

    time_ns: int
    snapshot: str | None = None
    took_ms: float = 0.0
    results: dict[str, ProbeResult] = {}
    entries: list[tuple[int, str]] = []
    error: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the load child prints on standard output each second, for the live view; never judged."""

    time_ns: int
    users: int
    in_flight: int
    trades: int
    ok: int
    fail: int
    info: int
    p50_ms: float
    p99_ms: float
    phase: str


Row = TypeVar("Row", bound=msgspec.Struct)

_encode = msgspec.json.Encoder()


def digest(data: bytes) -> str:
    """The first 128 bits of SHA-256 in hex: how requests, replies and entries are named in a run."""
    return hashlib.sha256(data).hexdigest()[:32]


class JsonLines:
    """An append-only file of rows, one unbuffered write a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._buffer = bytearray()

    def append(self, row: msgspec.Struct) -> None:
        """Write one row; raises OSError when the disk refuses: an unrecorded attempt must not be sent."""
        _encode.encode_into(row, self._buffer)
        self._buffer += b"\n"
        written = os.write(self._fd, self._buffer)
        if written != len(self._buffer):
            raise OSError(f"{self.path}: wrote {written} of {len(self._buffer)} bytes; is the disk full?")
        self.rows += 1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HistoryWriter:
    """Writes one history file of one process; `invoke` returns only when the row is in the file."""

    def __init__(self, run: Path, writer: str) -> None:
        path = run / "history" / f"{writer}.jsonl"
        if path.exists():
            raise FileExistsError(f"{path} exists; a history file has one writer and one life")
        self._lines = JsonLines(path)
        self._lines.append(Header(format=FORMAT, writer=writer, time_ns=time.monotonic_ns()))

    @property
    def path(self) -> Path:
        return self._lines.path

    def invoke(self, row: Invoke) -> None:
        self._lines.append(row)

    def complete(self, row: Completion) -> None:
        self._lines.append(row)

    def close(self) -> None:
        """Write the end row, which counts all rows before it."""
        self._lines.append(End(time_ns=time.monotonic_ns(), rows=self._lines.rows))
        self._lines.close()


def close_cut_history(path: Path, *, reason: str) -> None:
    """Close the file of a writer that died, so that it reads as incomplete, not as malformed.

    A torn last line (the writer died inside its write) is removed first.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    if lines and b'"type":"end"' in lines[-1]:
        return
    if len(whole) != len(data):
        os.truncate(path, len(whole))
    with JsonLines(path) as file:
        file.append(End(time_ns=time.monotonic_ns(), rows=len(lines), cut=reason))


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Rows of one kind from a JSON-lines file; raises HistoryError naming the line that is not one."""
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                raise HistoryError(path, number, "the line has no end; the file is truncated")
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise HistoryError(path, number, f"not a {kind.__name__} row: {error}") from None


class BenchRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One measurement of one strategy under one number of users, closed loop: a bench.jsonl row.

    `booked` is how many trades the books gained, counted after the fact; it is what `trades_per_s` rests on.
    """

    level: Literal["sql", "http"]
    tool: str
    strategy: str
    users: int
    round: int
    seconds: float
    replied_ok: int
    refused: int
    booked: int
    trades_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
