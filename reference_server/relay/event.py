"""What passes between the outbox, the relay and the handlers: an event out, an outcome back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

ERROR_LENGTH_MAX = 1_000


@dataclass(frozen=True)
class Event:
    """One claimed event. `lease_ends_s` is on this process's monotonic clock, just before the database's."""

    event_id: int
    aggregate_type: str
    aggregate_id: str
    event_type: str
    payload: dict[str, Any]
    dedup_key: str
    attempts: int
    lease_token: int
    lease_ends_s: float

    def lease_left_s(self) -> float:
        """How long the outside call may take; at or below 0 another relay may have the event."""
        return self.lease_ends_s - time.monotonic()


@dataclass(frozen=True)
class Outcome:
    """What came of a claimed event; no error means that it was delivered."""

    event: Event
    error: str | None = None
    retry_s: float = 0.0
    dead: bool = False


# Tells the world of one event and returns when the world has it; raises anything when that is not sure.
# It runs in a thread beside others of its kind, in no database transaction, and ends within the lease.
# It may be called again for an event the world has already: it passes dedup_key on, or looks before it acts.
Handler: TypeAlias = Callable[[Event], None]


class HandlerError(Exception):
    """A handler's options that cannot work; says why and what to do."""


class NotDelivered(Exception):
    """The world did not say that it has the event; it may have it all the same."""


def error_text(error: BaseException) -> str:
    """The error as the outbox keeps it: without what a text column refuses, and not endless."""
    text = f"{type(error).__name__}: {error}".replace("\0", "")
    return text.encode("utf-8", "replace").decode("utf-8")[:ERROR_LENGTH_MAX]
