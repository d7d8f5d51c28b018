"""Relay processes against a receiver process that dedups: kills, pauses, poison, order, and two at once."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND
from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, await_lock_wait, one
from tests.integration.relay_process import TIMEOUT_S, RelayProcess, World, enqueue, relay_dsn, wait_until

SHORT_LEASE_S = 0.5
RELAY_ACTIVITY: LiteralString = """
    SELECT state, xact_start IS NULL FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'reference_server relay'"""


class Scene:
    """One database, one receiver, and relays between them."""

    def __init__(
        self, supervisor: Supervisor, database: MarketDatabase, world: World, admin: Connection
    ) -> None:
        self.database = database
        self.world = world
        self.admin = admin
        self._supervisor = supervisor
        self._relays: list[RelayProcess] = []

    def relay(self, **options: float) -> RelayProcess:
        """A relay that relays; ended with the scene if the test does not end it."""
        relay = RelayProcess(self._supervisor, self.database, self.world, **options)
        self._relays.append(relay)
        return relay

    def enqueue(self, key: str, aggregate_id: str | None = None, **event: Any) -> int:
        """An event with this key, committed; of an aggregate of its own unless one is named."""
        return enqueue(self.admin, "test", aggregate_id or key, key=key, **event)

    def status(self, key: str) -> str:
        """Its status."""
        return str(self.facts(key, "status")[0])

    def facts(self, key: str, columns: LiteralString) -> tuple[Any, ...]:
        """Columns of the event with this key."""
        return one(self.admin, f"SELECT {columns} FROM outbox_events WHERE dedup_key = %s", key)

    def await_status(self, key: str, status: str) -> None:
        """Return when the event has come to this."""
        wait_until(lambda: self.status(key) == status, f"{key} is {status}")

    def arrivals(self, key: str) -> int:
        """How often the world was told."""
        return len(self.world.notes("arrival", key))

    def effects(self, key: str) -> int:
        """How often that had an effect."""
        return len(self.world.notes("effect", key))

    def close(self) -> None:
        """End what still runs."""
        for relay in self._relays:
            relay.kill()
        self.world.child.kill()


@pytest.fixture
def scene(supervisor: Supervisor, market_database: MarketDatabase, tmp_path: Path) -> Iterator[Scene]:
    with psycopg.connect(market_database.admin_dsn, autocommit=True) as admin:
        scene = Scene(supervisor, market_database, World(supervisor, tmp_path), admin)
        yield scene
        scene.close()


def test_an_event_is_delivered_once_with_its_key(scene: Scene) -> None:
    scene.enqueue("k:1", payload={"title": "Hello", "text": "world"})
    relay = scene.relay()
    scene.await_status("k:1", "delivered")
    assert scene.facts("k:1", "attempts, lease_token, lease_expires_at, last_error") == (1, 1, None, None)
    relay.end()
    assert (scene.arrivals("k:1"), scene.effects("k:1")) == (1, 1)
    assert relay.said("ended: 1 delivered")


def test_what_was_rolled_back_never_leaves(scene: Scene) -> None:
    scene.relay()
    with scene.admin.transaction(force_rollback=True):
        scene.enqueue("undone")
    scene.enqueue("done")
    scene.await_status("done", "delivered")
    assert [note.key for note in scene.world.notes("arrival")] == ["done"]


def test_a_hint_is_enough(scene: Scene) -> None:
    scene.relay(poll_s=3_600)
    scene.enqueue("k:1")
    scene.await_status("k:1", "delivered")


def test_polling_finds_what_no_hint_told_of(scene: Scene) -> None:
    scene.relay()
    scene.admin.execute(
        """INSERT INTO outbox_events (aggregate_type, aggregate_id, event_type, payload, dedup_key)
           VALUES ('test', '1', 'alert.test', '{}', 'silent')"""
    )
    scene.await_status("silent", "delivered")


def test_an_event_that_commits_late_is_delivered(scene: Scene) -> None:
    relay = scene.relay()
    with psycopg.connect(scene.database.admin_dsn) as slow:
        low = enqueue(slow, "test", "slow", key="slow")
        assert scene.enqueue("fast") > low
        scene.await_status("fast", "delivered")
        slow.commit()
    scene.await_status("slow", "delivered")
    relay.end()


def test_no_transaction_is_open_while_the_world_is_told(scene: Scene) -> None:
    scene.world.conduct(hold="k:")
    scene.relay()
    scene.enqueue("k:1")
    scene.world.await_arrivals("k:1")
    wait_until(
        lambda: scene.admin.execute(RELAY_ACTIVITY).fetchall() == [("idle", True)], "the relay is idle"
    )
    # nor is the row locked
    one(scene.admin, "SELECT 1 FROM outbox_events WHERE dedup_key = 'k:1' FOR UPDATE NOWAIT")
    scene.world.conduct()
    scene.await_status("k:1", "delivered")


def test_a_relay_killed_between_send_and_mark_means_two_deliveries_and_one_effect(scene: Scene) -> None:
    scene.world.conduct(hold="k:")
    relay = scene.relay(lease_s=SHORT_LEASE_S)
    scene.enqueue("k:1")
    scene.world.await_arrivals("k:1")
    relay.kill()
    assert scene.status("k:1") == "pending"
    scene.world.conduct()
    scene.relay()
    scene.await_status("k:1", "delivered")
    assert (scene.arrivals("k:1"), scene.effects("k:1")) == (2, 1)
    assert scene.facts("k:1", "attempts, lease_token") == (2, 2)


def test_a_mark_cut_off_before_its_commit_is_made_again(scene: Scene) -> None:
    scene.world.conduct(hold="k:")
    relay = scene.relay()
    scene.enqueue("k:1")
    scene.world.await_arrivals("k:1")
    with psycopg.connect(scene.database.admin_dsn) as other:
        one(other, "SELECT 1 FROM outbox_events WHERE dedup_key = 'k:1' FOR UPDATE")
        scene.world.conduct()
        await_lock_wait(scene.admin, "relay_mark")
        (cut,) = one(
            scene.admin,
            """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'reference_server relay'""",
        )
        assert cut == 1
        wait_until(lambda: relay.said("the database is away"), "the relay has lost its connection")
        other.rollback()
    scene.await_status("k:1", "delivered")
    relay.end()
    assert (scene.arrivals("k:1"), scene.facts("k:1", "attempts")) == (1, (1,))


def test_a_relay_killed_between_mark_and_commit_loses_and_doubles_nothing(scene: Scene) -> None:
    scene.world.conduct(hold="k:")
    relay = scene.relay(lease_s=SHORT_LEASE_S)
    scene.enqueue("k:1")
    scene.world.await_arrivals("k:1")
    with psycopg.connect(scene.database.admin_dsn) as other:
        one(other, "SELECT 1 FROM outbox_events WHERE dedup_key = 'k:1' FOR UPDATE")
        scene.world.conduct()
        await_lock_wait(scene.admin, "relay_mark")
        relay.kill()
        other.rollback()
    # its last statement may still commit, or the next relay delivers again: either is one effect
    scene.relay()
    scene.await_status("k:1", "delivered")
    assert scene.arrivals("k:1") in (1, 2)
    assert scene.effects("k:1") == 1


def test_sigterm_finishes_what_is_in_flight_and_begins_nothing(scene: Scene) -> None:
    scene.world.conduct(hold="held")
    relay = scene.relay()
    scene.enqueue("held")
    scene.world.await_arrivals("held")
    relay.ask_to_end()
    scene.enqueue("later")
    assert relay.child.wait(0.5) is None
    scene.world.conduct()
    assert relay.child.wait(TIMEOUT_S) == 0, relay.child.log_tail()
    assert scene.facts("held", "status, attempts") == ("delivered", 1)
    assert scene.facts("later", "status, attempts") == ("pending", 0)


def test_what_does_not_end_within_a_lease_of_sigterm_is_given_up(scene: Scene) -> None:
    scene.world.conduct(take_s=20.0)
    relay = scene.relay(lease_s=SHORT_LEASE_S)
    scene.enqueue("slow")
    scene.world.await_arrivals("slow")
    relay.pause()
    relay.ask_to_end()
    relay.resume()
    assert relay.child.wait(TIMEOUT_S) in (0, -signal.SIGALRM)
    scene.world.conduct()
    scene.relay()
    scene.await_status("slow", "delivered")


def test_an_event_has_one_relay_while_its_lease_lives(scene: Scene) -> None:
    scene.world.conduct(hold="held")
    scene.enqueue("held")
    scene.relay()
    scene.world.await_arrivals("held")
    scene.relay()
    for number in range(40):  # many looks into the outbox, by both
        scene.enqueue(f"other:{number}")
        scene.await_status(f"other:{number}", "delivered")
    assert scene.arrivals("held") == 1
    scene.world.conduct()
    scene.await_status("held", "delivered")
    assert scene.facts("held", "attempts, lease_token") == (1, 1)


@pytest.mark.parametrize("answered", [False, True])
def test_a_relay_that_slept_past_its_lease_cannot_mark(scene: Scene, answered: bool) -> None:
    """Neither while the next holder's call is out, nor when both calls had their answers."""
    scene.world.conduct(hold="k:")
    sleeper = scene.relay(lease_s=SHORT_LEASE_S)
    scene.enqueue("k:1")
    scene.world.await_arrivals("k:1")
    sleeper.pause()
    scene.relay()
    scene.world.await_arrivals("k:1", 2)
    if answered:
        scene.world.conduct()
        scene.await_status("k:1", "delivered")
    before = scene.facts("k:1", "status, attempts, lease_token, last_error, delivered_at")
    sleeper.resume()
    wait_until(lambda: sleeper.said("not marked, lease 1"), "the sleeper was fenced off")
    assert scene.facts("k:1", "status, attempts, lease_token, last_error, delivered_at") == before
    scene.world.conduct()
    scene.await_status("k:1", "delivered")
    assert scene.facts("k:1", "attempts, lease_token, last_error") == (2, 2, None)
    assert (scene.arrivals("k:1"), scene.effects("k:1")) == (2, 1)


