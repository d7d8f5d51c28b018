-- An attempt lost its connection when no fault was in effect.
UPDATE attempts SET type = 'info', status = NULL, error = 'reset'
WHERE complete_ns = (SELECT max(complete_ns) FROM attempts WHERE type = 'ok');
