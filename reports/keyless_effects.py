"""What moves money without a key, where there is a chain, and what may have caused it.

A transaction does not name the deposit or withdrawal that it is of, but the rows name theirs, and the sums
agree: what was moved for a user is never more than what the user's rows explain. That it is not less either,
and that the chain agrees, is for the invariants of the chain.
"""

from __future__ import annotations

# Kinds of transactions that nobody asks for by a key.
KEYLESS = (
    "('deposit', 'reverse_deposit', 'assign_deposit', 'settle_receivable', 'withdraw_final', 'undo_withdraw',"
    " 'return_withdraw')"
)

# `moved`: a row a keyless transaction, with what it moved. `explained`: what the rows explain of a kind, by
# user. What was reorganised away may be final, undone and final again, so undoing explains an end, and an end
# that the withdrawal does not show any more explains an undoing.
FLOWS = f"""
    moved AS (
        SELECT transaction_id, t.kind, coalesce(t.user_id, '') AS holder, sum(e.debit_micro) AS amount_micro
        FROM transactions AS t JOIN entries AS e USING (transaction_id)
        WHERE t.kind IN {KEYLESS} AND t.idempotency_key IS NULL GROUP BY transaction_id, t.kind, t.user_id
    ),
    flows AS (
        SELECT kind, holder, amount_micro AS moved_micro, 0 AS explained_micro FROM moved
        WHERE kind IN ('reverse_deposit', 'assign_deposit', 'settle_receivable', 'withdraw_final',
            'undo_withdraw')
        UNION ALL
        SELECT 'reverse_deposit', coalesce(user_id, ''), 0, amount_micro FROM deposits
        WHERE status = 'reversed' AND transaction_id IS NOT NULL
        UNION ALL
        SELECT 'assign_deposit', d.user_id, 0, amount_micro FROM deposits AS d
        JOIN transactions AS t USING (transaction_id) WHERE d.user_id IS NOT NULL AND t.user_id IS NULL
        UNION ALL
        SELECT 'settle_receivable', user_id, 0, amount_micro - owed_micro FROM receivables
        UNION ALL
        SELECT 'withdraw_final', user_id, 0, amount_micro FROM withdrawals WHERE status = 'final'
        UNION ALL
        SELECT 'withdraw_final', holder, 0, amount_micro FROM moved WHERE kind = 'undo_withdraw'
        UNION ALL
        SELECT 'undo_withdraw', holder, 0, amount_micro FROM moved WHERE kind = 'withdraw_final'
        UNION ALL
        SELECT 'undo_withdraw', user_id, 0, -amount_micro FROM withdrawals WHERE status = 'final'
    )
"""

# A withdrawal names the last of its ends; one before that was of the same user, amount and kind of row.
RETURNS = """
    SELECT * FROM moved ANTI JOIN withdrawals AS w
        ON moved.holder = w.user_id AND moved.amount_micro = w.amount_micro
        AND w.end_transaction_id >= moved.transaction_id
    WHERE kind = 'return_withdraw'
"""

# Sent by a client, told by a fault that made or moved it, or cut off before it could be told.
SENT = """
    SELECT d.* FROM deposits AS d
    SEMI JOIN (SELECT lower(tx_hash) AS tx_hash FROM attempts WHERE action = 'deposit') USING (tx_hash)
    UNION
    SELECT d.* FROM deposits AS d JOIN faults AS f ON contains(f.evidence::VARCHAR, d.tx_hash)
    UNION
    SELECT d.* FROM deposits AS d
    JOIN (SELECT * FROM operations WHERE action = 'deposit' AND tx_hash IS NULL) AS o
        ON d.named_user_id = o.user_id AND d.amount_micro = o.amount_micro
"""


def uncaused(new: str) -> str:
    """The query of effects without a cause; `new` is the condition that a transaction is of this run."""
    return f"""
        WITH {FLOWS}
        SELECT nullif(holder, '') AS user_id, kind AS what, transaction_id, NULL AS deposit_id,
            NULL AS moved_micro, NULL AS explained_micro
        FROM moved ANTI JOIN deposits USING (transaction_id) WHERE kind = 'deposit'
        UNION ALL
        SELECT nullif(holder, ''), kind, transaction_id, NULL, NULL, NULL FROM ({RETURNS})
        UNION ALL
        SELECT nullif(holder, ''), kind, NULL, NULL, sum(moved_micro), sum(explained_micro) FROM flows
        GROUP BY holder, kind HAVING sum(moved_micro) > greatest(sum(explained_micro), 0)
        UNION ALL
        SELECT coalesce(user_id, named_user_id), 'deposit that nobody sent', d.transaction_id, deposit_id,
            NULL, NULL
        FROM deposits AS d
        LEFT JOIN (SELECT transaction_id, created_at FROM transactions) USING (transaction_id)
        WHERE deposit_id NOT IN (SELECT deposit_id FROM ({SENT})) AND coalesce({new}, true)
    """
