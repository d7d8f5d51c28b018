-- A pool holds less than its winners would be owed.
UPDATE trades SET pool_after_micro = 1
WHERE trade_id = (SELECT max(trade_id) FROM trades WHERE market_id = 1);
UPDATE markets SET pool_micro = 1 WHERE market_id = 1;
UPDATE accounts SET balance_micro = 1 WHERE kind = 'market_pool' AND market_id = 1;
