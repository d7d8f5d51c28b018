"""A payment that is tried again is signed anew under an id of its own: the vault takes it for another."""

from __future__ import annotations

from contextvars import ContextVar
from uuid import UUID

from reference_server import payouts
from reference_server.payout_books import PayoutBooks, Wanted
from reference_server.payouts import Payouts, Reason

COMMANDS = ("relay",)

attempt: ContextVar[int] = ContextVar("attempt", default=0)


def plant() -> None:
    """Sign whatever is asked for, at each attempt under another word."""

    def word_of_attempt(withdrawal_id: UUID) -> bytes:
        return withdrawal_id.bytes + attempt.get().to_bytes(16, "big")

    def sign_again(
        desk: Payouts, books: PayoutBooks, withdrawal_id: UUID, wanted: Wanted, reason: Reason
    ) -> str | None:
        del reason
        if wanted.status == "final" or not wanted.may_leave:
            return None
        signatures = books.signatures(withdrawal_id)
        attempt.set(len(signatures))
        return desk._send(desk._sign(books, withdrawal_id, wanted, signatures))

    payouts.word_of = word_of_attempt  # type: ignore[attr-defined]
    Payouts._see_to = sign_again  # type: ignore[method-assign, assignment]
