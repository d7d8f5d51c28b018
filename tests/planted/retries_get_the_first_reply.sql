-- A replay is rendered again from what was stored, by a library that puts a space after each colon.
SELECT pg_temp.patch_function(
    'execute_trade_batch', 'v_bodies[i] := v_answer.body;',
    'v_bodies[i] := replace(v_answer.body, '':'', '': '');'
);
