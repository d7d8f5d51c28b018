"""Strict serialisability of operations that name versions: there is an order, or a shortest cycle.

An operation is an interval of real time and at most one level in each of two kinds of objects (a market, an
account). An object's levels are in order: version v is made at level 2v and read at 2v + 1; operations on one
level have no order. A history is strictly serialisable when every operation has a point in its interval such
that the points follow the levels of every object.

1. The earliest point: its invocation, or the earliest point of an operation on a lower level, if that is
   later. Running maxima over one kind of objects, then the other, until nothing moves. In a history that is
   right no value travels further than the operations in flight, so this takes a few passes.
2. An operation that ends before its earliest point is a breach: what comes before it by versions began after
   it had ended.
3. Operations with the same earliest point need an order among themselves. Ranks, one more than anything on a
   lower level, grow past the size of the group exactly when versions go round in a circle.
4. The witness is found by breadth-first search backwards from a breach.

Why not a general search for cycles: in plain Python a million operations take longer than the whole judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

NEVER = np.iinfo(np.int64).max
STARTS_MAX = 10  # breaches from which a shortest cycle is searched


@dataclass(frozen=True)
class Links:
    """One level of one object for some operations: three parallel arrays, each operation at most once."""

    operation: Integers
    object: Integers
    level: Integers


@dataclass(frozen=True)
class Breaches:
    """How many operations (or groups of them) cannot be placed, and the shortest cycle found.

    Each operation of `cycle` comes before the next by versions, but the last, which comes before the first
    by real time if `by_time`, else by versions as well.
    """

    count: int
    cycle: list[int]
    by_time: bool


class Chains:
    """The links of one kind in the order of objects and levels."""

    def __init__(self, links: Links, operations: int) -> None:
        order = np.lexsort((links.level, links.object))
        self.operation = links.operation[order]
        self.object = links.object[order]
        self.level = links.level[order]
        new_object = np.diff(self.object, prepend=-1) != 0
        new_level = new_object | (np.diff(self.level, prepend=-1) != 0)
        self.level_start = np.flatnonzero(new_level)
        self.level_of = np.cumsum(new_level) - 1
        self.first_of_object = new_object[self.level_start]
        self.object_of_level = np.cumsum(self.first_of_object) - 1
        # by operation: where its level begins, and where its object begins; -1 without a link of this kind
        self.start = np.full(operations, -1, np.int64)
        self.start[self.operation] = self.level_start[self.level_of]
        self.begin = np.full(operations, -1, np.int64)
        object_begin = self.level_start[self.first_of_object]
        self.begin[self.operation] = object_begin[self.object_of_level[self.level_of]]

    def before(self, values: Integers, span: int) -> Integers:
        """For each link the largest value on a lower level of its object, or -1; values are 0 .. span - 1."""
        highest = np.maximum.reduceat(values[self.operation], self.level_start)
        running = np.maximum.accumulate(highest + self.object_of_level * span) - self.object_of_level * span
        lower = np.concatenate([[-1], running[:-1]])
        lower[self.first_of_object] = -1
        return np.asarray(lower[self.level_of])


def find_breaches(invoke_ns: Integers, end_ns: Integers, kinds: list[Links]) -> Breaches | None:
    """None when the history is strictly serialisable. `end_ns` is NEVER where an answer never came."""
    times, ranks = np.unique(np.concatenate([invoke_ns, end_ns]), return_inverse=True)
    invoke, end = ranks[: len(invoke_ns)], ranks[len(invoke_ns) :]
    chains = [Chains(links, len(invoke)) for links in kinds if len(links.operation)]
    point = invoke.copy()
    moved = True
    while moved:
        moved = False
        for chain in chains:
            lower = chain.before(point, len(times))
            late = lower > point[chain.operation]
            point[chain.operation[late]] = lower[late]
            moved = moved or bool(late.any())
        breached = np.flatnonzero(point > end)
        if len(breached):
            starts = breached[np.argsort(end[breached], kind="stable")][:STARTS_MAX]
            cycles = [_cycle_by_time(int(start), invoke, end, chains) for start in starts]
            return Breaches(len(breached), min(cycles, key=len), by_time=True)
    return _find_circles(point, kinds)


def _find_circles(point: Integers, kinds: list[Links]) -> Breaches | None:
    """Groups of operations with one earliest point whose versions go round in a circle."""
    size = np.bincount(point)[point]
    rank = np.zeros(len(point), np.int64)
    chains = [Chains(links, len(point)) for links in _at_one_point(point, kinds, size > 1)]
    span = 3 * len(point) + 3
    moved = True
    while moved and not (rank >= size).any():
        moved = False
        for chain in chains:
            # Each level is at least one above the one before it: compare ranks less the number of the level.
            number = chain.level_of - chain.level_of[chain.begin[chain.operation]]
            shifted = np.zeros(len(point), np.int64)
            shifted[chain.operation] = rank[chain.operation] - number + len(point)
            lower = chain.before(shifted, span) + number - len(point)
            late = (number > 0) & (lower > rank[chain.operation])
            rank[chain.operation[late]] = lower[late]
            moved = moved or bool(late.any())
    groups = np.unique(point[rank >= size])
    if not len(groups):
        return None
    members = np.flatnonzero(point == groups[0])
    chains = [Chains(links, len(point)) for links in _at_one_point(point, kinds, point == groups[0])]
    cycles = [_cycle_by_versions(int(member), chains) for member in members]
    return Breaches(len(groups), min((cycle for cycle in cycles if cycle), key=len), by_time=False)


def _at_one_point(point: Integers, kinds: list[Links], chosen: NDArray[np.bool_]) -> list[Links]:
    """The links of chosen operations, where an object at another point is another object."""
    parts = []
    for links in kinds:
        kept = chosen[links.operation]
        operation = links.operation[kept]
        _, number = np.unique(links.object[kept], return_inverse=True)
        if len(operation):
            parts.append(
                Links(operation, number * (int(point.max()) + 1) + point[operation], links.level[kept])
            )
    return parts


def _cycle_by_time(start: int, invoke: Integers, end: Integers, chains: list[Chains]) -> list[int]:
    """The shortest way by versions to `start` from an operation that began after `start` had ended."""
    return _search(start, chains, invoke > end[start])


def _cycle_by_versions(start: int, chains: list[Chains]) -> list[int]:
    """The shortest way by versions from `start` back to itself; empty when there is none."""
    after = np.zeros(len(chains[0].start), np.bool_)
    for chain in chains:
        if chain.start[start] >= 0:
            after |= (chain.begin == chain.begin[start]) & (chain.start > chain.start[start])
    cycle = _search(start, chains, after)
    return [start, *cycle[:-1]] if cycle else []


def _search(start: int, chains: list[Chains], goal: NDArray[np.bool_]) -> list[int]:
    """Operations from one in `goal` to `start`, each on a lower level than the next in an object of both."""
    follower = np.full(len(goal), -1, np.int64)
    seen = np.zeros(len(goal), np.bool_)
    seen[start] = True
    explored: list[dict[int, int]] = [{} for _ in chains]
    frontier = np.array([start])
    while len(frontier):
        found = []
        for chain, done in zip(chains, explored, strict=True):
            linked = frontier[chain.start[frontier] >= 0]
            # of each object only the highest operation has anything new below it
            linked = linked[np.argsort(-chain.start[linked], kind="stable")]
            for operation in linked[np.unique(chain.begin[linked], return_index=True)[1]]:
                begin, until = int(chain.begin[operation]), int(chain.start[operation])
                lower = chain.operation[done.get(begin, begin) : until]
                done[begin] = max(done.get(begin, begin), until)
                lower = lower[~seen[lower]]
                seen[lower] = True
                follower[lower] = operation
                found.append(lower)
        frontier = np.concatenate(found) if found else np.array([], np.int64)
        reached = frontier[goal[frontier]]
        if len(reached):
            cycle = [int(reached[0])]
            while cycle[-1] != start:
                cycle.append(int(follower[cycle[-1]]))
            return cycle
    return []
