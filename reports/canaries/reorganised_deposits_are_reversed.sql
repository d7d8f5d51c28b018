-- The block of a deposit left the chain, and the user kept the money.
UPDATE deposits SET block_hash = reverse(block_hash) WHERE deposit_id = (
    SELECT max(deposit_id) FROM deposits WHERE status = 'credited'
);
