"""The books as the watcher sees them: one connection, a statement a call, each a transaction of its own.

All calls but `disconnect` raise psycopg.Error. What moves money says 'paused' or False while the platform is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from reference_server.chain.client import Deposit, Place, Withdrawal
from reference_server.withdrawal_ids import id_of

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30
UNACKNOWLEDGED_MS = 10_000
BIGINT_MAX = 2**63 - 1

Row: TypeAlias = tuple[Any, ...]


class Checkpoint(NamedTuple):
    """A block up to which everything is in the books, as it was then."""

    number: int
    hash: str


class Booked(NamedTuple):
    """A deposit (by number) or a payment (by withdrawal id) in the books, and the block that it was in."""

    id: Any
    number: int
    hash: str


class Unmined(NamedTuple):
    """A withdrawal that no known block pays, and the last of its attempts, if there was one."""

    withdrawal_id: UUID
    attempts: int
    sends: int
    operator: str | None
    nonce: int | None
    tx_hash: str | None
    waited_s: float


class WatchBooks:
    """What the watcher reads and writes."""

    def __init__(self, dsn: str) -> None:
        self._conninfo = make_conninfo(
            dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=UNACKNOWLEDGED_MS,
            application_name="reference_server watch",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
        )
        self._connection: psycopg.Connection[Row] | None = None

    def disconnect(self) -> None:
        """Give up the connection; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def begin(self, chain_id: int, vault: str, start: Checkpoint) -> None:
        """Watch this vault from behind a block, or go on; SQLSTATE ST007 when these books watch another."""
        self._rows("SELECT watch_vault(%s, %s, %s, %s)", chain_id, vault.lower(), *start)

    def checkpoints(self, *, at_most: int = BIGINT_MAX, limit: int = 1) -> list[Checkpoint]:
        """The newest checkpoints at or below a block, newest first; the newest of all is the cursor."""
        return [
            Checkpoint(*row) for row in self._rows("SELECT * FROM watch_checkpoints(%s, %s)", at_most, limit)
        ]

    def deposits_above(self, number: int) -> list[Booked]:
        return [Booked(*row) for row in self._rows("SELECT * FROM deposits_above(%s)", number)]

    def payments_above(self, number: int) -> list[Booked]:
        return [Booked(*row) for row in self._rows("SELECT * FROM payments_above(%s)", number)]

    def undo_payments(self, gone: Sequence[Booked]) -> bool:
        ids, hashes = [booked.id for booked in gone], [booked.hash for booked in gone]
        return bool(self._value("SELECT undo_payments(%s::uuid[], %s::text[])", ids, hashes))

    def record_payments(self, payments: Sequence[Withdrawal]) -> bool:
        return bool(
            self._value("SELECT record_payments(%s)", Jsonb([payment_facts(one) for one in payments]))
        )

    def record_deposits(
        self,
        cursor: Checkpoint,
        fork: Checkpoint,
        gone: Sequence[Booked],
        end: Checkpoint,
        deposits: Sequence[Deposit],
    ) -> str:
        """Back from the cursor to the fork and on to the end: 'recorded', 'paused' or 'overtaken'."""
        answer: str = self._value(
            "SELECT record_deposits(%s, %s, %s, %s::bigint[], %s, %s, %s)",
            *(*cursor, fork.number, [booked.id for booked in gone], *end),
            Jsonb([deposit_facts(one) for one in deposits]),
        )
        return answer

    def record_view(
        self, head: Checkpoint, deposits: Sequence[Deposit], payments: Sequence[Withdrawal]
    ) -> None:
        """What is above the cursor, up to the head. The head last: whoever reads it finds the rest there."""
        self._rows("SELECT record_mined(%s)", Jsonb([payment_facts(one) for one in payments]))
        self._rows("SELECT record_seen(%s, %s, %s)", *head, Jsonb([deposit_facts(one) for one in deposits]))

    def unmined(self, limit: int) -> list[Unmined]:
        return [Unmined(*row) for row in self._rows("SELECT * FROM withdrawals_unmined(%s)", limit)]

    def hashes(self, withdrawal_id: UUID) -> list[str]:
        """Of everything that was ever signed for it."""
        rows = self._rows("SELECT tx_hash FROM withdrawal_signatures(%s)", withdrawal_id)
        return [tx_hash for (tx_hash,) in rows]

    def resend(self, unmined: Unmined, reason: str) -> None:
        self._rows(
            "SELECT resend_withdrawal(%s, %s, %s, %s)",
            *(unmined.withdrawal_id, unmined.attempts, unmined.sends, reason),
        )

    def give_back(self, unmined: Unmined, reason: str) -> bool:
        return bool(
            self._value(
                "SELECT return_withdrawal(%s, %s, %s)", unmined.withdrawal_id, unmined.attempts, reason
            )
        )

    def _value(self, query: LiteralString, *parameters: object) -> Any:
        return self._rows(query, *parameters)[0][0]

    def _rows(self, query: LiteralString, *parameters: object) -> list[Row]:
        if self._connection is None:
            self._connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=0)
        return self._connection.execute(query, parameters).fetchall()


def deposit_facts(deposit: Deposit) -> dict[str, Any]:
    """A deposit as the database reads it; a name that text cannot hold is nobody's."""
    named = deposit.user_id or ""
    return {
        **place_facts(deposit.place),
        "sender": deposit.sender.lower(),
        "user_id": "" if "\0" in named else named,
        "amount": deposit.amount_micro,
    }


def payment_facts(payment: Withdrawal) -> dict[str, Any]:
    """A payment as the database reads it; without an id when it cannot be one of ours."""
    withdrawal_id = id_of(payment.withdrawal_id)
    return {
        **place_facts(payment.place),
        "withdrawal_id": None if withdrawal_id is None else str(withdrawal_id),
        "receiver": payment.receiver.lower(),
        "amount": payment.amount_micro,
    }


def place_facts(place: Place) -> dict[str, Any]:
    return {
        "tx_hash": place.transaction_hash,
        "log_index": place.log_index,
        "block_number": place.block_number,
        "block_hash": place.block_hash,
    }
