-- A trade was charged a micro-USDC too much.
UPDATE trades SET cost_micro = cost_micro + 1
WHERE trade_id = (SELECT max(trade_id) FROM trades WHERE side = 'buy');
