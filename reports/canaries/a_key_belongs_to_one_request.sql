-- The trade under a key is not the one that was asked for.
UPDATE trades SET limit_micro = 1 WHERE trade_id = (SELECT max(trade_id) FROM trades);
