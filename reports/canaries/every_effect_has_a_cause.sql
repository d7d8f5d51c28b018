-- Nobody asked for a transaction that is in the books.
DELETE FROM attempts WHERE trade_id = (SELECT max(trade_id) FROM attempts);
