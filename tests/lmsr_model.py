"""An independent model of the market maker: the same formula in 60-digit decimals, by another road.

The database rounds a float8 up, the model a decimal. The two can differ only where b * ln(sum) lies closer
to a whole number than float8's error, which is below b * 2^-48 (docs/lmsr.md); there both neighbours count as
right. So the model answers with the range of right values: nearly always one value, never more than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from math import ceil
from typing import NamedTuple

EXACT = Context(prec=60, Emin=-999_999, Emax=999_999)
PRICE_SUM = 1_000_000
QUANTITY_MAX = 10**15


class Range(NamedTuple):
    """Whole numbers from least to most."""

    least: int
    most: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.least <= value <= self.most


class Charge(NamedTuple):
    """What a trade moves, micro-USDC; total is what leaves or reaches the user."""

    cost: int
    fee: int
    total: int


def error_bound(b: int) -> Decimal:
    """How far float8 may be off from b * ln(sum), micro-USDC."""
    return EXACT.divide(Decimal(b), Decimal(2**48))


def surplus(quantities: Sequence[int], b: int) -> Decimal:
    """b * ln(sum_i exp((q_i - max(q)) / b)): what the market maker holds beyond the largest payout."""
    with localcontext(EXACT):
        return b * _sum(_weights(quantities, b)).ln()


def pools(quantities: Sequence[int], b: int) -> Range:
    """The right pools: max(q) + ceil(surplus), judged within the error bound."""
    most = max(quantities)
    with localcontext(EXACT):
        exact, error = surplus(quantities, b), error_bound(b)
        least_surplus, most_surplus = ceil(exact - error), ceil(exact + error)
    return Range(most + max(least_surplus, 0), most + most_surplus)


def prices(quantities: Sequence[int], b: int) -> list[Decimal]:
    """Exact prices, micro-USDC a share; they sum to 1,000,000 but for the last digits."""
    with localcontext(EXACT):
        weights = _weights(quantities, b)
        return [weight * PRICE_SUM / _sum(weights) for weight in weights]


def moved(quantities: Sequence[int], outcome: int, shares: int) -> list[int]:
    """The quantities after so many more shares of one outcome."""
    return [quantity + shares * (number == outcome) for number, quantity in enumerate(quantities)]


def charge(cost: int, side: str, fee_bps: int) -> Charge:
    """Cost with its fee, rounded up."""
    fee = -(-cost * fee_bps // 10_000)
    return Charge(cost, fee, cost + fee if side == "buy" else cost - fee)


def budget(amount: int, fee_bps: int) -> int:
    """The largest cost whose sum with its fee is at most the amount."""
    cost = amount * 10_000 // (10_000 + fee_bps)
    assert charge(cost, "buy", fee_bps).total <= amount < charge(cost + 1, "buy", fee_bps).total
    return cost


def _weights(quantities: Sequence[int], b: int) -> list[Decimal]:
    most = max(quantities)
    return [(Decimal(quantity - most) / b).exp() for quantity in quantities]


def _sum(numbers: Sequence[Decimal]) -> Decimal:
    return sum(numbers, Decimal(0))