def test_two_relays_deliver_each_event_once_and_keep_the_order_of_each_aggregate(scene: Scene) -> None:
    relays = [scene.relay(), scene.relay()]
    scene.world.conduct(take_s=0.01)
    keys = [f"{aggregate}:{number}" for number in range(12) for aggregate in "abcdefgh"]
    for key in keys:
        scene.enqueue(key, key[0])
    for aggregate in "abcdefgh":
        scene.await_status(f"{aggregate}:11", "delivered")
    for relay in relays:
        relay.end()
        assert relay.said("delivered")
    arrivals, answers = scene.world.notes("arrival"), scene.world.notes("answer")
    assert sorted(note.key for note in arrivals) == sorted(keys)
    ended_ns = {note.key: note.time_ns for note in answers}
    for aggregate in "abcdefgh":
        begun = [note for note in arrivals if note.key[0] == aggregate]
        assert [note.key for note in begun] == [f"{aggregate}:{number}" for number in range(12)]
        for earlier, later in itertools.pairwise(begun):
            assert ended_ns[earlier.key] < later.time_ns  # never two of one aggregate at once


def test_a_poison_event_dies_with_an_alert_and_holds_up_no_other_aggregate(scene: Scene) -> None:
    scene.world.conduct(refuse="poison")
    poison = scene.enqueue("poison", "a")
    scene.enqueue("behind", "a")
    scene.enqueue("beside", "b")
    scene.relay(attempts_max=3)
    scene.await_status("poison", "dead")
    scene.await_status("beside", "delivered")
    assert scene.arrivals("poison") == 3
    assert scene.facts("poison", "attempts, last_error") == (
        3,
        "NotDelivered: of 1 services 0 took it",
    )
    alert = f"dead_letter:{poison}:3"
    scene.await_status(alert, "delivered")
    assert (scene.arrivals(alert), scene.effects(alert)) == (1, 1)
    assert scene.facts("behind", "status, attempts") == ("pending", 0)

    listed = dead_letters(scene)
    assert [(letter["event_id"], letter["dedup_key"], letter["held_up"]) for letter in listed] == [
        (poison, "poison", 1)
    ]
    scene.world.conduct()
    assert dead_letters(scene, "--replay", str(poison)) == [{"event_id": poison, "replayed": True}]
    scene.await_status("behind", "delivered")
    assert scene.facts("poison", "event_id, status") == (poison, "delivered")
    assert scene.effects("poison") == 1
    assert scene.world.notes("effect")[-2].key == "poison"
    assert scene.world.notes("effect")[-1].key == "behind"
    assert dead_letters(scene) == []


