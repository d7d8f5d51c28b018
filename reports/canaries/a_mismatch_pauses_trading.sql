-- A trade was under way when trading was paused, and was committed after all.
UPDATE transactions SET created_at = (
    SELECT min(changed_at) + INTERVAL 1 MICROSECOND FROM platform_changes WHERE paused
) WHERE transaction_id = (SELECT max(transaction_id) FROM trades);
