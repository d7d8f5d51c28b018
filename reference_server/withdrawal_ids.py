"""Withdrawal ids as the vault knows them: 32 bytes, the UUID of the books first and then zeros."""

from __future__ import annotations

from uuid import UUID

_PADDING = bytes(16)


def word_of(withdrawal_id: UUID) -> bytes:
    """The id on the chain."""
    return withdrawal_id.bytes + _PADDING


def id_of(word: bytes) -> UUID | None:
    """The id in the books; None when it cannot be one of ours."""
    return UUID(bytes=word[:16]) if word[16:] == _PADDING else None
