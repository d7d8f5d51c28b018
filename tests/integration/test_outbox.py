"""The outbox at SQL level: written with its effect, claimed by one, marked by token, dead and replayed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString, NamedTuple

import psycopg
import pytest
from psycopg import errors

from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, await_lock_wait, one
from tests.integration.relay_process import enqueue, relay_dsn

LEASE_S = 60.0


class Claim(NamedTuple):
    """One row of relay_claim."""

    event_id: int
    aggregate_type: str
    aggregate_id: str
    event_type: str
    payload: dict[str, Any]
    dedup_key: str
    attempts: int
    lease_token: int


@pytest.fixture
def admin(market_database: MarketDatabase) -> Iterator[Connection]:
    with psycopg.connect(market_database.admin_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def relay(market_database: MarketDatabase) -> Iterator[Connection]:
    with psycopg.connect(relay_dsn(market_database), autocommit=True) as connection:
        # a claim that waits for another one's rows fails, and does not hang
        connection.execute("SET lock_timeout = '10s'")
        yield connection


def claim(
    relay: Connection, limit: int = 100, lease_s: float = LEASE_S, types: list[str] | None = None
) -> list[Claim]:
    rows = relay.execute("SELECT * FROM relay_claim(%s, %s, %s)", [limit, lease_s, types])
    return sorted(Claim(*row) for row in rows)


def claimed_ids(relay: Connection, limit: int = 100) -> list[int]:
    return [claimed.event_id for claimed in claim(relay, limit)]


def deliver(relay: Connection, claimed: Claim) -> bool:
    return bool(one(relay, "SELECT relay_delivered(%s, %s)", claimed.event_id, claimed.lease_token)[0])


def fail(relay: Connection, claimed: Claim, *, retry_s: float = 0.0, dead: bool = False) -> bool:
    failed: LiteralString = "SELECT relay_failed(%s, %s, 'refused', %s, %s)"
    return bool(one(relay, failed, claimed.event_id, claimed.lease_token, retry_s, dead)[0])


def state(admin: Connection, event_id: int) -> tuple[object, ...]:
    return one(admin, "SELECT status, attempts, lease_token FROM outbox_events WHERE event_id = %s", event_id)


def whole(admin: Connection) -> list[tuple[object, ...]]:
    return admin.execute("SELECT * FROM outbox_events ORDER BY event_id").fetchall()


def test_an_event_commits_with_its_effect_or_not_at_all(admin: Connection, relay: Connection) -> None:
    transfer: LiteralString = "SELECT record_ledger_entry(1, 2, 5, 'gift')"
    with admin.transaction(force_rollback=True):
        one(admin, transfer)
        enqueue(admin, "gift", "1")
        assert claimed_ids(relay) == []
    assert whole(admin) == []
    with admin.transaction():
        one(admin, transfer)
        event_id = enqueue(admin, "gift", "1")
        assert claimed_ids(relay) == []
    assert claimed_ids(relay) == [event_id]
    assert one(admin, "SELECT count(*) FROM transactions WHERE kind = 'gift'") == (1,)


def test_a_dedup_key_is_one_event(admin: Connection) -> None:
    event_id = enqueue(admin, "gift", "1", key="gift:1", payload={"amount": 5})
    before = whole(admin)
    assert enqueue(admin, "gift", "1", key="gift:1", payload={"amount": 6}) == event_id
    assert whole(admin) == before


@pytest.mark.parametrize(
    ("aggregate", "aggregate_id", "event_type"),
    [("theft", "1", "alert.test"), ("gift", "2", "alert.test"), ("gift", "1", "alert.other")],
)
def test_the_dedup_key_of_another_event_is_refused(
    admin: Connection, aggregate: str, aggregate_id: str, event_type: str
) -> None:
    enqueue(admin, "gift", "1", key="gift:1")
    before = whole(admin)
    with pytest.raises(psycopg.Error) as error:
        enqueue(admin, aggregate, aggregate_id, key="gift:1", event_type=event_type)
    assert error.value.sqlstate == "ST005"
    assert whole(admin) == before


@pytest.mark.parametrize(
    ("event_type", "key"), [("alert", "k"), ("Alert.test", "k"), ("alert.test", ""), ("alert.test", "a\nb")]
)
def test_an_event_that_could_not_leave_is_refused(admin: Connection, event_type: str, key: str) -> None:
    with pytest.raises(errors.CheckViolation):
        enqueue(admin, "gift", "1", key=key, event_type=event_type)
    assert whole(admin) == []


@pytest.mark.parametrize("first_commits", [True, False])
def test_two_transactions_with_one_dedup_key_make_one_event(
    admin: Connection, market_database: MarketDatabase, first_commits: bool
) -> None:
    second: list[int] = []
    with psycopg.connect(market_database.admin_dsn) as other:
        first = enqueue(other, "gift", "1", key="gift:1")
        thread = threading.Thread(target=lambda: second.append(enqueue(admin, "gift", "1", key="gift:1")))
        thread.start()
        await_lock_wait(other, "enqueue_event")
        if first_commits:
            other.commit()
        else:
            other.rollback()
        thread.join(timeout=30)
    assert len(second) == 1
    assert (second[0] == first) is first_commits
    assert [row[0] for row in whole(admin)] == second


def test_events_of_one_aggregate_are_numbered_as_they_commit(
    admin: Connection, relay: Connection, market_database: MarketDatabase
) -> None:
    """Else a later id could commit, and leave, before an earlier one."""
    second: list[int] = []
    with psycopg.connect(market_database.admin_dsn) as other:
        first = enqueue(other, "gift", "1")
        thread = threading.Thread(target=lambda: second.append(enqueue(admin, "gift", "1")))
        thread.start()
        await_lock_wait(other, "enqueue_event")
        assert claimed_ids(relay) == []
        other.commit()
        thread.join(timeout=30)
    assert second[0] > first
    assert claimed_ids(relay) == [first]


DRAFTS: LiteralString = """SELECT enqueue_events(array_agg(
    row('inbox', name, 'notice.test', '{}', %s || ':' || n)::event_draft ORDER BY n))
    FROM unnest(%s::text[]) WITH ORDINALITY AS named (name, n)"""


def test_events_enqueued_at_once_keep_their_order_in_each_aggregate(admin: Connection) -> None:
    one(admin, DRAFTS, "first", list("cabcab"))
    rows = admin.execute("SELECT aggregate_id, dedup_key FROM outbox_events ORDER BY event_id").fetchall()
    assert {name: [key for found, key in rows if found == name] for name in "abc"} == {
        "a": ["first:2", "first:5"],
        "b": ["first:3", "first:6"],
        "c": ["first:1", "first:4"],
    }
    one(admin, "SELECT enqueue_events(ARRAY[null::event_draft])")
    assert len(whole(admin)) == 6


def test_transactions_with_common_aggregates_never_wait_for_each_other(
    admin: Connection, market_database: MarketDatabase
) -> None:
    def enqueue_all(seed: int) -> None:
        order = [str(number) for number in range(40)]
        shuffle = random.Random(seed).shuffle
        with psycopg.connect(market_database.admin_dsn, autocommit=True) as connection:
            for turn in range(20):
                shuffle(order)
                one(connection, DRAFTS, f"{seed}:{turn}", order)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enqueue_all, range(4)))
    assert one(admin, "SELECT count(*) FROM outbox_events") == (4 * 20 * 40,)


def test_more_inboxes_at_once_than_there_is_room_for_locks(admin: Connection) -> None:
    with admin.transaction():
        one(admin, DRAFTS, "many", [str(number) for number in range(20_000)])
        (held,) = one(admin, "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
        assert held < 2_000
    assert one(admin, "SELECT count(*) FROM outbox_events") == (20_000,)


def test_an_event_that_commits_late_is_not_stepped_over(
    admin: Connection, relay: Connection, market_database: MarketDatabase
) -> None:
    with psycopg.connect(market_database.admin_dsn) as slow:
        low = enqueue(slow, "gift", "slow")
        high = enqueue(admin, "gift", "fast")
        assert high > low
        (claimed,) = claim(relay)
        assert claimed.event_id == high
        assert deliver(relay, claimed)
        slow.commit()
    assert claimed_ids(relay) == [low]


def test_only_the_oldest_undelivered_event_of_an_aggregate_is_claimed(
    admin: Connection, relay: Connection
) -> None:
    events = {name: [enqueue(admin, "gift", name) for _ in range(3)] for name in ("a", "b")}
    for turn in range(3):
        claimed = claim(relay)
        assert [event.event_id for event in claimed] == [events["a"][turn], events["b"][turn]]
        assert claim(relay) == []
        assert all(deliver(relay, event) for event in claimed)
    assert claim(relay) == []


def test_a_claim_says_what_was_enqueued(admin: Connection, relay: Connection) -> None:
    event_id = enqueue(admin, "gift", "9", key="gift:9", payload={"amount": 2**53 + 1})
    assert claim(relay) == [Claim(event_id, "gift", "9", "alert.test", {"amount": 2**53 + 1}, "gift:9", 1, 1)]


def test_a_claim_takes_no_more_than_asked_and_the_oldest_first(admin: Connection, relay: Connection) -> None:
    events = [enqueue(admin, "gift", str(number)) for number in range(5)]
    assert claimed_ids(relay, 0) == []
    assert claimed_ids(relay, 2) == events[:2]
    assert claimed_ids(relay, 2) == events[2:4]


def test_a_claim_takes_only_the_types_it_can_deliver(admin: Connection, relay: Connection) -> None:
    drift = enqueue(admin, "gift", "1", event_type="alert.drift")
    other = enqueue(admin, "gift", "2", event_type="alert.other")
    withdrawal = enqueue(admin, "gift", "3", event_type="withdrawal.requested")
    assert claim(relay, types=[]) == []
    assert claim(relay, types=["alert", "withdrawal.*requested", "drift.*"]) == []
    assert [event.event_id for event in claim(relay, types=["alert.drift"])] == [drift]
    assert [event.event_id for event in claim(relay, types=["alert.*"])] == [other]
    assert [event.event_id for event in claim(relay)] == [withdrawal]


def test_two_claims_at_once_share_no_event(
    admin: Connection, relay: Connection, market_database: MarketDatabase
) -> None:
    events = [enqueue(admin, "gift", str(number)) for number in range(6)]
    with psycopg.connect(relay_dsn(market_database)) as other:
        first = claimed_ids(other, 4)
        second = claimed_ids(relay, 4)  # at once: it waits for none of the rows
        other.commit()
    assert (first, second) == (events[:4], events[4:])


def test_a_leased_event_is_claimed_again_when_the_lease_is_over(admin: Connection, relay: Connection) -> None:
    event_id = enqueue(admin, "gift", "1")
    (first,) = claim(relay, lease_s=0.0)
    (second,) = claim(relay)
    assert (first.lease_token, second.lease_token) == (1, 2)
    assert (first.attempts, second.attempts) == (1, 2)
    assert first.dedup_key == second.dedup_key
    assert claim(relay) == []
    assert state(admin, event_id) == ("pending", 2, 2)


def test_a_lease_that_was_lost_marks_nothing(admin: Connection, relay: Connection) -> None:
    enqueue(admin, "gift", "1")
    (lost,) = claim(relay, lease_s=0.0)
    (held,) = claim(relay)
    before = whole(admin)
    assert not deliver(relay, lost)
    assert not fail(relay, lost)
    assert not fail(relay, lost, dead=True)
    assert whole(admin) == before
    assert deliver(relay, held)
    before = whole(admin)
    assert not deliver(relay, held)
    assert not fail(relay, held, dead=True)
    assert whole(admin) == before


def test_a_lease_that_is_over_but_was_not_lost_still_marks(admin: Connection, relay: Connection) -> None:
    event_id = enqueue(admin, "gift", "1")
    (claimed,) = claim(relay, lease_s=0.0)
    assert deliver(relay, claimed)
    assert state(admin, event_id) == ("delivered", 1, 1)


def test_marks_are_by_position_and_each_for_itself(admin: Connection, relay: Connection) -> None:
    for number in range(4):
        enqueue(admin, "gift", str(number))
    a, b, c, d = claim(relay)
    marked = relay.execute(
        """SELECT relay_mark(%s::bigint[], %s::bigint[], %s::text[], %s::float8[], %s::boolean[])""",
        [
            [event.event_id for event in (a, b, c, d)],
            [a.lease_token, b.lease_token, c.lease_token, d.lease_token + 1],
            [None, "busy", "broken", None],
            [0.0, 0.0, 0.0, 0.0],
            [False, False, True, False],
        ],
    ).fetchall()
    assert sorted(marked) == [(a.event_id,), (b.event_id,), (c.event_id,)]
    assert [
        row[:2]
        for row in admin.execute(
            "SELECT status, last_error FROM outbox_events WHERE aggregate_type = 'gift' ORDER BY event_id"
        )
    ] == [("delivered", None), ("pending", "busy"), ("dead", "broken"), ("pending", None)]


def test_a_failed_event_waits_before_it_is_due_again(admin: Connection, relay: Connection) -> None:
    event_id = enqueue(admin, "gift", "1")
    successor = enqueue(admin, "gift", "1")
    (claimed,) = claim(relay)
    assert fail(relay, claimed, retry_s=3_600)
    assert claim(relay) == []
    assert one(
        admin,
        """SELECT next_attempt_at BETWEEN clock_timestamp() + interval '3500 s'
                                      AND clock_timestamp() + interval '3600 s',
                  lease_expires_at, last_error FROM outbox_events WHERE event_id = %s""",
        event_id,
    ) == (True, None, "refused")
    admin.execute("UPDATE outbox_events SET next_attempt_at = now() WHERE event_id = %s", [event_id])
    (again,) = claim(relay)
    assert (again.event_id, again.attempts) == (event_id, 2)
    assert deliver(relay, again)
    assert claimed_ids(relay) == [successor]


def test_a_dead_event_holds_up_its_own_aggregate_and_no_other(admin: Connection, relay: Connection) -> None:
    poison, successor = enqueue(admin, "gift", "1"), enqueue(admin, "gift", "1")
    other = enqueue(admin, "gift", "2")
    (claimed, beside) = claim(relay)
    assert fail(relay, claimed, dead=True)
    assert deliver(relay, beside)
    assert state(admin, poison)[0] == "dead"
    assert state(admin, other)[0] == "delivered"
    assert [event.event_id for event in claim(relay, types=["alert.test"])] == []
    letters = admin.execute("SELECT event_id, attempts, last_error, held_up FROM dead_letters()").fetchall()
    assert letters == [(poison, 1, "refused", 1)]
    assert state(admin, successor) == ("pending", 0, 0)


def test_a_death_is_an_alert_and_the_death_of_that_alert_is_not(admin: Connection, relay: Connection) -> None:
    poison = enqueue(admin, "gift", "1", key="gift:1")
    (claimed,) = claim(relay)
    fail(relay, claimed, dead=True)
    (alert,) = claim(relay)
    assert alert.event_type == "alert.dead_letter"
    assert alert.payload["event_id"] == poison
    assert alert.payload["dedup_key"] == "gift:1"
    assert alert.payload["error"] == "refused"
    fail(relay, alert, dead=True)
    assert claim(relay) == []
    assert len(whole(admin)) == 2


def test_a_replay_keeps_id_and_key_and_begins_anew(admin: Connection, relay: Connection) -> None:
    poison = enqueue(admin, "gift", "1", key="gift:1")
    successor = enqueue(admin, "gift", "1")
    (claimed,) = claim(relay)
    fail(relay, claimed, dead=True)
    assert one(relay, "SELECT replay_dead_letter(%s)", poison) == (True,)
    (again,) = claim(relay, types=["alert.test"])
    assert (again.event_id, again.dedup_key, again.attempts) == (poison, "gift:1", 1)
    assert again.lease_token > claimed.lease_token
    assert not deliver(relay, claimed)  # what slept through death and replay is fenced off all the same
    fail(relay, again, dead=True)
    assert one(admin, "SELECT count(*) FROM outbox_events WHERE event_type = 'alert.dead_letter'") == (2,)
    assert one(relay, "SELECT replay_dead_letter(%s)", poison) == (True,)
    (last,) = claim(relay, types=["alert.test"])
    assert deliver(relay, last)
    assert [event.event_id for event in claim(relay, types=["alert.test"])] == [successor]


def test_the_judge_sees_every_event_as_it_stands(
    admin: Connection, relay: Connection, market_database: MarketDatabase
) -> None:
    poison = enqueue(admin, "gift", "1", key="gift:1", payload={"amount": 5})
    other = enqueue(admin, "gift", "2", key="gift:2")
    (claimed, beside) = claim(relay)
    fail(relay, claimed, dead=True)
    deliver(relay, beside)
    with psycopg.connect(market_database.judge_dsn, autocommit=True) as judge:
        rows = judge.execute(
            """SELECT event_id, aggregate_type, aggregate_id, event_type, payload, dedup_key, status,
                      attempts, lease_token, last_error, delivered_at >= created_at, died_at >= created_at
                 FROM books.outbox_events WHERE event_type = 'alert.test' ORDER BY event_id"""
        ).fetchall()
        with pytest.raises(errors.InsufficientPrivilege):
            judge.execute("DELETE FROM books.outbox_events")
    text = '{"amount": 5}'
    assert rows == [
        (poison, "gift", "1", "alert.test", text, "gift:1", "dead", 1, 1, "refused", None, True),
        (other, "gift", "2", "alert.test", "{}", "gift:2", "delivered", 1, 1, None, True, None),
    ]


def test_only_a_dead_letter_is_replayed(admin: Connection, relay: Connection) -> None:
    event_id = enqueue(admin, "gift", "1")
    (claimed,) = claim(relay)
    for _ in range(2):
        before = whole(admin)
        for known in (event_id, 999_999):
            assert one(relay, "SELECT replay_dead_letter(%s)", known) == (False,)
        assert whole(admin) == before
        deliver(relay, claimed)


def test_a_hint_comes_with_the_commit(admin: Connection, relay: Connection) -> None:
    relay.execute("LISTEN outbox")
    with admin.transaction():
        enqueue(admin, "gift", "1")
        assert list(relay.notifies(timeout=0)) == []
    assert [hint.channel for hint in relay.notifies(timeout=30, stop_after=1)] == ["outbox"]


def test_the_relay_executes_its_functions_and_touches_nothing_else(
    admin: Connection, relay: Connection, market_database: MarketDatabase
) -> None:
    event_id = enqueue(admin, "gift", "1")
    for statement in (
        "SELECT FROM outbox_events",
        "UPDATE outbox_events SET status = 'delivered'",
        "DELETE FROM outbox_events",
        "SELECT enqueue_event('a', 'b', 'alert.test', '{}', 'k')",
        "SELECT record_ledger_entry(1, 2, 5, 'theft')",
        "SELECT FROM books.accounts",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            relay.execute(statement)
    with psycopg.connect(market_database.app_dsn, autocommit=True) as server:
        for statement in (
            "SELECT FROM relay_claim(1, 1)",
            "SELECT relay_delivered(1, 1)",
            "SELECT replay_dead_letter(1)",
            "SELECT enqueue_event('a', 'b', 'alert.test', '{}', 'k')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                server.execute(statement)
    assert state(admin, event_id) == ("pending", 0, 0)
