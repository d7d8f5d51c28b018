-- A trade that was refused was executed all the same.
UPDATE attempts SET type = 'fail', status = 422, code = 'insufficient_funds'
WHERE trade_id = (SELECT max(trade_id) FROM attempts WHERE type = 'ok');
UPDATE operations SET type = 'fail', status = 422, code = 'insufficient_funds'
WHERE trade_id = (SELECT max(trade_id) FROM operations WHERE type = 'ok');
