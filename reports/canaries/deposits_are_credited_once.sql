-- Two watchers booked one deposit.
INSERT INTO deposits
SELECT * REPLACE (deposit_id + 1000 AS deposit_id) FROM deposits WHERE status = 'credited' LIMIT 1;
