"""A key whose trade was refused once is never released: whoever asks again hears "in progress" for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from reference_server.idempotency import KeysInFlight
from reference_server.problem import Problem

COMMANDS = ("serve",)


def plant() -> None:
    """Keep one key in forty for ever, from before its first use."""
    hold = KeysInFlight.hold

    @contextmanager
    def never_released(keys: KeysInFlight, user_id: str, key: str) -> Iterator[None]:
        if sha256(key.encode()).digest()[0] % 40 == 0:
            raise Problem("idempotency_key_in_progress", "the first request is being executed; ask again")
        with hold(keys, user_id, key):
            yield

    KeysInFlight.hold = never_released  # type: ignore[method-assign, assignment]
