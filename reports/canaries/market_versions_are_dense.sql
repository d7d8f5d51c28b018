-- A trade is missing between two others.
DELETE FROM trades WHERE market_id = 1 AND market_version = 2;
