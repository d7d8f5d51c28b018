"""An outbox in plain rows, and the receiver of alerts and notices with its record of arrivals."""

from __future__ import annotations

import json

from tests.golden.market import Books, Row

ATTEMPTS_MAX = 4


class Outbox:
    """The events of one system's books, in the order in which they were enqueued."""

    def __init__(self, books: Books) -> None:
        self._books = books

    @property
    def events(self) -> list[Row]:
        return self._books.views["outbox_events"]

    def enqueue(
        self, aggregate_type: str, aggregate_id: str, event_type: str, payload: Row, dedup_key: str
    ) -> None:
        """Put an event in; one that is there already is the same event."""
        if any(event["dedup_key"] == dedup_key for event in self.events):
            return
        self.events.append(
            {
                "event_id": len(self.events) + 1,
                "aggregate_type": aggregate_type,
                "aggregate_id": aggregate_id,
                "event_type": event_type,
                "payload": json.dumps(payload),
                "dedup_key": dedup_key,
                "status": "pending",
                "attempts": 0,
                "lease_token": 0,
                "last_error": None,
                "created_at": self._books.wall,
                "delivered_at": None,
                "died_at": None,
            }
        )

    def notice(
        self, user_id: str, event_type: str, title: str, amount_micro: int, facts: Row, dedup_key: str
    ) -> None:
        """News for a user's inbox."""
        payload = {"title": title, "text": title, "user_id": user_id, "amount_micro": amount_micro} | facts
        self.enqueue("inbox", user_id, event_type, payload, dedup_key)

    def next_event(self) -> Row | None:
        """The oldest event that may be claimed: before it nothing of its aggregate is open."""
        held: set[tuple[str, str]] = set()
        for event in self.events:
            aggregate = (event["aggregate_type"], event["aggregate_id"])
            if event["status"] == "pending" and aggregate not in held:
                return event
            if event["status"] != "delivered":
                held.add(aggregate)
        return None

    def claim(self, event: Row) -> None:
        event["attempts"] += 1
        event["lease_token"] += 1

    def mark_delivered(self, event: Row) -> None:
        event["status"] = "delivered"
        event["delivered_at"] = self._books.wall

    def mark_failed(self, event: Row, error: str) -> None:
        """A failed attempt; the last one is the event's death, which is an event itself."""
        event["last_error"] = error
        if event["attempts"] < ATTEMPTS_MAX:
            return
        event["status"] = "dead"
        event["died_at"] = self._books.wall
        grave = f"{event['event_id']}:{event['lease_token']}"
        title = f"Dead letter {event['event_id']}: {event['event_type']}"
        payload = {"title": title, "event_id": event["event_id"], "dedup_key": event["dedup_key"]}
        self.enqueue("dead_letter", grave, "alert.dead_letter", payload, f"dead_letter:{grave}")

    def replay(self, event: Row) -> None:
        """Make a dead event pending again: the same row, with all its attempts before it."""
        event |= {"status": "pending", "attempts": 0, "died_at": None}


class Receiver:
    """Who is told: applies a key once, and writes every arrival down."""

    def __init__(self) -> None:
        self.deliveries: list[Row] = []

    def arrive(self, event: Row, status: int, time_ns: int) -> None:
        """One arrival; status 0: it was taken, and its answer withheld."""
        key = event["dedup_key"]
        known = any(row["key"] == key and row["applied"] for row in self.deliveries)
        self.deliveries.append(
            {
                "time_ns": time_ns,
                "number": len(self.deliveries) + 1,
                "key": key,
                "title": json.loads(event["payload"])["title"],
                "status": status,
                "applied": status != 503 and not known,
            }
        )
