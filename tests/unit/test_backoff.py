"""Waits after failures: exponential, capped, jittered over the whole range, and repeatable from a seed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from reference_server.relay.backoff import Backoff


def backoff(seed: int = 1, *, base_s: float = 0.5, cap_s: float = 300.0) -> Backoff:
    return Backoff(base_s, cap_s, random.Random(seed))


def test_the_bound_doubles_up_to_the_cap() -> None:
    bounds = [backoff().bound_s(attempt) for attempt in range(1, 13)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(
    seed=st.integers(),
    attempt=st.integers(1, 10**6),
    base_s=st.floats(0.001, 100),
    cap_s=st.floats(0.001, 1e4),
)
def test_every_wait_is_within_its_bound_and_the_cap(
    seed: int, attempt: int, base_s: float, cap_s: float
) -> None:
    waits = backoff(seed, base_s=base_s, cap_s=cap_s)
    assert 0 <= waits.wait_s(attempt) <= waits.bound_s(attempt) <= cap_s


def test_the_jitter_is_full() -> None:
    waits = backoff()
    taken = sorted(waits.wait_s(5) for _ in range(2_000))
    bound_s = waits.bound_s(5)
    assert taken[0] < 0.01 * bound_s
    assert taken[-1] > 0.99 * bound_s
    assert 0.45 * bound_s < sum(taken) / len(taken) < 0.55 * bound_s


def test_a_seed_gives_the_same_waits_again() -> None:
    one, same, other = backoff(7), backoff(7), backoff(8)
    waits = [one.wait_s(attempt) for attempt in range(1, 20)]
    assert waits == [same.wait_s(attempt) for attempt in range(1, 20)]
    assert waits != [other.wait_s(attempt) for attempt in range(1, 20)]