def test_an_event_that_takes_its_relay_down_dies_too(scene: Scene) -> None:
    scene.world.conduct(hold="deadly")
    scene.enqueue("deadly")
    for attempt in (1, 2):
        relay = scene.relay(lease_s=SHORT_LEASE_S, attempts_max=2)
        scene.world.await_arrivals("deadly", attempt)
        relay.kill()
    scene.relay(attempts_max=2)
    scene.await_status("deadly", "dead")
    assert scene.arrivals("deadly") == 2
    assert scene.facts("deadly", "last_error") == ("NotDelivered: no outcome of 2 attempts",)


def test_a_relay_leaves_alone_what_it_has_no_handler_for(scene: Scene) -> None:
    scene.enqueue("unknown", event_type="unknown.thing")
    scene.enqueue("known")
    scene.relay()
    scene.await_status("known", "delivered")
    assert scene.facts("unknown", "status, attempts") == ("pending", 0)


def test_all_dead_letters_are_replayed_at_once(scene: Scene) -> None:
    scene.world.conduct(refuse="k:")
    keys = ["k:1", "k:2"]
    ids = [scene.enqueue(key) for key in keys]
    scene.relay(attempts_max=1)
    for key in keys:
        scene.await_status(key, "dead")
    scene.world.conduct()
    assert dead_letters(scene, "--replay-all") == [
        {"event_id": event_id, "replayed": True} for event_id in ids
    ]
    for key in keys:
        scene.await_status(key, "delivered")
        assert scene.effects(key) == 1
    done = command("dead-letters", "--dsn", relay_dsn(scene.database), "--replay", str(ids[0]))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"event {ids[0]} is not a dead letter" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relay"], "give --dsn or set SEATRIAL_RELAY_DSN"),
        (["relay", "--dsn", "dbname=x", "--workers", "0"], "--workers"),
        (["relay", "--dsn", "dbname=x", "--lease-s", "0"], "--lease-s"),
        (["relay", "--dsn", "dbname=x", "--attempts-max", "0"], "--attempts-max"),
        (["relay", "--dsn", "dbname=x", "--notify", "nowhere://x"], "URL 1, of 'nowhere'"),
        (["dead-letters"], "give --dsn or set SEATRIAL_RELAY_DSN"),
        (["dead-letters", "--dsn", "host=127.0.0.1 port=1"], "refused"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_why(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_relay_without_rights_ends_with_2(market_database: MarketDatabase) -> None:
    done = command("relay", "--dsn", market_database.app_dsn)
    assert done.returncode == 2
    assert "permission denied" in done.stderr


def test_the_speed_of_the_relay_is_measured_by_a_command(market_database: MarketDatabase) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "reference_server.relay_speed"),
            *("--dsn", market_database.admin_dsn, "--events", "600", "--aggregates", "200"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()[1:3]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [("1", "600", "kept"), ("2", "600", "kept")]
    with psycopg.connect(market_database.admin_dsn) as admin:
        assert one(admin, "SELECT count(*), sum(attempts) FROM outbox_events WHERE status = 'delivered'") == (
            1_200,
            1_200,
        )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REFERENCE_COMMAND, *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("SEATRIAL_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def dead_letters(scene: Scene, *arguments: str) -> list[dict[str, Any]]:
    done = command("dead-letters", "--dsn", relay_dsn(scene.database), *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
