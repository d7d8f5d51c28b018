"""The model that the market maker is held against, held against what is known on paper."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lmsr_model import EXACT, PRICE_SUM, budget, charge, error_bound, moved, pools, prices, surplus

QUANTITIES = st.lists(st.integers(0, 10**15), min_size=2, max_size=8)
LIQUIDITY = st.integers(10**6, 10**12)


def test_an_empty_market_holds_b_times_the_logarithm_of_its_outcomes() -> None:
    assert pools([0, 0], 1_000_000) == (693_148, 693_148)  # 10^6 ln 2 = 693147.18...
    assert pools([0] * 8, 10**12) == (2_079_441_541_680, 2_079_441_541_680)  # 10^12 ln 8 = ...679.83...


def test_a_lead_of_b_costs_the_softplus_of_one() -> None:
    # ln(1 + 1/e) = 0.313261687518222834...
    assert str(surplus([10**12, 0], 10**12)).startswith("313261687518.222834")


def test_far_apart_quantities_leave_nothing_beyond_the_payout() -> None:
    assert pools([10**15, 0], 10**6) == (10**15, 10**15 + 1)


@settings(derandomize=True, deadline=None)
@given(QUANTITIES, LIQUIDITY)
def test_at_most_two_pools_are_right_and_both_cover_every_payout(quantities: list[int], b: int) -> None:
    right = pools(quantities, b)
    assert right.least >= max(quantities)
    assert right.most - right.least <= 1


@settings(derandomize=True, deadline=None)
@given(QUANTITIES, LIQUIDITY, st.integers(0, 7), st.integers(1, 10**12))
def test_more_shares_never_cost_less(quantities: list[int], b: int, outcome: int, shares: int) -> None:
    more = moved(quantities, outcome % len(quantities), shares)
    assert surplus(more, b) + max(more) >= surplus(quantities, b) + max(quantities)


@settings(derandomize=True, deadline=None)
@given(QUANTITIES, LIQUIDITY)
def test_prices_sum_to_one(quantities: list[int], b: int) -> None:
    with localcontext(EXACT):
        assert abs(sum(prices(quantities, b), Decimal(0)) - PRICE_SUM) < Decimal("1e-40")


@pytest.mark.parametrize("fee_bps", [0, 1, 100, 1_000])
@pytest.mark.parametrize("amount", [1, 2, 99, 100, 101, 10_001, 10**15])
def test_a_budget_is_the_largest_cost_that_fits_with_its_fee(amount: int, fee_bps: int) -> None:
    cost = budget(amount, fee_bps)
    assert charge(cost, "buy", fee_bps).total <= amount
    assert charge(cost + 1, "buy", fee_bps).total > amount


def test_the_error_bound_is_far_below_one_micro_usdc() -> None:
    assert error_bound(10**12) < Decimal("0.004")
