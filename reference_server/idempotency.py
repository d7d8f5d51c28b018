"""Idempotency as far as the server process sees it: request hashes, and the keys in flight here.

The truth is in the database, where the key is written with its effect in one transaction. This module only
answers at once, with 409, a second request whose first is still being executed by this same process; in
another process the second request waits in the database and is then answered as a replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from reference_server.problem import Problem


def request_hash(method: str, path: str, canonical_body: bytes) -> str:
    """SHA-256, in hex, of what was asked: the same key may only ever ask for the same."""
    return sha256(f"{method} {path}\n".encode() + canonical_body).hexdigest()


class KeysInFlight:
    """The (user, key) pairs this process is executing; as many at most as it has requests."""

    def __init__(self) -> None:
        self._pairs: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._pairs)

    @contextmanager
    def hold(self, user_id: str, key: str) -> Iterator[None]:
        """Hold a key while its request is executed; raises Problem when another request holds it."""
        pair = (user_id, key)
        if pair in self._pairs:
            raise Problem(
                "idempotency_key_in_progress",
                "the first request with this key is being executed; ask again",
                field="Idempotency-Key",
            )
        self._pairs.add(pair)
        try:
            yield
        finally:
            self._pairs.discard(pair)
