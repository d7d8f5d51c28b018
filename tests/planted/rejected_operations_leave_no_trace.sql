-- Some trades are refused after they have been written: the refusal is answered, the trade stays.
SELECT pg_temp.patch_function(
    'execute_trade_batch', 'v_statuses[i] := 200;',
    'v_statuses[i] := CASE WHEN v_version % 15 = 0 THEN 422 ELSE 200 END;'
);
SELECT pg_temp.patch_function(
    'execute_trade_batch', 'array_to_string(v_trade.prices, '','')
        );',
    'array_to_string(v_trade.prices, '','')
        );
        IF v_statuses[i] = 422 THEN
            v_bodies[i] := problem(''insufficient_funds'', ''reserved meanwhile'');
        END IF;'
);
