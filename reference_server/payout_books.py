"""The books as the payer of withdrawals sees them: what is wanted, and what was signed for it.

One connection for one payment. All calls raise psycopg.Error.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, LiteralString, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 10
# Who gets stuck between a nonce and its signature, which takes a millisecond, must not hold up the others.
IDLE_TIMEOUT_S = 5
UNACKNOWLEDGED_MS = 10_000

Row: TypeAlias = tuple[Any, ...]


class Wanted(NamedTuple):
    """A withdrawal, and whether money may leave now; the amount in micro-USDC."""

    status: str
    address: str
    amount: int
    may_leave: bool


class Signature(NamedTuple):
    """A signed transaction; fees in wei for a unit of gas."""

    operator: str
    nonce: int
    tx_hash: str
    max_fee: int
    priority_fee: int
    raw: bytes


class PayoutBooks:
    """A context: the connection ends with it."""

    def __init__(self, dsn: str) -> None:
        self._connection: psycopg.Connection[Row] = psycopg.connect(
            make_conninfo(
                dsn,
                connect_timeout=CONNECT_TIMEOUT_S,
                tcp_user_timeout=UNACKNOWLEDGED_MS,
                application_name="reference_server payouts",
                options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s"
                f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_S}s",
            ),
            autocommit=True,
        )

    def __enter__(self) -> PayoutBooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def transaction(self) -> AbstractContextManager[psycopg.Transaction]:
        """A transaction around the calls in it; an exception rolls it back."""
        return self._connection.transaction()

    def wanted(self, withdrawal_id: UUID) -> Wanted | None:
        rows = self._rows("SELECT * FROM withdrawal_to_pay(%s)", withdrawal_id)
        return Wanted(*rows[0]) if rows else None

    def signatures(self, withdrawal_id: UUID) -> list[Signature]:
        """Everything that was ever signed for a withdrawal, newest first."""
        rows = self._rows(
            "SELECT operator, nonce, tx_hash, max_fee, priority_fee, raw FROM withdrawal_signatures(%s)",
            withdrawal_id,
        )
        return [
            Signature(operator, nonce, tx_hash, int(max_fee), int(priority_fee), raw)
            for operator, nonce, tx_hash, max_fee, priority_fee, raw in rows
        ]

    def nonce(self, operator: str, chain_nonce: int) -> int:
        """The operator's next nonce, if the transaction commits; until then all others wait for theirs."""
        nonce: int = self._rows("SELECT withdrawal_nonce(%s, %s)", operator.lower(), chain_nonce)[0][0]
        return nonce

    def abandoned(self, operator: str, nonce: int) -> bool:
        """Whether no withdrawal waits for this nonce of the operator's."""
        return bool(self._rows("SELECT nonce_is_abandoned(%s, %s)", operator.lower(), nonce)[0][0])

    def signed(self, withdrawal_id: UUID, after: int, signature: Signature) -> bool:
        """Write a signature down behind so many others; False: it must not be sent."""
        rows = self._rows(
            "SELECT withdrawal_signed(%s, %s, %s, %s, %s, %s::numeric, %s::numeric, %s)",
            *(withdrawal_id, after, *signature),
        )
        return bool(rows[0][0])

    def sent(self, withdrawal_id: UUID, tx_hash: str | None) -> None:
        """The withdrawal was seen to; the chain has this transaction, if it needs any."""
        self._rows("SELECT withdrawal_sent(%s, %s)", withdrawal_id, tx_hash)

    def _rows(self, query: LiteralString, *parameters: object) -> list[Row]:
        return self._connection.execute(query, parameters).fetchall()
