-- A withdrawal was paid, and its user was never told.
DELETE FROM deliveries WHERE key = (
    SELECT max(dedup_key) FROM outbox_events WHERE event_type = 'notice.withdrawal_paid'
);
DELETE FROM outbox_events WHERE dedup_key = (
    SELECT max(dedup_key) FROM outbox_events WHERE event_type = 'notice.withdrawal_paid'
);
