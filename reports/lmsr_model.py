"""The market maker once more, independent of the system: what any quantities cost, to the last digit.

    Cint(q) = max(q) + ceil(x),  x = b * ln(sum_i exp((q_i - max(q)) / b))        micro-USDC

The contract is exact, but a system may compute x in float8, so near a whole number either neighbour is right:
the model answers with the least and the most that Cint may be, equal but for about b * 2^-47 of all cases.

Why float8 is within b * 2^-48 of x. Let u = 2^-53, every exp and ln right to 3 ulps (glibc, musl, macOS: 1).
The exponent t has a relative error u, which moves exp(-t) by t * exp(-t) * u <= 0.37u; exp itself adds 6u
of its value, summing n terms (n - 1)u of the sum S. As S >= 1, ln(S) is off by (6 + 1.37(n - 1))u for all
that and 6u * ln(S) of its own, the product with b by u: b * u * (6 + 1.37(n - 1) + 7 ln(n)), for n <= 8 below
31 b * u. The clamp of exponents at -700 is nothing beside it.

How a million rows are priced: in float8 too, but with log1p of the sum without its largest term, which keeps
its digits where x is small (relative error below 2^-42: the exponent is at most 745). Only a row that this
cannot tell from a whole number is computed again with 40 digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

FLOAT8_ERROR = 2.0**-48  # of b
MODEL_ERROR = 2.0**-42  # of x
DIGITS = Context(prec=40, Emin=-999_999, Emax=999_999)
PRICE_SUM_MICRO = 1_000_000
FEE_DIVISOR = 10_000


class Bounds(NamedTuple):
    """The least and the most that each value may be; equal where rounding cannot matter."""

    low: Integers
    high: Integers


def pool_bounds(quantities: Integers, b_micro: int) -> Bounds:
    """Cint of every row of quantities (one column an outcome), micro-USDC."""
    most = quantities.max(axis=1)
    x = _surplus(quantities, b_micro)
    float8_error = b_micro * FLOAT8_ERROR
    error = np.minimum(x * MODEL_ERROR, float8_error)
    low = np.ceil(x - float8_error - error)
    high = np.ceil(x + float8_error + error)
    unsure = (low != np.ceil(x - float8_error + error)) | (high != np.ceil(x + float8_error - error))
    for row in np.flatnonzero(unsure):
        low[row], high[row] = exact_bounds(quantities[row].tolist(), b_micro)
    return Bounds(most + np.maximum(low, 0).astype(np.int64), most + high.astype(np.int64))


def exact_bounds(quantities: Sequence[int], b_micro: int) -> tuple[int, int]:
    """The least and the most whole number that a float8 computation may make of x, from 40 digits of it."""
    with localcontext(DIGITS):
        most = max(quantities)
        total = sum((Decimal(quantity - most) / b_micro).exp() for quantity in quantities)
        x = b_micro * Decimal(total).ln()
        error = Decimal(b_micro) * Decimal(FLOAT8_ERROR)
        return tuple(  # type: ignore[return-value]
            int(bound.to_integral_value(ROUND_CEILING)) for bound in (x - error, x + error)
        )


def prices(quantities: Integers, b_micro: int) -> Floats:
    """Micro-USDC a share of every outcome, unrounded: the softmax of q / b."""
    weights = np.exp((quantities - quantities.max(axis=1, keepdims=True)) / b_micro)
    return np.asarray(weights * PRICE_SUM_MICRO / weights.sum(axis=1, keepdims=True))


def fees(costs: Integers, fee_bps: int) -> Integers:
    """ceil(cost * fee_bps / 10000), micro-USDC."""
    return -(-costs * fee_bps // FEE_DIVISOR)


def _surplus(quantities: Integers, b_micro: int) -> Floats:
    """b * ln(1 + the other terms), the largest being 1."""
    places = np.arange(len(quantities))
    largest = quantities.argmax(axis=1)
    terms = np.exp((quantities - quantities[places, largest][:, None]) / b_micro)
    terms[places, largest] = 0.0
    return np.asarray(b_micro * np.log1p(terms.sum(axis=1)))
