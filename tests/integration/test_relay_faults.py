"""The faults of relay and outbox on real processes: they landed, and there is one effect all the same."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psutil
import pytest

from chaos.child import Child
from chaos.faults import FaultError, World, kill_relay, pause_relay, poison_event
from chaos.faults.event_lock import EventLock
from chaos.faults.leases import UnheardCall, await_event, read_event, unheard_call
from chaos.http_messages import Evidence
from chaos.processes import identify, is_alive, wait_until
from chaos.rpc_control import Hold
from chaos.undo import read_undo
from tests.integration.custody_world import WAIT_S, CustodyWorld, custody_world, process_fault
from tests.integration.test_nemesis import SmallWorld

__all__ = ["custody_world"]

NAMES = ("add_relay", "kill_relay", "lose_rpc_reply", "pause_relay", "poison_event")
HELD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kill_relay", {"moment": "before_mark"}),
    ("kill_relay", {"moment": "in_mark"}),
    ("pause_relay", {}),
)


@pytest.fixture
def world(custody_world: CustodyWorld) -> Iterator[CustodyWorld]:
    """Nothing is under way before and after the test, and all that moved has arrived once."""
    yield custody_world
    assert all(relay.alive for relay in custody_world.custody.relays)
    custody_world.settle()
    custody_world.assert_sound()


@pytest.fixture
def traffic(world: CustodyWorld) -> Iterator[None]:
    """Money moves in and out while the test runs."""
    with world.traffic():
        yield


def struck(world: CustodyWorld, name: str, **options: Any) -> tuple[Evidence, Evidence]:
    """The evidence of a fault that landed and was healed, as the nemesis goes about it."""
    fault = process_fault(name, **options)
    fault.check(world)
    landed: Evidence = {}
    try:
        landed = fault.inject(world)
    finally:
        healed = fault.heal(world, landed)
    return landed, healed


def relay_of(world: CustodyWorld, landed: Evidence) -> Child:
    (relay,) = [relay for relay in world.custody.relays if relay.name == landed["relay"]]
    return relay


def assert_told_once(world: CustodyWorld, landed: Evidence, healed: Evidence, *, lost: bool) -> None:
    """The event was delivered under a later lease, and the world took it into effect the first time."""
    event = world.event(landed["event_id"])
    assert (event["status"], event["lease_token"]) == ("delivered", healed["delivered_under"])
    assert event["lease_token"] > landed["lease_token"]
    if landed["of"] == "withdrawal":
        assert landed["known"] is True
        (attempts,) = world.admin.execute(
            "SELECT count(*) FROM withdrawal_attempts WHERE withdrawal_id::text = %s", [event["aggregate_id"]]
        ).fetchone() or (0,)
        assert attempts == 1, "the second relay found what the first had sent"
    else:
        rows = world.arrivals(landed["key"])
        assert len(rows) == healed["arrivals"] >= 2
        assert [row["applied"] for row in rows] == [True] + [False] * (len(rows) - 1)
        assert [row["status"] for row in rows] == [0 if lost else 200] + [200] * (len(rows) - 1)


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("of", ["withdrawal", "notice"])
def test_a_relay_killed_before_its_mark_had_told_the_world_and_not_written_it_down(
    world: CustodyWorld, of: str
) -> None:
    landed, healed = struck(world, "kill_relay", of=of)
    assert landed["returncode"] == -signal.SIGKILL
    assert (landed["status_after"], landed["lease_token_after"]) == ("pending", landed["lease_token"])
    assert healed["started"] == [relay_of(world, landed).pid] != [landed["pid"]] == [healed["pid_before"]]
    assert_told_once(world, landed, healed, lost=True)


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("of", ["withdrawal", "notice"])
def test_a_relay_killed_in_its_mark_has_it_rolled_back(world: CustodyWorld, of: str) -> None:
    landed, healed = struck(world, "kill_relay", of=of, moment="in_mark")
    assert landed["returncode"] == -signal.SIGKILL
    assert "relay_mark" in landed["statement"]
    assert world.ask("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", landed["backend"]) == 0
    assert (landed["status_after"], landed["lease_token_after"]) == ("pending", landed["lease_token"])
    assert_told_once(world, landed, healed, lost=False)


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("of", ["withdrawal", "notice"])
def test_a_relay_paused_past_its_lease_marks_nothing_when_it_is_back(world: CustodyWorld, of: str) -> None:
    fault = process_fault("pause_relay", of=of)
    landed = fault.inject(world)
    relay = relay_of(world, landed)
    try:
        assert psutil.Process(relay.pid).status() == psutil.STATUS_STOPPED
        assert resumed_by_undo(world) == [relay.pid] == landed["stopped"]
        assert landed["lease_token_after"] > landed["lease_token"]
    finally:
        healed = fault.heal(world, landed)
    assert psutil.Process(relay.pid).status() != psutil.STATUS_STOPPED
    assert resumed_by_undo(world) == []
    assert healed["pid"] == landed["pid"]
    assert healed["late_mark_touched_it"] is False
    assert healed["statements"] >= pause_relay.STATEMENTS
    assert "not marked, lease" in relay.log_tail(1_000)
    assert_told_once(world, landed, healed, lost=False)


def resumed_by_undo(world: CustodyWorld) -> list[int]:
    """Whom the watchdog would continue now."""
    entries = [entry for entry in read_undo(world.run / "undo.jsonl") if entry.kind == "resume"]
    return [process["pid"] for entry in entries for process in entry.what["processes"]]


@pytest.mark.usefixtures("traffic")
def test_a_lost_rpc_reply_fails_the_attempt_and_not_the_payment(world: CustodyWorld) -> None:
    pids = [relay.pid for relay in world.custody.relays]
    landed, healed = struck(world, "lose_rpc_reply")
    assert "ChainUnavailable" in landed["last_error"]
    assert healed["attempts"] > landed["attempts"]
    assert [relay.pid for relay in world.custody.relays] == pids
    assert_told_once(world, landed, healed, lost=True)


@pytest.mark.usefixtures("traffic")
def test_one_relay_more_works_beside_the_others_and_goes(world: CustodyWorld) -> None:
    fault = process_fault("add_relay", hold_s=1.0)
    landed = fault.inject(world)
    added = relay_of(world, landed)
    process = identify(landed["pid"])
    assert process is not None
    assert is_alive(process)
    assert (landed["others"], len(world.custody.relays)) == (2, 3)
    assert landed["connections"] == len(landed["backends"]) >= 1
    for pid, _ in landed["backends"]:
        query = "SELECT application_name FROM pg_stat_activity WHERE pid = %s"
        assert world.ask(query, pid) == "reference_server relay"
    assert wait_until(lambda: calls_next(world) is added, timeout_s=WAIT_S), "it delivers what is due"
    healed = fault.heal(world, landed)
    assert not is_alive(process)
    assert (healed["returncode"], healed["backends_left"]) == (0, [])
    assert healed["worked_s"] >= 1.0
    assert len(world.custody.relays) == 2


def calls_next(world: CustodyWorld) -> Child:
    """The relay that tells of the next notice."""
    with unheard_call(world, "notice", WAIT_S) as call:
        return call.relay


@pytest.mark.usefixtures("traffic")
def test_a_poisoned_event_dies_alone_and_is_replayed_as_itself(world: CustodyWorld) -> None:
    landed, healed = struck(world, "poison_event")
    assert landed["attempts"] == world.custody.plan.attempts_max >= landed["refusals"] > 0
    assert landed["others_delivered"] > 0
    assert world.event(landed["alert_id"])["payload"]["event_id"] == landed["event_id"]
    (alert,) = world.arrivals(world.event(landed["alert_id"])["dedup_key"])
    assert (alert["status"], alert["applied"]) == (200, True)
    event = world.event(landed["event_id"])
    assert (event["status"], event["dedup_key"]) == ("delivered", landed["key"])
    rows = world.arrivals(landed["key"])
    assert [row["status"] for row in rows] == [503] * landed["refusals"] + [200]
    assert [row["applied"] for row in rows] == [False] * landed["refusals"] + [True]
    assert healed["arrivals"] == len(rows)


# --- what cannot have the fault says so


@pytest.mark.parametrize("name", NAMES)
def test_a_world_without_a_chain_says_so(name: str) -> None:
    with pytest.raises(FaultError, match="chain"):
        process_fault(name).check(SmallWorld())


@pytest.mark.parametrize(
    ("name", "plan", "match"),
    [
        ("pause_relay", {"relays": 1}, "2 relays"),
        ("pause_relay", {"lease_s": 60.0}, "lease_s"),
        ("kill_relay", {"lease_s": 60.0}, "lease_s"),
        ("poison_event", {"attempts_max": 100}, "attempts_max"),
    ],
)
def test_a_plan_that_would_take_too_long_is_refused(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch, name: str, plan: dict[str, Any], match: str
) -> None:
    fault = process_fault(name)
    fault.check(world)
    custody = world.custody
    monkeypatch.setattr(custody, "plan", msgspec.structs.replace(custody.plan, **plan))
    monkeypatch.setattr(custody, "relays", custody.relays[: custody.plan.relays])
    with pytest.raises(FaultError, match=match):
        fault.check(world)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {**options, "of": of}) for name, options in HELD for of in ("withdrawal", "notice")],
        ("lose_rpc_reply", {}),
        ("poison_event", {}),
    ],
)
def test_where_nothing_is_told_nothing_is_broken(
    world: CustodyWorld, name: str, options: dict[str, Any]
) -> None:
    world.settle()
    pids = [relay.pid for relay in world.custody.relays]
    with pytest.raises(FaultError, match="nothing to"):
        struck(world, name, wait_s=0.1, **options)
    assert [relay.pid for relay in world.custody.relays] == pids
    withdrawn = world.bank.withdraw(world.bank.users[0])
    assert withdrawn is not None, "and neither line nor receiver keep anything back"


# --- every proof fails where there is nothing to prove


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("moment", ["before_mark", "in_mark"])
def test_a_relay_that_was_not_killed_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(Child, "kill", lambda self: None)  # noqa: ARG005
    with pytest.raises(FaultError, match="not killed"):
        struck(world, "kill_relay", moment=moment)


@contextmanager
def heard_call(world: World, of: Any, wait_s: float) -> Iterator[UnheardCall]:
    """As if nothing were held: the relay hears, and marks."""
    with unheard_call(world, of, wait_s) as call:
        call.deliver()
        done = await_event(
            world, call.event.event_id, lambda event: event.status != "pending", timeout_s=WAIT_S
        )
        assert done is not None
        yield call


@pytest.mark.usefixtures("traffic")
def test_a_relay_that_had_marked_before_it_was_killed_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_relay, "unheard_call", heard_call)
    with pytest.raises(FaultError, match="was marked delivered by the relay that was killed"):
        struck(world, "kill_relay", of="notice")


@pytest.mark.usefixtures("traffic")
def test_a_mark_that_goes_through_after_its_relays_death_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_it_mark(lock: EventLock, waiting: object) -> None:
        """The backend is not terminated: it marks as soon as the row is let go, with nobody to answer to."""

    monkeypatch.setattr(EventLock, "terminate", let_it_mark)
    monkeypatch.setattr(kill_relay, "read_event", when_settled(read_event))
    with pytest.raises(FaultError, match="was marked delivered by the relay that was killed"):
        struck(world, "kill_relay", moment="in_mark")


def when_settled(read: Callable[..., Any]) -> Callable[..., Any]:
    """Read an event once nobody waits for it any more."""

    def settled(connection: Any, event_id: int) -> Any:
        assert wait_until(lambda: read(connection, event_id).status != "pending", timeout_s=WAIT_S)
        return read(connection, event_id)

    return settled


@pytest.mark.usefixtures("traffic")
def test_a_relay_that_never_marks_is_not_killed_in_its_mark(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventLock, "waiting", lambda self, relay, or_unknown: None)  # noqa: ARG005
    monkeypatch.setattr(kill_relay, "MARK_S_MAX", 0.2)
    with pytest.raises(FaultError, match="did not come to mark"):
        struck(world, "kill_relay", moment="in_mark")


@pytest.mark.usefixtures("traffic")
def test_a_relay_that_was_not_stopped_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Child, "pause", lambda self: [])  # noqa: ARG005
    with pytest.raises(FaultError, match="stopped too late: its event is delivered"):
        struck(world, "pause_relay", of="notice")


@pytest.mark.usefixtures("traffic")
def test_a_pause_in_which_nobody_else_claims_is_no_landing_and_is_healed(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause_relay, "CLAIM_S_MAX", -world.custody.plan.lease_s + 0.2)
    with pytest.raises(FaultError, match="nobody claimed"):
        struck(world, "pause_relay")
    statuses = [psutil.Process(relay.pid).status() for relay in world.custody.relays]
    assert psutil.STATUS_STOPPED not in statuses


@pytest.mark.usefixtures("traffic")
def test_a_late_mark_that_is_not_fenced_off_is_seen(world: CustodyWorld) -> None:
    (sound,) = world.admin.execute("SELECT pg_get_functiondef('relay_mark'::regproc)").fetchone() or ("",)
    fence = "AND e.lease_token = m.lease_token AND e.lease_expires_at IS NOT null"
    assert fence in sound
    world.admin.execute(sound.replace(fence, ""))
    try:
        landed, healed = struck(world, "pause_relay", of="notice")
    finally:
        world.admin.execute(sound)
    assert landed["lease_token_after"] > landed["lease_token"]
    assert healed["late_mark_touched_it"] is True


def test_a_relay_that_cannot_start_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.custody, "_target", ["false"])
    with pytest.raises(FaultError, match="relay-more exited 1"):
        struck(world, "add_relay")
    assert len(world.custody.relays) == 2


@pytest.mark.usefixtures("traffic")
def test_an_event_that_does_not_die_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison_event, "DEAD_S_MAX", 0.0)
    with pytest.raises(FaultError, match="is pending after"):
        struck(world, "poison_event")


@pytest.mark.usefixtures("traffic")
def test_a_death_that_nobody_is_told_of_is_no_landing(
    world: CustodyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.admin.execute(
        """CREATE FUNCTION say_it_later() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN new.next_attempt_at := clock_timestamp() + interval '4 seconds'; RETURN new; END$$;
           CREATE TRIGGER later BEFORE INSERT ON outbox_events FOR EACH ROW
           WHEN (new.event_type = 'alert.dead_letter') EXECUTE FUNCTION say_it_later()"""
    )
    monkeypatch.setattr(poison_event, "ALERT_S_MAX", 0.3)
    try:
        with pytest.raises(FaultError, match="no alert of the death"):
            struck(world, "poison_event")
    finally:
        world.admin.execute("DROP FUNCTION say_it_later CASCADE")


@pytest.mark.usefixtures("traffic")
def test_a_reply_that_was_heard_is_no_lost_one(world: CustodyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hold, "drop", Hold.deliver)
    with pytest.raises(FaultError, match="delivered as if its answer had been heard"):
        struck(world, "lose_rpc_reply")


@pytest.mark.usefixtures("traffic")
def test_a_relay_that_has_left_loses_no_reply(world: CustodyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = Hold.drop

    def drop_late(hold: Hold) -> bool:
        for relay in world.custody.relays:
            relay.kill()
        return wait_until(lambda: drop(hold), timeout_s=0.1)

    monkeypatch.setattr(Hold, "drop", drop_late)
    try:
        with pytest.raises(FaultError, match="had left before its answer could be lost"):
            struck(world, "lose_rpc_reply")
    finally:
        for relay in world.custody.relays:
            relay.start()
