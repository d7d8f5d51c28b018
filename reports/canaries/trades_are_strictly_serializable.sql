-- Of two trades, one acknowledged before the other began, the later has the lower version.
UPDATE trades SET market_version = 3 - market_version WHERE market_id = 1 AND market_version IN (1, 2);
UPDATE attempts SET market_version = 3 - market_version
WHERE market_id = 1 AND market_version IN (1, 2) AND trade_id IS NOT NULL;
UPDATE operations SET market_version = 3 - market_version
WHERE market_id = 1 AND market_version IN (1, 2) AND trade_id IS NOT NULL;
