-- A trade that was acknowledged is gone.
DELETE FROM trades WHERE trade_id = (SELECT max(trade_id) FROM attempts WHERE type = 'ok');
