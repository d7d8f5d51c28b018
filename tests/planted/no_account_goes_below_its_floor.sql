-- A buyer's funds are not looked at, and no constraint stands behind the check that was left out.
ALTER TABLE accounts DROP CONSTRAINT balance_keeps_its_floor;
ALTER TABLE ledger_entries DROP CONSTRAINT balance_keeps_its_floor;
SELECT pg_temp.patch_function('quote_trade', 'v_quote.total > p_available', 'false');
