-- A notice was marked as delivered before it was sent, and then the relay died.
DELETE FROM deliveries WHERE key = (
    SELECT max(dedup_key) FROM outbox_events WHERE event_type = 'notice.deposit_credited'
);
