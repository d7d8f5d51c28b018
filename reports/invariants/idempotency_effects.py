"""Idempotency, from the side of the books: what is in them was asked for, is whole, is what replies told."""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.idempotency import TRADING, in_this_run, prepare
from reports.invariants.registry import Finding, invariant
from reports.keyless_effects import KEYLESS, uncaused

ACKNOWLEDGED = "type = 'ok' AND (key IS NOT NULL OR action = 'create_user')"


@invariant(group="idempotency", unit="acknowledgements")
def acknowledged_operations_are_durable(evidence: Evidence) -> Finding:
    """What was acknowledged is in the books, as the reply told it."""
    return finding(
        evidence,
        examined=f"SELECT count(*) FROM attempts WHERE {ACKNOWLEDGED}",
        breaches=f"""
            WITH told AS (
                SELECT operation, attempt, action, user_id, key, trade_id, transaction_id, market_id,
                    market_version, cost_micro, fee_micro, r_shares_micro, account_version, balance_micro,
                    withdrawal_id, amount_micro,
                    CASE WHEN action = 'fund' THEN to_user ELSE user_id END AS owner, r_user_id
                FROM attempts WHERE {ACKNOWLEDGED}
            ),
            own AS (
                SELECT account_id, user_id AS owner FROM accounts
                WHERE kind = 'user_available' OR (kind = 'house_treasury' AND user_id IS NULL)
            ),
            problems AS (
                SELECT t.*,
                    if(d.trade_id IS NULL, 'no such trade', 'the trade says otherwise') AS problem
                FROM told AS t LEFT JOIN trades AS d USING (trade_id)
                WHERE action IN {TRADING} AND t.withdrawal_id IS NULL
                    AND (d.user_id, d.idempotency_key, d.transaction_id, d.market_id,
                    d.market_version, d.cost_micro, d.fee_micro, d.shares_micro) IS DISTINCT FROM
                    (t.user_id, t.key, t.transaction_id, t.market_id, t.market_version, t.cost_micro,
                    t.fee_micro, t.r_shares_micro)
                UNION ALL
                SELECT t.*, 'no such transaction' FROM told AS t
                LEFT JOIN transactions AS x ON x.transaction_id = t.transaction_id
                WHERE action IN ('fund', 'create_market', 'withdraw') AND
                    (x.user_id, x.idempotency_key, x.kind) IS DISTINCT FROM (t.user_id, t.key, t.action)
                UNION ALL
                SELECT t.*, 'no such market, or not closed by it' FROM told AS t
                LEFT JOIN markets AS m ON m.market_id = t.market_id
                WHERE (action = 'create_market' AND m.market_id IS NULL)
                    OR (action = 'close_market' AND m.closed_version IS DISTINCT FROM t.market_version)
                UNION ALL
                SELECT t.*, if(w.withdrawal_id IS NULL, 'no such withdrawal', 'the withdrawal says otherwise')
                FROM told AS t LEFT JOIN withdrawals AS w USING (withdrawal_id)
                WHERE (action = 'withdraw' OR t.withdrawal_id IS NOT NULL)
                    AND (w.user_id, w.transaction_id, w.amount_micro)
                    IS DISTINCT FROM (t.user_id, t.transaction_id, t.amount_micro)
                UNION ALL
                SELECT t.*, 'no such account' FROM told AS t
                LEFT JOIN own ON own.owner = t.r_user_id
                WHERE action = 'create_user' AND own.owner IS NULL
                UNION ALL
                SELECT t.*, 'no such entry' FROM told AS t
                LEFT JOIN own ON own.owner IS NOT DISTINCT FROM t.owner
                LEFT JOIN entries AS e USING (account_id, account_version)
                WHERE t.account_version IS NOT NULL AND action <> 'create_user'
                    AND (e.transaction_id, e.balance_after_micro) IS DISTINCT FROM
                    (t.transaction_id, t.balance_micro)
            )
            SELECT operation, attempt, any_value(action) AS action, any_value(user_id) AS user_id,
                any_value(key) AS key, min(problem) AS problem, any_value(transaction_id) AS transaction_id,
                any_value(trade_id) AS trade_id, any_value(withdrawal_id) AS withdrawal_id
            FROM problems GROUP BY operation, attempt
        """,
    )


