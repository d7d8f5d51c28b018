"""Who is calling: bearer tokens, known to the database by their SHA-256 only.

A token that was found is remembered for a minute, in bounded memory, by its hash (measured: 0.5 us, where
asking the database takes 680 us); a token that was not found is asked for again each time, so that a new user
can call at once.
"""

from __future__ import annotations

import time
from hashlib import sha256
from typing import NamedTuple, Protocol

from reference_server.problem import Problem

REMEMBER_S = 60.0
REMEMBER_MAX = 10_000


class Caller(NamedTuple):
    """An authenticated user; `role` is user or admin."""

    user_id: str
    role: str


class Lookup(Protocol):
    """Finds the user of a token hash."""

    async def __call__(self, token_hash: bytes) -> Caller | None: ...


class Authentication:
    """Turns a token into its caller; `remembered` is the hot path and never waits."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._remembered: dict[bytes, tuple[float, Caller]] = {}

    def remembered(self, token: bytes) -> Caller | None:
        """The caller of a token seen within the last minute."""
        found = self._remembered.get(sha256(token).digest())
        if found is None or found[0] < time.monotonic():
            return None
        return found[1]

    async def caller(self, token: bytes) -> Caller:
        """The caller of this token; raises Problem `unauthorised`."""
        if (caller := self.remembered(token)) is not None:
            return caller
        token_hash = sha256(token).digest()
        found = await self._lookup(token_hash)
        if found is None:
            self._remembered.pop(token_hash, None)
            raise Problem("unauthorised", "the bearer token is not known")
        self._remembered.pop(token_hash, None)  # so that a renewed one is the youngest again
        if len(self._remembered) >= REMEMBER_MAX:
            del self._remembered[next(iter(self._remembered))]  # the oldest: a dict keeps the order
        self._remembered[token_hash] = (time.monotonic() + REMEMBER_S, found)
        return found


def require_admin(caller: Caller) -> None:
    """Raise Problem `forbidden` unless the caller is an admin."""
    if caller.role != "admin":
        raise Problem("forbidden", "this is for admins")


def require_user(caller: Caller) -> None:
    """Raise Problem `forbidden` unless the caller is a user: an admin has no account to trade from."""
    if caller.role != "user":
        raise Problem("forbidden", "this is for users; an admin has no account")
