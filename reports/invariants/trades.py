"""Trades: every price is the market maker's, every version is there, and every share has its owner.

The model that trades are held against is reports/lmsr_model.py, run over all of them by reports/replay.py.
When things happened is judged in reports/invariants/order.py, what had to be refused in refusals.py.
"""

from __future__ import annotations

from dataclasses import replace

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.lmsr_model import PRICE_SUM_MICRO
from reports.probed import probed
from reports.replay import OUTCOMES_MAX, make_replay

# A price is rounded down, or up by largest remainder; the model's own rounding is far below a millionth.
PRICE_ERROR_MICRO = 1.000001
PRICES_DIFFER = " OR ".join(
    f"abs(p.prices_micro[{outcome + 1}] - r.price_{outcome}) > {PRICE_ERROR_MICRO}"
    for outcome in range(OUTCOMES_MAX)
)


@invariant(group="trades", unit="pools")
@probed
def pools_equal_lmsr_cost(evidence: Evidence) -> Finding:
    """At every version a market's pool is the LMSR cost of its outstanding shares, and is in its account."""
    make_replay(evidence)
    found = finding(
        evidence,
        examined="SELECT (SELECT count(*) FROM trades) + (SELECT count(*) FROM markets)",
        breaches="""
            WITH paid AS (
                SELECT a.market_id, e.transaction_id, max(e.balance_after_micro) AS account_micro
                FROM entries AS e JOIN accounts AS a USING (account_id)
                WHERE a.kind = 'market_pool' GROUP BY a.market_id, e.transaction_id
            )
            SELECT d.market_id, d.market_version, d.trade_id, d.pool_after_micro AS pool_micro,
                coalesce(account_micro, 0) AS account_micro,
                r.pool_low_micro AS model_micro, NULL AS subsidy_micro
            FROM trades AS d JOIN replayed AS r USING (trade_id)
            LEFT JOIN paid AS p ON p.market_id = d.market_id AND p.transaction_id = d.transaction_id
            WHERE r.sane AND (d.pool_after_micro NOT BETWEEN r.pool_low_micro AND r.pool_high_micro
                OR d.pool_after_micro IS DISTINCT FROM account_micro)
            UNION ALL
            SELECT m.market_id, m.version, NULL, m.pool_micro, coalesce(a.balance_micro, 0),
                r.pool_low_micro, m.subsidy_micro
            FROM markets AS m LEFT JOIN replayed_markets AS r USING (market_id)
            LEFT JOIN accounts AS a ON a.market_id = m.market_id AND a.kind = 'market_pool'
            WHERE r.market_id IS NULL OR m.pool_micro NOT BETWEEN r.pool_low_micro AND r.pool_high_micro
                OR m.subsidy_micro NOT BETWEEN r.subsidy_low_micro AND r.subsidy_high_micro
                OR m.pool_micro IS DISTINCT FROM a.balance_micro
        """,
    )
    return replace(found, detail=_either(evidence, "pool_low_micro < pool_high_micro", "pools"))


@invariant(group="trades", unit="trades")
def trades_replay_exactly(evidence: Evidence) -> Finding:
    """Every trade has the cost, fee, shares and prices that an independent exact model finds for it.

    A buy for an amount got the most shares that the amount pays for, and no trade moves less than one
    micro-share or micro-USDC. That no amount was exceeded is for limits_are_respected; that the trade is
    what its client asked for, for a_key_belongs_to_one_request.
    """
    make_replay(evidence)
    found = finding(
        evidence,
        examined="SELECT count(*) FROM trades",
        breaches=f"""
            SELECT d.trade_id, d.market_id, d.market_version, d.side, d.outcome, d.shares_micro,
                d.cost_micro, r.cost_micro AS model_cost_micro, d.fee_micro, r.fee_micro AS model_fee_micro,
                CASE WHEN d.amount_micro >= r.more_high_micro THEN d.amount_micro END AS would_pay_micro,
                CASE WHEN would_pay_micro > 0 THEN r.more_high_micro END AS for_one_more_micro,
                CASE WHEN {PRICES_DIFFER} THEN p.prices_micro END AS wrong_prices_micro
            FROM trades AS d JOIN replayed AS r ON r.trade_id = d.trade_id
            LEFT JOIN prices AS p ON p.market_id = d.market_id AND p.market_version = d.market_version
            WHERE NOT r.sane OR d.cost_micro <> r.cost_micro OR d.fee_micro <> r.fee_micro
                OR d.cost_micro < 1 OR (d.side = 'sell' AND d.cost_micro <= d.fee_micro)
                OR would_pay_micro IS NOT NULL OR wrong_prices_micro IS NOT NULL
        """,
    )
    undecided = "d.amount_micro >= r.more_low_micro AND d.amount_micro < r.more_high_micro"
    return replace(found, detail=_either(evidence, undecided, "largest share counts"))


