"""Every trade of the books once more through the model: the tables `replayed` and `replayed_markets`.

1. Trades are read in the order of their markets' versions.
2. Quantities after each trade are running sums, from zero.
3. The model prices all states of a market at once (reports/lmsr_model.py).
4. A row a trade goes back into DuckDB, where the checks are queries.

Where the model allows two pools, the one that the books name is taken, if it is one of the two: the cost of
the next trade then has one right value again.

`replayed`: trade_id, market_id, market_version; sane: market and outcome exist, shares are above zero;
payout_micro: of the dearest outcome, after the trade; pool_low_micro, pool_high_micro: what the pool may be
after it; cost_micro, fee_micro; more_low_micro, more_high_micro: cost and fee of one micro-share more;
price_0 .. price_7. `replayed_markets`: market_id; subsidy_low_micro, subsidy_high_micro: what its first pool
may be; pool_low_micro, pool_high_micro: what its pool may be at the quantities that the market names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports import lmsr_model
from reports.evidence import Evidence
from reports.lmsr_model import Integers

OUTCOMES_MAX = 8

TRADES = """
SELECT d.trade_id, d.market_id, d.market_version, d.outcome, d.pool_after_micro,
       m.market_id IS NOT NULL AND d.outcome >= 0 AND d.outcome < len(m.quantities) AND d.shares_micro > 0
           AND d.side IN ('buy', 'sell') AS sane,
       CASE WHEN sane THEN CASE d.side WHEN 'buy' THEN d.shares_micro ELSE -d.shares_micro END
           ELSE 0 END AS change
FROM trades d LEFT JOIN markets m USING (market_id)
ORDER BY d.market_id, d.market_version, d.trade_id
"""
MARKETS = """
SELECT market_id, quantities, b_micro, fee_bps, subsidy_micro FROM markets
WHERE len(quantities) > 0 AND b_micro > 0
"""
KEPT = ("trade_id", "market_id", "market_version", "sane")
USED = ("outcome", "change", "pool_after_micro", "sane")
MODELLED = (
    *("payout_micro", "pool_low_micro", "pool_high_micro"),
    *("cost_micro", "fee_micro", "more_low_micro", "more_high_micro"),
)

Columns = dict[str, NDArray[Any]]


def make_replay(evidence: Evidence) -> None:
    """Make both tables, once."""
    if "replay" in evidence.memo:
        return
    evidence.memo["replay"] = True
    trades: Columns = evidence.db.execute(TRADES).fetchnumpy()
    markets = evidence.rows(MARKETS)
    count = len(trades["trade_id"])
    replayed: Columns = {name: np.asarray(trades[name]) for name in KEPT} | _blank(count)
    for market in markets:
        first, last = np.searchsorted(replayed["market_id"], [market["market_id"], market["market_id"] + 1])
        rows = slice(int(first), int(last))
        part = {name: np.asarray(trades[name][rows]) for name in USED}
        for name, values in _replay_market(market, part).items():
            replayed[name][rows] = values
    _make_table(evidence, "replayed", replayed)
    _make_table(evidence, "replayed_markets", _price_markets(markets))


def _blank(count: int) -> Columns:
    columns: Columns = {name: np.zeros(count, np.int64) for name in MODELLED}
    return columns | {f"price_{outcome}": np.full(count, np.nan) for outcome in range(OUTCOMES_MAX)}


def _replay_market(market: dict[str, Any], trades: Columns) -> Columns:
    """The model's columns for the trades of one market, in order of version."""
    count, outcomes = len(trades["change"]), len(market["quantities"])
    b_micro, fee_bps = market["b_micro"], market["fee_bps"]
    change: Integers = trades["change"]
    traded = np.where(trades["sane"], trades["outcome"], 0)
    quantities = np.zeros((count + 1, outcomes), np.int64)
    quantities[np.arange(1, count + 1), traded] = change
    np.cumsum(quantities, axis=0, out=quantities)

    low, high = lmsr_model.pool_bounds(quantities, b_micro)
    told = np.concatenate([[market["subsidy_micro"]], trades["pool_after_micro"]])
    pools = np.clip(told, low, high)
    cost = np.sign(change) * np.diff(pools)

    more = quantities[1:].copy()
    more[np.arange(count), traded] += 1
    bounds = lmsr_model.pool_bounds(more, b_micro)
    more_low, more_high = bounds.low - pools[:-1], bounds.high - pools[:-1]

    unrounded = lmsr_model.prices(quantities[1:], b_micro)
    return {
        "payout_micro": quantities[1:].max(axis=1),
        "pool_low_micro": low[1:],
        "pool_high_micro": high[1:],
        "cost_micro": cost,
        "fee_micro": lmsr_model.fees(cost, fee_bps),
        "more_low_micro": more_low + lmsr_model.fees(more_low, fee_bps),
        "more_high_micro": more_high + lmsr_model.fees(more_high, fee_bps),
    } | {f"price_{outcome}": unrounded[:, outcome] for outcome in range(min(outcomes, OUTCOMES_MAX))}


def _price_markets(markets: list[dict[str, Any]]) -> Columns:
    """Every market as it was made and as it is now."""
    rows = []
    for market in markets:
        states = np.array([[0] * len(market["quantities"]), market["quantities"]], np.int64)
        bounds = lmsr_model.pool_bounds(states, market["b_micro"])
        rows.append([market["market_id"], *bounds.low, *bounds.high])
    names = ("market_id", "subsidy_low_micro", "pool_low_micro", "subsidy_high_micro", "pool_high_micro")
    table = np.array(rows, np.int64).reshape(len(rows), len(names))
    return {name: table[:, column].copy() for column, name in enumerate(names)}


def _make_table(evidence: Evidence, name: str, columns: Columns) -> None:
    evidence.db.register("columns_of_table", columns)
    evidence.db.execute(f"CREATE TABLE {name} AS SELECT * FROM columns_of_table")
    evidence.db.unregister("columns_of_table")
