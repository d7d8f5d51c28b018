-- A key that was answered is looked at after the trade instead of before: it answers well, and trades again.
DROP INDEX transactions_key;
SELECT pg_temp.patch_function(
    'execute_trade_batch',
    'ELSIF v_answer.status IS NOT null THEN',
    'ELSIF v_answer.status IS NOT null AND (v_answer.status <> 200 OR v_answer.request_hash <> p_request_hashes[i]) THEN'
);
SELECT pg_temp.patch_function(
    'execute_trade_batch', 'WHERE v_stored_at[r.first_use] = r.n;',
    'WHERE v_stored_at[r.first_use] = r.n ON CONFLICT DO NOTHING;
    FOR i IN 1 .. v_count LOOP
        IF (v_answers[i]).request_hash = p_request_hashes[i] THEN
            v_statuses[i] := (v_answers[i]).status;
            v_bodies[i] := (v_answers[i]).body;
            v_replayed[i] := true;
        END IF;
    END LOOP;'
);
