-- A trade was executed, and its answer not kept.
DELETE FROM idempotency_keys
WHERE transaction_id = (SELECT max(transaction_id) FROM transactions WHERE kind = 'trade');
