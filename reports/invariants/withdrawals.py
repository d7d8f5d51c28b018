"""Chain: what left the vault was asked for, and left it once.

The chain was read when the run had come to rest. Nothing may be under way then: no withdrawal is asked for in
the drain, and it is longer than a payment takes, whatever was broken before.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.money_moved import MOVED
from reports.planted_drift import PLANTED_WORDS


@invariant(group="chain", unit="withdrawals and payments")
def withdrawals_are_paid_once(evidence: Evidence) -> Finding:
    """Each final withdrawal is paid once, as asked for; a returned one is not, nor what nobody asked for.

    In the books its money is reserved once, and leaves them or goes back to its user once. Not the system's
    are the payments that the trial made itself to plant a drift.
    """
    return finding(
        evidence,
        examined="SELECT (SELECT count(*) FROM withdrawals) + (SELECT count(*) FROM chain_payments)",
        breaches=f"""
            WITH moved AS ({MOVED}),
            problems AS ({OF_PAYMENTS} UNION ALL {OF_TRANSACTIONS} UNION ALL {OF_USERS})
            SELECT withdrawal_id, tx_hash, transaction_id, user_id,
                list_sort(list(DISTINCT problem)) AS problems
            FROM problems GROUP BY withdrawal_id, tx_hash, transaction_id, user_id
        """,
    )


OF_PAYMENTS = f"""
    SELECT withdrawal_id, NULL AS tx_hash, NULL AS transaction_id, NULL AS user_id,
        'under way for ever' AS problem
    FROM withdrawals SEMI JOIN chain_head ON true WHERE status NOT IN ('final', 'returned')
    UNION ALL
    SELECT withdrawal_id, NULL, NULL, NULL, 'final, and not paid'
    FROM withdrawals ANTI JOIN chain_payments USING (withdrawal_id) WHERE status = 'final'
    UNION ALL
    SELECT withdrawal_id, max(tx_hash), NULL, NULL, 'paid again'
    FROM chain_payments SEMI JOIN withdrawals USING (withdrawal_id)
    GROUP BY withdrawal_id HAVING count(*) > 1
    UNION ALL
    SELECT withdrawal_id, p.tx_hash, NULL, NULL, 'returned, and paid'
    FROM withdrawals AS w JOIN chain_payments AS p USING (withdrawal_id) WHERE status = 'returned'
    UNION ALL
    SELECT withdrawal_id, p.tx_hash, NULL, NULL, 'not paid as it was asked for'
    FROM withdrawals AS w JOIN chain_payments AS p USING (withdrawal_id)
    WHERE (w.address, w.amount_micro) IS DISTINCT FROM (p.receiver, p.amount_micro)
    UNION ALL
    SELECT withdrawal_id, p.tx_hash, NULL, NULL, 'not paid where the books say'
    FROM withdrawals AS w JOIN chain_payments AS p USING (withdrawal_id) JOIN chain_head AS h ON true
    WHERE status = 'final' AND (p.block_number > h.number - h.confirmations OR
        (w.tx_hash, w.block_number, w.block_hash) IS DISTINCT FROM (p.tx_hash, p.block_number, p.block_hash))
    UNION ALL
    SELECT coalesce(p.withdrawal_id, word), p.tx_hash, NULL, NULL, 'paid, and nobody asked for it'
    FROM chain_payments AS p ANTI JOIN withdrawals AS w ON p.withdrawal_id = w.withdrawal_id
    WHERE word NOT IN ({PLANTED_WORDS})
"""
# One that was paid after it was returned keeps its return as its end: the payment is in its user's sums.
OF_TRANSACTIONS = """
    SELECT withdrawal_id, NULL, transaction_id, w.user_id, 'not reserved by its transaction'
    FROM withdrawals AS w LEFT JOIN moved AS m USING (transaction_id)
    WHERE (m.kind = 'withdraw' AND m.entries = 2 AND m.owner = w.user_id AND m.user_micro = -w.amount_micro
        AND m.in_flight_micro = w.amount_micro) IS NOT TRUE
    UNION ALL
    SELECT withdrawal_id, NULL, end_transaction_id, w.user_id, 'not ended by its transaction'
    FROM withdrawals AS w LEFT JOIN moved AS m ON w.end_transaction_id = m.transaction_id
    WHERE status IN ('final', 'returned')
        AND (m.entries = 2 AND m.in_flight_micro = -w.amount_micro
            AND ((m.kind = 'withdraw_final' AND status = 'final' AND m.outside_micro = w.amount_micro)
                OR (m.kind = 'return_withdraw' AND m.user_micro = w.amount_micro AND m.owner = w.user_id))
        ) IS NOT TRUE
    UNION ALL
    SELECT NULL, NULL, transaction_id, any_value(t.user_id), 'not the reservation of one withdrawal'
    FROM transactions AS t LEFT JOIN withdrawals AS w USING (transaction_id)
    WHERE kind = 'withdraw' GROUP BY transaction_id HAVING count(w.withdrawal_id) <> 1
    UNION ALL
    SELECT max(withdrawal_id), NULL, end_transaction_id, NULL, 'the end of two withdrawals'
    FROM withdrawals WHERE end_transaction_id IS NOT NULL GROUP BY end_transaction_id HAVING count(*) > 1
"""
OF_USERS = """
    SELECT NULL, NULL, NULL, user_id, 'a sum has left the books that is not that of the final withdrawals'
    FROM (
        SELECT user_id, outside_micro AS left_micro FROM moved
        WHERE kind IN ('withdraw_final', 'undo_withdraw')
        UNION ALL
        SELECT user_id, -amount_micro FROM withdrawals WHERE status = 'final'
    )
    GROUP BY user_id HAVING sum(left_micro) <> 0
    UNION ALL
    SELECT NULL, NULL, NULL, user_id, 'a sum is in flight that is not that of the open withdrawals'
    FROM (
        SELECT user_id, in_flight_micro AS flying_micro FROM moved
        UNION ALL
        SELECT user_id, -amount_micro FROM withdrawals WHERE status NOT IN ('final', 'returned')
    )
    GROUP BY user_id HAVING sum(flying_micro) <> 0
"""
