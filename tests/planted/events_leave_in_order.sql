-- An event is claimed as soon as it is due, whatever of its aggregate was not delivered before it.
SELECT pg_temp.patch_function(
    'relay_claim', 'AND o.aggregate_id = d.aggregate_id', 'AND o.event_id = d.event_id'
);
