-- Closing a market counts its version up twice.
SELECT pg_temp.patch_function(
    'api_close_market', 'version = m.version + 1, closed_version = m.version + 1',
    'version = m.version + 2, closed_version = m.version + 2'
);
