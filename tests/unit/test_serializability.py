"""Strict serialisability against brute force: all orders of small random histories."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

import numpy as np
import pytest

from reports.serializability import NEVER, Breaches, Links, find_breaches

KINDS = 2


class Operation(NamedTuple):
    """An interval and, by kind of object, (object, level)."""

    invoke_ns: int
    end_ns: int
    levels: dict[int, tuple[int, int]]


def judged(history: list[Operation]) -> Breaches | None:
    links = []
    for kind in range(KINDS):
        linked = [(number, *op.levels[kind]) for number, op in enumerate(history) if kind in op.levels]
        columns = np.array(linked, np.int64).reshape(len(linked), 3).T
        links.append(Links(columns[0], columns[1], columns[2]))
    invoke = np.array([op.invoke_ns for op in history], np.int64)
    return find_breaches(invoke, np.array([op.end_ns for op in history], np.int64), links)


def comes_before(one: Operation, other: Operation, *, by_time: bool) -> bool:
    """Whether every order must have `one` first."""
    if by_time:
        return one.end_ns < other.invoke_ns
    return any(
        kind in other.levels and (thing == other.levels[kind][0] and level < other.levels[kind][1])
        for kind, (thing, level) in one.levels.items()
    )


def has_an_order(history: list[Operation]) -> bool:
    """Brute force: some permutation in which nothing comes after what must follow it."""
    must = {
        (i, j)
        for (i, one), (j, other) in itertools.permutations(enumerate(history), 2)
        if comes_before(one, other, by_time=True) or comes_before(one, other, by_time=False)
    }
    return any(
        all((order[j], order[i]) not in must for i, j in itertools.combinations(range(len(order)), 2))
        for order in itertools.permutations(range(len(history)))
    )


def random_history(seed: int) -> list[Operation]:
    """Operations executed one after another, then with some versions, intervals or both disturbed."""
    chance = random.Random(seed)
    made: dict[tuple[int, int], int] = {}
    history = []
    for number in range(chance.randint(2, 6)):
        point = 10 * number
        spread = chance.choice((3, 15, 40, 90))
        end = NEVER if chance.random() < 0.1 else point + chance.randint(0, spread)
        levels = {}
        reads = chance.random() < 0.3
        for kind in [chance.randrange(KINDS)] if reads else chance.choice(([0, 1], [0, 1], [0], [1])):
            thing = chance.randrange(2)
            version = made.get((kind, thing), 0)
            if not reads:
                version += 1
                made[kind, thing] = version
            levels[kind] = (thing, 2 * version + reads)
        history.append(Operation(point - chance.randint(0, spread), end, levels))
    for _ in range(chance.choice((0, 1, 2, 3))):
        victim, other = chance.randrange(len(history)), chance.randrange(len(history))
        kind = chance.randrange(KINDS)
        if kind in history[victim].levels and kind in history[other].levels and chance.random() < 0.7:
            swapped = history[victim].levels | {kind: history[other].levels[kind]}
            back = history[other].levels | {kind: history[victim].levels[kind]}
            history[victim] = history[victim]._replace(levels=swapped)
            history[other] = history[other]._replace(levels=back if other != victim else swapped)
        else:
            moved = history[victim].invoke_ns + chance.randint(-20, 20)
            history[victim] = history[victim]._replace(
                invoke_ns=moved, end_ns=max(moved, history[victim].end_ns)
            )
    return history


def test_what_it_finds_is_what_brute_force_finds() -> None:
    verdicts = []
    for seed in range(6_000):
        history = random_history(seed)
        found = judged(history)
        verdicts.append(None if found is None else found.by_time)
        assert (found is None) == has_an_order(history), f"seed {seed}"
        if found is not None:
            assert_is_a_cycle(history, found)
    # the generator makes right histories and both kinds of wrong ones, each often
    assert min(verdicts.count(None), verdicts.count(True), verdicts.count(False)) > 50


def assert_is_a_cycle(history: list[Operation], found: Breaches) -> None:
    operations = [history[number] for number in found.cycle]
    assert len(set(found.cycle)) == len(operations) >= 2
    for one, other in itertools.pairwise(operations):
        assert comes_before(one, other, by_time=False)
    assert comes_before(operations[-1], operations[0], by_time=found.by_time)


def test_a_trade_that_ends_before_an_earlier_version_begins_is_a_pair() -> None:
    late, early = Operation(50, 60, {0: (1, 2)}), Operation(10, 20, {0: (1, 4)})

    assert judged([late, early]) == Breaches(1, [0, 1], by_time=True)


def test_the_shortest_of_several_cycles_is_the_witness() -> None:
    history = [
        Operation(100, 110, {0: (1, 2)}),
        Operation(5, NEVER, {0: (1, 4), 1: (1, 2)}),
        Operation(6, NEVER, {1: (1, 4), 0: (2, 2)}),
        Operation(7, 20, {0: (2, 4)}),  # after the first, by way of two others
        Operation(8, 30, {0: (1, 6)}),  # after the first at once
    ]
    assert judged(history) == Breaches(1, [0, 4], by_time=True)


def test_versions_that_contradict_each_other_are_a_circle_without_any_clock() -> None:
    one, other = Operation(0, 90, {0: (1, 2), 1: (1, 4)}), Operation(10, 90, {0: (1, 4), 1: (1, 2)})

    found = judged([one, other])

    assert found is not None
    assert (found.count, sorted(found.cycle), found.by_time) == (1, [0, 1], False)


def test_a_trade_seen_in_one_object_and_not_yet_in_the_other_is_a_cycle() -> None:
    trade = Operation(0, NEVER, {0: (1, 2), 1: (1, 2)})
    sees_it, sees_it_not = Operation(10, 20, {0: (1, 3)}), Operation(30, 40, {1: (1, 1)})

    assert judged([trade, sees_it, sees_it_not]) == Breaches(1, [2, 0, 1], by_time=True)


def test_readers_of_one_version_have_no_order() -> None:
    assert judged([Operation(50, 60, {0: (1, 3)}), Operation(10, 20, {0: (1, 3)})]) is None


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_in_order(count: int) -> None:
    assert judged([Operation(0, 1, {0: (1, 2), 1: (1, 2)})] * count) is None
