"""The market maker's functions in PostgreSQL against the exact model."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MarketDatabase
from tests.integration.desk import Connection, one
from tests.lmsr_model import PRICE_SUM, QUANTITY_MAX, moved, pools, prices

# Amounts of every size: what matters is often far from either end.
SIZES = st.integers(0, 50).flatmap(lambda bits: st.integers(0, min(2**bits, QUANTITY_MAX)))
QUANTITIES = st.lists(SIZES, min_size=2, max_size=8)
LIQUIDITY = st.integers(20, 39).flatmap(lambda bits: st.integers(10**6, min(2**bits, 10**12)))
PROPERTY = settings(
    derandomize=True,
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def connection(market_database: MarketDatabase) -> Iterator[Connection]:
    with psycopg.connect(market_database.admin_dsn, autocommit=True) as connection:
        yield connection


def cost(connection: Connection, quantities: list[int], b: int) -> int:
    return int(one(connection, "SELECT lmsr_cost(%s::bigint[], %s)", quantities, b)[0])


@given(QUANTITIES, LIQUIDITY)
@PROPERTY
def test_a_pool_is_the_exact_one(connection: Connection, quantities: list[int], b: int) -> None:
    assert cost(connection, quantities, b) in pools(quantities, b)


@given(st.tuples(SIZES, SIZES), LIQUIDITY)
@PROPERTY
def test_two_outcomes_cost_what_the_general_formula_says(
    connection: Connection, quantities: tuple[int, int], b: int
) -> None:
    (difference,) = one(
        connection,
        """SELECT lmsr_cost(ARRAY[a, c], b) - greatest(a, c) - ceil(b * ln(
               0::float8 + exp(greatest((a - greatest(a, c)) / b::float8, -700))
               + exp(greatest((c - greatest(a, c)) / b::float8, -700))))
           FROM (SELECT %s::bigint AS a, %s::bigint AS c, %s::bigint AS b) AS q""",
        *quantities,
        b,
    )
    assert difference == 0


@given(QUANTITIES, LIQUIDITY)
@PROPERTY
def test_prices_are_rounded_to_sum_to_one(connection: Connection, quantities: list[int], b: int) -> None:
    (rounded,) = one(connection, "SELECT lmsr_prices(%s::bigint[], %s)", quantities, b)
    assert sum(rounded) == PRICE_SUM
    for price, exact in zip(rounded, prices(quantities, b), strict=True):
        assert price >= 0
        assert abs(price - exact) < 1 + Decimal("1e-6")


@given(QUANTITIES, LIQUIDITY, st.integers(0, 7), SIZES)
@PROPERTY
def test_a_budget_buys_the_largest_number_of_shares(
    connection: Connection, quantities: list[int], b: int, outcome: int, size: int
) -> None:
    outcome, spend = outcome % len(quantities), size + 1
    pool = cost(connection, quantities, b)
    (shares,) = one(
        connection,
        "SELECT lmsr_shares_for(%s::bigint[], %s, %s, %s, %s)",
        *(quantities, b, pool, outcome + 1, spend),
    )
    assert shares >= 0
    assert cost(connection, moved(quantities, outcome, shares), b) <= pool + spend
    assert cost(connection, moved(quantities, outcome, shares + 1), b) > pool + spend
    assert pools(moved(quantities, outcome, shares), b).least <= pool + spend
    assert pools(moved(quantities, outcome, shares + 1), b).most > pool + spend


@given(QUANTITIES, LIQUIDITY, st.integers(0, 7), SIZES)
@PROPERTY
def test_the_first_guess_is_never_an_error(
    connection: Connection, quantities: list[int], b: int, outcome: int, size: int
) -> None:
    outcome, spend = outcome % len(quantities), size + 1
    pool = cost(connection, quantities, b)
    (guess,) = one(
        connection,
        "SELECT lmsr_shares_near(%s::bigint[], %s, %s, %s, %s)",
        *(quantities, b, pool, outcome + 1, spend),
    )
    assert 0 <= guess <= pool + spend - quantities[outcome]


@pytest.mark.parametrize(
    ("quantities", "b"),
    [
        ([0, 0], 10**6),
        ([0] * 8, 10**12),
        ([QUANTITY_MAX, 0], 10**6),
        ([0, QUANTITY_MAX], 10**12),
        ([QUANTITY_MAX] * 8, 10**6),
        ([700 * 10**6, 0, 0], 10**6),
        ([701 * 10**6, 0], 10**6),
        ([745 * 10**6 + 1, 0], 10**6),
    ],
)
def test_the_ends_of_the_range_are_priced_without_an_error(
    connection: Connection, quantities: list[int], b: int
) -> None:
    assert cost(connection, quantities, b) in pools(quantities, b)
    (rounded,) = one(connection, "SELECT lmsr_prices(%s::bigint[], %s)", quantities, b)
    assert sum(rounded) == PRICE_SUM


def test_a_guess_that_is_far_off_is_searched_for_as_long_as_it_takes(connection: Connection) -> None:
    quantities, b = [0, 59_711_647_498_701], 979_890_590_032
    pool = cost(connection, quantities, b)
    guess, shares = one(
        connection,
        """SELECT lmsr_shares_near(q, b, p, 1, 1), lmsr_shares_for(q, b, p, 1, 1)
             FROM (SELECT %s::bigint[] AS q, %s::bigint AS b, %s::bigint AS p) AS market""",
        *(quantities, b, pool),
    )
    assert abs(guess - shares) > 10**7
    assert cost(connection, moved(quantities, 0, shares), b) <= pool + 1
    assert cost(connection, moved(quantities, 0, shares + 1), b) > pool + 1


@pytest.mark.parametrize("behind", [10**9, 10**12, QUANTITY_MAX])
@pytest.mark.parametrize("spend", [1, 5, 10**6, QUANTITY_MAX])
def test_a_budget_for_a_hopeless_outcome_finds_its_shares(
    connection: Connection, behind: int, spend: int
) -> None:
    pool = cost(connection, [behind, 0], 10**6)
    (shares,) = one(
        connection, "SELECT lmsr_shares_for(%s::bigint[], 1000000, %s, 2, %s)", [behind, 0], pool, spend
    )
    assert cost(connection, [behind, shares], 10**6) <= pool + spend
    assert cost(connection, [behind, shares + 1], 10**6) > pool + spend


def test_a_tie_in_the_remainders_goes_to_the_lower_outcome(connection: Connection) -> None:
    assert one(connection, "SELECT lmsr_prices(ARRAY[0, 0, 0]::bigint[], 1000000)")[0] == [
        333_334,
        333_333,
        333_333,
    ]


def test_quantities_stay_where_float8_is_exact(connection: Connection) -> None:
    assert one(connection, "SELECT lmsr_quantity_max()") == (QUANTITY_MAX,)
    # a trade may try one more of the same size before it is refused, and the search as much again
    assert 4 * QUANTITY_MAX < 2**53
