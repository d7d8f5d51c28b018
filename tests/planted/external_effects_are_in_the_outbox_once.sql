-- Of the news of one step each inbox is told one only: nobody wants to be told twice at the same moment.
SELECT pg_temp.patch_function(
    'enqueue_events', 'WHERE num_nonnulls(d.aggregate_type, d.dedup_key) > 0',
    'WHERE d.dedup_key IN (
            SELECT DISTINCT ON (f.aggregate_type, f.aggregate_id) f.dedup_key FROM unnest(p_drafts) AS f
        )'
);
