-- A key is answered with what it was answered before, whatever is asked under it now.
SELECT pg_temp.patch_function(
    'execute_trade_batch', 'IF v_answer.request_hash = p_request_hashes[i] THEN', 'IF true THEN'
);
