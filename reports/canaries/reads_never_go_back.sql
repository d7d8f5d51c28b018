-- A market was read as it had been before a trade that its reader could know of.
UPDATE attempts SET market_version = 0 WHERE action = 'read_market' AND market_id = 1;
UPDATE operations SET market_version = 0 WHERE action = 'read_market' AND market_id = 1;
