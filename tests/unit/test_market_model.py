"""The judge's market model: against values known on paper, 40 digits, and the float8 it must allow for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.lmsr_model import Bounds, exact_bounds, fees, pool_bounds, prices

QUANTITIES = st.lists(st.integers(0, 10**15), min_size=2, max_size=8)
NEAR = st.integers(0, 10**15).flatmap(
    lambda base: st.lists(st.integers(base, base + 10**8), min_size=2, max_size=8)
)
LIQUIDITY = st.integers(10**6, 10**12)
many = settings(max_examples=300, derandomize=True, deadline=None)


def bounds(quantities: list[int], b_micro: int) -> tuple[int, int]:
    low, high = pool_bounds(np.array([quantities], np.int64), b_micro)
    return int(low[0]), int(high[0])


def float8_pool(quantities: list[int], b_micro: int) -> int:
    """Cint as a system computes it in double precision, with the exponent clamped."""
    most = max(quantities)
    total = math.fsum(math.exp(max((quantity - most) / b_micro, -700.0)) for quantity in quantities)
    return most + math.ceil(b_micro * math.log(total))


def naive_float8_pool(quantities: list[int], b_micro: int) -> int:
    """The same with the terms added in their order, as a loop does it."""
    most = max(quantities)
    total = 0.0
    for quantity in quantities:
        total += math.exp(max((quantity - most) / b_micro, -700.0))
    return most + math.ceil(b_micro * math.log(total))


@pytest.mark.parametrize(
    ("quantities", "b_micro", "pool"),
    [
        ([0, 0], 1_000_000, 693_148),  # 10^6 ln 2 = 693147.18...
        ([0] * 8, 10**12, 2_079_441_541_680),  # 10^12 ln 8 = ...679.83...
        ([100_000_000, 0], 100_000_000, 131_326_169),  # 1 + ln(1 + 1/e) = 1.3132616875...
        ([0, 100_000_000, 0], 100_000_000, 155_144_472),  # ln(2 + e) = 1.5514447139...
        ([7, 7], 1_000_000, 693_155),
    ],
)
def test_pools_known_on_paper(quantities: list[int], b_micro: int, pool: int) -> None:
    assert bounds(quantities, b_micro) == (pool, pool)


def test_where_float8_sees_a_sum_of_one_either_neighbour_is_right() -> None:
    assert bounds([10**10, 0], 10**8) == (10**10, 10**10 + 1)
    assert bounds([10**15, 0], 10**6) == (10**15, 10**15 + 1)


def test_what_is_small_but_in_float8s_reach_has_one_answer() -> None:
    # b * exp(-20) = 10^8 * 2.06e-9 = 0.206, far above the error of 10^8 * 2^-48 = 3.6e-7
    assert bounds([2_000_000_000, 0], 10**8) == (2_000_000_001, 2_000_000_001)


@many
@given(QUANTITIES | NEAR, LIQUIDITY)
def test_the_vectorised_model_agrees_with_forty_digits(quantities: list[int], b_micro: int) -> None:
    low, high = exact_bounds(quantities, b_micro)
    assert bounds(quantities, b_micro) == (max(quantities) + max(low, 0), max(quantities) + high)


@many
@given(QUANTITIES | NEAR, LIQUIDITY)
def test_what_float8_makes_of_it_is_always_allowed(quantities: list[int], b_micro: int) -> None:
    low, high = bounds(quantities, b_micro)
    assert low <= float8_pool(quantities, b_micro) <= high
    assert low <= naive_float8_pool(quantities, b_micro) <= high
    assert max(quantities) <= low <= high <= low + 1


def test_hardly_any_state_is_left_open() -> None:
    rng = np.random.default_rng(7)
    low, high = pool_bounds(rng.integers(0, 10**9, (200_000, 2)), 10**8)
    assert int((high - low).sum()) == 0  # 2 * 3.6e-7 of them are expected


def test_many_rows_are_priced_like_one() -> None:
    rng = np.random.default_rng(11)
    quantities = rng.integers(0, 10**13, (500, 5))
    together = pool_bounds(quantities, 10**12)
    alone = [bounds(row.tolist(), 10**12) for row in quantities]
    assert list(zip(together.low.tolist(), together.high.tolist(), strict=True)) == alone


@many
@given(NEAR, LIQUIDITY, st.integers(0, 7), st.integers(1, 10**10))
def test_there_and_back_costs_nothing_before_fees(
    quantities: list[int], b_micro: int, outcome: int, shares: int
) -> None:
    there = list(quantities)
    there[outcome % len(there)] += shares
    back = list(there)
    back[outcome % len(there)] -= shares
    states = pool_bounds(np.array([quantities, there, back], np.int64), b_micro)
    assert isinstance(states, Bounds)
    paid, got = np.diff(states.low)
    assert paid >= 0
    assert paid + got == 0


@many
@given(NEAR, LIQUIDITY)
def test_prices_sum_to_one_and_follow_the_quantities(quantities: list[int], b_micro: int) -> None:
    (found,) = prices(np.array([quantities], np.int64), b_micro)
    assert math.isclose(found.sum(), 1_000_000, rel_tol=1e-12)
    assert [found[i] for i in np.argsort(quantities)] == sorted(found)


@pytest.mark.parametrize(
    ("cost", "fee_bps", "fee"),
    [(0, 100, 0), (1, 100, 1), (100, 100, 1), (101, 100, 2), (10**15, 1_000, 10**14)],
)
def test_fees_are_rounded_up(cost: int, fee_bps: int, fee: int) -> None:
    assert fees(np.array([cost], np.int64), fee_bps).tolist() == [fee]