@invariant(group="idempotency", unit="transactions")
def operations_are_all_or_nothing(evidence: Evidence) -> Finding:
    """An effect is whole: transaction, trade, price, entries of its amounts, the answer under its key.

    That of a withdrawal is its row, and its amount from the user into what is in flight. What the system does
    by itself with what is deposited and withdrawn is for the invariants of the chain.
    """
    of_withdrawals = OF_WITHDRAWALS if evidence.has_chain else ""
    return finding(
        evidence,
        examined="SELECT count(*) FROM transactions",
        breaches=f"""
            WITH moved AS (
                SELECT e.transaction_id, count(*) AS entries,
                    sum(credit_micro - debit_micro) FILTER (c.kind = 'user_available') AS user_micro,
                    sum(credit_micro - debit_micro) FILTER (c.kind = 'market_pool') AS pool_micro,
                    coalesce(sum(credit_micro - debit_micro) FILTER (c.kind = 'house_fees'), 0) AS fee_micro,
                    any_value(c.user_id) FILTER (c.kind = 'user_available') AS user_id,
                    any_value(c.market_id) FILTER (c.kind = 'market_pool') AS market_id
                FROM entries AS e JOIN accounts AS c USING (account_id) GROUP BY e.transaction_id
            ),
            problems AS (
                SELECT transaction_id, 'no entries' AS problem FROM transactions ANTI JOIN entries
                    USING (transaction_id)
                UNION ALL
                SELECT transaction_id, 'no transaction' FROM trades ANTI JOIN transactions
                    USING (transaction_id)
                UNION ALL
                SELECT transaction_id, 'no trade' FROM transactions ANTI JOIN trades USING (transaction_id)
                WHERE kind = 'trade'
                UNION ALL
                SELECT transaction_id, 'no market' FROM transactions ANTI JOIN markets USING (market_id)
                WHERE kind = 'create_market'
                UNION ALL
                SELECT transaction_id, 'no price' FROM trades ANTI JOIN prices
                    USING (market_id, market_version)
                UNION ALL
                SELECT x.transaction_id, 'no answer under its key' FROM transactions AS x
                ANTI JOIN idempotency_keys AS k
                    ON x.user_id = k.user_id AND x.idempotency_key = k.idempotency_key
                WHERE x.idempotency_key IS NOT NULL AND {in_this_run(evidence)}
                UNION ALL
                SELECT k.transaction_id, 'an answer without its transaction' FROM idempotency_keys AS k
                ANTI JOIN transactions AS x ON x.transaction_id = k.transaction_id
                    AND x.user_id = k.user_id AND x.idempotency_key = k.idempotency_key
                WHERE k.transaction_id IS NOT NULL
                UNION ALL
                SELECT d.transaction_id, 'its entries are not its cost and fee' FROM trades AS d
                JOIN moved AS m USING (transaction_id)
                WHERE (m.user_id, m.market_id, m.pool_micro, m.fee_micro, m.user_micro) IS DISTINCT FROM
                    (d.user_id, d.market_id, if(d.side = 'buy', d.cost_micro, -d.cost_micro), d.fee_micro,
                    if(d.side = 'buy', -d.cost_micro - d.fee_micro, d.cost_micro - d.fee_micro))
                {of_withdrawals}
            )
            SELECT transaction_id, list_sort(list(DISTINCT problem)) AS problems FROM problems
            GROUP BY transaction_id
        """,
    )


OF_WITHDRAWALS = """
                UNION ALL
                SELECT transaction_id, 'no withdrawal' FROM transactions ANTI JOIN withdrawals
                    USING (transaction_id)
                WHERE kind = 'withdraw'
                UNION ALL
                SELECT transaction_id, 'no transaction' FROM withdrawals
                ANTI JOIN (SELECT transaction_id FROM transactions WHERE kind = 'withdraw')
                    USING (transaction_id)
                UNION ALL
                SELECT transaction_id, 'two withdrawals' FROM withdrawals GROUP BY transaction_id
                HAVING count(*) > 1
                UNION ALL
                SELECT w.transaction_id, 'its entries are not its amount' FROM withdrawals AS w
                JOIN moved AS m USING (transaction_id)
                LEFT JOIN (
                    SELECT transaction_id, credit_micro FROM entries
                    SEMI JOIN (SELECT account_id FROM accounts WHERE kind = 'withdraw_in_flight')
                        USING (account_id)
                ) AS f USING (transaction_id)
                WHERE (m.user_id, m.user_micro, f.credit_micro, m.entries)
                    IS DISTINCT FROM (w.user_id, -w.amount_micro, w.amount_micro, 2)
"""


@invariant(group="idempotency", unit="transactions, keys and closings")
def every_effect_has_a_cause(evidence: Evidence) -> Finding:
    """Nothing is in the books of this run that nobody asked for.

    What a system with a chain does without a key has its cause in its deposits, receivables and withdrawals;
    and a deposit's cause is a client that sent it, or a fault that did.
    """
    prepare(evidence)
    new = in_this_run(evidence)
    keyed = f"idempotency_key IS NOT NULL OR kind NOT IN {KEYLESS}" if evidence.has_chain else "true"
    effects = f"""
        SELECT user_id, idempotency_key AS key, kind AS what, transaction_id, NULL AS market_id
        FROM transactions WHERE {new} AND ({keyed})
        UNION ALL
        SELECT user_id, idempotency_key, 'key', transaction_id, NULL FROM idempotency_keys WHERE {new}
    """
    closed = f"SELECT market_id FROM markets WHERE closed_version IS NOT NULL AND {new}"
    keyless = f"SELECT transaction_id FROM transactions WHERE {new} AND NOT ({keyed})"
    return finding(
        evidence,
        examined=f"""SELECT (SELECT count(*) FROM ({effects})) + (SELECT count(*) FROM ({closed}))
            + (SELECT count(*) FROM ({keyless})) + (SELECT count(*) FROM deposits)""",
        breaches=f"""
            SELECT user_id, key, what, transaction_id, market_id FROM ({effects})
            ANTI JOIN asked USING (user_id, key)
            UNION ALL
            SELECT NULL, NULL, 'closing', NULL, market_id FROM ({closed}) AS m
            ANTI JOIN (SELECT market FROM attempts WHERE action = 'close_market') AS a
                ON m.market_id = a.market
            {f"UNION ALL BY NAME ({uncaused(new)})" if evidence.has_chain else ""}
        """,
    )
