-- Two relays shared the notices of one user, and the later one was quicker.
UPDATE outbox_events AS e SET delivered_at = e.delivered_at + INTERVAL 1 HOUR
FROM (
    SELECT min(event_id) AS event_id FROM outbox_events WHERE aggregate_type = 'inbox'
    GROUP BY aggregate_id HAVING count(*) > 1
) AS first
WHERE e.event_id = first.event_id;
