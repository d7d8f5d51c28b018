-- The sign is forgotten: a vault that holds more than the books explain is a drift, one with less is none.
SELECT pg_temp.patch_function('reconcile', 'abs(v_run.difference_micro),', 'v_run.difference_micro,');
