-- A client asked for its whole budget, long after the fault, and its key was in progress each time.
UPDATE operations
SET type = 'info', status = 409, code = 'idempotency_key_in_progress',
    answer_ns = first_invoke_ns + 3_600_000_000_000
WHERE trade_id = (SELECT max(trade_id) FROM operations);
