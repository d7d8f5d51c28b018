-- A payment was sent before it was written down, and then the transaction was rolled back.
DELETE FROM withdrawal_attempts WHERE tx_hash = (
    SELECT max(tx_hash) FROM chain_payments WHERE withdrawal_id IS NOT NULL
);
