"""What each transaction between the books and the chain moved, by the kind of account, in micro-USDC."""

from __future__ import annotations

# `user_id` is whom the transaction concerns, `owner` whose available balance it changed; a part is 0 where
# no such account has a share in it.
MOVED = """
SELECT transaction_id, t.kind, t.user_id, t.created_at, count(*) AS entries,
    any_value(a.user_id) FILTER (a.kind = 'user_available') AS owner,
    coalesce(sum(credit_micro - debit_micro) FILTER (a.kind = 'user_available'), 0) AS user_micro,
    coalesce(sum(credit_micro - debit_micro) FILTER (a.kind = 'external_onchain'), 0) AS outside_micro,
    coalesce(sum(credit_micro - debit_micro) FILTER (a.kind = 'suspense'), 0) AS suspense_micro,
    coalesce(sum(credit_micro - debit_micro) FILTER (a.kind = 'withdraw_in_flight'), 0) AS in_flight_micro,
    coalesce(sum(credit_micro - debit_micro) FILTER (a.kind = 'suspense_receivable'), 0) AS owed_micro
FROM transactions AS t JOIN entries AS e USING (transaction_id) JOIN accounts AS a USING (account_id)
WHERE t.kind IN ('deposit', 'reverse_deposit', 'settle_receivable', 'withdraw', 'withdraw_final',
    'undo_withdraw', 'return_withdraw')
GROUP BY transaction_id, t.kind, t.user_id, t.created_at
"""
