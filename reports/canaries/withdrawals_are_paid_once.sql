-- The vault paid half of what was asked for.
UPDATE chain_payments SET amount_micro = amount_micro // 2 WHERE withdrawal_id = (
    SELECT max(withdrawal_id) FROM withdrawals WHERE status = 'final'
);