def _either(evidence: Evidence, condition: str, what: str) -> str | None:
    """How often float8 may round to either of two values, both of them right."""
    count = evidence.scalar(
        f"SELECT count(*) FROM trades AS d JOIN replayed AS r USING (trade_id) WHERE {condition}"
    )
    return f"{count:,} {what} lie within float8's error of the next: either was accepted" if count else None


@invariant(group="trades", unit="versions")
@probed
def market_versions_are_dense(evidence: Evidence) -> Finding:
    """A market's versions run 0, 1, 2 ... without gap or repeat: its trades and its closing, each priced."""
    return finding(
        evidence,
        examined="""
            SELECT (SELECT count(*) FROM trades) + (SELECT count(closed_version) + count(*) FROM markets)
        """,
        breaches="""
            WITH steps AS (
                SELECT market_id, market_version, trade_id FROM trades
                UNION ALL
                SELECT market_id, closed_version, NULL FROM markets WHERE closed_version IS NOT NULL
            ),
            lasts AS (SELECT market_id, max(market_version) AS last_version FROM steps GROUP BY market_id),
            priced AS (
                SELECT market_id, market_version, count(*) AS price_rows FROM prices
                GROUP BY market_id, market_version
            ),
            to_be_priced AS (
                SELECT DISTINCT market_id, market_version FROM trades
                UNION ALL
                SELECT market_id, 0 FROM markets
            )
            SELECT market_id, market_version, trade_id, version_before, NULL AS last_version,
                NULL AS price_rows
            FROM (
                SELECT *, coalesce(lag(market_version) OVER by_version, 0) AS version_before FROM steps
                WINDOW by_version AS (PARTITION BY market_id ORDER BY market_version, trade_id)
            ) WHERE market_version <> version_before + 1
            UNION ALL
            SELECT market_id, m.version, NULL, NULL, coalesce(last_version, 0), NULL
            FROM markets AS m LEFT JOIN lasts USING (market_id)
            WHERE m.version <> coalesce(last_version, 0)
            UNION ALL
            SELECT market_id, market_version, NULL, NULL, NULL, coalesce(price_rows, 0)
            FROM to_be_priced FULL JOIN priced USING (market_id, market_version)
            WHERE price_rows IS DISTINCT FROM 1 OR to_be_priced.market_id IS NULL
        """,
    )


