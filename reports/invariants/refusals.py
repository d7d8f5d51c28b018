"""Trades that had to be refused: beyond what their client allowed, or on a market that was closed."""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant

TRADING = "('buy_amount', 'buy_shares', 'sell', 'buy_closed')"
# A trade beside what its client asked for, which is null for a trade that is in no history.
TRADES_ASKED = f"""
CREATE TEMP TABLE trades_asked AS
SELECT d.*, o.operation, o.first_invoke_ns, o.amount_micro AS amount_asked, o.limit_micro AS limit_asked
FROM trades AS d LEFT JOIN (SELECT * FROM operations WHERE action IN {TRADING}) AS o
    ON o.user_id = d.user_id AND o.key = d.idempotency_key
"""


@invariant(group="trades", unit="limits and amounts")
def limits_are_respected(evidence: Evidence) -> Finding:
    """No buy takes more than the limit or amount that was asked for, no sell brings less than its limit."""
    _make_trades_asked(evidence)
    bounded = """
        SELECT *, side = 'buy' AS buys,
            CASE WHEN buys THEN cost_micro + fee_micro ELSE cost_micro - fee_micro END AS total_micro,
            CASE WHEN buys THEN least(limit_micro, limit_asked, amount_micro, amount_asked)
                ELSE greatest(limit_micro, limit_asked) END AS bound_micro
        FROM trades_asked
    """
    return finding(
        evidence,
        examined=f"SELECT count(bound_micro) FROM ({bounded})",
        breaches=f"""
            SELECT trade_id, market_id, market_version, operation, side, total_micro, bound_micro
            FROM ({bounded})
            WHERE CASE WHEN buys THEN total_micro > bound_micro ELSE total_micro < bound_micro END
        """,
    )


@invariant(group="trades", unit="trades and orders")
def nobody_trades_a_closed_market(evidence: Evidence) -> Finding:
    """No trade comes after the closing of its market, by its version or by the clock.

    Examined are the trades of markets that are closed, and the orders for them that came after the closing
    had been acknowledged.
    """
    _make_trades_asked(evidence)
    closings = """
        (SELECT market, min(end_ns) AS closed_ns FROM operations WHERE action = 'close_market'
        GROUP BY market)
    """
    return finding(
        evidence,
        examined=f"""
            SELECT (SELECT count(*) FROM trades SEMI JOIN (
                    SELECT * FROM markets WHERE closed_version IS NOT NULL
                ) USING (market_id)) + (
                SELECT count(*) FROM operations AS o JOIN {closings} AS c USING (market)
                WHERE o.action IN {TRADING} AND o.first_invoke_ns > c.closed_ns AND o.type <> 'ok')
        """,
        breaches=f"""
            SELECT d.trade_id, d.market_id, d.market_version, m.closed_version, d.user_id, d.operation,
                CASE WHEN d.first_invoke_ns > c.closed_ns THEN d.first_invoke_ns END AS invoke_ns,
                CASE WHEN d.first_invoke_ns > c.closed_ns THEN c.closed_ns END AS closed_ns
            FROM trades_asked AS d JOIN markets AS m USING (market_id)
            LEFT JOIN {closings} AS c ON c.market = d.market_id
            WHERE d.market_version > m.closed_version OR d.first_invoke_ns > c.closed_ns
        """,
    )


def _make_trades_asked(evidence: Evidence) -> None:
    if "trades_asked" not in evidence.memo:
        evidence.memo["trades_asked"] = True
        evidence.db.execute(TRADES_ASKED)
