"""A payment is sent in the transaction that writes its signature down, which may yet be rolled back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from reference_server.payout_books import PayoutBooks
from reference_server.payouts import Payouts

if TYPE_CHECKING:
    from reference_server.chain.connection import SignedTransaction

COMMANDS = ("relay",)


def plant() -> None:
    """Send within the transaction around the signature."""
    sign = Payouts._sign

    def signed_and_sent(
        payouts: Payouts, books: PayoutBooks, withdrawal_id: UUID, *arguments: Any, **options: Any
    ) -> SignedTransaction:
        with books.transaction():
            signed = sign(payouts, books, withdrawal_id, *arguments, **options)
            payouts._send(signed)
        return signed

    Payouts._sign = signed_and_sent  # type: ignore[method-assign, assignment]