@invariant(group="trades", unit="outcomes and positions")
@probed
def positions_equal_outstanding_shares(evidence: Evidence) -> Finding:
    """A market's shares are those that its trades made and its users hold; none ever sold short."""
    return finding(
        evidence,
        examined="SELECT (SELECT sum(len(quantities)) FROM markets) + (SELECT count(*) FROM positions)",
        breaches="""
            WITH moves AS (
                SELECT market_id, user_id, outcome, market_version,
                    CASE side WHEN 'sell' THEN -shares_micro ELSE shares_micro END AS change
                FROM trades
            ),
            traded AS (
                SELECT market_id, user_id, outcome, sum(change) AS traded_micro FROM moves
                GROUP BY market_id, user_id, outcome
            ),
            traded_at_all AS (
                SELECT market_id, outcome, sum(traded_micro) AS traded_micro FROM traded
                GROUP BY market_id, outcome
            ),
            counted AS (
                SELECT market_id, unnest(quantities) AS quantity_micro,
                    generate_subscripts(quantities, 1) - 1 AS outcome
                FROM markets
            ),
            held AS (
                SELECT market_id, outcome, sum(shares_micro) AS positions_micro FROM positions
                GROUP BY market_id, outcome
            )
            SELECT market_id, outcome, NULL AS user_id, NULL AS market_version, quantity_micro,
                coalesce(positions_micro, 0) AS positions_micro, coalesce(traded_micro, 0) AS traded_micro
            FROM counted FULL JOIN held USING (market_id, outcome)
            FULL JOIN traded_at_all USING (market_id, outcome)
            WHERE quantity_micro IS NULL OR quantity_micro <> coalesce(positions_micro, 0)
                OR quantity_micro <> coalesce(traded_micro, 0)
            UNION ALL
            SELECT market_id, outcome, user_id, NULL, NULL, coalesce(shares_micro, 0),
                coalesce(traded_micro, 0)
            FROM positions FULL JOIN traded USING (market_id, user_id, outcome)
            WHERE coalesce(shares_micro, 0) <> coalesce(traded_micro, 0)
            UNION ALL
            SELECT market_id, outcome, user_id, market_version, NULL, NULL, traded_micro FROM (
                SELECT *, sum(change) OVER (
                    PARTITION BY market_id, user_id, outcome ORDER BY market_version ROWS UNBOUNDED PRECEDING
                ) AS traded_micro FROM moves
            ) WHERE traded_micro < 0
        """,
    )


@invariant(group="trades", unit="pool balances")
@probed
def pools_cover_every_payout(evidence: Evidence) -> Finding:
    """The money in a market's pool account pays the dearest outcome in full, at every version."""
    make_replay(evidence)
    balances = """
        SELECT a.market_id, e.account_version, e.transaction_id, e.balance_after_micro AS pool_micro,
            coalesce(max(d.market_version) OVER (
                PARTITION BY e.account_id ORDER BY e.account_version ROWS UNBOUNDED PRECEDING
            ), 0) AS market_version
        FROM entries AS e JOIN accounts AS a USING (account_id) LEFT JOIN trades AS d USING (transaction_id)
        WHERE a.kind = 'market_pool'
    """
    return finding(
        evidence,
        examined="""
            SELECT (SELECT count(*) FROM entries SEMI JOIN (
                SELECT * FROM accounts WHERE kind = 'market_pool') USING (account_id)
            ) + (SELECT count(*) FROM markets)
        """,
        breaches=f"""
            SELECT market_id, market_version, account_version, transaction_id, pool_micro, payout_micro
            FROM ({balances}) JOIN replayed USING (market_id, market_version)
            WHERE pool_micro < payout_micro
            UNION ALL
            SELECT m.market_id, m.version, NULL, NULL, coalesce(a.balance_micro, 0), list_max(m.quantities)
            FROM markets AS m
            LEFT JOIN accounts AS a ON a.market_id = m.market_id AND a.kind = 'market_pool'
            WHERE coalesce(a.balance_micro, 0) < list_max(m.quantities)
        """,
    )


@invariant(group="trades", unit="price lists")
def prices_sum_to_one(evidence: Evidence) -> Finding:
    """Every list of prices, in the books and in replies, sums to exactly one USDC, one price an outcome."""
    told = """
        SELECT market_id, market_version, NULL AS operation, prices_micro FROM prices
        UNION ALL
        SELECT market_id, market_version, operation, prices_micro FROM attempts WHERE prices_micro IS NOT NULL
    """
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM ({told})",
        breaches=f"""
            SELECT t.market_id, t.market_version, t.operation, t.prices_micro,
                coalesce(list_sum(t.prices_micro), 0) AS sum_micro
            FROM ({told}) AS t LEFT JOIN markets AS m USING (market_id)
            WHERE sum_micro <> {PRICE_SUM_MICRO} OR len(t.prices_micro) <> len(m.quantities)
                OR list_min(t.prices_micro) < 0
        """,
    )
