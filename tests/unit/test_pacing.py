"""Intended starts follow from the seed alone, and a sleep ends when it is due or rung."""

from __future__ import annotations

import itertools
import time

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.pacing import Alarm, Schedule

S = 1_000_000_000


def starts(seed: str, *, rate_per_s: float = 5.0, count: int = 200) -> list[int]:
    schedule = Schedule(rate_per_s=rate_per_s, from_ns=S, seed=seed)
    return [schedule.take() for _ in range(count)]


def test_a_seed_gives_the_same_starts_again() -> None:
    assert starts("7/0/schedule") == starts("7/0/schedule")
    assert starts("7/0/schedule") != starts("7/1/schedule")


@given(seed=st.text(), rate_per_s=st.floats(0.1, 10_000))
def test_intervals_are_half_to_one_and_a_half_of_the_rate(seed: str, rate_per_s: float) -> None:
    taken = starts(seed, rate_per_s=rate_per_s, count=50)
    interval_ns = S / rate_per_s
    assert S <= taken[0] <= S + interval_ns
    for one, next_one in itertools.pairwise(taken):
        assert 0.5 * interval_ns - 1 <= next_one - one <= 1.5 * interval_ns


def test_the_rate_is_the_one_asked_for() -> None:
    taken = starts("rate", rate_per_s=50, count=5_000)
    assert (len(taken) - 1) / ((taken[-1] - taken[0]) / S) == pytest.approx(50, rel=0.02)


def test_a_late_user_does_not_move_its_schedule() -> None:
    schedule = Schedule(rate_per_s=1000, from_ns=S, seed="late")
    before = schedule.take()
    time.sleep(0.01)  # bounded; the schedule must not look at the clock
    assert schedule.take() - before <= 1.5 * S / 1000


def test_time_spent_elsewhere_moves_what_is_still_to_come() -> None:
    straight, held_up = (Schedule(rate_per_s=5, from_ns=S, seed="wallet") for _ in range(2))
    assert straight.take() == held_up.take()
    held_up.stand_still(3 * S)
    assert [held_up.take() for _ in range(9)] == [straight.take() + 3 * S for _ in range(9)]


def test_users_that_begin_together_do_not_march_in_step() -> None:
    first = [starts(f"7/{number}/schedule", count=1)[0] for number in range(20)]
    assert len(set(first)) == 20
    assert max(first) - min(first) > 0.5 * S / 5


def test_a_sleep_ends_when_it_is_due_and_not_before() -> None:
    with Alarm() as alarm:
        for _ in range(20):
            due_ns = time.monotonic_ns() + 2_000_000
            alarm.sleep_until(due_ns)
            assert time.monotonic_ns() >= due_ns


def test_what_is_due_already_is_not_slept_for() -> None:
    others: list[int] = []
    gevent.spawn(others.append, 1)
    with Alarm() as alarm:
        alarm.sleep_until(time.monotonic_ns() - 1)
    assert others == []  # nobody else ran meanwhile
    gevent.sleep(0)


def test_other_greenlets_run_during_a_sleep() -> None:
    others: list[int] = []
    gevent.spawn(others.append, 1)
    with Alarm() as alarm:
        alarm.sleep_until(time.monotonic_ns() + 5_000_000)
    assert others == [1]


def test_a_ring_ends_a_sleep_and_every_later_one() -> None:
    hour_ns = 3_600 * S
    with Alarm() as alarm, gevent.Timeout(5):
        sleeper = gevent.spawn(alarm.sleep_until, time.monotonic_ns() + hour_ns)
        gevent.sleep(0)
        alarm.ring()
        sleeper.get()
        alarm.sleep_until(time.monotonic_ns() + hour_ns)


def test_a_ring_before_the_sleep_is_not_lost() -> None:
    with Alarm() as alarm, gevent.Timeout(5):
        alarm.ring()
        alarm.sleep_until(time.monotonic_ns() + 3_600 * S)


def test_a_killed_sleep_does_not_wake_the_next_one() -> None:
    with Alarm() as alarm:
        sleeper = gevent.spawn(alarm.sleep_until, time.monotonic_ns() + 2_000_000)
        gevent.sleep(0)
        sleeper.kill()
        time.sleep(0.004)  # bounded; the timer of the killed sleep expires unread
        due_ns = time.monotonic_ns() + 5_000_000
        alarm.sleep_until(due_ns)
        assert time.monotonic_ns() >= due_ns
