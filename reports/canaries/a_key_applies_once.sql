-- One key paid twice.
INSERT INTO transactions
SELECT transaction_id + 1000, kind, user_id, idempotency_key, market_id, created_at
FROM transactions WHERE kind = 'fund' LIMIT 1;
