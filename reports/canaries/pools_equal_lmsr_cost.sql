-- A market's pool holds a micro-USDC more than the cost of its shares.
UPDATE trades SET pool_after_micro = pool_after_micro + 1
WHERE trade_id = (SELECT max(trade_id) FROM trades WHERE market_id = 1);
UPDATE markets SET pool_micro = pool_micro + 1 WHERE market_id = 1;
UPDATE accounts SET balance_micro = balance_micro + 1 WHERE kind = 'market_pool' AND market_id = 1;
